"""What the signals, the probe and the diagnosis cost: a run that watches against one that does not, on this machine.

    python benchmarks/signals_cost.py [--preset seed0-cpu] [--width 128] [--batch 32] [--rounds 40] [--threads 1]

Both sides train the same recipe on drawn faces through the loop's own parts. "all" keeps a step's signals, and at each tick measures the
weight change, reads the meter, probes where it is due and diagnoses (balance.mode watch). "none" only trains; it keeps the gradients'
norms, which clipping needs. Sides take turns a few steps
at a time, so that a machine that slows down slows both; the costly rare things, a tick and a probe, are timed apart and spread over their
periods, as medians of single events are steadier than sums over a long run. Times are of the process's own (CPU), and of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mien.config import Config, resolve
from mien.data.store import FaceStore
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.data.writer import write_store
from mien.engine import build, step
from mien.engine.diagnosis import observe
from mien.engine.schedules import knobs_at
from mien.engine.signals import SignalMeter
from mien.engine.state import TrainState
from mien.engine.task import Task

STEPS = 2  # of each side in one turn
NAMES = ("Male", "Smiling")
Clock = Callable[[], float]


class Side:
    """One run: its state, and how it makes a step."""

    def __init__(self, config: Config, store: FaceStore, *, watches: bool):
        device = torch.device("cpu")
        self.config, self.watches, self.meter = config, watches, SignalMeter()
        self.task: Task = build.build_task(config, store, device)
        self.state: TrainState = build.build_state(config, size=store.size, attributes=len(self.task.data.attribute_names), device=device)
        self.probe_again()

    def probe_again(self) -> None:
        self.seen = self.task.probe.look(self.state, 0.0) if self.task.probe else {}

    def step(self, *, measure: bool = False) -> None:
        told = (step.discriminator_signals, step.generator_signals)
        if not self.watches:
            step.discriminator_signals = step.generator_signals = lambda **tensors: {}
        try:
            signals = step.train_step(self.state, self.task, knobs_at(self.config, self.state.nimg), measure=measure)
        finally:
            step.discriminator_signals, step.generator_signals = told
        if self.watches:
            self.meter.add(signals)

    def tick(self) -> None:
        values = {**self.meter.read(), **self.seen}
        patience_nimg = round(1000 * self.config.balance.patience_kimg)
        self.state.history = observe(self.state.history, self.state.nimg, values, patience_nimg=patience_nimg)


def timed(work: Callable[[], None], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def measure(config: Config, store: FaceStore, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each event, in every round. Events: none and all (a step), measured (one that measures weights), tick, probe."""
    sides = {"none": Side(config, store, watches=False), "all": Side(config, store, watches=True)}
    watching = sides["all"]
    for side in sides.values():
        side.step(measure=side.watches)
        side.step()
    took: dict[str, list[float]] = {name: [] for name in ("none", "all", "measured", "tick", "probe")}
    for turn in range(rounds):
        order = ("none", "all") if turn % 2 == 0 else ("all", "none")
        best = {name: min(timed(sides[name].step, clock) for _ in range(STEPS)) for name in order}  # the lesser: what others took is out
        for name in order:
            took[name].append(best[name])
        if turn % 4 == 0:
            took["measured"].append(timed(lambda: watching.step(measure=True), clock) - best["all"])
            took["tick"].append(timed(watching.tick, clock))
            took["probe"].append(timed(watching.probe_again, clock))
    return took


def report(took: dict[str, list[float]], config: Config, name: str) -> str:
    plain_s, batch = statistics.median(took["none"]), config.train.batch
    ratio = statistics.median(watched / plain for watched, plain in zip(took["all"], took["none"]))
    ticks = 1000 * config.train.tick_kimg / batch  # steps from one to the next
    probes = 1000 * config.balance.probe_kimg / batch
    per_step = {
        "signals of each step": (ratio - 1) * plain_s,
        "weight change, at ticks": max(0.0, statistics.median(took["measured"])) / ticks,
        "reading and diagnosis, at ticks": statistics.median(took["tick"]) / ticks,
        "probe": statistics.median(took["probe"]) / probes if probes else 0.0,
    }
    lines = [f"{name}: {1000 * plain_s:.1f} ms a step; probe {1000 * statistics.median(took['probe']):.0f} ms every {probes:g} steps"]
    lines += [f"    {what:33s} {100 * seconds / plain_s:+6.2f} %" for what, seconds in per_step.items()]
    return "\n".join([*lines, f"  all / none {1 + sum(per_step.values()) / plain_s:.4f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed0-cpu")
    parser.add_argument("--width", type=int, help="of both networks; the preset's own without it")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = ["balance.mode=watch"] if options.preset.startswith("stable") else []
    if options.width:
        overrides += [f"model.{net}.width={options.width}" for net in ("generator", "discriminator")]
    if options.batch:
        overrides.append(f"train.batch={options.batch}")
    config = resolve(options.preset, overrides).config
    with tempfile.TemporaryDirectory() as folder:
        store = drawn(Path(folder) / "store")
        for name, clock in (("CPU time", time.process_time), ("clock", time.perf_counter)):
            print(report(measure(config, store, options.rounds, clock), config, f"{options.preset}, {name}"), flush=True)


def drawn(path: Path) -> FaceStore:
    """512 toy faces with the presets' two attributes, an eighth of them for validation."""
    images, attributes = draw_faces(512, size=64)
    columns = [TOY_ATTRIBUTES.index(name) for name in NAMES]
    splits = (np.arange(len(images)) % 8 == 7).astype(np.uint8)
    names, source = [f"{i}.png" for i in range(len(images))], [{"name": "drawn", "count": len(images)}]
    return write_store(path, images=images, attributes=attributes[:, columns], attribute_names=NAMES, splits=splits, names=names,
                       crop="square", source=source)  # fmt: skip


if __name__ == "__main__":
    main()
