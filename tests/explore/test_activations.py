"""Hooks: what they read, what they change, and that nothing of them stays."""

import pytest
import torch
from torch import nn

from mien.errors import UserError
from mien.explore.activations import changed, layer_names, record
from mien.explore.latents import latents


@pytest.fixture
def face(tiny_generator):
    return tiny_generator.net, latents([1, 2], tiny_generator.z_dim), torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def hooks(net):
    return sum(len(module._forward_hooks) for module in net.modules())


def test_layers_are_named_by_their_side_coarse_to_fine(face):
    net, z, attributes = face
    assert layer_names(net) == ("4x4", "8x8", "16x16")
    with torch.no_grad(), record(net, layer_names(net)) as seen:
        net(z, attributes)
    shapes = [(name, tuple(x.shape)) for name, x in seen.items()]
    assert shapes == [("4x4", (2, 16, 4, 4)), ("8x8", (2, 16, 8, 8)), ("16x16", (2, 16, 16, 16))]
    assert all((x >= 0).all() and (x > 0).any() for x in seen.values())  # after the ReLU


@torch.no_grad()
def test_recording_changes_nothing_and_leaves_nothing(face):
    net, z, attributes = face
    before = net(z, attributes)
    with record(net, ["8x8"]):
        assert torch.equal(net(z, attributes), before)
    assert hooks(net) == 0


@torch.no_grad()
def test_hooks_are_gone_after_an_error_too(face):
    net, z, attributes = face
    before = net(z, attributes)
    with pytest.raises(ZeroDivisionError), changed(net, {"8x8": torch.zeros_like}), record(net, ["4x4"]):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="gives"), changed(net, {"8x8": lambda x: x[:, :1]}):
        net(z, attributes)
    with pytest.raises(UserError), changed(net, {"8x8": torch.zeros_like, "9x9": torch.zeros_like}):
        pass
    assert hooks(net) == 0 and torch.equal(net(z, attributes), before)


@torch.no_grad()
def test_a_change_reaches_only_what_follows(face):
    net, z, attributes = face
    with record(net, layer_names(net)) as before:
        net(z, attributes)
    with changed(net, {"8x8": lambda x: x * 0.5}), record(net, layer_names(net)) as after:
        net(z, attributes)
    assert torch.equal(before["4x4"], after["4x4"])
    assert torch.equal(before["8x8"] * 0.5, after["8x8"])
    assert not torch.equal(before["16x16"], after["16x16"])


@torch.no_grad()
def test_changes_nest_in_the_order_of_entry(face):
    net, z, attributes = face
    with changed(net, {"8x8": lambda x: x + 1}), changed(net, {"8x8": lambda x: x * 2}), record(net, ["8x8"]) as twice:
        net(z, attributes)
    with record(net, ["8x8"]) as plain:
        net(z, attributes)
    torch.testing.assert_close(twice["8x8"], (plain["8x8"] + 1) * 2)


def test_an_unknown_layer_is_named_with_those_there_are(face):
    with pytest.raises(UserError, match=r"No layer '16'.*4x4, 8x8, 16x16.*Did you mean 16x16"), record(face[0], ["16"]):
        pass


def test_another_family_says_where_its_layers_are():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)

        def feature_layers(self):
            return {"4x4": self.low, "8x8": self.high}

        def forward(self, x):
            return self.high(self.low(x))

    net = Other()
    assert layer_names(net) == ("4x4", "8x8")
    with record(net, ["4x4"]) as seen:
        net(torch.ones(1, 1, 4, 4))
    assert seen["4x4"].shape == (1, 2, 4, 4)
    with pytest.raises(UserError, match="cannot be reached"):
        layer_names(nn.Linear(2, 2))
