"""Kernel distance: the squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018, arXiv:1801.01401, section 4).

Unbiased at any N, so it stands beside the Frechet distance. It is called KID only with the 2048 features of the 2015-12-05 Inception.
"""

from __future__ import annotations

import numpy as np

from mien.errors import UserError
from mien.intervals import Z95
from mien.metrics.features import check_features
from mien.metrics.protocol import Estimate

BLOCK = 1024  # rows of the kernel matrix held at a time


def kid_from_features(*, real: np.ndarray, fake: np.ndarray) -> dict[str, Estimate]:
    """{'kid': Estimate}: unbiased MMD^2 over all pairs of features [N, F] and [M, F]; may fall below 0 by chance.

    k(x, y) = (x.y / F + 1)^3. Every pair is used: the expectation of the usual mean over subsets, with less noise. The standard error
    (details['standard_error']) is the delete-one jackknife of both sides, in closed form from the kernel's row sums; it errs to the wide
    side where real and fake agree (Efron & Stein 1981). Raises UserError for features that are not finite, or fewer than 3 rows.
    """
    x, y = check_features(real, least=3), check_features(fake, least=3)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"The two sides have {x.shape[1]} and {y.shape[1]} features; a distance needs the same ones.")
    m, n = len(x), len(y)
    in_x, in_y = _row_sums(x, x) - _diagonal(x), _row_sums(y, y) - _diagonal(y)
    across_x, across_y = _row_sums(x, y), _row_sums(y, x)
    mean_x, mean_y, mean_across = in_x.sum() / (m * (m - 1)), in_y.sum() / (n * (n - 1)), across_x.sum() / (m * n)
    without_x = (in_x.sum() - 2 * in_x) / ((m - 1) * (m - 2)) + mean_y - 2 * (across_x.sum() - across_x) / ((m - 1) * n)
    without_y = (in_y.sum() - 2 * in_y) / ((n - 1) * (n - 2)) + mean_x - 2 * (across_y.sum() - across_y) / ((n - 1) * m)
    error = float(np.sqrt((m - 1) * without_x.var() + (n - 1) * without_y.var()))
    value = float(mean_x + mean_y - 2 * mean_across)
    return {"kid": Estimate(value=value, low=value - Z95 * error, high=value + Z95 * error, interval="95 %, jackknife",
                            details={"standard_error": error})}


def kid_over_subsets(*, real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Estimate:
    """The usual published form: the mean of the unbiased MMD^2 over random subsets of `size`; details['std'] is the spread between them.

    The spread is not a standard error of the mean (subsets overlap), so there is no interval. Raises UserError when a side has fewer.
    """
    if min(len(real), len(fake)) < size:
        raise UserError(f"KID over subsets of {size:,} needs at least as many images a side; there are {min(len(real), len(fake)):,}.")
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        some_real, some_fake = draw.choice(len(real), size, replace=False), draw.choice(len(fake), size, replace=False)
        x, y = np.asarray(real[some_real], dtype=np.float64), np.asarray(fake[some_fake], dtype=np.float64)
        inside = (_row_sums(x, x) - _diagonal(x)).sum() + (_row_sums(y, y) - _diagonal(y)).sum()
        values.append(inside / (size * (size - 1)) - 2 * _row_sums(x, y).mean() / size)
    return Estimate(value=float(np.mean(values)), interval="none",
                    details={"std": float(np.std(values)), "subsets": subsets, "subset_size": size})


def _row_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N]: sum over y of k(x_i, y), in blocks, so that memory does not grow with N^2."""
    sums = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        kernel = x[start:start + BLOCK] @ y.T / x.shape[1] + 1  # [B, M]
        sums[start:start + BLOCK] = (kernel * kernel * kernel).sum(axis=1)
    return sums


def _diagonal(x: np.ndarray) -> np.ndarray:
    return ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
