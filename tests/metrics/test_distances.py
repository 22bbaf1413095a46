"""Frechet and kernel distance, precision and recall: against other people's code, against loops, and in what they must refuse."""

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.metrics.fid import Statistics, bias_curve, fd_from_features, frechet_distance, metric_name
from mien.metrics.kid import kid_from_features, kid_over_subsets
from mien.metrics.precision_recall import prdc_from_features


def two_sets(n=400, m=500, f=24, seed=0):
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(f, f)) / f**0.5
    return draw.normal(size=(n, f)) @ mix, draw.normal(size=(m, f)) @ (mix + 0.2 * draw.normal(size=(f, f)) / f**0.5) + 0.1


def fd(real, fake):
    return frechet_distance(real=Statistics.of(real), fake=Statistics.of(fake))


def test_frechet_agrees_with_torch_fidelity_and_scipy():
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, fake = two_sets()
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (fake, real)), verbose=False)
    assert fd(real, fake) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    by_scipy = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert fd(real, fake) == pytest.approx(by_scipy, rel=1e-9)
    assert fd_from_features(real=real, fake=fake)["fd"].value == pytest.approx(by_scipy, rel=1e-9)


def test_frechet_of_known_gaussians():
    """Means apart by d, covariances s^2 I and t^2 I: d^2 + F (s - t)^2, on exact statistics."""
    eye = np.eye(5)
    real, fake = Statistics(101, np.zeros(5), 4 * eye * 100), Statistics(101, np.full(5, 0.5), 9 * eye * 100)
    assert frechet_distance(real=real, fake=fake) == pytest.approx(5 * 0.25 + 5 * 1.0, rel=1e-12)


def test_the_same_set_twice_is_at_zero_and_symmetric():
    real, fake = two_sets()
    assert fd(real, real) == pytest.approx(0, abs=1e-9)
    assert fd(real, fake) == pytest.approx(fd(fake, real), rel=1e-9)


def test_statistics_are_float64_even_far_from_zero():
    """float32 sums, as torcheval's, lose this covariance altogether."""
    draw = np.random.default_rng(0).normal(size=(1000, 4))
    shifted = Statistics.of(draw + 1e5)
    np.testing.assert_allclose(shifted.covariance, np.cov(draw, rowvar=False), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spoil, word", [
    (lambda x: x[:20], "too few for 24 features"),
    (lambda x: np.repeat(x[:1], 400, axis=0), "same features"),
    (lambda x: np.repeat(x[:5], 80, axis=0), "few distinct ones"),
    (lambda x: np.where(np.arange(24) == 3, np.nan, x), "NaN or infinite"),
    (lambda x: np.where(np.arange(24) == 3, np.inf, x), "NaN or infinite"),
    (lambda x: x[:1], "at least 2"),
    (lambda x: x[:, :12], "needs the same ones"),
])  # fmt: skip
def test_a_word_in_place_of_a_number(spoil, word):
    real, fake = two_sets()
    with pytest.raises(UserError, match=word):
        fd_from_features(real=real, fake=spoil(fake))


def test_a_dead_feature_is_a_warning_and_few_images_too():
    real, fake = two_sets()
    fake[:, 0] = 0
    found = fd_from_features(real=real, fake=fake)["fd"]
    assert any("23 of the 24" in word for word in found.details["warnings"])
    assert any("bias" in word for word in fd_from_features(real=real[:40], fake=fake[:40] + real[:40])["fd"].details["warnings"])


def test_bias_curve_finds_the_distance_at_infinite_n():
    draw = np.random.default_rng(0)
    f, shift = 16, 0.25
    truth, found, plain = f * shift**2, [], []
    for _ in range(20):
        real, fake = draw.normal(size=(600, f)), draw.normal(size=(600, f)) + shift
        found.append(bias_curve(real=real, fake=fake))
        plain.append(fd(real, fake))
    spread = np.std([e.value for e in found]) / 20**0.5
    assert abs(np.mean([e.value for e in found]) - truth) < 3 * spread < np.mean(plain) - truth
    assert np.mean([e.low < truth < e.high for e in found]) >= 0.85
    counts, values = np.array(found[0].details["curve"]).T
    assert counts[0] == 600 and counts[-1] == 100 and (np.diff(counts) < 0).all() and values[-1] > values[0]
    with pytest.raises(UserError, match="bias curve"):
        bias_curve(real=real[:40], fake=fake[:40])


def test_only_the_fid_inception_gives_fid():
    assert metric_name("fd", "inception") == "fid" and metric_name("fd", "inception-768") == "fd-inception-768"
    assert metric_name("kid", "inception") == "kid" and metric_name("kid", "face") == "kid-face"


# --- KID --------------------------------------------------------------------------------------------------------------


def test_kid_agrees_with_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = two_sets(400, 400)
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    whole = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=400, verbose=False)["kernel_inception_distance_mean"]
    assert kid_from_features(real=real, fake=fake)["kid"].value == pytest.approx(whole, rel=1e-9)
    theirs = kid_features_to_metric(b, a, kid_subsets=20, kid_subset_size=100, verbose=False, rng_seed=2020)
    ours = kid_over_subsets(real=real, fake=fake, subsets=20, size=100, seed=2020)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours.details["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_kid_jackknife_is_the_one_done_by_leaving_out():
    real, fake = two_sets(20, 25, 6)

    def value(x, y):
        return kid_from_features(real=x, fake=y)["kid"].value

    left = [[value(np.delete(real, i, 0), fake) for i in range(20)], [value(real, np.delete(fake, i, 0)) for i in range(25)]]
    by_hand = sum((len(v) - 1) / len(v) * ((np.array(v) - np.mean(v)) ** 2).sum() for v in left) ** 0.5
    assert kid_from_features(real=real, fake=fake)["kid"].details["standard_error"] == pytest.approx(by_hand, rel=1e-9)


def test_kid_is_unbiased_where_frechet_is_not():
    draw = np.random.default_rng(3)
    kids, fds = [], []
    for _ in range(60):
        real, fake = draw.normal(size=(60, 8)), draw.normal(size=(60, 8))
        kids.append(kid_from_features(real=real, fake=fake)["kid"].value)
        fds.append(fd(real, fake))
    assert abs(np.mean(kids)) < 3 * np.std(kids) / 60**0.5
    assert np.mean(fds) > 10 * np.std(fds) / 60**0.5


@pytest.mark.parametrize("spoil, word", [(lambda x: x * np.nan, "NaN"), (lambda x: x[:2], "at least 3"), (lambda x: x[:, :3], "same ones")])
def test_kid_refuses(spoil, word):
    real, fake = two_sets()
    with pytest.raises(UserError, match=word):
        kid_from_features(real=real, fake=spoil(fake))


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


def by_loops(real, fake, k):
    """The four definitions, an image at a time."""
    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    real_radius, fake_radius = [radius(real, i) for i in range(len(real))], [radius(fake, i) for i in range(len(fake))]
    inside = np.array([[np.linalg.norm(f - r) <= real_radius[i] for i, r in enumerate(real)] for f in fake])
    recalled = np.array([[np.linalg.norm(f - r) <= fake_radius[j] for j, f in enumerate(fake)] for r in real])
    return {"precision": inside.any(1).mean(), "recall": recalled.any(1).mean(), "density": inside.sum() / k / len(fake),
            "coverage": inside.any(0).mean()}


def test_precision_and_recall_agree_with_loops_and_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    draw = np.random.default_rng(0)
    real, fake = draw.normal(size=(90, 4)), draw.normal(size=(70, 4)) * 0.7 + 0.8
    ours = prdc_from_features(real=real, fake=fake, k=3)
    for name, value in by_loops(real, fake, 3).items():
        assert ours[name].value == pytest.approx(value, abs=1e-12), name
    assert 0.1 < ours["recall"].value < 0.95 and ours["precision"].value < 1
    theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=3, verbose=False, save_cpu_ram=False)
    assert (ours["precision"].value, ours["recall"].value) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_blocks_change_nothing(monkeypatch):
    from mien.metrics import kid, precision_recall

    real, fake = two_sets(150, 130, 5)
    whole = prdc_from_features(real=real, fake=fake), kid_from_features(real=real, fake=fake)["kid"]
    monkeypatch.setattr(precision_recall, "BLOCK", 37)
    monkeypatch.setattr(kid, "BLOCK", 37)
    small = prdc_from_features(real=real, fake=fake), kid_from_features(real=real, fake=fake)["kid"]
    assert {n: (e.value, e.low, e.high) for n, e in whole[0].items()} == {n: (e.value, e.low, e.high) for n, e in small[0].items()}
    assert (small[1].value, small[1].low) == pytest.approx((whole[1].value, whole[1].low), rel=1e-12)


def test_a_collapsed_set_is_precise_and_recalls_little():
    draw = np.random.default_rng(0)
    real = draw.normal(size=(500, 8))
    fake = real[:3][draw.integers(0, 3, 500)] + 0.01 * draw.normal(size=(500, 8))
    found = prdc_from_features(real=real, fake=fake)
    assert found["precision"].value > 0.95 and found["recall"].high < 0.1 and found["coverage"].high < 0.1


def test_noise_recalls_and_is_not_precise():
    draw = np.random.default_rng(0)
    found = prdc_from_features(real=draw.normal(size=(500, 8)), fake=3 * draw.normal(size=(500, 8)))
    assert found["precision"].value < 0.4 and found["recall"].value > 0.8


def test_precision_refuses_too_few_and_nan():
    real, fake = two_sets()
    with pytest.raises(UserError, match="at least 20"):
        prdc_from_features(real=real, fake=fake[:19])
    with pytest.raises(UserError, match="NaN"):
        prdc_from_features(real=real * np.nan, fake=fake)
