"""The policy: probability, identity, seeds, gradients, names."""

import pytest
import torch

from mien.augment.policy import AUGMENT_OPS, AUGMENT_PRESETS, Augment
from mien.errors import UserError


def pictures(n: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(n, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("p", [0, 0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_p_0_is_the_identity_bit_for_bit(p, channels_last):
    images = pictures()
    images[0, 0, 0, 0] = -0.0
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    out = Augment(["full"])(images, p)
    assert torch.equal(out, images) and torch.equal(out.signbit(), images.signbit())


def test_p_1_changes_every_sample_and_p_the_stated_share():
    images = pictures(2000)
    for p in (0.3, 1.0, torch.tensor(0.3)):
        changed = (Augment(["brightness"])(images, p) != images).flatten(1).any(1).float().mean().item()
        assert changed == pytest.approx(float(p), abs=0.04)
    changed = (Augment(["brightness", "lighting"])(images, 0.3) != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(1 - 0.7**2, abs=0.04)  # each operation has its own coin


def test_untouched_samples_keep_their_bits():
    images = pictures(500)
    out = Augment(["rotation", "contrast"])(images, 0.3)
    same = (out == images).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(0.7**2, abs=0.07)


def test_flips_mirror_half_of_what_p_asks():
    images = pictures(4000)
    for p, share in ((1.0, 0.5), (0.4, 0.2)):
        mirrored = (Augment(["flip"])(images, p) == images.flip(3)).flatten(1).all(1).float().mean().item()
        assert mirrored == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_same_seed_same_result(preset):
    images, augment = pictures(), Augment([preset])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, 0.5))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    torch.manual_seed(1)
    assert torch.equal(augment(images.contiguous(memory_format=torch.channels_last), torch.tensor(0.5)), results[0])


def test_gradients_reach_every_sample_and_r1_can_pass_through():
    images = pictures(32).requires_grad_()
    weight = torch.randn(3, 16, 16, requires_grad=True)
    torch.manual_seed(0)
    logits = (Augment(["full"])(images, 0.7) * weight).sum((1, 2, 3))
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    assert (slope.abs().sum((1, 2, 3)) > 0).all()
    slope.square().sum().backward()
    assert weight.grad.isfinite().all() and (weight.grad != 0).any()


def test_the_two_sides_share_one_policy_not_one_draw():
    augment, images = Augment(["light"]), pictures()
    assert not torch.equal(augment(images, 1.0), augment(images, 1.0))


def test_names_presets_and_order():
    assert Augment(["full"]).names == tuple(AUGMENT_OPS)
    assert Augment(["cutout", "light", "flip", "brightness"]).names == (
        "flip", "translation", "brightness", "saturation", "contrast", "cutout",
    )  # fmt: skip
    images = pictures()
    assert Augment([])(images, 1.0) is images or torch.equal(Augment([])(images, 1.0), images)
    with pytest.raises(UserError, match="no augmentation 'cut-out'.*Did you mean cutout"):
        Augment(["cut-out"])


def test_autocast_changes_neither_the_result_nor_the_gradient():
    images, results = pictures().bfloat16(), []
    for mixed in (False, True):
        x = images.clone().requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = Augment(["full"])(x, 0.7)
        out.square().sum().backward()
        results.append((out, x.grad))
    assert results[1][0].dtype == torch.float32
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
