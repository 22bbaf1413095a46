"""Clocks, rounds and the machine's own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

PEAK_S = 1.0  # how long each kind of matrix product is timed
SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # of the square matrices


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """{"median", "min", "max"}."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def matmul_peak(device: torch.device, dtype: torch.dtype, *, for_s: float = PEAK_S) -> float:
    """The best rate of products of square matrices seen in `for_s` seconds, in multiply-adds/s."""
    side = SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = a @ b  # warms up
    begun, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begun < for_s:
        best = min(best, seconds(lambda: torch.mm(a, b, out=out), device))
    return side**3 / best


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and its measured peaks, in 10^9 multiply-adds/s."""
    from mien.engine.build import describe_machine

    peaks = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {f"matmul_{name}_gmacs_per_s": matmul_peak(device, dtype) / 1e9 for name, dtype in peaks.items()}
    return {**describe_machine(device), **rates}
