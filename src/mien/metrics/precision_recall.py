"""Fidelity and variety apart: precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2), density and coverage
(Naeem et al. 2020, arXiv:2002.09797, equations 3 and 4).

A set is described by balls around its features, each reaching to the k-th nearest neighbour within the set. precision: share of fakes
inside any real ball. recall: share of reals inside any fake ball. density: real balls around a fake, on average, over k. coverage: share
of real balls with a fake inside. All depend on N, so they are compared at one N, and with their floor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mien.errors import UserError
from mien.metrics.features import check_features
from mien.metrics.protocol import Estimate

NEIGHBOURS = 5
GROUPS = 10
T95 = 2.262  # Student's t at 95 %, GROUPS - 1 degrees of freedom
BLOCK = 1024
NAMES = ("precision", "recall", "density", "coverage")


def prdc_from_features(*, real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS, seed: int = 0) -> dict[str, Estimate]:
    """{'precision', 'recall', 'density', 'coverage'} of features [N, F] and [M, F], with 95 % intervals.

    Distances are Euclidean, float64, in blocks. Intervals: delete-a-group jackknife over ten groups of either side (drawn by `seed`); a
    bootstrap would repeat images and so make empty balls. A value of exactly 0 or 1 gets the rule of three. Raises UserError when a side
    has fewer than 4k rows, or features that are not finite.
    """
    if min(len(real), len(fake)) < 4 * k:
        raise UserError(f"Precision and recall with k = {k} need at least {4 * k} images a side; there are {min(len(real), len(fake))}.")
    x, y = torch.from_numpy(check_features(real)), torch.from_numpy(check_features(fake))
    draw = torch.Generator().manual_seed(seed)
    real_group, fake_group = (torch.randperm(len(side), generator=draw) % GROUPS for side in (x, y))
    real_radii, fake_radii = _radii(x, real_group, k), _radii(y, fake_group, k)
    counts, covered = _inside(y, x, real_radii)                         # [1 + G, M] real balls around each fake
    _, remembered = _inside(x, y, fake_radii)                           # [1 + G, N] whether a fake ball holds each real
    nearest = _nearest_by_group(x, y, fake_group)                       # [G, N] distance of each real's nearest fake in each group
    has_fake = nearest.amin(dim=0) <= real_radii                        # [1 + G, N]
    lost = torch.stack([torch.cat([nearest[:g], nearest[g + 1:]]).amin(dim=0) <= real_radii[0] for g in range(GROUPS)])
    by_fake = {"precision": covered.double(), "density": counts / k}    # means over fakes; reals left out by row
    by_real = {"recall": remembered.double(), "coverage": has_fake.double()}
    values = {name: float(rows[0].mean()) for name, rows in (by_fake | by_real).items()}
    left_real = {name: rows[1:].mean(dim=1) for name, rows in by_fake.items()}
    left_fake = {name: _means_without(rows[0], fake_group) for name, rows in by_fake.items()}
    left_fake |= {"recall": remembered[1:].double().mean(dim=1), "coverage": lost.double().mean(dim=1)}
    left_real["recall"] = _means_without(by_real["recall"][0], real_group)
    left_real["coverage"] = torch.stack([by_real["coverage"][1 + g][real_group != g].mean() for g in range(GROUPS)])
    counted = {"precision": len(y), "density": len(y), "recall": len(x), "coverage": len(x)}
    variances = {name: _variance(left_real[name]) + _variance(left_fake[name]) for name in NAMES}
    return {name: _estimate(name, values[name], variances[name], counted[name], k) for name in NAMES}


def _estimate(name: str, value: float, variance: float, count: int, k: int) -> Estimate:
    half = T95 * variance**0.5
    low, high = max(0.0, value - half), value + half
    if name != "density":
        high = min(1.0, high)
        low = min(low, 1 - 3 / count) if value == 1 else low
        high = max(high, 3 / count) if value == 0 else high
    return Estimate(value=value, low=low, high=high, interval=f"95 %, jackknife over {GROUPS} groups", details={"neighbours": k})


def _variance(left_out: Tensor) -> float:
    return float((GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum())


def _means_without(values: Tensor, group: Tensor) -> Tensor:
    """[G]: the mean of values [N] with each group left out."""
    return torch.stack([values[group != g].mean() for g in range(GROUPS)])


def _radii(x: Tensor, group: Tensor, k: int) -> Tensor:
    """[1 + G, N]: distance to the k-th nearest other point, in the whole set and with each group left out (-1 for those left out)."""
    count = len(x)
    kept = min(count - 1, 4 * k + 8)                                    # enough that k remain after any group is gone
    radii = x.new_empty(1 + GROUPS, count)
    for start in range(0, count, BLOCK):
        rows = torch.arange(start, min(start + BLOCK, count))
        distances = torch.cdist(x[rows], x)                             # [B, N]
        distances[torch.arange(len(rows)), rows] = torch.inf            # a point is not its own neighbour
        near, index = distances.topk(kept, dim=1, largest=False)        # [B, kept], nearest first
        radii[0, rows] = near[:, k - 1]
        for g in range(GROUPS):
            place = ((group[index] != g).cumsum(dim=1) < k).sum(dim=1).clamp(max=kept - 1)
            radii[1 + g, rows] = torch.where(group[rows] == g, -1.0, near.gather(1, place[:, None])[:, 0])
    return radii


def _inside(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """([1 + G, N] count of balls that hold each point, [1 + G, N] whether any does); radii [1 + G, M] of the balls, -1 for none."""
    counts = points.new_empty(len(radii), len(points))
    for start in range(0, len(points), BLOCK):
        distances = torch.cdist(points[start:start + BLOCK], centres)
        for row, radius in enumerate(radii):
            counts[row, start:start + BLOCK] = (distances <= radius).sum(dim=1).to(counts.dtype)
    return counts, counts > 0


def _nearest_by_group(points: Tensor, others: Tensor, group: Tensor) -> Tensor:
    """[G, N]: distance from each point to the nearest of `others` in each group."""
    nearest = points.new_empty(GROUPS, len(points))
    for start in range(0, len(points), BLOCK):
        distances = torch.cdist(points[start:start + BLOCK], others)
        for g in range(GROUPS):
            nearest[g, start:start + BLOCK] = distances[:, group == g].amin(dim=1)
    return nearest
