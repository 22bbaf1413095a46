"""Each operation against what it says it does."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from mien.augment import ops
from mien.augment.policy import AUGMENT_OPS


def pictures(n: int = 64, size: int = 16) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(n, 3, size, size) * 2 - 1


@pytest.mark.parametrize("name", AUGMENT_OPS)
def test_amount_0_is_none_and_1_is_a_change_of_finite_values(name):
    images = pictures()
    torch.testing.assert_close(AUGMENT_OPS[name](images, 0.0), images, atol=2e-5, rtol=0)
    amount = torch.zeros(64, 1, 1, 1)
    amount[:32] = 1
    out = AUGMENT_OPS[name](images, amount)
    assert out.shape == images.shape and out.dtype == torch.float32 and out.isfinite().all()
    torch.testing.assert_close(out[32:], images[32:], atol=2e-5, rtol=0)
    changed = (out - images).abs().amax((1, 2, 3))[:32] > 1e-3
    assert changed.sum() >= (8 if name == "flip" else 26)  # a shift by 0 or noise of size 0 may be drawn


@pytest.mark.parametrize("name", AUGMENT_OPS)
def test_gradients_reach_the_images_and_are_exact_twice(name):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1

    def once(x):
        torch.manual_seed(7)  # the same draw at each evaluation
        return (AUGMENT_OPS[name](x, 1.0)).square().mean((2, 3))

    if name in ("rotation", "scale", "translation"):  # these compute in fp32: tolerances to match
        x = images.float().requires_grad_()
        (slope,) = torch.autograd.grad(once(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        assert slope.abs().sum() > 0 and second.abs().sum() > 0 and second.isfinite().all()
    else:
        x = images.requires_grad_()
        assert gradcheck(once, (x,), fast_mode=True) and gradgradcheck(once, (x,), fast_mode=True)


@pytest.mark.parametrize("mode, padding", [("bilinear", "reflection"), ("nearest", "zeros"), ("bilinear", "zeros")])
def test_resample_is_grid_sample_and_its_derivatives_are_the_transposed_map(mode, padding):
    torch.manual_seed(0)
    images = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[[0.9, -0.3, 0.1], [0.3, 0.8, -0.2]]], dtype=torch.float64).expand(2, 2, 3)
    grid = F.affine_grid(matrix, [2, 2, 5, 5], align_corners=False)

    def ours(x):
        return ops.Resample.apply(x, grid, ops.MODES[mode], ops.PADDINGS[padding])

    assert torch.equal(ours(images), F.grid_sample(images, grid, mode, padding, align_corners=False))
    assert gradcheck(ours, (images,))
    assert gradgradcheck(lambda x: ours(x).pow(3), (images,))


def test_flip_mirrors_half():
    images = pictures(4000, 4)
    out = ops.flip(images)
    mirrored = (out == images.flip(3)).all(3).all(2).all(1)
    assert (mirrored ^ (out == images).all(3).all(2).all(1)).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_translation_moves_whole_pixels_uniformly_and_fills_with_grey():
    images = torch.zeros(3000, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    out = ops.translation(images)
    assert set(out.unique().tolist()) == {0.0, 1.0} and (out.sum((1, 2, 3)) == 1).all()
    _, _, y, x = out.nonzero().T
    for shift in (y - 8, x - 8):
        counts = torch.bincount(shift + 2)
        assert len(counts) == 5 and (counts / 3000 - 0.2).abs().max() < 0.03  # R/8 = 2 pixels each way
    exact = pictures(50)
    moved = ops.translation(exact)
    for before, after in zip(exact, moved):  # some shift reproduces it bit for bit
        shifts = [F.pad(before, (2 + dx, 2 - dx, 2 + dy, 2 - dy))[:, 2:-2, 2:-2] for dx in range(-2, 3) for dy in range(-2, 3)]
        assert any(torch.equal(after, shifted) for shifted in shifts)


def test_cutout_hides_the_expected_area():
    """A square of half the side whose centre is anywhere covers 7/16 of each axis on average: half less what is cut off."""
    out = ops.cutout(torch.ones(4000, 1, 32, 32))
    hidden = (out == 0).float().mean((1, 2, 3))
    assert hidden.mean().item() == pytest.approx((7 / 16) ** 2, rel=0.03)
    assert hidden.max().item() == pytest.approx(0.25, abs=0.01) and hidden.min().item() >= (1 / 4) ** 2 - 0.03


def test_colour_ranges():
    images = pictures(2000, 4)
    shift = (ops.brightness(images) - images).flatten(1)
    assert shift.std(1).max() < 1e-6
    assert -0.5 <= shift.min() < -0.47 and 0.47 < shift.max() <= 0.5
    grey = images.mean(1, keepdim=True)
    out = ops.saturation(images)
    torch.testing.assert_close(out.mean(1, keepdim=True), grey, atol=1e-5, rtol=0)
    factor = ((out - grey).flatten(1).norm(dim=1)) / (images - grey).flatten(1).norm(dim=1)
    assert factor.min() < 0.05 and 1.95 < factor.max() <= 2.0001
    out, mean = ops.contrast(images), images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out.mean((1, 2, 3), keepdim=True), mean, atol=1e-5, rtol=0)
    factor = (out - mean).flatten(1).norm(dim=1) / (images - mean).flatten(1).norm(dim=1)
    assert 0.4999 <= factor.min() < 0.53 and 1.47 < factor.max() <= 1.5001


def test_lighting_is_a_ramp_from_any_side():
    light = ops.lighting(torch.zeros(2000, 1, 8, 8)) + 1  # grey lit: 1 + a t
    assert light.mean().item() == pytest.approx(1, abs=1e-3) and light.min() >= 0.5 and light.max() <= 1.5
    dx, dy = light[:, 0, 4, 5] - light[:, 0, 4, 4], light[:, 0, 5, 4] - light[:, 0, 4, 4]
    torch.testing.assert_close(light[:, 0, 4, 7] - light[:, 0, 4, 4], 3 * dx, atol=1e-5, rtol=0)
    angle = torch.atan2(dy, dx)
    assert torch.histc(angle, 4, -math.pi, math.pi).min() > 2000 / 4 * 0.85


def test_noise_has_the_stated_size():
    grain = ops.noise(torch.zeros(3000, 3, 8, 8))
    sizes = grain.flatten(1).std(1)
    assert sizes.mean().item() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.06)  # the mean of |N(0, .1^2)|
    assert grain.mean().item() == pytest.approx(0, abs=1e-3)


def test_rotation_turns_and_scale_enlarges_about_the_centre():
    size = 33
    x, y = ops.axes(torch.zeros(1, 1, size, size))
    radius = (x.square() + y.square()).sqrt()
    disc = (1 - radius).clamp(min=0).expand(200, 1, size, size)
    turned = ops.rotation(disc)
    assert (turned - disc).abs().max() < 0.05  # round: a turn leaves it
    ramp = x.expand(1, 1, size, size).expand(500, 1, size, size)
    turned = ops.rotation(ramp)
    middle = turned[:, 0, size // 2 - 1 : size // 2 + 2, size // 2 - 1 : size // 2 + 2]
    angle = torch.rad2deg(torch.atan2(middle[:, 2, 1] - middle[:, 0, 1], middle[:, 1, 2] - middle[:, 1, 0]))
    assert -15.01 <= angle.min() < -14 and 14 < angle.max() <= 15.01 and abs(angle.mean().item()) < 1.5
    grown = ops.scale(ramp)
    slope = (grown[:, 0, 16, 18] - grown[:, 0, 16, 14]) / (ramp[:, 0, 16, 18] - ramp[:, 0, 16, 14])
    octaves = -torch.log2(slope)
    assert octaves.std().item() == pytest.approx(0.2, rel=0.12) and octaves.mean().item() == pytest.approx(0, abs=0.03)
