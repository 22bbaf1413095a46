"""Objectives against their papers' formulas in float64, and where those formulas overflow or vanish."""

import math

import pytest
import torch

from mien.errors import UserError
from mien.losses.adversarial import bce_d
from mien.losses.catalogue import ADVERSARIAL, Adversarial, build_adversarial

LOGITS = torch.linspace(-6, 6, 25, dtype=torch.float64)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


D_FORMULAS = {
    "bce": lambda real, fake: -torch.log(sigmoid(real)) - torch.log(1 - sigmoid(fake)),
    "nonsaturating": lambda real, fake: -torch.log(sigmoid(real)) - torch.log(1 - sigmoid(fake)),
    "hinge": lambda real, fake: torch.where(real < 1, 1 - real, 0) + torch.where(fake > -1, 1 + fake, 0),
    "least_squares": lambda real, fake: 0.5 * (real - 1) ** 2 + 0.5 * fake**2,
    "wasserstein": lambda real, fake: fake - real,
    "relativistic": lambda real, fake: torch.log(1 + torch.exp(-(real - fake))),
}
G_FORMULAS = {
    "bce": lambda real, fake: -torch.log(sigmoid(fake)),
    "nonsaturating": lambda real, fake: -torch.log(sigmoid(fake)),
    "hinge": lambda real, fake: -fake,
    "least_squares": lambda real, fake: 0.5 * (fake - 1) ** 2,
    "wasserstein": lambda real, fake: -fake,
    "relativistic": lambda real, fake: torch.log(1 + torch.exp(-(fake - real))),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_formulas_and_their_gradients(name):
    loss = build_adversarial(name)
    for ours, formula in ((loss.d_loss, D_FORMULAS[name]), (loss.g_loss, G_FORMULAS[name])):
        real, fake = (part.flatten().requires_grad_() for part in torch.meshgrid(LOGITS, LOGITS.clone() + 0.1, indexing="ij"))
        value, expected = ours(real=real, fake=fake), formula(real, fake)
        assert value.shape == real.shape and value.dtype == torch.float64
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        wanted = torch.autograd.grad(expected.sum(), (real, fake), allow_unused=True)
        slopes = torch.autograd.grad(value.sum(), (real, fake), allow_unused=True)
        for slope, want in zip(slopes, wanted):
            assert (slope is None) == (want is None)
            if slope is not None:
                torch.testing.assert_close(slope, want, rtol=1e-9, atol=1e-12)


def slopes(loss, **logits: float) -> dict[str, float]:
    leaves = {name: torch.tensor([value], requires_grad=True) for name, value in logits.items()}
    value = loss(**leaves)
    assert value.isfinite().all()
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    return {name: 0.0 if slope is None else slope.item() for name, slope in zip(leaves, found)}


@pytest.mark.parametrize("name", ["bce", "nonsaturating"])
def test_cross_entropy_keeps_its_slope_at_extreme_logits(name):
    """fp32: log(sigmoid(x) + eps) has lost its slope at -30; softplus(-x) has not. At the right side it fades as e^-x."""
    loss = build_adversarial(name)
    assert slopes(loss.g_loss, fake=-30.0, real=0.0)["fake"] == pytest.approx(-1, rel=1e-6)
    assert slopes(loss.g_loss, fake=30.0, real=0.0)["fake"] == pytest.approx(-math.exp(-30), rel=1e-3)
    wrong = slopes(loss.d_loss, real=-30.0, fake=30.0)
    assert wrong["real"] == pytest.approx(-1, rel=1e-6) and wrong["fake"] == pytest.approx(1, rel=1e-6)
    right = slopes(loss.d_loss, real=30.0, fake=-30.0)
    assert right["real"] == pytest.approx(-math.exp(-30), rel=1e-3) and right["fake"] == pytest.approx(math.exp(-30), rel=1e-3)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_nothing_overflows(name, size):
    loss = build_adversarial(name, **({"real_label": 0.9, "label_noise": 0.1, "label_flip": 0.1} if name == "bce" else {}))
    for real, fake in ((size, -size), (-size, size)):
        for part in (loss.d_loss, loss.g_loss):
            assert all(math.isfinite(slope) for slope in slopes(part, real=real, fake=fake).values())


def test_relativistic_depends_on_the_difference_only_and_pulls_both_ways():
    loss = build_adversarial("relativistic")
    real, fake = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(loss.d_loss(real=real + 7, fake=fake + 7), loss.d_loss(real=real, fake=fake))
    torch.testing.assert_close(loss.g_loss(real=real, fake=fake), loss.d_loss(real=fake, fake=real))
    assert loss.pairs and not any(other.pairs for name, other in ADVERSARIAL.items() if name != "relativistic")
    with pytest.raises(ValueError, match="pairs each fake with a real"):
        loss.g_loss(real=None, fake=fake)


@pytest.mark.parametrize("name", [name for name in ADVERSARIAL if name != "relativistic"])
def test_g_needs_no_reals_unless_the_loss_pairs(name):
    fake = torch.randn(5)
    assert build_adversarial(name).g_loss(real=None, fake=fake).shape == (5,)


def test_bce_is_nonsaturating_until_labels_are_changed():
    real, fake = torch.randn(100), torch.randn(100)
    expected = build_adversarial("nonsaturating").d_loss(real=real, fake=fake)
    assert torch.equal(build_adversarial("bce").d_loss(real=real, fake=fake), expected)


def test_smoothing_is_one_sided():
    """With label t the best logit of a real is log(t / (1 - t)); fakes are still pushed down without end."""
    best = math.log(0.9 / 0.1)
    loss = build_adversarial("bce", real_label=0.9).d_loss
    assert slopes(loss, real=best, fake=0.0)["real"] == pytest.approx(0, abs=1e-6)
    assert slopes(loss, real=best + 1, fake=0.0)["real"] > 0.01
    assert slopes(loss, real=0.0, fake=-10.0)["fake"] > 0


def drawn_labels(*, n: int = 20_000, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels that bce_d drew for reals and fakes: at logits 0, d loss / d logit = 1/2 - label."""
    torch.manual_seed(0)
    real, fake = torch.zeros(n, requires_grad=True), torch.zeros(n, requires_grad=True)
    found = torch.autograd.grad(bce_d(real=real, fake=fake, **settings).sum(), (real, fake))
    return 0.5 - found[0], 0.5 - found[1]


def test_label_noise_is_uniform_below_the_reals_label_and_above_the_fakes():
    reals, fakes = drawn_labels(real_label=0.9, label_noise=0.3)
    for labels, low, high in ((reals, 0.6, 0.9), (fakes, 0.0, 0.3)):
        assert low - 1e-5 <= labels.min() <= low + 0.01 and high - 0.01 <= labels.max() <= high + 1e-5
        assert labels.mean().item() == pytest.approx((low + high) / 2, abs=0.003)
        assert labels.var().item() == pytest.approx(0.3**2 / 12, rel=0.05)


def test_label_flips_have_their_probability_and_turn_the_label_round():
    reals, fakes = drawn_labels(real_label=0.9, label_flip=0.2)
    for labels, plain in ((reals, 0.9), (fakes, 0.0)):
        turned = (labels - (1 - plain)).abs() < 1e-5
        assert ((labels - plain).abs() < 1e-5).logical_xor(turned).all()
        assert turned.float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_labels_follow_the_default_generator():
    loss = build_adversarial("bce", label_noise=0.2, label_flip=0.1)
    logits = {"real": torch.randn(50), "fake": torch.randn(50)}
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(loss.d_loss(**logits))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no loss 'hinged'.*Did you mean hinge"):
        build_adversarial("hinged")
    with pytest.raises(UserError, match="label_flip = 1.5 is not between 0 and 1"):
        build_adversarial("bce", label_flip=1.5)
    with pytest.raises(UserError, match="hinge has no labels"):
        build_adversarial("hinge", real_label=0.9)
    assert isinstance(build_adversarial("hinge"), Adversarial)
