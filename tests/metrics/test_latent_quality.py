"""Diversity, path length and the way between latents."""

import numpy as np
import pytest

from mien.errors import UserError
from mien.metrics.features import build_extractor
from mien.metrics.latent_quality import diversity_from_features, mean_distance, path_length


def test_mean_distance_agrees_with_all_pairs():
    x = np.random.default_rng(0).normal(size=(50, 5))
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(50) for j in range(i)]
    assert mean_distance(x)[0] == pytest.approx(np.mean(pairs), rel=1e-9)


@pytest.mark.parametrize("size", [1, 1000])
def test_reals_that_are_all_alike_are_no_yardstick(size):
    draw = np.random.default_rng(0)
    fake, real = draw.normal(size=(300, 8)), np.repeat(size * draw.normal(size=(1, 8)), 300, axis=0)
    with pytest.raises(UserError, match="All 300 real images have the same features"):
        diversity_from_features(real=real, fake=fake)
    assert diversity_from_features(real=fake, fake=real)["diversity"].value == pytest.approx(0, abs=1e-6 * size)


def test_a_jumpy_generator_has_a_longer_path(toys):
    class Jumpy(type(toys.generator().net)):
        def forward(self, z, attributes):
            return super().forward((z * 4).round() * 1.0, attributes)  # the same variety, in steps

    rows, extractor = toys.rows(200, 0)[:, :2], build_extractor("pixels")
    smooth, jumpy = (path_length(toys.generator(net=net), rows, extractor, scale=1.0)
                     for net in (None, Jumpy(("Male", "Smiling"))))  # fmt: skip
    assert jumpy.low > smooth.high > 0


def test_no_two_seeds_share_a_face_of_the_path(toys, monkeypatch):
    import mien.explore.latents as numbered

    drawn, latents = [], numbered.latents
    monkeypatch.setattr(numbered, "latents", lambda seeds, z_dim: drawn.append(set(seeds)) or latents(seeds, z_dim))
    rows, extractor = toys.rows(16, 0)[:, :2], build_extractor("pixels")
    values = [path_length(toys.generator(), rows, extractor, scale=1.0, seed=seed).value for seed in (0, 1, 2**32, 2**64 + 1)]
    assert drawn[0] == set(range(32)) and len(set.union(*drawn)) == 4 * 32 and len(set(values)) == 4


def test_a_longer_yardstick_makes_a_shorter_path(toys):
    rows, extractor = toys.rows(64, 0)[:, :2], build_extractor("pixels")
    one, two = (path_length(toys.generator(), rows, extractor, scale=scale).value for scale in (1.0, 2.0))
    assert one == pytest.approx(4 * two, rel=1e-9)
