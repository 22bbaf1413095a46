"""Layers against naive loops, closed forms and torch's own."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from mien.errors import UserError
from mien.models.layers import (
    MinibatchDiscrimination,
    MinibatchStddev,
    Project,
    SpectralConv2d,
    SpectralLinear,
    channels_at,
    choose,
    fans,
    initialize,
    resolutions,
)


def test_resolutions_and_channels_halve_from_the_4x4_map():
    assert resolutions(64) == [4, 8, 16, 32, 64]
    assert [channels_at(r, width=512, min_width=16) for r in resolutions(256)] == [512, 256, 128, 64, 32, 16, 16]
    assert [channels_at(r, width=736, min_width=16) for r in resolutions(64)] == [736, 368, 184, 92, 46]
    with pytest.raises(UserError, match="not 48"):
        resolutions(48)


def test_choose_offers_the_nearest():
    assert choose("norm", "batch", ("batch", "none")) == "batch"
    with pytest.raises(UserError, match="norm = 'bach' .* Did you mean batch"):
        choose("norm", "bach", ("batch", "none"))


def test_project_is_the_transposed_convolution_of_a_1x1_map():
    torch.manual_seed(0)
    project, transpose = Project(5, 7, bias=False), nn.ConvTranspose2d(5, 7, 4, bias=False)
    with torch.no_grad():
        project.weight.copy_(transpose.weight.permute(1, 2, 3, 0).reshape(7 * 16, 5))
    x = torch.randn(3, 5, 1, 1)
    torch.testing.assert_close(project(x), transpose(x))


@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Conv2d(24, 32, 4, 2, 1, bias=False), torch.randn(8, 24, 24, 24)),
        (nn.ConvTranspose2d(24, 32, 4, 2, 1, bias=False), torch.randn(8, 24, 12, 12)),
        (nn.ConvTranspose2d(100, 64, 4, bias=False), torch.randn(256, 100, 1, 1)),
        (nn.Linear(100, 64, bias=False), torch.randn(256, 100)),
    ],
)
def test_he_weights_double_the_variance_of_unit_inputs_and_fan_out_is_the_gradients(layer, x):
    """He's variance 2 / fan_in makes a linear layer's outputs have variance 2, so fan_in is right only if they do."""
    torch.manual_seed(1)
    initialize(layer, "he")
    x = x.clone().requires_grad_()
    y = layer(x)
    inner = y[..., 1:-1, 1:-1] if y.ndim == 4 and x.shape[-1] > 1 else y  # the border sees fewer taps
    assert inner.var().item() == pytest.approx(2.0, rel=0.12)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    inner = gradient[..., 1:-1, 1:-1] if x.ndim == 4 and x.shape[-1] > 1 else gradient
    fan_in, fan_out = fans(layer)
    assert inner.var().item() == pytest.approx(2 * fan_out / fan_in, rel=0.12)


def test_initial_weights_have_the_stated_deviation():
    def net():
        return nn.Sequential(nn.Conv2d(32, 64, 4, 2, 1), nn.BatchNorm2d(64))

    fan_in, fan_out = 32 * 16, 64 * 4
    for init, std in (("normal", 0.02), ("xavier", math.sqrt(2 / (fan_in + fan_out))), ("he", math.sqrt(2 / fan_in))):
        made = net()
        initialize(made, init)
        assert made[0].weight.std().item() == pytest.approx(std, rel=0.03)
        assert made[0].weight.mean().item() == pytest.approx(0, abs=std / 30)
        assert not made[0].bias.any()
        assert made[1].weight.std().item() == pytest.approx(0.02 if init == "normal" else 0, rel=0.3)
    made = net()
    initialize(made, "orthogonal")
    rows = made[0].weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(64), atol=1e-5, rtol=0)


def twins(kind: str, *, channels_last: bool) -> tuple[nn.Module, nn.Module]:
    """Our spectrally normalised layer and torch's, with the same weight and vectors."""
    torch.manual_seed(0)
    if kind == "conv":
        ours: nn.Module = SpectralConv2d(6, 10, 4, 2, 1)
        theirs: nn.Module = nn.Conv2d(6, 10, 4, 2, 1)
    else:
        ours, theirs = SpectralLinear(20, 7), nn.Linear(20, 7)
    theirs.load_state_dict({"weight": ours.weight.detach(), "bias": ours.bias.detach()})
    spectral_norm(theirs)
    norm = theirs.parametrizations.weight[0]
    ours.u.copy_(norm._u)
    ours.v.copy_(norm._v.view_as(ours.v))
    if channels_last:
        ours, theirs = ours.to(memory_format=torch.channels_last), theirs.to(memory_format=torch.channels_last)
    return ours, theirs


@pytest.mark.parametrize("kind, channels_last", [("conv", False), ("conv", True), ("linear", False)])
def test_spectral_norm_equals_torchs_to_second_derivatives(kind, channels_last):
    """With equal vectors; in training torch iterates u before v, the paper and we v before u, so both are brought to rest first."""
    ours, theirs = twins(kind, channels_last=channels_last)
    x = torch.randn(4, 6, 8, 8) if kind == "conv" else torch.randn(4, 20)

    def penalty_gradient(layer, weight):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(images).sin().sum(), images, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    def assert_same(rtol):
        torch.testing.assert_close(ours(x), theirs(x), atol=rtol, rtol=rtol)
        slopes = penalty_gradient(ours, ours.weight), penalty_gradient(theirs, theirs.parametrizations.weight.original)
        torch.testing.assert_close(*slopes, atol=rtol * slopes[0].abs().max().item(), rtol=0)

    ours.eval(), theirs.eval()
    assert_same(1e-5)
    ours.train(), theirs.train()
    for _ in range(300):
        ours.normalized(), theirs.weight
    assert_same(1e-4)


def test_spectral_norm_brings_the_largest_singular_value_to_1_and_rests_in_evaluation():
    torch.manual_seed(0)
    layer = SpectralConv2d(16, 32, 4, 2, 1).to(memory_format=torch.channels_last)
    for _ in range(100):
        weight = layer.normalized()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    layer.eval()
    u, v = layer.u.clone(), layer.v.clone()
    layer.normalized()
    assert torch.equal(layer.u, u) and torch.equal(layer.v, v)
    layer.train().normalized()
    assert not torch.equal(layer.u, u)


def test_two_forwards_before_one_backward():
    """D sees real and fake images before its step: the second pass must not spoil what the first keeps for its gradient."""
    layer = SpectralConv2d(3, 4, 4, 2, 1)
    (layer(torch.randn(2, 3, 8, 8)).sum() - layer(torch.randn(2, 3, 8, 8)).sum()).backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_spectral_norm_stays_fp32_under_autocast():
    layer = SpectralLinear(64, 64)
    layer.iterate(50)
    exact = layer.normalized().detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer.normalized()
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=1e-4, atol=1e-6)


def test_minibatch_stddev_by_hand():
    x = torch.zeros(4, 1, 1, 2)
    x[0, 0, 0] = torch.tensor([1.0, 3.0])
    x[1, 0, 0] = torch.tensor([5.0, 3.0])  # group 0: deviations 2 and 0, mean 1; group 1: all equal
    out = MinibatchStddev(2)(x)
    assert out.shape == (4, 2, 1, 2)
    torch.testing.assert_close(out[:, :1], x)
    torch.testing.assert_close(out[:2, 1], torch.full((2, 1, 2), 1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[2:, 1], torch.zeros(2, 1, 2), atol=2e-4, rtol=0)


def test_minibatch_stddev_cuts_an_odd_batch_evenly():
    torch.manual_seed(0)
    x = torch.randn(9, 3, 2, 2)
    plane = MinibatchStddev(4)(x)[:, 3, 0, 0]
    for start in (0, 3, 6):  # three groups of three rather than 4 + 4 + 1
        expected = x[start : start + 3].std(0, correction=0).mean().expand(3)
        torch.testing.assert_close(plane[start : start + 3], expected)
    assert MinibatchStddev(8)(x[:1])[0, 3].abs().max() < 1e-3  # alone: no spread, no NaN


def test_minibatch_stddev_has_a_finite_gradient_for_equal_samples():
    x = torch.ones(4, 2, 2, 2, requires_grad=True)
    MinibatchStddev(4)(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("spectral", [False, True])
def test_minibatch_discrimination_against_a_loop(spectral):
    torch.manual_seed(0)
    layer = MinibatchDiscrimination(6, 3, spectral=spectral, dims=2).eval()
    f = torch.randn(5, 6)
    out = layer(f)
    assert out.shape == (5, 9)
    torch.testing.assert_close(out[:, :6], f)
    m = layer.tensor(f).reshape(5, 3, 2)
    for i in range(5):
        for b in range(3):
            close = sum(math.exp(-(m[i, b] - m[j, b]).abs().sum().item()) for j in range(5) if j != i)
            assert out[i, 6 + b].item() == pytest.approx(close, rel=1e-4, abs=1e-5)
