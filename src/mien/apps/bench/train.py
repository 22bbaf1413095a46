"""A recipe's training step: how fast, where the time goes, how near to the machine's limit, how much memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mien.apps.bench.timing import seconds, spread, synchronize
from mien.config import Config
from mien.data.store import FaceStore
from mien.engine import build, memory
from mien.engine import step as step_module
from mien.engine.schedules import knobs_at
from mien.engine.signals import peak_memory_mb
from mien.engine.state import TrainState
from mien.engine.task import Task

ROUND_S = 2.0  # at least one step
ROUNDS = 5
PARTS_S = 4.0


def measure_training(
    config: Config, store: FaceStore, device: torch.device, peaks: dict[str, Any], *, profile: Path | None
) -> dict[str, Any]:
    """`config`, settled, trained on `store` for some seconds. Units are in the names; macs are multiply-adds."""
    told = memory.forecast(config, store, device=device)
    config = told.config
    task = build.build_task(config, store, device)
    state = build.build_state(config, size=store.size, attributes=len(task.data.attribute_names), device=device)
    knobs = knobs_at(config, 0)

    def step() -> None:
        step_module.train_step(state, task, knobs)

    def several(count: int) -> None:
        for _ in range(count):
            step()

    warm_s = seconds(step, device)
    steps = max(1, round(ROUND_S / seconds(step, device)))
    images = steps * config.train.batch * knobs.d_steps
    rates, busy = [], []
    for _ in range(ROUNDS):
        worked = time.process_time()
        took_s = seconds(lambda: several(steps), device)
        rates.append(images / took_s)
        busy.append((time.process_time() - worked) / took_s)
    rate = statistics.median(rates)
    macs = macs_per_image(config, store, device)
    found: dict[str, Any] = {
        "batch": config.train.batch,
        "precision": config.train.precision,
        "steps_per_round": steps,
        "rounds": ROUNDS,
        "images_per_s": spread(rates),
        "s_per_kimg": 1000 / rate,
        "first_step_s": warm_s,
        "macs_per_image": macs,
        "gmacs_per_s": rate * macs / 1e9,
    }
    found |= {f"share_of_{name}_peak": rate * macs / 1e9 / peaks[f"matmul_{name}_gmacs_per_s"] for name in ("fp32", "bf16")}
    found["ms_per_step_by_part"] = parts(state, task, device)
    found["idle_share"] = idle_share(step, device, statistics.median(busy))
    found["memory_peak_mb"] = peak_memory_mb(device) * 2**20 / 1e6
    found["memory_predicted"] = told.memory.plain()
    if profile is not None:
        found["profile"] = trace(step, device, profile)
    return found


# --- arithmetic -------------------------------------------------------------------------------------------------------


class Arithmetic(TorchDispatchMode):
    """Counts the multiply-adds of the operations inside that torch knows to count: matrix products, convolutions and their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.macs += count(*args, **(kwargs or {}), out_val=result) / 2
        return result


def macs_per_image(config: Config, store: FaceStore, device: torch.device) -> float:
    """Multiply-adds of matrix products and convolutions for each real image, as the operations of real steps count them.

    Forward, backward and double-backward passes, of G and of D; a penalty that is due every k-th update counts a k-th. Few images
    are put through, which weighs what does not grow with them (spectral norm's iterations) a little too much.
    """
    few = memory.least_piece(config)
    names = build.attribute_names(config, store)
    small = memory.shrunk(config, batch=few, piece=None)
    task = build.build_task(small, memory.noise_store(names, size_px=store.size, count=few), device)
    state = build.build_state(task.config, size=store.size, attributes=len(names), device=device)
    knobs = knobs_at(task.config, 0)
    path = config.regularizer.path_length
    periods = [every for _, _, every in task.penalties] + ([path.every] if path.gamma > 0 else [])
    counted: dict[tuple[bool, ...], float] = {}
    total, cycle = 0.0, math.lcm(1, *periods)
    for first in range(0, cycle * knobs.d_steps, knobs.d_steps):
        due = tuple(update % every == 0 for update in range(first, first + knobs.d_steps + 1) for every in periods)
        if due not in counted:
            state.nimg = first * few
            with Arithmetic() as arithmetic:
                step_module.train_step(state, task, knobs)
            counted[due] = arithmetic.macs
        total += counted[due]
    return total / cycle / (few * knobs.d_steps)


# --- where the time goes ----------------------------------------------------------------------------------------------


class Clock:
    """Seconds spent in named parts; a part inside another is taken off the outer one."""

    def __init__(self, device: torch.device):
        self.device, self.spent_s, self._inside = device, dict[str, float](), list[float]()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        synchronize(self.device)
        start = time.perf_counter()
        self._inside.append(0.0)
        yield
        synchronize(self.device)
        took = time.perf_counter() - start
        self.spent_s[name] = self.spent_s.get(name, 0.0) + took - self._inside.pop()
        if self._inside:
            self._inside[-1] += took

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*args, **named)

        return run


def parts(state: TrainState, task: Task, device: torch.device) -> dict[str, float]:
    """Milliseconds of a step in each part, the device waited for at each boundary, over a period of the penalties if that is short.

    "penalties" is their forward and first backward pass; the second is in "discriminator".
    """
    clock = Clock(device)
    task = replace(task, penalties=tuple((name, clock.timed("penalties", penalty), every) for name, penalty, every in task.penalties))
    with mock.patch.object(task.data, "batch", clock.timed("data", task.data.batch)), \
            mock.patch.object(step_module, "update_d", clock.timed("discriminator", step_module.update_d)), \
            mock.patch.object(step_module, "update_g", clock.timed("generator", step_module.update_g)), \
            mock.patch.object(step_module, "average", clock.timed("average", step_module.average)), \
            mock.patch.object(state.opt_d, "step", clock.timed("optimisers", state.opt_d.step)), \
            mock.patch.object(state.opt_g, "step", clock.timed("optimisers", state.opt_g.step)):  # fmt: skip
        state.nimg, steps, begun = 0, 0, time.perf_counter()
        period = math.lcm(1, *(every for _, _, every in task.penalties))
        while steps == 0 or (time.perf_counter() - begun < PARTS_S and steps < max(period, 4)):
            with clock.part("rest"):
                step_module.train_step(state, task, knobs_at(task.config, 0))
            steps += 1
    order = ("data", "discriminator", "penalties", "generator", "optimisers", "average", "rest")
    return {name: 1000 * clock.spent_s[name] / steps for name in order if name in clock.spent_s}


def idle_share(step: Callable[[], None], device: torch.device, busy: float) -> float:
    """How much of the time the device does nothing: a GPU's from its kernels' durations, the CPU's from processor time / threads."""
    if device.type != "cuda":
        return max(0.0, 1 - busy / torch.get_num_threads())
    from torch.profiler import ProfilerActivity, profile

    plain_s = seconds(step, device)
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        step()
        synchronize(device)
    return max(0.0, 1 - sum(event.self_device_time_total for event in watched.key_averages()) / 1e6 / plain_s)


def trace(step: Callable[[], None], device: torch.device, folder: Path) -> dict[str, Any]:
    """A profile of three steps: `train.json` in `folder`, for chrome://tracing or Perfetto, and the operations that took longest."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])], record_shapes=True) as watched:
        for _ in range(3):
            step()
        synchronize(device)
    watched.export_chrome_trace(str(folder / "train.json"))
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [(event.key, event.count, getattr(event, spent)) for event in watched.key_averages()]
    whole = sum(took for *_, took in rows) or 1.0
    top = sorted(rows, key=lambda row: -row[2])[:15]
    return {"trace": str(folder / "train.json"), "top": [{"operation": name, "calls_per_step": count / 3, "ms_per_step": took / 3000,
                                                          "share": took / whole} for name, count, took in top]}  # fmt: skip
