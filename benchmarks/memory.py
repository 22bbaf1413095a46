"""Memory foreseen by `engine.memory` beside what training takes, for several recipes and batches, each in a process of its own.

    python benchmarks/memory.py [--device cpu] [--steps 4] [--threads 1] [--json]

On the CPU: the peak of the resident set above what the process had before, and in all (Linux; the heap of the C library keeps holes, which
differ between recipes). On a GPU: the allocator's peak. Ratios are foreseen / used; the mark is 15 %.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from typing import Any

import torch

from mien.config import resolve
from mien.engine import build, memory
from mien.engine.schedules import knobs_at
from mien.engine.step import train_step
from mien.rules import settle

NARROW = ("model.generator.width=64", "model.discriminator.width=64")
RECIPES: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "seed3": (("model.generator.width=256", "model.discriminator.width=256"), (32, 64)),
    "seed0-cpu": ((), (32, 96)),
    "demo": ((), (16, 64)),
    "stable64-cpu": ((), (16, 32)),
    "resnet64-cpu": ((), (16, 48)),
    "r3-64-cpu": ((), (16, 32)),
    "style64-cpu": ((), (16, 32)),
    "wgan-gp": (NARROW, (8, 16)),
}


def compare(preset: str, overrides: list[str], options: argparse.Namespace, answers: Any) -> None:
    """Put {what: MB} of one recipe into `answers`."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = resolve(preset, overrides).config
    names = ["Male", "Smiling"] if recipe.data.attributes is None else recipe.data.attributes
    store = memory.noise_store(names, size_px=64, count=recipe.train.batch)
    config, _ = settle(recipe, store.size)
    told = memory.forecast(config, store, device=device).memory
    before = 0 if device.type == "cuda" else memory.resident_bytes()
    task = build.build_task(config, store, device)
    state = build.build_state(config, size=store.size, attributes=len(names), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak of the resident set begins anew
    for _ in range(options.steps):
        train_step(state, task, knobs_at(task.config, state.nimg))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    answers.put({"foreseen_step_mb": (told.above_base + told.data) / 1e6, "used_step_mb": (peak - before) / 1e6,
                 "foreseen_total_mb": told.total / 1e6, "used_total_mb": peak / 1e6})  # fmt: skip


def resident_peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork" if options.device == "cpu" else "spawn")  # CUDA cannot be forked
    rows = []
    for preset, (overrides, batches) in RECIPES.items():
        for batch in batches:
            answers = context.SimpleQueue()
            child = context.Process(target=compare, args=(preset, [*overrides, f"train.batch={batch}"], options, answers))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{preset} at batch {batch} failed")
            rows.append({"preset": preset, "batch": batch, **answers.get()})
            if not options.json:
                print(line(rows[-1]), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


def line(row: dict[str, Any]) -> str:
    step, total = (row[f"foreseen_{part}_mb"] / row[f"used_{part}_mb"] for part in ("step", "total"))
    return (f"{row['preset']:14} batch {row['batch']:3}   step {row['foreseen_step_mb']:7.0f} v {row['used_step_mb']:7.0f} MB {step:5.2f}"
            f"   in all {row['foreseen_total_mb']:7.0f} v {row['used_total_mb']:7.0f} MB {total:5.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
