"""The R3GAN family: its size, where it begins, its blocks and resampling."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mien.losses.adversarial import relativistic_d, relativistic_g
from mien.models.r3 import Block, R3Discriminator, R3Generator, groups_for
from mien.models.resample import Blur, Double, Halve, binomial

SMALL = {"width": 16, "wide_px": 8, "blocks": 1}


def test_it_has_the_papers_size():
    """22.43 and 22.38 million parameters for FFHQ 64 (Huang et al. 2024), and half as many channels at 64 px."""
    net, critic = R3Generator(64, 0), R3Discriminator(64, 0)
    assert [round(sum(p.numel() for p in each.parameters()) / 1e6, 2) for each in (net, critic)] == [22.43, 22.38]
    spatial = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.groups for m in spatial] == [96] * 8 + [48] * 2
    assert all(m.in_channels // m.groups == 16 for m in spatial)


def test_every_block_is_the_identity_at_first_and_not_after_a_step():
    torch.manual_seed(0)
    block, x = Block(16, group=16, depth=10), torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    nn.init.normal_(block.contract.weight, 0.0, 0.1)
    assert not torch.allclose(block(x), x)


def test_a_deeper_networks_branches_begin_smaller():
    """Fix-up: by depth^(-1/4) in each of two layers, so the branch by depth^(-1/2)."""
    torch.manual_seed(0)
    shallow, deep = Block(256, group=16, depth=1), Block(256, group=16, depth=16)
    for name in ("expand", "spatial"):
        wide, narrow = (float(getattr(block, name).weight.detach().std()) for block in (shallow, deep))
        assert wide / narrow == pytest.approx(2, rel=0.02)
    assert float(shallow.expand.weight.detach().std()) == pytest.approx((2 / 1.04 / 256) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("channels", "group", "groups"), [(1536, 16, 96), (32, 16, 2), (8, 16, 1), (40, 16, 2), (50, 16, 2), (34, 4, 2)])
def test_groups_divide_the_channels_and_hold_enough(channels, group, groups):
    assert groups_for(channels, group) == groups
    assert channels % groups == 0 and (groups == 1 or channels // groups >= group)


def test_resampling_is_binomial():
    assert binomial(3)[0, 0].mul(16).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert binomial(4)[0, 0, 0].mul(64).tolist() == [1, 3, 3, 1]
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    up, down = Double().double()(x), Halve().double()(x)
    assert up.shape == (1, 2, 12, 12) and down.shape == (1, 2, 3, 3)
    assert torch.equal(up[..., ::2, ::2], x)
    assert torch.allclose(up[..., 1:-1:2, ::2], (x[..., :-1, :] + x[..., 1:, :]) / 2)
    lone = torch.nn.functional.pad(x, (1, 0, 1, 0))
    around = sum(w * lone[..., i : i + 6 : 2, j : j + 6 : 2] for i, v in enumerate((1, 2, 1)) for j, w in enumerate((v, 2 * v, v)))
    assert torch.allclose(down, around / 16)
    flat = torch.ones(1, 1, 8, 8)
    for change in (Double(), Halve(4), Blur(pad=2)):
        assert torch.allclose(change(flat)[..., 2:-2, 2:-2], torch.ones(()))
    y = torch.randn_like(up)
    assert (up * y).sum() == pytest.approx(float((x * Halve().double()(y)).sum() * 4))  # each is the other's adjoint


def test_the_condition_weighs_half_as_much_as_the_latent_and_moves_pictures_and_logits():
    torch.manual_seed(0)
    net, critic = R3Generator(32, 3, **SMALL), R3Discriminator(32, 3, **SMALL)
    z, absent = torch.randn(4, 64), torch.zeros(4, 3)
    present = absent + torch.tensor([1.0, 0, 0])
    images = net(z, absent)
    assert images.shape == (4, 3, 32, 32) and (net(z, present) - images).abs().mean() > 0.05
    assert critic(images, absent).shape == (4,) and not torch.allclose(critic(images, absent), critic(images, present))
    logits = [critic.head(critic.features(images, a), a) for a in (absent, present, (absent + present) / 2)]
    assert torch.allclose((logits[0] + logits[1]) / 2, logits[2], atol=1e-5)  # a projection is linear in the attributes
    told = net.embedding(torch.randint(0, 2, (1000, 3)) * 2.0 - 1)
    assert float(told.square().mean().sqrt().detach()) == pytest.approx(0.5, abs=0.15)
    shared = net.embedding(-torch.ones(1, 3)) + net.embedding(torch.ones(1, 3))
    assert float(shared.abs().mean().detach()) > 0.1  # opposites are not each other's negatives


def test_the_pairing_loss_is_the_papers():
    """Huang et al. 2024, eq. 2 with f(t) = -log(1 + e^-t): D maximises f(D(real) - D(fake)), G f of the opposite, pair by pair."""
    real, fake = torch.tensor([0.3, -2.0, 50.0]), torch.tensor([1.0, -2.0, -50.0])
    gap = (real - fake).double()
    assert torch.allclose(relativistic_d(real=real, fake=fake).double(), torch.log1p(torch.exp(-gap)))
    assert torch.allclose(relativistic_g(real=real, fake=fake).double(), torch.log1p(torch.exp(gap)))
    shifted = relativistic_d(real=real + 7, fake=fake + 7)
    assert torch.allclose(shifted, relativistic_d(real=real, fake=fake))  # which is why D's logit has no bias


def test_the_4x4_maps_and_the_head_stay_in_fp32_under_autocast():
    net, critic = R3Generator(32, 1, **SMALL), R3Discriminator(32, 1, **SMALL)
    kinds = {}
    for name, module in (("G 4", net.blocks[0]), ("G 8", net.blocks[1]), ("D 8", critic.trunk[-2]), ("D 4", critic.trunk[-1])):
        inner = module.block0.spatial
        inner.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = critic(net(torch.randn(2, 64), torch.ones(2, 1)), torch.ones(2, 1))
    assert kinds == {"G 4": torch.float32, "G 8": torch.bfloat16, "D 8": torch.bfloat16, "D 4": torch.float32}
    assert logits.dtype == torch.float32


def test_noise_on_the_input_only_in_training():
    critic, images = R3Discriminator(32, 0, **SMALL, input_noise=0.1), torch.zeros(2, 3, 32, 32)
    none = torch.zeros(2, 0)
    assert not torch.equal(critic(images, none), critic(images, none))
    assert torch.equal(critic.eval()(images, none), critic(images, none))
    assert F.mse_loss(critic.features(images, none), torch.zeros(2, 16)) < 1e-6  # nothing in, nothing out: biases begin at 0
