"""Mixing: the content's face at strength 0, the style's when all activations are taken, statistics that become the style's."""

import pytest
import torch

from mien.errors import UserError
from mien.explore.activations import layer_names
from mien.explore.latents import latents
from mien.explore.mix import choose_layers, mix, table, with_statistics
from mien.explore.sample import generate

ROUNDING = {"atol": 1e-4, "rtol": 1e-4}  # another batch, another order of sums: a hundredth of a level of 255


@pytest.fixture
def faces(tiny_generator):
    attributes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    return tiny_generator, (latents([1, 2], 8), attributes), (latents([3, 4], 8), attributes.flip(0))


@pytest.mark.parametrize("layers", [("4x4",), ("16x16",), ("4x4", "8x8", "16x16")])
def test_whole_activations_give_the_styles_face(faces, layers):
    generator, content, style = faces
    torch.testing.assert_close(mix(generator, content, style, layers, mode="whole"), generate(generator, *style), **ROUNDING)


@pytest.mark.parametrize("mode", ["whole", "statistics"])
def test_strength_0_and_no_difference_leave_the_content(faces, mode):
    generator, content, style = faces
    own = generate(generator, *content)
    torch.testing.assert_close(mix(generator, content, style, layer_names(generator.net), mode=mode, strength=0), own, **ROUNDING)
    torch.testing.assert_close(mix(generator, content, content, layer_names(generator.net), mode=mode), own, **ROUNDING)


def test_statistics_become_the_styles_and_the_pattern_stays():
    draw = torch.Generator().manual_seed(0)
    content, style = torch.randn(2, 3, 8, 8, generator=draw), 5 + 3 * torch.randn(2, 3, 8, 8, generator=draw)
    mixed = with_statistics(content, style)
    torch.testing.assert_close(mixed.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(mixed.std((2, 3)), style.std((2, 3)))
    for one, other in zip(mixed.flatten(0, 1), content.flatten(0, 1)):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.999
    assert with_statistics(content.relu(), style - 5).min() == 0  # what a ReLU cannot give is cut off
    assert with_statistics(torch.ones(1, 3, 8, 8), style[:1]).isfinite().all()


def test_statistics_are_neither_of_the_two_faces(faces):
    generator, content, style = faces
    mixed = mix(generator, content, style, ["8x8"])
    assert (mixed - generate(generator, *content)).abs().mean() > 0.01 and (mixed - generate(generator, *style)).abs().mean() > 0.01


def test_a_transplant_changes_its_place_and_nothing_far_from_it(faces):
    generator, content, style = faces
    mixed = mix(generator, content, style, ["16x16"], mode="whole", where=[(0.5, 0.5, 0.75, 0.75)])
    changes = (mixed - generate(generator, *content)).abs()
    assert changes[..., 16:24, 16:24].mean() > 0.01
    assert changes[..., :12, :].max() < 1e-4 and changes[..., :, :12].max() < 1e-4


def test_a_table_holds_every_pair_and_leaves_no_hook(faces):
    generator, (z, attributes), style = faces
    three = torch.cat([z, z[:1] + 1]), torch.cat([attributes, attributes[:1]])
    found = table(generator, three, style, ["8x8"])
    assert found.shape == (3, 2, 3, 32, 32)
    one = mix(generator, (three[0][2:], three[1][2:]), (style[0][:1], style[1][:1]), ["8x8"])
    torch.testing.assert_close(found[2, 0], one[0], **ROUNDING)
    assert not any(module._forward_hooks for module in generator.net.modules())


def test_layers_by_name_and_by_group(faces):
    net = faces[0].net
    assert choose_layers(net, "coarse") == ("4x4", "8x8") and choose_layers(net, "fine") == ("16x16",)
    assert choose_layers(net, "all") == layer_names(net) and choose_layers(net, "8x8, 4x4,8x8") == ("8x8", "4x4")
    with pytest.raises(UserError, match="Did you mean coarse"):
        choose_layers(net, "corse")
    with pytest.raises(UserError, match="at least one"):
        choose_layers(net, ",")


def test_bad_input_is_told_in_words(faces):
    generator, content, style = faces
    with pytest.raises(UserError, match="Did you mean whole"):
        mix(generator, content, style, ["8x8"], mode="hole")
    with pytest.raises(UserError, match="outside 0..2"):
        mix(generator, content, style, ["8x8"], strength=float("nan"))
    with pytest.raises(UserError, match="No layer"):
        mix(generator, content, style, ["7x7"])
