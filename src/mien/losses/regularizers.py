"""Penalties on the discriminator: [N], unweighted, in fp32 also under autocast. The step weights them.

`critic(images [N, 3, R, R], attributes [N, A]) -> logits [N]` is the discriminator with whatever stands before it, augmentation
included, so gradients are taken with respect to the un-augmented pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Critic = Callable[[Tensor, Tensor], Tensor]


def pixel_gradient(critic: Critic, images: Tensor, attributes: Tensor) -> Tensor:
    """d critic / d images, fp32, [N, 3, R, R], itself differentiable. Mixed precision is off inside: squares overflow in it."""
    images = images.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        logits = critic(images, attributes.float())
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient


def r1(critic: Critic, *, real: Tensor, fake: Tensor | None = None, attributes: Tensor) -> Tensor:
    """|| d critic / d real ||^2, summed over C, H, W: [N] (Mescheder et al. 2018, eq. 9, without gamma / 2)."""
    return pixel_gradient(critic, real, attributes).square().sum((1, 2, 3))


def r2(critic: Critic, *, real: Tensor | None = None, fake: Tensor, attributes: Tensor) -> Tensor:
    """|| d critic / d fake ||^2, summed over C, H, W: [N] (Mescheder et al. 2018, eq. 10, without gamma / 2)."""
    return pixel_gradient(critic, fake, attributes).square().sum((1, 2, 3))


def gradient_penalty(critic: Critic, *, real: Tensor, fake: Tensor, attributes: Tensor) -> Tensor:
    """(|| d critic / d x || - 1)^2 at x = u real + (1 - u) fake, u uniform per sample: [N] (Gulrajani et al. 2017, eq. 3).

    `fake` must have been made with `attributes`, the real images' own.
    """
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = mix * real.detach().float() + (1 - mix) * fake.detach().float()
    return (gradient_norm(critic, between, attributes) - 1).square()


def dragan(critic: Critic, *, real: Tensor, fake: Tensor | None = None, attributes: Tensor, std: Tensor | None = None) -> Tensor:
    """(|| d critic / d x || - 1)^2 around the real images, x = real + N(0, s^2), s half their standard deviation: [N].

    `std`, 0-d: that of the batch that `real` is a part of. Kodali et al. 2017, with k = 1; the paper leaves the noise's size open.
    """
    real = real.detach().float()
    around = real + 0.5 * (real.std() if std is None else std) * torch.randn(real.shape, device=real.device)
    return (gradient_norm(critic, around, attributes) - 1).square()


def path_lengths(images: Tensor, styles: Tensor) -> Tensor:
    """|| J^T y ||, how far a picture moves for a step in style, from images [N, 3, R, R] made of styles [N, L, W]: [N], differentiable.

    J is the Jacobian of a picture by its styles, y a random picture N(0, 1 / R^2) (Karras et al. 2020, equation 4; the layers' squares are
    averaged, and y is scaled so that lengths do not depend on the size). The penalty is (length - a)^2, a the lengths' running mean.
    """
    y = torch.randn(images.shape, dtype=images.dtype, device=images.device) / (images.shape[2] * images.shape[3]) ** 0.5
    (moved,) = torch.autograd.grad((images * y).sum(), styles, create_graph=True)
    return (moved.square().sum(2).mean(1) + 1e-12).sqrt()  # the small constant keeps the root's slope finite at 0


def lecam(*, real: Tensor, fake: Tensor, real_anchor: Tensor | float, fake_anchor: Tensor | float) -> Tensor:
    """(real - fake_anchor)^2 + (fake - real_anchor)^2, from logits: [N] (Tseng et al. 2021).

    The anchors are moving averages of D's logits of reals and of fakes, 0-d; who calls keeps them. Pulls each side's logits
    toward the other's past, against memorising a small data set.
    """
    return (real.float() - fake_anchor).square() + (fake.float() - real_anchor).square()


def gradient_norm(critic: Critic, images: Tensor, attributes: Tensor) -> Tensor:
    """|| d critic / d images ||, [N]. The small constant keeps the root's slope finite at 0."""
    return (pixel_gradient(critic, images, attributes).square().sum((1, 2, 3)) + 1e-12).sqrt()
