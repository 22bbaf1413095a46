"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, section 4), in float64.

It is called FID only with the 2048 features of the 2015-12-05 Inception; with any other features it is `fd-<features>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mien.errors import UserError
from mien.intervals import Z95
from mien.metrics.features import check_features
from mien.metrics.protocol import Estimate

CURVE_POINTS = 6  # of the bias curve


def metric_name(metric: str, features: str) -> str:
    """'fid', 'kid', 'precision' ... with the features these are defined with; 'fd-<features>', 'kid-<features>' ... with all others."""
    if features == "inception":
        return "fid" if metric == "fd" else metric
    return f"{metric}-{features}"


@dataclass(frozen=True)
class Statistics:
    """Count, mean [F] and scatter [F, F] (sum of outer products about the mean) of a set of features, float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        """features [N, F], any float. Raises UserError for features that are not finite, or fewer than two rows."""
        x = check_features(features)
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    @property
    def covariance(self) -> np.ndarray:
        """[F, F], divided by N - 1."""
        return self.scatter / (self.count - 1)

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [F] of the covariance, rising, not below 0, and its eigenvectors [F, F] in columns."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.clip(values, 0, None), vectors

    @property
    def rank(self) -> int:
        """How many directions the features vary in, to float64's accuracy."""
        values, _ = self.spectrum
        rounding = (1e-11 * np.abs(self.mean).max()) ** 2  # what the mean's own rounding leaves of constant features
        return int((values > max(values.max() * len(values) * np.finfo(np.float64).eps, rounding)).sum())

    @property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance, [F, F]."""
        values, vectors = self.spectrum
        return (vectors * np.sqrt(values)) @ vectors.T


@dataclass(frozen=True)
class _Transport:
    """The distance and the linear maps of optimal transport between the two Gaussians, from which its derivative follows."""

    value: float
    to_real: np.ndarray  # [F, F], carries the fake Gaussian's shape to the real one
    to_fake: np.ndarray


def frechet_distance(*, real: Statistics, fake: Statistics) -> float:
    """|mean difference|^2 + tr(S_real + S_fake - 2 (S_real^1/2 S_fake S_real^1/2)^1/2), float64, by symmetric eigendecompositions.

    Raises UserError when a set has no more images than features (its covariance is singular, and the distance mostly tells N), when all
    its features are constant, or when one covariance has less than half the other's rank.
    """
    _check(real, fake)
    root = real.root
    return _distance(real, fake, np.linalg.eigvalsh(root @ fake.covariance @ root))


def fd_from_features(*, real: np.ndarray, fake: np.ndarray) -> dict[str, Estimate]:
    """{'fd': Estimate} from features [N, F] and [M, F]; float64.

    The interval is for the distance expected at these N and M (the bias in N is part of the protocol, not of the interval): by the delta
    method, from the derivative of the distance in each sample. With Gaussian features it covers 94 to 100 % of the time, and is wider
    than need be where real and fake agree (tests/metrics/test_intervals.py). Raises UserError as `frechet_distance`.
    """
    real_statistics, fake_statistics = Statistics.of(real), Statistics.of(fake)
    transport = _transport(real_statistics, fake_statistics)
    variance = 0.0
    for features, mine, other, carry in ((fake, fake_statistics, real_statistics, transport.to_real),
                                         (real, real_statistics, fake_statistics, transport.to_fake)):
        centred = np.asarray(features, dtype=np.float64) - mine.mean
        influence = 2 * centred @ (mine.mean - other.mean) + (centred**2).sum(axis=1) - ((centred @ carry) * centred).sum(axis=1)
        variance += influence.var(ddof=1) / len(centred)
    half = Z95 * float(np.sqrt(variance))
    details: dict[str, object] = {"warnings": warnings(real_statistics, fake_statistics)}
    return {"fd": Estimate(value=transport.value, low=max(0.0, transport.value - half), high=transport.value + half,
                           interval="95 %, delta method, at this N", details=details)}


def warnings(real: Statistics, fake: Statistics) -> list[str]:
    """What a reader of the distance should know of its inputs; often nothing."""
    found = []
    size = len(real.mean)
    if min(real.count, fake.count) < 2 * size:
        found.append(f"only {min(real.count, fake.count):,} images for {size} features: much of the distance is bias")
    if fake.rank < real.rank:
        found.append(f"the fake features vary in {fake.rank} of the {real.rank} directions in which the real ones do")
    return found


def bias_curve(*, real: np.ndarray, fake: np.ndarray, seed: int = 0) -> Estimate:
    """The distance at infinite N: FD_N = FD_inf + c / N to first order (Chong & Forsyth 2020, arXiv:1911.07023, section 3).

    Both sets are cut into as many disjoint parts of N images as there are, for six N from all down to a sixth (or twice the features);
    a line through the mean distances over 1/N gives the value at 0. details['curve']: [[N, distance], ...]. Raises UserError when
    N < 3 x features.
    """
    count, size = min(len(real), len(fake)), real.shape[1]
    least = max(2 * size, count // 6)
    if count < 3 * size:
        raise UserError(f"The bias curve needs at least {3 * size:,} images a side for {size} features, and there are {count:,}.")
    order = np.random.default_rng(seed)
    shuffled_real, shuffled_fake = real[order.permutation(len(real))[:count]], fake[order.permutation(len(fake))[:count]]
    curve = []
    for inverse in np.linspace(1 / count, 1 / least, CURVE_POINTS):
        n = min(count, round(1 / inverse))
        parts = [slice(start, start + n) for start in range(0, count - n + 1, n)]
        distances = [frechet_distance(real=Statistics.of(shuffled_real[p]), fake=Statistics.of(shuffled_fake[p])) for p in parts]
        curve.append((n, float(np.mean(distances)), len(parts)))
    n, y, weight = np.array(curve).T
    design = np.stack([np.ones_like(n), 1 / n], axis=1) * np.sqrt(weight)[:, None]
    solution, *_ = np.linalg.lstsq(design, y * np.sqrt(weight), rcond=None)
    at_all = fd_from_features(real=shuffled_real, fake=shuffled_fake)["fd"]
    shift = float(solution[0]) - at_all.value
    assert at_all.low is not None and at_all.high is not None
    return Estimate(value=float(solution[0]), low=at_all.value - (at_all.high - at_all.value) + shift, high=at_all.high + shift,
                    interval="95 %, delta method, moved to infinite N", details={"curve": [[int(a), b] for a, b, _ in curve]})


def _transport(real: Statistics, fake: Statistics) -> _Transport:
    _check(real, fake)
    root = real.root
    values, vectors = np.linalg.eigh(root @ fake.covariance @ root)
    roots = np.sqrt(np.clip(values, 0, None))
    inverse = np.where(roots > roots.max() * 1e-7, 1 / np.maximum(roots, 1e-300), 0.0)  # directions one side lacks are left out
    to_real = root @ ((vectors * inverse) @ vectors.T) @ root
    real_values, real_vectors = real.spectrum
    kept = real_values > real_values.max() * 1e-12
    inverse_root = (real_vectors * np.where(kept, 1 / np.sqrt(np.where(kept, real_values, 1.0)), 0.0)) @ real_vectors.T
    to_fake = inverse_root @ ((vectors * roots) @ vectors.T) @ inverse_root
    return _Transport(_distance(real, fake, values), to_real, to_fake)


def _distance(real: Statistics, fake: Statistics, product_values: np.ndarray) -> float:
    step = real.mean - fake.mean
    traces = np.trace(real.covariance) + np.trace(fake.covariance)
    return max(0.0, float(step @ step + traces - 2 * np.sqrt(np.clip(product_values, 0, None)).sum()))


def _check(real: Statistics, fake: Statistics) -> None:
    """A clear word in place of a number that would tell of the sample, not of the faces."""
    if real.mean.shape != fake.mean.shape:
        raise UserError(f"The two sides have {len(real.mean)} and {len(fake.mean)} features; a distance needs the same ones.")
    for role, side in (("real", real), ("fake", fake)):
        if side.rank == 0:
            raise UserError(f"All {side.count:,} {role} images have the same features: there is no distribution to measure.")
        if side.count <= len(side.mean):
            raise UserError(f"{side.count:,} {role} images are too few for {len(side.mean)} features: the covariance is singular. "
                            f"Take more than {len(side.mean):,} images, or features of fewer numbers, or KID.")
    poor, rich = (("fake", "real") if fake.rank < real.rank else ("real", "fake"))
    ranks = {"real": real.rank, "fake": fake.rank}
    if ranks[poor] < ranks[rich] / 2:
        raise UserError(f"The {poor} features vary in {ranks[poor]} directions, the {rich} ones in {ranks[rich]}: "
                        f"the {poor} images are few distinct ones repeated, and a Frechet distance would not say so.")
