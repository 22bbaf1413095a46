"""What every family of networks must hold, so that one engine trains them all and every tool reads them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mien.config import Config, resolve
from mien.engine.checkpoint import load_snapshot, save_snapshot
from mien.engine.ema import ema_update
from mien.errors import UserError
from mien.explore.activations import changed, layer_names, record
from mien.losses.regularizers import r1
from mien.models.catalogue import FAMILIES, build_discriminator, build_generator, networks, option_defaults
from mien.models.summary import summarize

SMALL = {"width": 16, "min_width": 8, "z_dim": 8, "w_dim": 8}
CASES = {
    **{family: (family, {"condition": "concat"}, {"condition": "projection"}) for family in FAMILIES},
    "resnet-attention": ("resnet", {"condition": "norm", "attention": 8, "spectral": True}, {"condition": "projection", "attention": 8}),
    "resnet-wgan": ("resnet", {"condition": "norm", "norm": "batch"}, {"condition": "channels", "norm": "none", "head": "conv"}),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def options(network: type[nn.Module], own: dict) -> dict:
    return {name: value for name, value in SMALL.items() if name in option_defaults(network)} | own


def pair(case: str, *, size: int = 32, attributes: int = 2, nudged: bool = True):
    """A generator and a discriminator. `nudged`: what starts at exactly 0 (a branch's last layer, a noise's strength) is moved off it."""
    family, g, d = CASES[case]
    generator, discriminator = networks(family)
    G = build_generator(family, size=size, attributes=attributes, options=options(generator, g))
    D = build_discriminator(family, size=size, attributes=attributes, options=options(discriminator, d))
    for parameter in (*G.parameters(), *D.parameters()):
        if nudged and not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)
    return G.to(memory_format=torch.channels_last), D.to(memory_format=torch.channels_last)


def inputs(G: nn.Module, n: int, *, size: int = 32, attributes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, G.z_dim), torch.rand(n, 3, size, size) * 2 - 1, torch.randint(0, 2, (n, attributes)).float()


def dead(net: nn.Module) -> list[str]:
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]


@every_case
@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes(case, size):
    G, D = pair(case, size=size, nudged=False)
    z, images, attributes = inputs(G, 2, size=size)
    assert G(z, attributes).shape == images.shape and (G.size, G.attributes) == (size, 2)
    D.eval()
    features = D.features(images, attributes)
    assert features.ndim == 2 and len(features) == 2
    assert torch.equal(D(images, attributes), D.head(features, attributes)) and D(images, attributes).shape == (2,)


@every_case
def test_the_condition_moves_both_networks_within_and_beyond_0_to_1(case):
    G, D = pair(case)
    z, images, _ = inputs(G, 3)
    G.eval(), D.eval()
    for column in range(2):
        conditions = [torch.full((3, 2), 0.5).index_fill(1, torch.tensor(column), value) for value in (-0.5, 0.0, 0.5, 1.0, 1.5)]
        for outputs in ([G(z, a) for a in conditions], [D(images, a) for a in conditions]):
            assert all(out.isfinite().all() for out in outputs)
            assert all((one - other).abs().mean() > 1e-7 for one, other in zip(outputs, outputs[1:]))
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        G(z, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        D(images, torch.zeros(3, 1))


@every_case
def test_without_attributes(case):
    G, D = pair(case, attributes=0)
    z, images, attributes = inputs(G, 4, attributes=0)
    assert attributes.shape == (4, 0)
    assert G(z, attributes).shape == images.shape
    D(images, attributes).sum().backward()
    assert not dead(D)


@every_case
def test_every_parameter_learns_and_r1_has_a_second_derivative(case):
    G, D = pair(case)
    z, images, attributes = inputs(G, 8)
    fake = G(z, attributes)
    logits = D(torch.cat([images, fake.detach()]), torch.cat([attributes, attributes]))
    penalty = r1(D, real=images, attributes=attributes)
    assert penalty.shape == (8,) and (penalty > 0).all()
    (F.softplus(-logits[:8]) + F.softplus(logits[8:]) + penalty).sum().backward()
    assert not dead(D)
    D.requires_grad_(False)
    F.softplus(-D(fake, attributes)).sum().backward()
    assert not dead(G)


@every_case
def test_mixed_precision_stays_finite_and_near(case):
    G, D = pair(case)
    z, images, attributes = inputs(G, 4)
    exact = copy.deepcopy(G).eval()(z, attributes), copy.deepcopy(D).eval()(images, attributes)
    G.eval(), D.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = G(z, attributes), D(images, attributes)
        penalty = r1(D, real=images, attributes=attributes)
    assert penalty.dtype == torch.float32 and penalty.isfinite().all()
    for one, other in zip(exact, near):
        assert other.isfinite().all() and (one - other.float()).abs().mean() < 0.05 * (1 + one.abs().mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (D(G.train()(z, attributes), attributes).float().sum() + r1(D.train(), real=images, attributes=attributes).sum()).backward()
    assert not dead(G) and not dead(D)


@every_case
def test_the_average_follows_every_tensor(case):
    G, _ = pair(case)
    z, _, attributes = inputs(G, 4)
    average = copy.deepcopy(G).eval().requires_grad_(False)
    G(z, attributes).mean().backward()
    with torch.no_grad():
        for parameter in G.parameters():
            parameter.sub_(0.1 * parameter.grad.sign())
    G.eval()
    assert not torch.equal(average(z, attributes), G(z, attributes))
    ema_update(average, G, beta=0.0)
    assert torch.equal(average(z, attributes), G(z, attributes))


@every_case
def test_a_snapshot_comes_back_bit_for_bit(case, tmp_path):
    G, _ = pair(case)
    z, _, attributes = inputs(G, 4)
    G(z, attributes)  # moves running statistics, where there are some
    family, own, _ = CASES[case]
    meta = {"family": family, "options": options(networks(family)[0], own), "size": 32, "attributes": ["Male", "Smiling"]}
    loaded, said = load_snapshot(save_snapshot(tmp_path / "net", G, meta))
    assert said["family"] == family
    assert torch.equal(loaded(z, attributes), G.eval()(z, attributes))


@every_case
def test_its_maps_can_be_read_changed_and_drawn(case):
    G, _ = pair(case)
    z, _, attributes = inputs(G, 2)
    names = layer_names(G.eval())
    assert names[:3] == ("4x4", "8x8", "16x16")
    plain = G(z, attributes)
    with record(G, names) as seen:
        G(z, attributes)
    assert all(seen[name].shape[2:] == (int(name.split("x")[0]),) * 2 for name in names)
    for name in names:
        with changed(G, {name: lambda x: torch.zeros_like(x)}):
            assert not torch.equal(G(z, attributes), plain)
    assert torch.equal(G(z, attributes), plain)
    rows = summarize(G, z, attributes)
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in G.parameters())


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_says_what_the_constructors_take(family):
    model = Config().model.model_copy(update={"family": family})
    assert set(model.generator_options()) == set(option_defaults(networks(family)[0]))
    assert set(model.discriminator_options()) == set(option_defaults(networks(family)[1]))


def test_a_key_of_another_family_is_refused_and_named():
    with pytest.raises(UserError, match=r"model\.generator\.stem belongs to model\.family=dcgan: say 'transpose', or take a resnet preset"):
        resolve(None, ["model.family=resnet", "model.generator.stem=linear"])
    with pytest.raises(UserError, match=r"model\.discriminator\.attention belongs to model\.family=resnet: say .*, or take a dcgan preset"):
        resolve(None, ["model.discriminator.attention=16"])
    with pytest.raises(UserError, match="only dcgan networks can grow, not resnet"):
        resolve("resnet64", ["growth.at_kimg=100"])


def test_what_an_older_version_wrote_still_loads():
    """A snapshot's options and a run's config from before there was a second family."""
    old = {"width": 32, "z_dim": 8, "stem": "linear", "norm": "batch", "head": "conv", "condition": "concat", "init": "normal"}
    old |= {"min_width": 8}
    assert build_generator("dcgan", size=32, attributes=1, options=old).z_dim == 8
    config = Config.model_validate({"model": {"family": "dcgan", "generator": old, "discriminator": {"width": 32, "leak": 0.1}}})
    assert {name: config.model.generator_options()[name] for name in old} == old
