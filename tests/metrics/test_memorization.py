"""Copies are found, and not where there are none; duplicates in data are found."""

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.metrics.memorization import memorization_from_features, nearest


def world(seed=0, f=12):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(n, f)) for n in (600, 1000, 500))  # fake, training, held out


def measure(fake, training, held_out, seed=0):
    return memorization_from_features(fake=fake, training=training, held_out=held_out, fake_names=[f"face {i}" for i in range(len(fake))],
                                      training_names=[f"{i}.jpg" for i in range(len(training))], seed=seed)  # fmt: skip


def test_an_honest_model_is_not_accused():
    accused = 0
    for seed in range(12):
        found = measure(*world(seed))
        accused += found.details["verdict"].startswith("copying")
    assert accused <= 1


def test_a_model_that_copies_is_found_and_its_worst_pairs_named():
    fake, training, held_out = world()
    draw = np.random.default_rng(1)
    copied = draw.permutation(1000)[:60]
    fake[:60] = training[copied] + 0.01 * draw.normal(size=(60, 12))  # one sample in ten
    found = measure(fake, training, held_out)
    assert found.low > 0.07 and found.details["verdict"].startswith("copying") and found.details["share_test_p"] < 1e-6
    worst = {(pair["sample"], pair["training"]) for pair in found.details["worst"]}
    assert len(worst) == 20 and worst <= {(f"face {i}", f"{j}.jpg") for i, j in enumerate(copied)}


def test_lying_nearer_throughout_is_found_without_a_single_copy():
    fake, training, held_out = world()
    near = training[np.random.default_rng(2).permutation(1000)[:600]] + 0.45 * fake
    found = measure(near, training, held_out)
    assert found.details["distance_test_p"] < 1e-6 and found.details["distance_test_z"] < -5 and found.details["cell_test_z"] < -3
    assert found.details["origin_test_p"] < 1e-6 and found.details["held_out_share"] < 0.2 < found.details["held_out_share_expected"]
    assert found.details["verdict"].startswith("copying: ") and "nearest to a sample" in found.details["verdict"]


def test_typical_faces_are_nearer_to_all_real_ones_and_no_copies():
    """Drawn from the middle of the distribution, seeing neither set: nearer to the training images, and as much so to the held-out ones."""
    z = []
    for seed in range(12):
        fake, training, held_out = world(seed)
        found = measure(0.9 * fake, training, held_out)
        z.append(found.details["origin_test_z"])
        assert found.details["distance_test_p"] < 1e-3 and found.details["verdict"].startswith("no sign of copying (samples are nearer")
    assert abs(np.mean(z)) < 1 and 0.4 < np.std(z) < 1.8  # a z


def test_a_poor_model_far_from_everything_does_not_copy():
    fake, training, held_out = world()
    found = measure(fake * 2, training, held_out)
    assert found.value < 0.02 and found.details["verdict"] == "no sign of copying" and found.details["distance_test_z"] > 5


def test_any_seed_will_do():
    """A date and time as a number is one; small ones are what they were."""
    fake, training, held_out = world()
    large, same, other = (measure(fake, training, held_out, seed).details["cell_test_z"] for seed in (2**32 + 3, 3, 4))
    assert large == same != other


def test_held_out_images_are_needed():
    fake, training, held_out = world()
    with pytest.raises(UserError, match="at least 100 held-out"):
        measure(fake, training, held_out[:50])


@pytest.mark.parametrize("held_out, scale", [(100, 1), (100, 0.8), (300, 1), (300, 0.8)])
def test_the_interval_knows_that_the_threshold_is_an_estimate(held_out, scale, monkeypatch):
    """It holds the expected value about as often as it says, be the samples like the reals or nearer; likes of the reals get `expected`."""
    monkeypatch.setattr("mien.metrics.memorization._cell_test", lambda *_: None)  # slow, and of no matter here
    found = []
    for seed in range(80):
        draw = np.random.default_rng([held_out, seed])
        found.append(measure(scale * draw.normal(size=(1500, 4)), draw.normal(size=(300, 4)), draw.normal(size=(held_out, 4))))
    mean = np.mean([one.value for one in found])
    assert np.mean([one.low <= mean <= one.high for one in found]) >= 0.88
    if scale == 1:
        assert mean == pytest.approx((0.01 * (held_out - 1) + 1) / (held_out + 1), rel=0.3) == found[0].details["expected"]


@pytest.mark.parametrize("rounding", [0, 1e-6])
def test_held_out_images_that_are_training_images_hide_no_copies(rounding):
    fake, training, held_out = world()
    held_out[:20] = training[:20] + rounding * held_out[:20]
    honest, copies = measure(fake, training, held_out), measure(training[:600], training, held_out)
    assert honest.details["held_out_copies"] == 20 and honest.details["n_held_out"] == 480
    assert honest.details["verdict"] == "no sign of copying" and 0 < honest.value < 0.05
    assert copies.value == 1 and copies.details["share_test_p"] < 1e-6
    assert measure(*world()).details["held_out_copies"] == 0
    with pytest.raises(UserError, match="there are 50 beside 450 that are training images too"):
        measure(fake, training, np.concatenate([training[:450], held_out[450:]]))


def test_a_handful_of_training_images_is_enough():
    fake, training, held_out = world()
    assert measure(fake, training[:6], held_out).details["n_training"] == 6


def test_nearest_agrees_with_all_distances(monkeypatch):
    from mien.metrics import memorization

    fake, training, _ = world()
    table = torch.cdist(torch.from_numpy(fake), torch.from_numpy(training)).numpy()
    monkeypatch.setattr(memorization, "BLOCK", 77)
    distance, index = nearest(fake, training)
    np.testing.assert_array_equal(index, table.argmin(1))
    np.testing.assert_allclose(distance, table.min(1), rtol=1e-6)
    own, partner = nearest(fake, fake, same=True)
    assert (partner != np.arange(600)).all() and own.min() > 0
