"""Penalties against critics whose gradient is known."""

import pytest
import torch

from mien.losses.auxiliary import consistency, feature_matching
from mien.losses.regularizers import dragan, gradient_penalty, lecam, r1, r2

SHAPE = (3, 4, 4)


def data(n: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"real": torch.randn(n, *SHAPE), "fake": torch.randn(n, *SHAPE), "attributes": torch.rand(n, 2)}


class Linear(torch.nn.Module):
    """w . x, times a factor from the attributes: the gradient is factor * w everywhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.w = torch.nn.Parameter(torch.randn(SHAPE))

    def forward(self, images, attributes):
        return (images * self.w).sum((1, 2, 3)) * (1 + attributes.sum(1))


def quadratic(images, attributes):
    """|| x ||^2 / 2: the gradient is x."""
    return images.square().sum((1, 2, 3)) / 2


@pytest.mark.parametrize("penalty", [r1, r2])
def test_zero_centred_penalties_of_a_linear_critic_and_their_gradient(penalty):
    critic, batch = Linear(), data()
    value = penalty(critic, **batch)
    factor = (1 + batch["attributes"].sum(1)).square()
    torch.testing.assert_close(value, factor * critic.w.square().sum(), rtol=1e-5, atol=0)
    value.sum().backward()  # d (factor |w|^2) / d w = 2 factor w
    torch.testing.assert_close(critic.w.grad, 2 * factor.sum() * critic.w.detach(), rtol=1e-5, atol=1e-5)


def test_r1_looks_at_the_reals_and_r2_at_the_fakes():
    batch = data()
    torch.testing.assert_close(r1(quadratic, real=batch["real"], attributes=batch["attributes"]), batch["real"].square().sum((1, 2, 3)))
    torch.testing.assert_close(r2(quadratic, fake=batch["fake"], attributes=batch["attributes"]), batch["fake"].square().sum((1, 2, 3)))


@pytest.mark.parametrize("penalty", [gradient_penalty, dragan])
def test_one_centred_penalties_of_a_linear_critic(penalty):
    critic, batch = Linear(), data()
    norm = (1 + batch["attributes"].sum(1)) * critic.w.norm()
    torch.testing.assert_close(penalty(critic, **batch), (norm - 1).square(), rtol=1e-5, atol=0)


def test_gradient_penalty_lies_on_the_line_between_real_and_fake():
    seen = []

    def critic(images, attributes):
        seen.append(images.detach())
        return quadratic(images, attributes)

    batch = data(2000)
    value = gradient_penalty(critic, **batch)
    real, fake = batch["real"].flatten(1), batch["fake"].flatten(1)
    u = ((seen[0].flatten(1) - fake) * (real - fake)).sum(1) / (real - fake).square().sum(1)
    torch.testing.assert_close(seen[0].flatten(1), u[:, None] * real + (1 - u[:, None]) * fake, atol=1e-4, rtol=0)
    assert 0 <= u.min() < 0.01 and 0.99 < u.max() <= 1 and u.mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(value, (seen[0].flatten(1).norm(dim=1) - 1).square(), rtol=1e-4, atol=1e-4)


def test_dragan_stays_around_the_reals():
    seen = []

    def critic(images, attributes):
        seen.append(images.detach())
        return quadratic(images, attributes)

    batch = data(500)
    dragan(critic, **batch)
    noise = seen[0] - batch["real"]
    assert noise.std().item() == pytest.approx(0.5 * batch["real"].std().item(), rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)


def test_a_flat_critic_has_finite_slopes():
    critic = Linear()
    with torch.no_grad():
        critic.w.zero_()
    value = gradient_penalty(critic, **data())
    value.sum().backward()
    assert critic.w.grad.isfinite().all()
    torch.testing.assert_close(value.detach(), torch.ones(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("penalty", [r1, r2, gradient_penalty, dragan])
def test_penalties_are_fp32_under_autocast(penalty):
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4), torch.nn.Flatten(), torch.nn.Linear(8, 1))
    kinds = []

    def critic(images, attributes):
        out = net(images)
        kinds.append(out.dtype)
        return out.squeeze(1)

    batch = data()
    torch.manual_seed(3)
    plain = penalty(critic, **batch)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = penalty(critic, **batch)
    assert kinds == [torch.float32, torch.float32] and mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_penalties_leave_the_images_alone_and_are_measured_without_gradients_around_them():
    critic, batch = Linear(), data()
    with torch.no_grad():
        value = r1(critic, **batch)
    assert torch.equal(value, r1(critic, **batch).detach())
    assert not batch["real"].requires_grad and batch["real"].grad is None


def test_lecam_by_hand():
    value = lecam(real=torch.tensor([1.0, 3.0]), fake=torch.tensor([-1.0, 0.0]), real_anchor=2.0, fake_anchor=torch.tensor(-1.0))
    torch.testing.assert_close(value, torch.tensor([(1 + 1) ** 2 + (-1 - 2) ** 2, (3 + 1) ** 2 + (0 - 2) ** 2.0]))


def test_feature_matching_by_hand():
    real = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    fake = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]], requires_grad=True)
    value = feature_matching(real=real, fake=fake)  # means (2, 3) and (0, 3)
    assert value.item() == pytest.approx(4.0)
    value.backward()
    assert real.grad is None
    torch.testing.assert_close(fake.grad, torch.tensor([[-4 / 3, 0.0]]).expand(3, 2))  # 2 (0 - 2) / 3 of each fake


def test_consistency_by_hand():
    value = consistency(plain=torch.tensor([1.0, -2.0]), augmented=torch.tensor([4.0, -2.0]))
    assert torch.equal(value, torch.tensor([9.0, 0.0]))
