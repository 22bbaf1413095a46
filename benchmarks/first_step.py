"""From the start of `mien train STORE`, a new process, to the end of its first step, on the CPU; and what the time goes on.

    python benchmarks/first_step.py [STORE] [--starts 5] [--preset seed0-cpu] [--threads 2]

The clock starts before the process does. Beside it stands processor time, which other work on the machine disturbs less; both are medians,
the whole with its range. A first start, which compiles the modules and brings files into the system's cache, is not counted. Without a
store, one of toy faces is drawn. The process is stopped after its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROLE = "MIEN_BENCHMARK_STARTED_S"
PHASES = ("interpreter and command line", "torch", "mien's engine", "store", "run and networks", "grid of samples", "first step", "other")


def child(arguments: list[str]) -> None:
    """The process that is timed: `mien train` with a clock at a few of its calls. Prints {phase: [clock, processor] in s} at its end."""
    began = (float(os.environ[ROLE]), 0.0)  # Unix time: the parent took it before this process was there
    spent: dict[str, list[float]] = {}

    def now() -> tuple[float, float]:
        return time.time(), time.process_time()

    def note(phase: str, since: tuple[float, float]) -> None:
        spent[phase] = [after - before for after, before in zip(now(), since)]

    def timed(place: Any, name: str, phase: str, *, last: bool = False) -> None:
        inner: Callable[..., Any] = getattr(place, name)

        def outer(*values: Any, **named: Any) -> Any:
            since = now()
            result = inner(*values, **named)
            note(phase, since)
            if last:
                note("all", began)
                print(json.dumps(spent), flush=True)
                os._exit(0)
            return result

        setattr(place, name, outer)

    from mien.apps.cli.main import app

    note("interpreter and command line", began)
    since = now()
    import torch  # noqa: F401 (timed)

    note("torch", since)
    since = now()
    from mien.data import store
    from mien.engine import loop, recording, session

    note("mien's engine", since)
    timed(store, "open_store", "store")
    timed(session, "open_session", "run and networks")
    timed(recording.SampleGrid, "draw", "grid of samples")
    timed(loop, "train_step", "first step", last=True)
    app(["train", *arguments])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", nargs="?", type=Path, help="a prepared store")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--preset", default="seed0-cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    starts: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        store = options.store
        if store is None:
            store = Path(temporary) / "store"
            subprocess.run([sys.executable, "-m", "mien", "data", "synth", "--out", str(store)], check=True, capture_output=True)
        # As on a user's machine, modules are compiled once and kept, whatever this shell says: without that imports take twice as long.
        usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        usual["PYTHONPYCACHEPREFIX"] = str(Path(temporary) / "bytecode")
        for number in range(options.starts + 1):
            command = [sys.executable, __file__, str(store), "--preset", options.preset, "--device", "cpu"]
            command += ["--run", str(Path(temporary) / f"run{number}")]
            environment = {**usual, "OMP_NUM_THREADS": str(options.threads), ROLE: repr(time.time())}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"mien train did not reach its first step: {done.stderr.strip()}")
            starts.append(json.loads(done.stdout.splitlines()[-1]))
    for each in starts:
        each["other"] = [each["all"][kind] - sum(spent[kind] for phase, spent in each.items() if phase != "all") for kind in (0, 1)]
    counted = starts[1:]
    print(f"{options.preset}, {options.starts} starts, medians; {store.name}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':30}{'clock':>9}{'processor':>12}")
    for phase in PHASES:
        clock, processor = (statistics.median(each.get(phase, [0.0, 0.0])[kind] for each in counted) for kind in (0, 1))
        print(f"{phase:30}{clock:8.2f}s{processor:11.2f}s")
    for kind, name in enumerate(("clock", "processor")):
        seconds = sorted(each["all"][kind] for each in counted)
        print(f"start to first step, {name:9} {statistics.median(seconds):8.2f}s  ({seconds[0]:.2f} to {seconds[-1]:.2f})")


if __name__ == "__main__":
    child(sys.argv[1:]) if ROLE in os.environ else main()
