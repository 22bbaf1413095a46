"""What the latent does: variety of the samples, smoothness of the way between them, and whether the model has collapsed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mien.errors import UserError
from mien.intervals import Z95, wilson
from mien.metrics.face_sets import SEED_STRIDE
from mien.metrics.features import check_features
from mien.metrics.memorization import nearest
from mien.metrics.protocol import Estimate

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

BLOCK = 1024
TWIN_QUANTILE = 0.01  # reals' nearest-neighbour distances: two samples nearer than this are twins
SAME = 1e-6  # of the features' size: distances below it are rounding
COLLAPSED = 0.5  # of the reals' diversity
NARROW = 0.85
MANY_TWINS = 0.2
STEP = 0.05  # of the way between two latents: wide enough that 8-bit pixels change


def mean_distance(features: np.ndarray) -> tuple[float, float]:
    """(mean Euclidean distance between two different rows of [N, F], its standard error by the delete-one jackknife)."""
    x = torch.from_numpy(check_features(features, least=3))
    rows = []
    for start in range(0, len(x), BLOCK):
        distances = torch.cdist(x[start:start + BLOCK], x)
        distances.diagonal(start).zero_()  # rounding leaves something of a point's distance to itself
        rows.append(distances.sum(dim=1))
    sums = torch.cat(rows).numpy()
    n, total = len(x), float(sums.sum())
    without = (total - 2 * sums) / ((n - 1) * (n - 2))
    return total / (n * (n - 1)), float(np.sqrt((n - 1) * without.var()))


def diversity_from_features(*, real: np.ndarray, fake: np.ndarray) -> dict[str, Estimate]:
    """{'diversity': mean distance between two fakes over that between two reals}: 1 is as varied as the data, 0 is one face.

    Raises UserError when the reals are all alike.
    """
    (of_fake, fake_error), (of_real, real_error) = mean_distance(fake), mean_distance(real)
    if of_real <= SAME * float(np.abs(real).max()):
        raise UserError(f"All {len(real):,} real images have the same features: there is no variety to compare with.")
    ratio = of_fake / of_real
    half = Z95 * float(np.hypot(fake_error, ratio * real_error)) / of_real
    return {"diversity": Estimate(value=ratio, low=max(0.0, ratio - half), high=ratio + half, interval="95 %, jackknife")}


def twins(*, real: np.ndarray, fake: np.ndarray) -> Estimate:
    """Share of samples with another sample nearer than the nearest 1 % of reals have another real: 0.01 is what the data have.

    The birthday test for a small support (Arora & Zhang 2017, arXiv:1706.08224), with a measured threshold. Both sides are cut to one N.
    """
    count = min(len(real), len(fake))
    of_real, _ = nearest(real[:count], real[:count], same=True)
    of_fake, _ = nearest(fake[:count], fake[:count], same=True)
    hits = int((of_fake <= np.quantile(of_real, TWIN_QUANTILE)).sum())
    low, high = wilson(hits / count, count)
    return Estimate(value=hits / count, low=low, high=high, interval="95 %, Wilson", details={"expected": TWIN_QUANTILE})


def collapse_verdict(*, diversity: Estimate, twin_share: Estimate, by_combination: dict[str, Estimate]) -> str:
    """One sentence: 'collapsed: ...', 'narrow: ...' or 'varied: ...'. Judged by the intervals, so a small sample is not called narrow."""
    def at_most(estimate: Estimate, bound: float) -> bool:
        return (estimate.high if estimate.high is not None else estimate.value) < bound

    worst = min(by_combination.items(), key=lambda item: item[1].value, default=None)
    numbers = f"{diversity.value:.2f} of the reals' variety, {twin_share.value:.1%} of the samples have a twin"
    if at_most(diversity, COLLAPSED) or (twin_share.low or 0) > MANY_TWINS:
        return f"collapsed: {numbers}"
    if worst is not None and at_most(worst[1], COLLAPSED):
        return f"collapsed for {worst[0]} ({worst[1].value:.2f} of the reals' variety there); over all {numbers}"
    return f"narrow: {numbers}" if at_most(diversity, NARROW) else f"varied: {numbers}"


def path_length(generator: LoadedGenerator, conditions: np.ndarray, extractor: Callable[[Tensor], Tensor], *, scale: float, seed: int = 0,
                truncation: float = 1.0) -> Estimate:
    """Perceptual path length: E[(d(G(z_t), G(z_t+e)) / e)^2], z_t on the arc between two latents, t uniform, e = 0.05 (StyleGAN, Karras et
    al. 2019, arXiv:1812.04948, section 4.1), one pair of latents for each row of conditions [N, A], which stays as it is.

    d is the distance in features over `scale` (the mean distance between two reals), so 1 is a straight way between two faces as unlike as
    reals are; lower is smoother. The step is wider than the paper's, because images are quantised as saved. Interval: of the mean.
    """
    from mien.explore.interpolate import slerp
    from mien.explore.latents import latents, truncated
    from mien.explore.sample import render

    count = len(conditions)
    first = seed * SEED_STRIDE
    generator, z = truncated(generator, latents(range(first, first + 2 * count), generator.z_dim), truncation)
    start, end = z[:count], z[count:]
    t = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed % 2**64)) * (1 - STEP)
    rows = torch.from_numpy(conditions.astype(np.float32))
    before, after = (np.asarray(extractor(render(generator, slerp(start, end, at), rows)), dtype=np.float64) for at in (t, t + STEP))
    lengths = ((before - after) ** 2).sum(axis=1) / (scale * STEP) ** 2
    half = Z95 * float(lengths.std(ddof=1)) / count**0.5
    return Estimate(value=float(lengths.mean()), low=max(0.0, float(lengths.mean()) - half), high=float(lengths.mean()) + half,
                    interval="95 %, of the mean", details={"step": STEP, "pairs": count})
