"""The StyleGAN2 family: styles, modulation, noise, truncation, path length."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mien.losses.regularizers import path_lengths
from mien.models.style import (
    Linear,
    Noise,
    StyledConv,
    StyleDiscriminator,
    StyledUpConv,
    StyleGenerator,
    normalized,
)

SMALL = {"width": 16, "wide_px": 8}


def generator(attributes: int = 2, **options) -> StyleGenerator:
    torch.manual_seed(0)
    net = StyleGenerator(32, attributes, **SMALL, z_dim=8, w_dim=12, mapping=2, **options)
    for name, parameter in net.named_parameters():
        if name.endswith("strength"):
            nn.init.constant_(parameter, 0.3)
    return net


def faces(count: int, attributes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 8), torch.randint(0, 2, (count, attributes)).float()


def test_a_modulated_convolution_is_one_with_weights_for_each_sample():
    """Equation 1 and 3 of the paper, written out."""
    torch.manual_seed(0)
    conv, x, w = StyledConv(6, 5, 4), torch.randn(3, 6, 8, 8), torch.randn(3, 4)
    s = conv.affine(w)
    for i in range(3):
        weight = conv.weight * s[i, :, None, None]
        weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        assert torch.allclose(conv(x, w)[i], F.conv2d(x[i], weight, padding=1), atol=1e-4)
    up = StyledUpConv(6, 5, 4)
    weight = up.weight[None] * up.affine(w)[:, :, None, None, None]  # [N, in, out, 3, 3]
    weight = weight / weight.square().sum((1, 3, 4), keepdim=True).sqrt()
    own = torch.stack([up.blur(F.conv_transpose2d(x[i : i + 1], weight[i], stride=2))[0] for i in range(3)])
    assert own.shape == (3, 5, 16, 16) and torch.allclose(up(x, w), own, atol=1e-4)


def test_demodulation_gives_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    conv, x = StyledConv(32, 64, 4), torch.randn(4, 32, 32, 32)
    for size in (0.1, 1.0, 30.0):
        inner = conv(x, size * torch.randn(4, 4))[:, :, 1:-1, 1:-1]
        assert float(inner.var((2, 3)).mean()) == pytest.approx(1, abs=0.05)


def test_a_slow_layer_is_the_same_layer_at_first():
    torch.manual_seed(0)
    x, fast, slow = torch.randn(2000, 64), Linear(64, 64, bias=1.0), Linear(64, 64, bias=1.0, rate=0.01)
    with torch.no_grad():
        for layer in (fast, slow):
            assert float(layer(x).mean()) == pytest.approx(1, abs=0.05) and float(layer(x).var()) == pytest.approx(1, abs=0.1)
        moved = []
        for layer in (fast, slow):
            before = layer(x)
            layer.weight += 0.01
            moved.append((layer(x) - before).abs().mean())
    assert float(moved[0] / moved[1]) == pytest.approx(100, rel=0.01)


def test_a_face_is_a_function_of_its_latent_and_training_noise_is_not():
    net, (z, a) = generator(), faces(3)
    assert not torch.equal(net(z, a), net(z, a))
    net.eval()
    images = net(z, a)
    assert torch.equal(images, net(z, a)) and images.shape == (3, 3, 32, 32)
    assert torch.allclose(images[1:2], net(z[1:2], a[1:2]), atol=1e-5)
    assert torch.allclose(images, net(5 * z, a), atol=1e-4)  # only the direction of z counts
    assert (images - net(z, 1 - a)).abs().mean() > 0.01


def test_noise_has_the_strength_that_was_learnt():
    noise = Noise(4, 16)
    flat = torch.full((8, 4, 16, 16), 10.0)  # far from the leaky ReLU's bend
    assert noise(flat).std() == 0
    nn.init.constant_(noise.strength, 0.5)
    noisy = noise(flat).detach()
    assert float(noisy.div(2**0.5).std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noisy[:, 0], noisy[:, 1]) and not torch.equal(noisy, noise(flat))  # one picture for all channels
    assert torch.equal(noise.eval()(flat)[0], noise(flat)[1])


def test_truncation_pulls_styles_to_the_mean_of_the_condition():
    net, (z, _) = generator().eval(), faces(6)
    a = torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 0], [0.5, 2], [0.5, 2]])
    still = net.truncated(0.0)(z, a)
    assert all(torch.equal(still[i], still[i + 1]) for i in (0, 2, 4))
    assert (still[0] - still[2]).abs().mean() > 0.01  # the mean face of a condition keeps it
    assert torch.equal(net.truncated(1.0)(z, a), net(z, a)) and net.psi == 1
    whole, half = net.styles(z, a), net.truncated(0.5).styles(z, a)
    assert torch.allclose(half, (whole + net.centre(a)[:, None]) / 2, atol=1e-6)
    many = torch.randn(4000, 8)
    assert torch.allclose(net.centre(a[:1]), net.mapping(many, a[:1].expand(4000, -1)).mean(0, keepdim=True), atol=0.1)
    spread = net.styles(z, a)[:, 0] - net.centre(a)
    assert float(spread.square().mean().sqrt()) > 0.3  # so that an allowance of 0.1 says something
    alone = generator(attributes=0).eval()
    first, second = alone.truncated(0.0)(z, torch.zeros(6, 0))[:2]
    assert torch.equal(first, second)
    assert next(net.truncated(0.5).parameters()) is next(net.parameters())


def test_style_mixing_swaps_the_last_layers_of_some_samples():
    net, (z, a) = generator(mixing=0.5), faces(400)
    own, w = net.mapping(z, a), net.styles(z, a)
    mine = (w == own[:, None]).all(2)  # [N, L]
    assert mine[:, 0].all() and (mine.int().diff(dim=1) <= 0).all()  # never at the first layer; once another's, always another's
    assert float((~mine[:, -1]).float().mean()) == pytest.approx(0.5, abs=0.1)
    starts = mine.sum(1)[~mine[:, -1]]
    assert set(starts.tolist()) == set(range(1, net.layers))
    assert torch.equal(net.eval().styles(z, a)[:, 0], net.styles(z, a)[:, -1])


def test_path_lengths_of_a_linear_generator_are_known():
    """images = M w for each of L layers: J^T y = M^T y, E of its square = |M|^2 / R^2."""
    torch.manual_seed(0)
    matrix, w = torch.randn(3 * 8 * 8, 12), torch.zeros(3000, 1, 12, requires_grad=True)
    lengths = path_lengths((w[:, 0] @ matrix.T).unflatten(1, (3, 8, 8)), w)
    assert float(lengths.square().mean()) == pytest.approx(float(matrix.square().sum() / 64), rel=0.03)
    twice = torch.zeros(3000, 2, 12, requires_grad=True)
    apart = path_lengths(((twice[:, 0] + 3 * twice[:, 1]) @ matrix.T).unflatten(1, (3, 8, 8)), twice)
    assert float(apart.square().mean()) == pytest.approx(float((1 + 9) / 2 * matrix.square().sum() / 64), rel=0.03)


def test_the_path_penalty_teaches_all_but_colour_biases():
    """Its gradient has passed through the generator twice."""
    net, (z, a) = generator(), faces(4)
    styles = net.styles(z, a)
    lengths = path_lengths(net.synthesis(styles), styles)
    (lengths - 1.0).square().mean().backward()
    still = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {f"colours.{side}x{side}.bias" for side in (4, 8, 16, 32)}
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_colours_add_up_over_the_sizes():
    net, (z, a) = generator().eval(), faces(2)
    parts = []
    for part in net.colours.values():
        part.register_forward_hook(lambda _, __, out: parts.append(out))
    images = net(z, a)
    sums = parts[0]
    for part in parts[1:]:
        sums = F.interpolate(sums, size=part.shape[-1], mode="bilinear") + part
    assert torch.allclose(images, sums) and [part.shape[-1] for part in parts] == [4, 8, 16, 32]


def test_the_discriminator_sees_the_crowd_and_the_condition():
    torch.manual_seed(0)
    critic, images = StyleDiscriminator(32, 2, **SMALL, minibatch_stddev=2), torch.randn(4, 3, 32, 32)
    none, one = torch.zeros(4, 2), torch.ones(4, 2)
    same = images[:1].expand(4, -1, -1, -1)
    assert not torch.allclose(critic(images, none)[0], critic(torch.cat([same[:2], images[2:]]), none)[0])
    assert critic.features(images, none).shape == (4, 16)
    logits = [critic(images, a) for a in (none, one, (none + one) / 2)]
    assert torch.allclose((logits[0] + logits[1]) / 2, logits[2], atol=1e-5) and not torch.allclose(logits[0], logits[1])
    alone = StyleDiscriminator(32, 0, **SMALL, minibatch_stddev=0)
    assert torch.allclose(alone(images, none[:, :0])[0], alone(images[:1], none[:1, :0])[0], atol=1e-5)


def test_a_copy_for_the_average_has_the_same_noise():
    net, (z, a) = generator(), faces(2)
    average = copy.deepcopy(net).eval()
    assert torch.equal(average(z, a), net.eval()(z, a))
    assert {name for name, _ in net.named_buffers()} - set(net.state_dict()) == {
        name for name, _ in net.named_buffers() if name.endswith("kernel")}  # noise and path mean are kept, fixed filters need not be
    assert normalized(torch.full((1, 4), 3.0)).tolist() == [[1.0] * 4]
