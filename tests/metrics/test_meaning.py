"""Each score moves when it should, in the right direction, and the others stay: toy faces, degraded in known ways."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mien.metrics.features import build_extractor, extract
from mien.metrics.fid import fd_from_features
from mien.metrics.kid import kid_from_features
from mien.metrics.latent_quality import collapse_verdict, diversity_from_features, twins
from mien.metrics.memorization import memorization_from_features
from mien.metrics.precision_recall import prdc_from_features

N = 600


def blur(images):
    return F.avg_pool2d(F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), 3, stride=1).round().to(torch.uint8)


def noise(images):
    added = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 20
    return (images.float() + added).round().clamp(0, 255).to(torch.uint8)


def shift(images):
    return torch.roll(images, 2, dims=3)


def jpeg(images):
    def again(image):
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, format="JPEG", quality=75)
            return np.asarray(Image.open(file).convert("RGB")).copy()

    return torch.from_numpy(np.stack([again(image) for image in images.permute(0, 2, 3, 1).numpy()])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def world(toys):
    """Reals, other reals (the floor), a third set to train on; and their features in the random network's space."""
    sets = {name: toys.draw(toys.rows(N, seed), seed) for name, seed in (("real", 21), ("other", 22), ("training", 23))}
    extractor = build_extractor("random")
    return sets, {name: extract(extractor, images) for name, images in sets.items()}, extractor


def distances(real, fake):
    return fd_from_features(real=real, fake=fake)["fd"], kid_from_features(real=real, fake=fake)["kid"]


def test_the_same_set_is_at_zero_and_other_reals_at_the_floor(world):
    _, features, _ = world
    fd, kid = distances(features["real"], features["real"])
    assert fd.value == pytest.approx(0, abs=1e-9) and kid.value < 0
    fd, kid = distances(features["real"], features["other"])
    again, _ = distances(features["real"], features["training"])
    assert fd.low <= again.value <= fd.high and kid.low < 0 < kid.high


@pytest.mark.parametrize("harm", [blur, noise, shift, jpeg])
def test_degraded_images_are_farther_than_the_floor(world, harm):
    sets, features, extractor = world
    floor_fd, floor_kid = distances(features["real"], features["other"])
    fd, kid = distances(features["real"], extract(extractor, harm(sets["other"])))
    assert fd.low > floor_fd.high, (harm.__name__, fd, floor_fd)
    assert kid.low > 0 and kid.value > floor_kid.high


def test_more_blur_is_worse(world):
    sets, features, extractor = world
    once, twice = blur(sets["other"]), blur(blur(blur(sets["other"])))
    values = [distances(features["real"], extract(extractor, images))[0].value for images in (sets["other"], once, twice)]
    assert values[0] < values[1] < values[2]


def test_noise_costs_precision_and_dropping_a_combination_recall(world, toys):
    sets, features, extractor = world
    floor = prdc_from_features(real=features["real"], fake=features["other"])
    noisy = prdc_from_features(real=features["real"], fake=extract(extractor, noise(noise(sets["other"]))))
    assert noisy["precision"].high < floor["precision"].low and noisy["density"].high < floor["density"].low
    rows = toys.rows(4 * N, 24)
    women = rows[rows[:, 0] == 0][:N]  # no man is ever drawn
    dropped = prdc_from_features(real=features["real"], fake=extract(extractor, toys.draw(women, 25)))
    assert dropped["recall"].high < floor["recall"].low and dropped["coverage"].high < floor["coverage"].low
    assert dropped["precision"].high > floor["precision"].low  # each face is as good as before


def test_a_dropped_combination_moves_the_distances(world, toys):
    _, features, extractor = world
    rows = toys.rows(4 * N, 24)
    fd, kid = distances(features["real"], extract(extractor, toys.draw(rows[rows[:, 0] == 0][:N], 25)))
    assert fd.low > distances(features["real"], features["other"])[0].high and kid.low > 0


def test_mode_collapse_keeps_precision_and_loses_recall_and_variety(world):
    sets, features, extractor = world
    few = sets["other"][:8][torch.arange(N) % 8]
    jitter = torch.randint(0, 3, few.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = extract(extractor, (few.int() + jitter).clamp(0, 255).to(torch.uint8))
    found, floor = (prdc_from_features(real=features["real"], fake=x) for x in (fake, features["other"]))
    assert found["recall"].high < floor["recall"].low / 2 and found["coverage"].high < floor["coverage"].low / 2
    assert found["precision"].value > 0.8
    share = twins(real=features["real"], fake=fake)
    variety = diversity_from_features(real=features["real"], fake=fake)["diversity"]
    assert share.low > 0.9
    assert collapse_verdict(diversity=variety, twin_share=share, by_combination={}).startswith("collapsed")
    share = twins(real=features["training"], fake=features["other"])
    variety = diversity_from_features(real=features["training"], fake=features["other"])["diversity"]
    assert share.low < 0.01 < share.high and variety.low < 1 < variety.high
    assert collapse_verdict(diversity=variety, twin_share=share, by_combination={}).startswith("varied")


def test_narrow_is_said_of_half_the_variety(world):
    _, features, _ = world
    middle = features["other"].mean(axis=0)
    narrow = middle + 0.7 * (features["other"] - middle)
    variety = diversity_from_features(real=features["real"], fake=narrow)["diversity"]
    share = twins(real=features["real"], fake=features["other"])
    assert variety.value == pytest.approx(0.7, abs=0.05)
    assert collapse_verdict(diversity=variety, twin_share=share, by_combination={}).startswith("narrow")
    one_dead = collapse_verdict(diversity=variety, twin_share=share, by_combination={"Male=1": diversity_from_features(
        real=features["real"], fake=middle + 0.2 * (features["other"] - middle))["diversity"]})  # fmt: skip
    assert one_dead.startswith("collapsed for Male=1")


def test_training_images_as_samples_move_memorization_alone(world):
    _, features, _ = world
    copied = features["training"]
    fd, kid = distances(features["real"], copied)
    floor_fd, _ = distances(features["real"], features["other"])
    assert fd.low <= floor_fd.value <= fd.high and kid.low < 0 < kid.high  # no distance sees it
    floor, found = (prdc_from_features(real=features["real"], fake=x)["precision"] for x in (features["other"], copied))
    assert found.high > floor.low
    names = [str(i) for i in range(N)]
    for fake, verdict in ((copied, "copying"), (features["other"], "no sign of copying")):
        said = memorization_from_features(fake=fake, training=features["training"], held_out=features["real"], fake_names=names,
                                          training_names=names).details["verdict"]  # fmt: skip
        assert said.startswith(verdict)


def test_blur_is_not_copying(world):
    sets, features, extractor = world
    names = [str(i) for i in range(N)]
    said = memorization_from_features(fake=extract(extractor, blur(sets["other"])), training=features["training"], fake_names=names,
                                      held_out=features["real"], training_names=names)  # fmt: skip
    assert said.details["verdict"] == "no sign of copying"
