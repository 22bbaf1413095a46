"""Several processes against one, at the same global batch and on the same cores: images a second, in turns, and the ratio.

    python benchmarks/processes.py [--preset seed3] [--width 256] [--batch 64] [--processes 2] [--steps 6] [--rounds 5]

One process uses all cores as threads; P processes use a P-th each and gloo between them. Both stay alive all the time and wait while the
other side steps, so that a machine that slows down slows both; the ratio is the median over rounds of images/s of P over those of one.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROLE = "MIEN_BENCHMARK_ROLE"


def work(folder: Path, options: argparse.Namespace) -> None:
    """One process of a side: takes `steps` steps each time that it is told to on stdin, and says how long they took."""
    import torch

    from mien.config import resolve
    from mien.data.store import open_store
    from mien.engine import build, distributed
    from mien.engine.schedules import knobs_at
    from mien.engine.signals import SignalMeter
    from mien.engine.step import train_step

    width = f"width={options.width}"
    overrides = [f"model.generator.{width}", f"model.discriminator.{width}", f"train.batch={options.batch}", "data.attributes=[]"]
    device, store = torch.device("cpu"), open_store(folder / "store")
    if distributed.processes() == 1:
        torch.set_num_threads(options.cores)
    with distributed.joined(device) as ranks:
        torch.set_num_threads(max(1, options.cores // ranks.size))
        task = build.build_task(resolve(options.preset, overrides).config, store, device, ranks=ranks)
        state = build.build_state(task.config, size=store.size, attributes=len(task.data.attribute_names), device=device)
        meter = SignalMeter()
        for _ in iter(sys.stdin.readline, ""):
            began_s = time.perf_counter()
            for _ in range(options.steps):
                ranks.agree(distributed.GO)  # as the loop does before each step
                meter.add(train_step(state, task, knobs_at(task.config, state.nimg)))
            print(time.perf_counter() - began_s, flush=True)


class Side:
    """The processes of one side."""

    def __init__(self, folder: Path, count: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        meeting = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {**os.environ, ROLE: str(folder), **meeting}
        self._children = [subprocess.Popen([sys.executable, *sys.argv], env={**environment, "RANK": str(rank)}, text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE) for rank in range(count)]  # fmt: skip

    def seconds(self) -> float:
        for child in self._children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        return max(float(child.stdout.readline()) for child in self._children if child.stdout)

    def end(self) -> None:
        for child in self._children:
            child.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed3")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=6, help="steps of each side in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if ROLE in os.environ:
        work(Path(os.environ[ROLE]), options)
        return
    import numpy as np

    from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
    from mien.data.writer import write_store

    with tempfile.TemporaryDirectory() as name:
        images, attributes = draw_faces(512, size=64)
        names, source = [f"{i}.png" for i in range(len(images))], [{"name": "drawn", "count": len(images)}]
        write_store(Path(name) / "store", images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES,
                    splits=np.zeros(len(images), np.uint8), names=names, crop="square", source=source)  # fmt: skip
        sides = {1: Side(Path(name), 1), options.processes: Side(Path(name), options.processes)}
        for side in sides.values():
            side.seconds()  # warm-up
        rates: dict[int, list[float]] = {count: [] for count in sides}
        for _ in range(options.rounds):
            for count, side in sides.items():
                rates[count].append(options.steps * options.batch / side.seconds())
        for side in sides.values():
            side.end()
    ratios = sorted(many / one for many, one in zip(rates[options.processes], rates[1]))
    if options.json:
        print(json.dumps({"images_per_s": rates, "ratios": ratios}))
        return
    print(f"{options.preset}, width {options.width}, batch {options.batch}, 64 px, {options.cores} cores")
    for count, each in rates.items():
        print(f"  {count} x {max(1, options.cores // count)} threads {statistics.median(each):8.1f} images/s"
              f"  (min {min(each):.1f}, max {max(each):.1f})")
    print(f"  ratio {statistics.median(ratios):.2f}  (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
