"""The DCGAN family: shapes, options, conditions, gradients."""

import itertools

import pytest
import torch
from torch import nn

from mien.config import resolve
from mien.errors import UserError
from mien.models.catalogue import FAMILIES, PRESETS, build_discriminator, build_generator, option_defaults
from mien.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mien.models.layers import SpectralConv2d, SpectralLinear


def batch(n: int, size: int, attributes: int, z_dim: int = 100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, z_dim), torch.rand(n, 3, size, size) * 2 - 1, torch.randint(0, 2, (n, attributes)).float()


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("head", ["transpose", "conv"])
def test_shapes_at_every_size(size, head):
    z, images, attributes = batch(2, size, 3)
    net = DCGANGenerator(size, 3, width=32, head=head, condition="concat")
    made = net(z, attributes)
    assert made.shape == images.shape and made.abs().max() <= 1
    assert (net.size, net.attributes, net.z_dim) == (size, 3, 100)
    for pool, features in (("sum", 32), ("conv", 512)):
        critic = DCGANDiscriminator(size, 3, width=32, head=pool, condition="projection")
        assert critic(images, attributes).shape == (2,)
        assert critic.features(images, attributes).shape == (2, features)


def test_maps_are_named_by_their_side_and_hooked_by_name():
    z, images, attributes = batch(2, 64, 0)
    net, critic = DCGANGenerator(64, 0, width=64), DCGANDiscriminator(64, 0, width=64)
    assert list(dict(net.blocks.named_children())) == ["4x4", "8x8", "16x16", "32x32", "image"]
    assert list(dict(critic.trunk.named_children())) == ["32x32", "16x16", "8x8", "4x4"]
    seen = {}
    for root, parent in ((net, "blocks"), (critic, "trunk")):
        for name in ("4x4", "8x8", "16x16", "32x32"):
            layer = root.get_submodule(f"{parent}.{name}.act")
            layer.register_forward_hook(lambda _, __, out, key=(parent, name): seen.update({key: out.shape[1:]}))
    net(z, attributes), critic(images, attributes)
    assert all(list(shape[1:]) == [int(name.split("x")[0])] * 2 for (_, name), shape in seen.items()) and len(seen) == 8
    assert [seen["blocks", f"{r}x{r}"][0] for r in (4, 8, 16, 32)] == [64, 32, 16, 16]


def test_defaults_are_the_classic_dcgan():
    """Radford et al. 2016 as usually built at 64 px: 3.58 M parameters in G and 2.77 M in D, batch norm where they say."""
    net, critic = DCGANGenerator(64, 0), DCGANDiscriminator(64, 0)
    convs = [100 * 512, 512 * 256, 256 * 128, 128 * 64, 64 * 3]
    assert sum(p.numel() for p in net.parameters()) == 16 * sum(convs) + 2 * (512 + 256 + 128 + 64) + 3
    convs = [3 * 64, 64 * 128, 128 * 256, 256 * 512, 512 * 1]
    assert sum(p.numel() for p in critic.parameters()) == 16 * sum(convs) + 64 + 2 * (128 + 256 + 512) + 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in (*net.blocks.image.modules(), *critic.trunk.get_submodule("32x32").modules()))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in critic.modules()) == 3
    layers = {root: [m for m in root.modules() if hasattr(m, "kernel_size")] for root in (net, critic)}
    assert all(isinstance(m, nn.ConvTranspose2d) for m in layers[net]) and all(isinstance(m, nn.Conv2d) for m in layers[critic])
    assert {m.kernel_size for root in layers.values() for m in root} == {(4, 4)}


GENERATORS = [
    {"stem": stem, "norm": norm, "head": head, "condition": condition}
    for stem, norm, head, condition in itertools.product(
        ("transpose", "linear"), ("batch", "none"), ("transpose", "conv"), ("none", "concat")
    )
] + [{"init": init} for init in ("xavier", "he", "orthogonal")]
DISCRIMINATORS = [
    {"norm": norm, "head": head, "condition": condition, "minibatch_stddev": crowd, "minibatch_discrimination": crowd}
    for norm, head, condition, crowd in itertools.product(
        ("batch", "spectral", "batch+spectral", "none"), ("conv", "sum"), ("none", "channels", "projection"), (0, 3)
    )
] + [{"dropout": 0.3}, {"spatial_dropout": 0.3}, {"input_noise": 0.1}, {"init": "xavier"}, {"init": "he"}, {"init": "orthogonal"}]


def says(options: dict) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def assert_trained(net: nn.Module) -> None:
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not still, f"no gradient in {still}"


@pytest.mark.parametrize("options", GENERATORS, ids=says)
def test_every_parameter_of_g_gets_a_gradient_and_the_state_dict_returns(options):
    z, _, attributes = batch(4, 32, 2, z_dim=8)
    net = build_generator("dcgan", size=32, attributes=2, options={"width": 32, "z_dim": 8, **options})
    out = net(z, attributes)
    (out * torch.randn_like(out)).sum().backward()
    assert_trained(net)
    other = build_generator("dcgan", size=32, attributes=2, options={"width": 32, "z_dim": 8, **options})
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(z, attributes), other.eval()(z, attributes))


@pytest.mark.parametrize("options", DISCRIMINATORS, ids=says)
def test_every_parameter_of_d_gets_a_gradient_and_the_state_dict_returns(options):
    _, images, attributes = batch(6, 32, 2)
    critic = build_discriminator("dcgan", size=32, attributes=2, options={"width": 32, **options})
    images = images.requires_grad_()
    logits = critic(images, attributes)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (logits.square().sum() + slope.square().sum()).backward()  # as in a step with R1
    assert_trained(critic)
    other = build_discriminator("dcgan", size=32, attributes=2, options={"width": 32, **options})
    other.load_state_dict(critic.state_dict())
    assert torch.equal(critic.eval()(images, attributes), other.eval()(images, attributes))


def test_d_is_its_head_on_its_features():
    _, images, attributes = batch(4, 32, 2)
    critic = DCGANDiscriminator(32, 2, width=32, norm="none", condition="projection", head="sum", minibatch_discrimination=4)
    assert torch.equal(critic(images, attributes), critic.head(critic.features(images, attributes), attributes))


def test_projection_by_hand():
    """D(x, c) = h(f) + f . e(c), f the sum over the 4x4 map, c signed."""
    _, images, attributes = batch(4, 32, 2)
    critic = DCGANDiscriminator(32, 2, width=32, norm="none", condition="projection", head="sum")
    f = critic.trunk(images).sum((2, 3))
    sign = attributes * 2 - 1
    for i in range(4):
        e = sum(sign[i, a] * critic.embedding.weight[:, a] for a in range(2))
        expected = critic.logit.weight[0] @ f[i] + critic.logit.bias[0] + f[i] @ e
        assert critic(images, attributes)[i].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_spectral_means_every_weight_of_d():
    critic = DCGANDiscriminator(32, 2, width=32, norm="spectral", condition="projection", minibatch_discrimination=4)
    weighted = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 6 and all(isinstance(m, (SpectralConv2d, SpectralLinear)) for m in weighted)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())


@pytest.mark.parametrize("condition", ["channels", "projection"])
def test_attributes_change_d(condition):
    _, images, _ = batch(4, 32, 2)
    critic = DCGANDiscriminator(32, 2, width=32, norm="none", condition=condition).eval()
    logits = [critic(images, torch.tensor([row]).expand(4, 2)) for row in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5])]
    for first, second in itertools.combinations(logits, 2):
        assert (first - second).abs().min() > 0


def test_attributes_change_g_and_only_when_conditioned():
    z, _, _ = batch(4, 32, 2)
    zero, one = torch.zeros(4, 2), torch.ones(4, 2)
    net = DCGANGenerator(32, 2, width=32, condition="concat").eval()
    assert (net(z, zero) - net(z, one)).abs().mean() > 1e-6
    net = DCGANGenerator(32, 2, width=32, condition="none").eval()
    assert torch.equal(net(z, zero), net(z, one))


def test_absent_and_present_carry_the_same_signal():
    """An attribute enters as -1 or +1: for a linear stem, the steps from one half to 0 and to 1 are opposite."""
    z, _, _ = batch(2, 32, 1)
    stem = DCGANGenerator(32, 1, width=32, condition="concat", norm="none", stem="linear")
    seen: list[torch.Tensor] = []
    stem.blocks.get_submodule("4x4.conv").register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    for value in (0.0, 0.5, 1.0):
        stem(z, torch.full((2, 1), value))
    torch.testing.assert_close(seen[2] - seen[1], seen[1] - seen[0], atol=1e-6, rtol=1e-4)
    assert (seen[2] - seen[1]).abs().max() > 1e-3


def test_no_attributes_at_all():
    z, images, attributes = batch(4, 32, 0)
    assert attributes.shape == (4, 0)
    for condition in ("none", "concat"):
        assert DCGANGenerator(32, 0, width=32, condition=condition)(z, attributes).shape == (4, 3, 32, 32)
    for condition in ("none", "channels", "projection"):
        assert DCGANDiscriminator(32, 0, width=32, norm="spectral", condition=condition)(images, attributes).shape == (4,)


def test_wrong_number_of_attributes_is_named():
    z, images, _ = batch(2, 32, 2)
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        DCGANGenerator(32, 2, width=32)(z, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        DCGANDiscriminator(32, 2, width=32)(images, torch.zeros(2, 3))


def test_input_noise_is_a_knob_and_rests_in_evaluation():
    _, images, attributes = batch(4, 32, 0)
    critic = DCGANDiscriminator(32, 0, width=32, norm="none", input_noise=0.5)
    assert not torch.equal(critic(images, attributes), critic(images, attributes))
    torch.manual_seed(0)
    first = critic(images, attributes)
    torch.manual_seed(0)
    assert torch.equal(first, critic(images, attributes))
    assert torch.equal(critic.eval()(images, attributes), critic(images, attributes))
    critic.train().input_noise = 0.0
    assert torch.equal(critic(images, attributes), critic(images, attributes))


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_channels_last_gives_the_same_numbers(norm):
    z, images, attributes = batch(4, 32, 2)
    nets = DCGANGenerator(32, 2, width=32, condition="concat"), DCGANDiscriminator(32, 2, width=32, norm=norm, condition="projection")
    before = nets[0](z, attributes), nets[1].eval()(images, attributes)
    nets[0].to(memory_format=torch.channels_last), nets[1].to(memory_format=torch.channels_last)
    torch.testing.assert_close(nets[0](z, attributes), before[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nets[1](images.contiguous(memory_format=torch.channels_last), attributes), before[1], atol=1e-5, rtol=1e-4)


def test_weights_move_between_a_plain_and_a_spectral_discriminator():
    plain, spectral = (DCGANDiscriminator(32, 2, width=32, norm=norm, condition="projection") for norm in ("none", "spectral"))
    report = spectral.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys and all(name.endswith((".u", ".v")) for name in report.missing_keys)


def test_options_are_refused_by_name():
    with pytest.raises(UserError, match="no network family 'dcgn'.*Did you mean dcgan"):
        build_generator("dcgn", size=32, attributes=0, options={})
    with pytest.raises(UserError, match="no option 'widht'.*Did you mean width"):
        build_generator("dcgan", size=32, attributes=0, options={"widht": 3})
    with pytest.raises(UserError, match="model.discriminator.norm = 'spectrl'.*Did you mean spectral[^.]*$"):
        build_discriminator("dcgan", size=32, attributes=0, options={"norm": "spectrl"})
    with pytest.raises(UserError, match="model.discriminator.norm = 'batch' is not one of spectral, none.*--preset resnet64"):
        build_discriminator("resnet", size=32, attributes=0, options={"norm": "batch"})
    for family, preset in PRESETS.items():
        assert resolve(preset).config.model.family == family
    assert set(PRESETS) == set(FAMILIES)
    for network in FAMILIES["dcgan"]:
        assert option_defaults(network)["width"] == 512 and "size" not in option_defaults(network)


@pytest.mark.parametrize("norm", ["batch", "spectral", "batch+spectral", "none"])
def test_a_step_under_bf16(norm):
    z, images, attributes = batch(4, 32, 2)
    net = DCGANGenerator(32, 2, width=32, condition="concat")
    critic = DCGANDiscriminator(32, 2, width=32, norm=norm, condition="projection", minibatch_stddev=4, minibatch_discrimination=4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = critic(net(z, attributes), attributes)
    logits.float().square().sum().backward()
    for made in (net, critic):
        assert_trained(made)
