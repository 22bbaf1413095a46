"""The stated 95 % intervals hold the expected value about as often as they say: simulations with Gaussian features."""

import numpy as np
import pytest

from mien.intervals import wilson
from mien.metrics.fid import fd_from_features
from mien.metrics.kid import kid_from_features
from mien.metrics.latent_quality import diversity_from_features
from mien.metrics.precision_recall import prdc_from_features

DRAWS = 120


def coverage(function, sample, least_sure=0.9):
    """{metric: share of draws whose interval holds the mean over all draws}."""
    found = [function(*sample(seed)) for seed in range(DRAWS)]
    shares = {}
    for name in found[0]:
        truth = np.mean([estimates[name].value for estimates in found])
        shares[name] = np.mean([estimates[name].low <= truth <= estimates[name].high for estimates in found])
    return shares


def apart(n, f, gap):
    def sample(seed):
        draw = np.random.default_rng([7, seed])
        return draw.normal(size=(n, f)), (1 + gap) * draw.normal(size=(n, f)) + gap

    return sample


@pytest.mark.parametrize("n, f, gap", [(200, 8, 0.3), (200, 8, 0.0), (150, 60, 0.1)])
def test_frechet_and_kid(n, f, gap):
    def both(real, fake):
        return fd_from_features(real=real, fake=fake) | kid_from_features(real=real, fake=fake)

    shares = coverage(both, apart(n, f, gap))
    assert all(share >= 0.9 for share in shares.values()), shares
    if gap == 0.3:  # away from the floor the interval is not merely wide
        assert all(share <= 0.99 for share in shares.values()), shares


@pytest.mark.parametrize("gap", [0.3, 0.0])
def test_precision_recall_density_coverage(gap):
    shares = coverage(lambda real, fake: prdc_from_features(real=real, fake=fake), apart(250, 6, gap))
    assert all(share >= 0.88 for share in shares.values()), shares


def test_diversity():
    shares = coverage(lambda real, fake: diversity_from_features(real=real, fake=fake), apart(150, 6, 0.2))
    assert 0.9 <= shares["diversity"] <= 0.99, shares


def test_interval_halves_with_four_times_the_images():
    widths = []
    for n in (200, 800):
        estimates = [fd_from_features(real=r, fake=f)["fd"] for r, f in (apart(n, 8, 0.3)(seed) for seed in range(10))]
        widths.append(np.mean([e.high - e.low for e in estimates]))
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)


def test_wilson_knows_its_textbook_values():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=2e-4)
