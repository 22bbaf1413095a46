"""Finding channels: where it is known which draw a part, both rankings find exactly those, and silencing them removes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mien.errors import UserError
from mien.explore import regions
from mien.explore.ablate import (
    channels_at,
    choose,
    compare,
    find_target,
    logistic_weights,
    look,
    ordered,
    rank,
    silenced,
    steps,
)
from mien.explore.edit import Edit, apply
from mien.explore.load import LoadedGenerator
from mien.explore.sample import generate

MOUTH, EYES = (2, 5), (7,)


class Planted(nn.Module):
    """32 px faces of skin colour on grey under a hair-brown top. Of the 8 channels of its 16x16 map, MOUTH and EYES darken these places."""

    z_dim = 8

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"16x16": nn.Identity()})
        places = torch.stack([torch.full((16, 16), 0.2) for _ in range(8)])
        for part, channels in (("mouth", MOUTH), ("eyes", EYES)):
            for channel in channels:
                places[channel] = (regions.box_mask(regions.boxes(part, "center178"), 16) > 0.5).float()
        face = regions.ellipse_mask(regions.FACE, "center178", 32)
        head = regions.ellipse_mask(regions.HEAD, "center178", 32)
        self.register_buffer("places", places)
        self.register_buffer("phase", 1000 * torch.rand(16, 16, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("skin", face * 0.5 + (1 - face) * (head * -0.8 + (1 - head) * 0.1))
        dark = torch.zeros(8)
        dark[[*MOUTH, *EYES]] = torch.tensor([0.4, 0.4, 0.8])
        dark[0] = 0.3  # a little light everywhere: no part's
        self.dark = nn.Parameter(dark)

    def forward(self, z, attributes):
        maps = self.places * (0.6 + 0.4 * z.sigmoid())[:, :, None, None]  # [N, 8, 16, 16], how strong is the face's own
        maps = maps + 0.01 * (1 + torch.sin(z[:, :, None, None] * self.phase))  # noise that is the face's own, whatever is beside it
        maps = self.blocks["16x16"](maps)
        drawn = (maps * self.dark[:, None, None]).sum(1, keepdim=True)
        return (self.skin - drawn.repeat_interleave(2, 2).repeat_interleave(2, 3)).expand(-1, 3, -1, -1).clamp(-1, 1)


class PlantedJudge:
    """Sees Smiling in a dark mouth; its features are the picture's coarse pixels."""

    attribute_names = ("Young", "Smiling")

    def features_and_probabilities(self, images):
        x = images.float() / 127.5 - 1
        mouth = regions.box_mask(regions.boxes("mouth", "center178"), 32)
        light = (x.mean(1) * mouth).sum((1, 2)) / mouth.sum()
        smiling = torch.sigmoid(20 * (-0.02 - light))
        pooled = nn.functional.avg_pool2d(x, 4).flatten(1)
        return pooled.numpy(), torch.stack([torch.full_like(smiling, 0.5), smiling], 1).numpy()


@pytest.fixture(scope="module")
def generator():
    meta = {"store": {"crop": "center178"}, "sha256": "planted"}
    return LoadedGenerator(net=Planted().eval(), attribute_names=(), size=32, z_dim=8, meta=meta, path=Path("planted"))


@pytest.fixture(scope="module")
def faces():
    return torch.randn(24, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(24, 0)


@pytest.mark.parametrize(("name", "planted"), [("mouth", MOUTH), ("eyes", EYES)])
def test_both_rankings_find_exactly_the_planted_channels(generator, faces, name, planted):
    ranking = rank(generator, *faces, "16x16", find_target(name, "center178"), everywhere=True, effect_faces=8)
    assert set(ranking.channels[: len(planted)]) == set(planted) and (ranking.gain[len(planted) :] < 0.02).all()
    by_weight = ordered(ranking, "weight")
    assert set(by_weight[: len(planted)]) == set(planted)
    weights = dict(zip(ranking.channels, ranking.weight.tolist()))
    assert min(weights[c] for c in planted) > 3 * max(w for c, w in weights.items() if c not in planted)


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_choice_is_the_planted_channels_and_silencing_them_takes_the_mouth_alone(generator, faces, everywhere):
    target = find_target("mouth", "center178")
    ranking = rank(generator, *faces, "16x16", target, everywhere=everywhere, effect_faces=8)
    choice = choose(generator, *faces, ranking, target, everywhere=everywhere)
    assert set(choice.channels) == set(MOUTH)
    assert choice.outcome.fell["mouth"] > 0.5 and abs(choice.outcome.fell["eyes"]) < 0.05 and abs(choice.outcome.fell["hair"]) < 0.05
    assert choice.outcome.inside > 20 * choice.outcome.outside


def test_an_attribute_is_found_by_the_judge(generator, faces):
    judge = PlantedJudge()
    target = find_target("Smiling", "center178", judge)
    assert target.part == "mouth"
    ranking = rank(generator, *faces, "16x16", target, judge=judge, effect_faces=8)
    assert set(ranking.channels[:2]) == set(MOUTH)
    assert (ranking.logits[:2, 1] < -4).all() and (ranking.logits[2:, 1].abs() < 1).all()  # channel 0 darkens a mouth a little as well
    assert not ranking.logits[:, 0].any()


def test_each_silenced_channel_is_what_a_change_by_hand_gives(generator, faces):
    found = list(silenced(generator, faces[0][:3], faces[1][:3], "16x16"))
    assert len(found) == 8
    for channel in (2, 7):
        by_hand = apply(generator, faces[0][:3], faces[1][:3], Edit("", None, steps("16x16", [channel], "silence", [])))
        torch.testing.assert_close(found[channel], by_hand)
    assert not generator.net.blocks["16x16"]._forward_hooks


def test_silencing_all_channels_is_a_map_of_zeros(tiny_generator):
    z, attributes = torch.randn(2, 8), torch.zeros(2, 2)
    seen = []
    with torch.no_grad():
        edit = Edit("", None, steps("8x8", range(16), "silence", []))
        hook = tiny_generator.net.blocks.get_submodule("16x16").conv.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        apply(tiny_generator, z, attributes, edit)
        hook.remove()
    assert seen[0].shape[1] == 16 and not seen[0].any()


def test_insert_draws_a_mouth_where_none_is(generator, faces):
    target = find_target("mouth", "center178")
    ranking = rank(generator, *faces, "16x16", target, effect_faces=8)
    value = {channel: float(ranking.value[ranking.channels.index(channel)]) for channel in MOUTH}
    assert all(0.6 < each < 1.1 for each in value.values())  # what the planted map holds in the mouth
    without = Edit("", None, steps("16x16", MOUTH, "silence", target.boxes()))
    again = Edit("", None, (*without.steps, *steps("16x16", MOUTH, "insert", target.boxes(), value)))
    none, put = (look(apply(generator, *faces, edit), target, None).presence["mouth"].mean() for edit in (without, again))
    assert put > 2 * none


def test_no_change_is_no_effect(generator, faces):
    target, judge = find_target("mouth", "center178"), PlantedJudge()
    same = look(generate(generator, *faces), target, judge)
    outcome = compare(same, same, target)
    assert all(abs(each) < 1e-6 for each in outcome.fell.values()) and all(each < 1e-6 for each in outcome.error.values())
    assert outcome.identity == pytest.approx(1) and outcome.inside == outcome.outside == 0 and not outcome.logits.any()


def test_channels_at_a_point_are_those_that_draw_it(generator, faces):
    one = faces[0][:1], faces[1][:1]
    at_mouth = channels_at(generator, *one, "16x16", 0.5, 0.745)
    assert {channel for channel, _, _ in at_mouth[:2]} == set(MOUTH) and at_mouth[1][1] > 3 * at_mouth[2][1]
    assert channels_at(generator, *one, "16x16", 0.38, 0.5)[0][0] == EYES[0]
    with pytest.raises(UserError, match="outside the picture"):
        channels_at(generator, *one, "16x16", 1.2, 0.5)


def test_logistic_weights_are_those_of_the_model_that_made_the_data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 10, 10, generator=draw)
    chance = torch.sigmoid(2 * x[:, 0] - x[:, 1])
    y = (torch.rand(chance.shape, generator=draw) < chance).float()
    assert logistic_weights(x, y).tolist() == pytest.approx([2, -1, 0], abs=0.15)
    scaled = x * torch.tensor([100.0, 0.01, 1.0])[:, None, None] + 5
    torch.testing.assert_close(logistic_weights(scaled, y), logistic_weights(x, y), atol=0.02, rtol=0.02)
    with pytest.raises(UserError, match="all have it, or none"):
        logistic_weights(x, torch.zeros_like(y))


def test_the_crops_are_those_of_the_store():
    from mien.data.formats import CELEBA_CROPS, CROPS, FRAME

    assert regions.FRAME == FRAME and all(regions.CROPS[name] == box for name, box in CELEBA_CROPS.items())
    assert set(CROPS) <= set(regions.CROPS)


def test_a_model_that_does_not_say_its_crop_has_no_parts_to_find():
    with pytest.raises(UserError, match="does not say how its pictures were cropped"):
        find_target("mouth", None)


def test_a_box_keeps_its_place_in_the_frame_whatever_the_crop():
    for crop, (left, top, right, bottom) in regions.CROPS.items():
        x0, y0, x1, y1 = regions.boxes("mouth", crop)[0]
        back = left + x0 * (right - left), top + y0 * (bottom - top), left + x1 * (right - left), top + y1 * (bottom - top)
        assert back == pytest.approx((*regions.BOXES["mouth"][0][:3], min(166, bottom)))  # center108 cuts the lower lip
    assert regions.boxes("background", "center108") == ()
    assert float(regions.box_mask(((0.25, 0.5, 0.5, 1.0),), 6).sum()) == pytest.approx(36 / 8)


def test_presence_is_low_on_bare_skin_and_falls_when_a_part_is_painted_over():
    images = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 0.4, (2, 3, 64, 64)).astype(np.float32))
    drawn = images.clone()
    drawn[:, :, 44:51, 24:40] = -0.8
    had, bare = (regions.presences(each, ("mouth", "eyes"), "center178") for each in (drawn, images))
    assert (had["mouth"] > 5 * bare["mouth"]).all()
    torch.testing.assert_close(had["eyes"], bare["eyes"])


def test_bad_names_are_told_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean mouth"):
        find_target("moth", "center178")
    with pytest.raises(UserError, match="not known.*center178"):
        find_target("mouth", "None")
    with pytest.raises(UserError, match="shows no background"):
        find_target("background", "center108")
