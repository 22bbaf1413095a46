"""A network in the middle of doubling its size: the old one exactly at alpha 0, the plain larger one exactly at alpha 1."""

import copy

import pytest
import torch
from torch.nn import functional as F

from mien.models.catalogue import build_discriminator, build_generator
from mien.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mien.models.growth import grown_discriminator, grown_generator, settled_discriminator, settled_generator

G_OPTIONS = [{}, {"head": "conv", "stem": "linear", "norm": "none"}]
D_OPTIONS = [{"norm": "batch", "condition": "channels", "minibatch_discrimination": 3},
             {"norm": "spectral", "condition": "projection", "head": "sum", "minibatch_stddev": 4, "dropout": 0.2}]  # fmt: skip


def generator(options):
    options = {"width": 16, "min_width": 4, "z_dim": 6, "condition": "concat", "init": "he", **options}
    return build_generator("dcgan", size=32, attributes=2, options=options).eval(), options


def discriminator(options):
    options = {"width": 16, "min_width": 4, "init": "he", **options}
    return build_discriminator("dcgan", size=32, attributes=2, options=options).eval(), options


@pytest.fixture(autouse=True)
def inputs():
    torch.manual_seed(0)


@pytest.mark.parametrize("options", G_OPTIONS)
def test_generator_begins_as_the_old_and_ends_as_the_new(options):
    old, options = generator(options)
    z, attributes = torch.randn(4, 6), torch.randint(2, (4, 2)).float()
    was = old(z, attributes)
    fading = grown_generator(copy.deepcopy(old), family="dcgan", options=options)
    assert fading.size == 64 and not fading.training
    assert torch.equal(fading(z, attributes), F.interpolate(was, scale_factor=2.0))
    fading.alpha = 0.5
    between = fading(z, attributes)
    fading.alpha = 1.0
    new = fading(z, attributes)
    assert torch.allclose(between, (F.interpolate(was, scale_factor=2.0) + new) / 2, atol=1e-6)
    plain = settled_generator(fading, family="dcgan", options=options)
    assert type(plain) is DCGANGenerator and torch.equal(plain(z, attributes), new)
    assert plain.state_dict().keys() == build_generator("dcgan", size=64, attributes=2, options=options).state_dict().keys()


@pytest.mark.parametrize("options", D_OPTIONS)
def test_discriminator_begins_as_the_old_and_ends_as_the_new(options):
    old, options = discriminator(options)
    images, attributes = torch.rand(8, 3, 64, 64) * 2 - 1, torch.randint(2, (8, 2)).float()
    was = old(F.avg_pool2d(images, 2), attributes)
    fading = grown_discriminator(copy.deepcopy(old), family="dcgan", options=options)
    assert torch.equal(fading(images, attributes), was)
    fading.alpha = 1.0
    new = fading(images, attributes)
    assert not torch.allclose(new, was)
    plain = settled_discriminator(fading, family="dcgan", options=options)
    assert type(plain) is DCGANDiscriminator and torch.equal(plain(images, attributes), new)
    assert plain.state_dict().keys() == build_discriminator("dcgan", size=64, attributes=2, options=options).state_dict().keys()


def test_both_networks_together_say_at_alpha_0_what_they_said_before():
    """Pixels doubled by G are averaged by D: a fake keeps its logit, exactly, when both have grown."""
    (G, g), (D, d) = generator({}), discriminator(D_OPTIONS[1])
    z, attributes = torch.randn(4, 6), torch.zeros(4, 2)
    before = D(G(z, attributes), attributes)
    G, D = grown_generator(G, family="dcgan", options=g), grown_discriminator(D, family="dcgan", options=d)
    assert torch.equal(D(G(z, attributes), attributes), before)


def test_half_way_every_parameter_learns():
    (G, g), (D, d) = generator({}), discriminator(D_OPTIONS[1])
    G, D = grown_generator(G, family="dcgan", options=g).train(), grown_discriminator(D, family="dcgan", options=d).train()
    G.alpha = D.alpha = 0.5
    D(G(torch.randn(4, 6), torch.zeros(4, 2)), torch.zeros(4, 2)).sum().backward()
    still = [name for net in (G, D) for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if not name.endswith("logit.bias")] == []
    assert {"old_image.conv.weight", "blocks.image.conv.weight"} <= dict(G.named_parameters()).keys()
