"""Faces by number: latent 1234 is the same on every machine, whatever is drawn beside it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mien.errors import UserError

CONDITION_STREAM = 1  # of `uniforms`: a face's attributes are drawn apart from its latent


def latents(seeds: Iterable[int], z_dim: int) -> Tensor:
    """float32 [N, z_dim], row i ~ N(0, 1) and a function of seeds[i] alone. Raises UserError for a negative seed.

    PCG64's integers, which numpy promises never to change (torch's and numpy's own normal draws may), through the normal
    distribution's inverse. A longer z_dim begins with the shorter one's numbers.
    """
    return torch.special.ndtri(torch.from_numpy(uniforms(seeds, z_dim))).float()


def uniforms(seeds: Iterable[int], count: int, *, stream: int = 0) -> np.ndarray:
    """float64 [N, count] in (0, 1); row i depends on seeds[i] and `stream` alone, and streams are independent of one another."""
    rows = []
    for seed in seeds:
        if seed < 0:
            raise UserError(f"Seed {seed} is negative: faces are numbered from 0.")
        rows.append(np.random.PCG64([int(seed), stream]).random_raw(count))
    raw = np.array(rows, dtype=np.uint64).reshape(-1, count)
    return ((raw >> np.uint64(11)) + 0.5) * 2.0**-53  # 53 bits, never 0 or 1


def chosen(seeds: Iterable[int], shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """int64 [N]: which of K alternatives each face gets, i with probability shares[i] / sum; a function of seeds[i] and `shares` alone."""
    u = uniforms(seeds, 1, stream=CONDITION_STREAM)[:, 0]
    return at_shares(u, shares)


def at_shares(u: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """int64 [N]: the alternative within whose share of 0..1 each u lies. A distribution's inverse."""
    parts = np.asarray(shares, dtype=np.float64)
    return np.searchsorted(np.cumsum(parts / parts.sum())[:-1], u, side="right")
