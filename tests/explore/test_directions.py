"""Directions on a planted generator, whose latent directions and their attributes are known, and what they are measured to do."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from mien.errors import UserError
from mien.explore.direction_set import Direction, DirectionSet, attribute_directions, measured, unsupervised_directions
from mien.explore.directions import judged_sample, latent_weight, mean_inputs, orthogonal, principal_directions, probe, sefa_directions
from mien.explore.edit import ChannelsStep, Edit, apply, condition_edit
from mien.explore.edit_effects import compare, look_at, measure_edit, population
from mien.explore.latents import latents
from mien.explore.load import LoadedGenerator
from mien.explore.sample import generate

Z = 16
SCALES = torch.tensor([4.0, 2.0, 1.0, 0.5] + [0.1] * 12)


class Planted(nn.Module):
    """Draws U diag(SCALES) V' z, plus the condition along U's first column, as 4x4 blocks of grey: V's columns are its directions."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.u, self.v = (torch.linalg.qr(torch.randn(Z, Z, generator=draw))[0] for _ in range(2))
        first = nn.Linear(Z + 1, 16, bias=False)
        with torch.no_grad():
            first.weight.copy_(torch.cat([self.u @ torch.diag(SCALES) @ self.v.T, 6 * self.u[:, :1]], dim=1))
        self.z_dim = Z
        self.blocks = nn.ModuleDict({"4x4": nn.Sequential(first, nn.Unflatten(1, (1, 4, 4)))})

    def forward(self, z, attributes):
        return torch.tanh(0.2 * self.blocks["4x4"](torch.cat([z, 2 * attributes - 1], dim=1))).repeat(1, 3, 1, 1).repeat_interleave(
            8, 2).repeat_interleave(8, 3)  # fmt: skip


class PlantedJudge:
    """Reads A = 2 v1 . z + 3 c and B = 2 (0.6 v1 + 0.8 v2) . z + 1.8 c back out of the pixels, and N, which nothing moves."""

    attribute_names = ("A", "B", "N", "Rare")

    def __init__(self, net):
        mix = torch.stack([net.v[:, 0], 0.6 * net.v[:, 0] + 0.8 * net.v[:, 1]], dim=1)  # [Z, 2]
        self.read = net.u @ torch.diag(1 / SCALES) @ net.v.T @ mix

    def features_and_probabilities(self, images):
        blocks = images[:, 0, ::8, ::8].flatten(1).float() / 127.5 - 1
        maps = torch.atanh(blocks.clamp(-0.999, 0.999)) / 0.2
        two = torch.sigmoid(2 * maps @ self.read)
        return maps.numpy(), torch.cat([two, torch.full_like(two[:, :1], 0.3), torch.full_like(two[:, :1], 0.01)], dim=1).numpy()


@pytest.fixture(scope="module")
def planted():
    net = Planted().eval()
    meta = {"attribute_table": [[[0], 0.5], [[1], 0.5]], "sha256": "a" * 64}
    return LoadedGenerator(net=net, attribute_names=("A",), size=32, z_dim=Z, meta=meta, path=None), PlantedJudge(net)


@pytest.fixture(scope="module")
def sample(planted):
    return judged_sample(*planted, 2000, seed=5)


def truth(planted):
    v = planted[0].net.v.double().numpy()
    return v[:, 0], 0.6 * v[:, 0] + 0.8 * v[:, 1]


@pytest.mark.parametrize("kind", ["probe", "svm", "arithmetic"])
def test_probes_find_the_planted_directions_whatever_the_condition_does(planted, sample, kind):
    for name, vector in zip("AB", truth(planted)):
        fit = probe(sample, name, kind=kind)
        assert fit.vector @ vector > 0.95 and np.linalg.norm(fit.vector) == pytest.approx(1)
        assert fit.auc > 0.9 and fit.agreement > 0.9


def test_chance_is_told_from_knowledge(sample):
    """Labels that have nothing to do with z: no better than chance on other faces, and the halves disagree."""
    noise = np.random.default_rng(0).random((2000, 4))
    fit = probe(dataclasses.replace(sample, probabilities=noise), "A")
    assert abs(fit.auc - 0.5) < 0.05 and abs(fit.agreement) < 0.5


def test_orthogonalising_removes_the_others_part(planted, sample):
    a, b = truth(planted)
    plain, = attribute_directions(sample, "probe", ["A"])
    free, = attribute_directions(sample, "probe", ["A"], against=["B"])
    assert abs(np.array(free.vector) @ probe(sample, "B").vector) < 1e-6 and abs(np.array(free.vector) @ b) < 0.1
    assert np.array(plain.vector) @ b > 0.5 and free.fit["kept"] == pytest.approx(0.8, abs=0.05) and free.against == ("B",)


def test_orthogonal_to_several_and_to_itself():
    x, y = np.eye(5)[0], np.eye(5)[1]
    left = orthogonal(np.array([1.0, 2, 3, 0, 0]), [x, (x + y) / 2**0.5])
    assert np.allclose(left, [0, 0, 1, 0, 0])
    with pytest.raises(UserError, match="Young is the same direction"):
        orthogonal(x + 0.01 * y, [x], name="Young")


def test_a_rare_or_unknown_attribute_is_told(sample):
    with pytest.raises(UserError, match="Only 0 of 2,000 faces are judged with Rare"):
        probe(sample, "Rare")
    with pytest.raises(UserError, match="no attribute 'Rarr'. Did you mean Rare"):
        probe(sample, "Rarr")


@pytest.mark.parametrize("method", ["pca", "sefa"])
def test_components_are_the_planted_directions_in_order(planted, method):
    """The condition's share of the first layer is larger than any direction's: it must not be one of them."""
    found = unsupervised_directions(planted[0], method, 3, faces=2000)
    v = planted[0].net.v.numpy()
    assert [each.name for each in found] == [f"{method}-1", f"{method}-2", f"{method}-3"]
    assert all(abs(np.array(each.vector) @ v[:, i]) > 0.95 for i, each in enumerate(found))
    shares = [each.fit["explained"] for each in found]
    assert shares == pytest.approx([16 / 21.37, 4 / 21.37, 1 / 21.37], abs=0.03)
    assert len(unsupervised_directions(planted[0], method, 100, faces=200)) == Z  # no more than there are


@pytest.mark.parametrize("stem", ["linear", "transpose"])
def test_the_latent_weight_is_what_the_first_block_does_to_z(stem):
    """Before the rectifier the block is linear in z: its difference is the weight, batch norm folded in."""
    from mien.models.dcgan import DCGANGenerator

    torch.manual_seed(0)
    net = DCGANGenerator(32, 2, width=16, z_dim=6, condition="concat", stem=stem).eval()
    norm = net.blocks[0].norm
    norm.running_var.uniform_(0.1, 3)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    generator = LoadedGenerator(net=net, attribute_names=("A", "B"), size=32, z_dim=6, meta={}, path=None)
    z, rows = population(generator, 2, seed=0)
    seen = []
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    net(z, rows)
    hook.remove()
    expected = (seen[0][1] - seen[0][0]).flatten() if torch.equal(rows[0], rows[1]) else None
    assert expected is not None
    assert np.allclose(latent_weight(generator) @ (z[1] - z[0]).double().numpy(), expected.detach().numpy(), atol=1e-5)
    assert len(sefa_directions(generator, 100)) == 6


def test_sefa_refuses_a_latent_that_meets_no_weight(planted):
    class Late(nn.Module):
        z_dim = 4

        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 3 * 32 * 32)

        def forward(self, z, attributes):
            return self.first(z / z.norm(dim=1, keepdim=True)).view(-1, 3, 32, 32)

    generator = LoadedGenerator(net=Late(), attribute_names=(), size=32, z_dim=4, meta={}, path=None)
    with pytest.raises(UserError, match="SeFa needs"):
        sefa_directions(generator, 3)
    with pytest.raises(UserError, match="cannot be reached"):
        principal_directions(generator, 3)


def test_arithmetic_adds_up_in_latent_and_condition(planted, sample):
    """A's faces minus the others differ along v1, and in the condition that gives A."""
    (z1, c1, n1), (z0, c0, n0) = (mean_inputs(sample, {"A": value}) for value in (1, 0))
    assert n1 + n0 == 2000 and c1[0] > 0.7 > 0.3 > c0[0]
    assert (z1 - z0) @ truth(planted)[0] / np.linalg.norm(z1 - z0) > 0.95
    with pytest.raises(UserError, match="Only 0 of 2,000 faces are judged A=1, Rare=1"):
        mean_inputs(sample, {"A": 1, "Rare": 1})


# ------------------------------------------------------------------------------------------------------------------------------
# Effects


def test_a_direction_is_measured_to_do_what_was_planted(planted, sample):
    generator, judge = planted
    z, rows = population(generator, 200, seed=9000)
    before = look_at(generator, judge, z, rows)
    made = attribute_directions(sample, "probe", ["A"]) + attribute_directions(sample, "probe", ["A"], against=["B"])
    plain, free = measured(generator, judge, made, z, rows, before)
    assert plain.step["target"]["value"] > 0.05 and list(plain.step["leaks"]) == ["B"]
    assert abs(free.step["leaks"].get("B", {"value": 0})["value"]) < 0.3 * plain.step["leaks"]["B"]["value"]
    assert [effect["strength"] for effect in plain.effects] == [-3, -2, -1, 1, 2, 3]
    assert plain.effects[-1]["toward"]["value"] == 1 == plain.effects[0]["toward"]["value"]  # every face, either way
    assert plain.effects[-1]["moved"]["A"]["value"] > plain.effects[-2]["moved"]["A"]["value"] > 0
    assert plain.effects[2]["identity"]["value"] > plain.effects[0]["identity"]["value"] > plain.effects[0]["strangers"]


def test_a_direction_without_a_target_is_named_by_what_it_moves_and_turned_up(planted):
    generator, judge = planted
    z, rows = population(generator, 100, seed=9000)
    first, = unsupervised_directions(generator, "sefa", 1)
    before = look_at(generator, judge, z, rows)
    up, = measured(generator, judge, [first], z, rows, before)
    down = dataclasses.replace(first, vector=tuple(-value for value in first.vector))
    again, = measured(generator, judge, [down], z, rows, before)
    assert up == again and up.target == "A" and np.array(up.vector) @ truth(planted)[0] > 0.95
    assert up.effects[-1]["moved"]["A"]["value"] > 0 > up.effects[0]["moved"]["A"]["value"]


def test_an_edit_that_does_nothing_has_no_effect(planted):
    effect = measure_edit(*planted, *population(planted[0], 20, seed=0), condition_edit({"A": 1}), strength=0)
    assert effect.identity.value == pytest.approx(1) and effect.pixels.value == 0 and effect.leaked.value == 0
    assert all(each.value == 0 for each in effect.moved.values()) and effect.leaks() == [] and effect.target == "A"


def test_turned_counts_only_those_who_were_not_there(planted):
    generator, judge = planted
    z, rows = population(generator, 300, seed=0)
    effect = measure_edit(generator, judge, z, rows, condition_edit({"A": 1}))
    before = look_at(generator, judge, z, rows).probabilities[:, 0] >= 0.5
    after = judge.features_and_probabilities(look_at(generator, judge, z, torch.ones_like(rows)).images)[1][:, 0] >= 0.5
    assert effect.to_turn == (~before).sum() and effect.turned.value == pytest.approx(after[~before].mean())
    assert effect.after.value == pytest.approx(after.mean()) and effect.turned.low < effect.turned.value < effect.turned.high
    down = measure_edit(generator, judge, z, rows, condition_edit({"A": 0}))
    assert down.side == 0 and down.moved["A"].value < 0 and down.to_turn == before.sum()


def test_intervals_hold_the_truth_about_as_often_as_they_say(planted):
    """The mean change over 4,000 faces lies in the interval from 60 of them nineteen times in twenty."""
    generator, judge = planted
    z, rows = population(generator, 4000, seed=0)
    before, after = look_at(generator, judge, z, rows), look_at(generator, judge, z, torch.ones_like(rows))
    mean = (after.probabilities - before.probabilities)[:, 1].mean()
    held = 0
    for first in range(0, 3600, 60):
        some = [dataclasses.replace(each, images=each.images[first : first + 60], features=each.features[first : first + 60],
                                    probabilities=each.probabilities[first : first + 60]) for each in (before, after)]  # fmt: skip
        each = compare(*some, judge.attribute_names).moved["B"]
        held += each.low <= mean <= each.high
    assert 52 <= held <= 60


def test_pixels_inside_and_outside_a_region(planted):
    generator, judge = planted
    left = (0.0, 0.0, 0.5, 1.0)
    edit = Edit("left", None, (ChannelsStep("4x4", (0,), "insert", 9.0, region=left),))
    effect = measure_edit(generator, judge, *population(generator, 10, seed=0), edit, region=left)
    assert effect.pixels_outside.value == 0 and effect.pixels_inside.value == pytest.approx(2 * effect.pixels.value)
    assert effect.target is None and effect.turned is None


def test_one_face_has_no_intervals(planted):
    effect = measure_edit(*planted, *population(planted[0], 1, seed=3), condition_edit({"A": 0}))
    assert effect.leaked.low is None and effect.strangers is None and json.dumps(effect.plain(), allow_nan=False)


# ------------------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture()
def some():
    vector = tuple(i / 4 for i in range(Z))
    young = Direction("Young", "probe", vector, "Young", ("Male",), {"auc": 0.9}, {"leaks": {}}, ({"strength": 1.0},))
    return DirectionSet("a" * 64, (young, Direction("pca-1", "pca", tuple(1.0 for _ in range(Z)))), {"count": 4000})


def test_directions_survive_json(some):
    assert DirectionSet.from_json(some.to_json()) == some


def test_directions_become_an_edit(planted, some):
    edit = some.edit({"Young": 1.5, "pca-1": -1})
    z, rows = latents(range(4), Z), torch.zeros(4, 1)
    moved = z + torch.tensor([1.5 * a - b for a, b in zip(*(each.vector for each in some.directions))])
    assert torch.allclose(apply(planted[0], z, rows, edit), generate(planted[0], moved, rows), atol=1e-6)
    with pytest.raises(UserError, match="No direction 'Yuong' is in this file. Did you mean Young"):
        some.edit({"Yuong": 1})
    with pytest.raises(UserError, match="another model"):
        apply(planted[0], z, rows, dataclasses.replace(some, model="b" * 64).edit({"Young": 1}))


@pytest.mark.parametrize("change, message", [
    ({"format": "mien-edit/1"}, "not mien-directions/1"), ({"model": None}, '"model"'), ({"directions": [1]}, "Direction 1"),
    ({"directions": [{"name": "a", "method": "probe", "vector": [1, "x"]}]}, "not a number"),
    ({"directions": [{"name": "a", "method": "probe", "vector": []}]}, "list of numbers"),
    ({"directions": [{"name": 3, "method": "probe", "vector": [1]}]}, "wrong kind"),
    ({"directions": [{"name": "a", "method": "probe", "vector": [1], "code": 1}]}, "nothing but"),
])  # fmt: skip
def test_a_wrong_file_is_told_in_one_line(some, change, message):
    with pytest.raises(UserError, match=message) as caught:
        DirectionSet.from_json(json.dumps({**json.loads(some.to_json()), **change}))
    assert "\n" not in str(caught.value)


def test_hooks_leave_no_trace(planted):
    sefa_directions(planted[0], 1)
    principal_directions(planted[0], 1, faces=100)
    assert not any(module._forward_hooks for module in planted[0].net.modules())


@pytest.mark.parametrize("names", [(), ("A", "B")])
def test_a_conditional_norm_is_folded_into_the_latent_weight_too(names):
    """At an undecided condition (0.5) the norm is plain, and the first block is linear in z up to its rectifier."""
    from mien.models.resnet import ResNetGenerator

    torch.manual_seed(0)
    net = ResNetGenerator(32, len(names), width=32, z_dim=6, norm="batch", condition="norm").eval()
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.uniform_(0.01, 3)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    generator = LoadedGenerator(net=net, attribute_names=names, size=32, z_dim=6, meta={}, path=None)
    z, undecided = torch.randn(2, 6), torch.full((2, len(names)), 0.5)
    seen = []
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    net(z, undecided)
    hook.remove()
    expected = (seen[0][1] - seen[0][0]).flatten().detach().numpy()
    assert np.allclose(latent_weight(generator) @ (z[1] - z[0]).double().numpy(), expected, atol=1e-5)
