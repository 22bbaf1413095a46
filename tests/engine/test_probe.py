"""The probe: each signal on generators and discriminators whose sickness is made by hand, and that looking changes nothing."""

import copy

import pytest
import torch
from torch import nn

from engine.conftest import tiny_recipe
from engine.test_resume import assert_same_bits, train
from mien.data.loader import FaceLoader
from mien.engine import build
from mien.engine.probe import combination_label, evaluating, nearest, spread

CPU = torch.device("cpu")


class Painter(nn.Module):
    """A generator by hand: `paint(z [N, 8], attributes [N, A]) -> [N, 3]`, one colour a face."""

    z_dim = 8

    def __init__(self, paint):
        super().__init__()
        self.paint = paint

    def forward(self, z, attributes):
        return self.paint(z, attributes)[:, :, None, None].expand(-1, -1, 32, 32).clamp(-1, 1)


class Critic(nn.Module):
    """A discriminator by hand, from its logits; its features are the pixels."""

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def features(self, images, attributes):
        return images.flatten(1)

    def head(self, features, attributes):
        return self.judge(features)


def varied(z, attributes):
    return 0.4 * z[:, :3] + 0.3 * attributes[:, :1] + 0.1 * attributes[:, 1:2]


@pytest.fixture(scope="module")
def healthy(store):
    """(probe, state) with an untrained D; G is by hand."""
    config = tiny_recipe().config
    state = build.build_state(config, size=store.size, attributes=2, device=CPU)
    return build.build_task(config, store, CPU).probe, state


def look(healthy, paint, *, D=None, nimg=1000):
    probe, state = healthy
    state = copy.copy(state)
    state.G, state.D, state.nimg = Painter(paint), D if D is not None else state.D, nimg
    return probe.look(state, 0.0)


def test_varied_faces_that_heed_their_condition(healthy):
    seen = look(healthy, varied)
    assert seen["diversity_pixels"] > 0.5 and seen["nearest"] > 0.3 and seen["diversity_features"] > 0.2
    assert seen["response/Male"] == pytest.approx(3 * seen["response/Smiling"], rel=0.05)
    assert min(seen[f"diversity/{label}"] for label in ("none", "Male", "Smiling", "Male+Smiling")) > 0.5


def test_a_generator_that_ignores_its_latent_is_collapsed(healthy):
    seen = look(healthy, lambda z, attributes: varied(torch.zeros_like(z), attributes))
    assert max(seen[name] for name in seen if name.startswith("diversity/")) < 1e-3
    assert seen["nearest"] < 1e-3


def test_one_face_for_all_has_no_diversity(healthy):
    seen = look(healthy, lambda z, attributes: torch.zeros(len(z), 3))
    assert seen["diversity_pixels"] == seen["diversity_features"] == seen["nearest"] == 0


def test_the_collapse_of_one_combination_shows_there_alone(healthy):
    def paint(z, attributes):
        return varied(torch.where((attributes.sum(1, keepdim=True) == 2), torch.zeros_like(z), z), attributes)

    seen = look(healthy, paint)
    assert seen["diversity/Male+Smiling"] < 1e-3
    assert min(seen["diversity/none"], seen["diversity/Male"], seen["diversity/Smiling"], seen["diversity_pixels"]) > 0.4


def test_a_generator_that_ignores_an_attribute_does_not_answer_to_it(healthy):
    seen = look(healthy, lambda z, attributes: varied(z, torch.stack([attributes[:, 0], torch.zeros(len(z))], 1)))
    assert seen["response/Smiling"] == 0 and seen["response/Male"] > 0.1


def test_faces_that_come_in_twins_lower_nearest_and_hardly_their_spread(healthy):
    def twins(z, attributes):
        return varied(z.view(-1, 2, 8)[:, :1].expand(-1, 2, 8).reshape(-1, 8) if len(z) % 2 == 0 else z, attributes)

    single, double = look(healthy, varied), look(healthy, twins)
    assert double["nearest"] < 1e-3 < 0.2 * single["nearest"]
    assert double["diversity_pixels"] == pytest.approx(single["diversity_pixels"], rel=0.25)


def test_movement_is_per_thousand_images_and_begins_with_the_second_look(healthy):
    probe, state = healthy
    state = copy.copy(state)
    state.D, state.seen_faces, state.probe_nimg = Critic(lambda pixels: pixels.mean(1)), None, 0
    moved = []
    for nimg, shift in ((1000, 0.0), (2000, 0.2), (6000, 0.4), (7000, 0.4)):
        state.G, state.nimg = Painter(lambda z, attributes, shift=shift: 0.1 * z[:, :3] + shift), nimg
        moved.append(probe.look(state, 0.0).get("movement"))
    assert moved[0] is None and moved[1] == pytest.approx(4 * moved[2], rel=1e-3) and moved[3] == 0


def test_a_discriminator_that_knows_the_training_images_by_heart(store, healthy):
    """It calls real what it has seen and nothing else: the hold-out gap is 1, and 0 for one that judges what it sees."""
    images, _ = FaceLoader(store, split="train", attributes=("Male", "Smiling"), seed=0, flip=False, device=CPU).batch(0, 36)
    known = torch.cat([images, images.flip(3)]).flatten(1)

    def by_heart(pixels):
        return 10 * (torch.cdist(pixels, known).amin(1) < 1e-2).float() - 5

    seen = look(healthy, varied, D=Critic(by_heart))
    assert seen["holdout_gap"] == pytest.approx(1) and seen["accuracy_val"] == 0 and seen["sign_val"] == -1
    fair = look(healthy, lambda z, attributes: -torch.ones(len(z), 3), D=Critic(lambda pixels: 10 * pixels.mean(1) + 5))
    assert abs(fair["holdout_gap"]) < 0.2 and fair["accuracy_val"] > 0.9


def test_an_attribute_that_never_varies_is_not_asked_about(store, tmp_path):
    import numpy as np

    from engine.conftest import write_tiny_store
    from mien.data.store import open_store

    path = write_tiny_store(tmp_path / "constant")
    attributes = np.load(path / "attributes.npy")
    attributes[:, 0] = 1
    np.save(path / "attributes.npy", attributes)
    config = tiny_recipe().config
    state = build.build_state(config, size=32, attributes=2, device=CPU)
    seen = build.build_task(config, open_store(path), CPU).probe.look(state, 0.0)
    assert "response/Smiling" in seen and "response/Male" not in seen


def test_a_run_with_probes_ends_with_the_bits_of_one_without(store, tmp_path):
    """Batch norm's and spectral norm's statistics, dropout, augmentation and input noise: nothing is moved by being looked at."""
    rich = ("model.discriminator.norm=batch+spectral", "model.discriminator.dropout=0.2", "model.discriminator.input_noise=0.1",
            "augment.p=0.5")  # fmt: skip
    without = train(tmp_path / "without", store, *rich, "balance.probe_kimg=0")
    probed = train(tmp_path / "with", store, *rich, "balance.probe_kimg=0.008")
    assert probed.probe_nimg == 96 and probed.seen_faces is not None
    probed.seen_faces = None
    assert_same_bits(probed, without)


def test_looking_leaves_networks_in_their_modes():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    with pytest.raises(ValueError), evaluating(net):
        assert not net.training
        raise ValueError
    assert net.training and net[1].training


def test_spread_and_nearest_by_hand():
    square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    assert float(spread(square)) == pytest.approx((16 / 3) ** 0.5)  # mean of 4, 4, 8 over the pairs of different corners
    assert float(nearest(square)) == pytest.approx(2.0)
    assert float(nearest(torch.cat([square, square]))) == pytest.approx(0, abs=1e-3)
    assert combination_label(("Male", "Smiling"), (1, 1)) == "Male+Smiling" and combination_label(("Male",), (0,)) == "none"
