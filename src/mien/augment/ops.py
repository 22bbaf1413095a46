"""Differentiable augmentation: one function per operation, images [N, 3, R, R] in [-1, 1] -> the same shape, fp32.

Each draws its numbers per sample from torch's default generator. `amount`, a number or [N, 1, 1, 1], scales the range of the
change: 0 is none (up to rounding), 1 the range its docstring states. Nothing is clamped, since a clamp stops G's gradient.
All are differentiable twice with respect to the images, as R1 through the augmentation needs.
After DiffAugment (Zhao et al. 2020) and ADA (Karras et al. 2020, appendix B).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Amount = float | Tensor


def uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One number per sample in [low, high), [N, 1, 1, 1]."""
    return low + (high - low) * torch.rand(len(images), 1, 1, 1, device=images.device)


def normal(images: Tensor, std: float) -> Tensor:
    """One number per sample from N(0, std^2), [N, 1, 1, 1]."""
    return std * torch.randn(len(images), 1, 1, 1, device=images.device)


def axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres from left to right [1, 1, 1, R] and from top to bottom [1, 1, R, 1], in (-1, 1)."""
    size = images.shape[-1]
    centre = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    return centre.view(1, 1, 1, -1), centre.view(1, 1, -1, 1)


# ------------------------------------------------------------------------------------------------------------------------------
# Colour and light


def brightness(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Adds a number in [-.5, .5] to all values of a sample."""
    return images + uniform(images, -0.5, 0.5) * amount


def saturation(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Multiplies each pixel's distance from its grey (the mean of its colours) by a number in [0, 2]."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (1 + uniform(images, -1, 1) * amount)


def contrast(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Multiplies each value's distance from the sample's mean by a number in [.5, 1.5]."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + uniform(images, -0.5, 0.5) * amount)


def lighting(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Lights a sample from a random side: the light, images + 1, is multiplied by a ramp 1 + a t along a random direction,
    t from -1 to 1 across the image and a in [0, .5]."""
    angle, slope = uniform(images, 0, 2 * math.pi), uniform(images, 0, 0.5) * amount
    x, y = axes(images)
    ramp = (x * angle.cos() + y * angle.sin()) / math.sqrt(2)  # [N, 1, R, R]; sqrt 2: the corner lies at distance sqrt 2
    return (images + 1) * (1 + slope * ramp) - 1


def noise(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Adds Gaussian noise whose standard deviation is |N(0, .1^2)| for each sample."""
    grain = torch.randn(images.shape, device=images.device)  # not randn_like: that is ten times slower on a channels-last CPU tensor
    return images + grain * (normal(images, 0.1) * amount).abs()


def cutout(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Sets a square of side R/2 to 0 (mid grey), its centre anywhere in the image; what lies outside is cut off."""
    x, y = axes(images)
    centre_x, centre_y = uniform(images, -1, 1), uniform(images, -1, 1)
    return images.masked_fill(((x - centre_x).abs() < amount / 2) & ((y - centre_y).abs() < amount / 2), 0)


# ------------------------------------------------------------------------------------------------------------------------------
# Geometry


def flip(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Mirrors a sample left to right in half of the cases. A mirror has no range: any amount over 0 is one.

    Half, so that even always-on flipping never mirrors more than it leaves. A share q < 1/2 of mirrored images can be told
    from the reals' own share, so G learns theirs; at q = 1/2 left and right look alike to D and G's choice is free
    (Karras et al. 2020, section 2.2). Keep p under 1 where left and right differ.
    """
    coin = uniform(images, 0, 1) * 2 < torch.as_tensor(amount, device=images.device).sign()
    return torch.where(coin, images.flip(3), images)


def translation(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Shifts by a whole number of pixels, up to R/8 on each axis; what comes in is 0 (mid grey)."""
    size = images.shape[-1]
    reach = torch.as_tensor(size / 8 * amount).round()  # [] or [N, 1, 1, 1]
    x, y = (torch.floor(uniform(images, 0, 1) * (2 * reach + 1)) - reach for _ in "xy")
    shift = torch.cat([x, y], dim=2)[:, 0] * 2 / size  # [N, 2, 1]
    return resample(images, torch.cat([eye(images), shift], dim=2), mode="nearest", padding="zeros")


def rotation(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Turns a sample about its centre by up to 15 degrees; beyond the border the image is mirrored."""
    angle = (uniform(images, -math.pi / 12, math.pi / 12) * amount)[:, 0]  # [N, 1, 1]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.cat([torch.cat([cos, -sin], dim=2), torch.cat([sin, cos], dim=2)], dim=1)  # [N, 2, 2]
    return resample(images, F.pad(turn, (0, 1)), mode="bilinear", padding="reflection")


def scale(images: Tensor, amount: Amount = 1.0) -> Tensor:
    """Enlarges a sample about its centre by 2^s, s from N(0, .2^2); beyond the border the image is mirrored."""
    shrink = torch.exp2(-normal(images, 0.2) * amount)[:, 0]  # [N, 1, 1]
    return resample(images, F.pad(shrink * eye(images), (0, 1)), mode="bilinear", padding="reflection")


def eye(images: Tensor) -> Tensor:
    """[N, 2, 2] identities."""
    return torch.eye(2, device=images.device).expand(len(images), 2, 2)


MODES = {"bilinear": 0, "nearest": 1}
PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def resample(images: Tensor, matrix: Tensor, *, mode: str, padding: str) -> Tensor:
    """Samples images [N, C, R, R] at the places that `matrix` [N, 2, 3] sends the output's pixels to, in (-1, 1) coordinates."""
    with torch.autocast(images.device.type, enabled=False):  # a place in bf16 is off by a quarter of a pixel
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # [N, R, R, 2]
    return Resample.apply(images.float(), grid, MODES[mode], PADDINGS[padding])


class Resample(torch.autograd.Function):
    """grid_sample with a fixed grid, differentiable any number of times; torch's own stops at the first derivative.

    The map is linear in the images, so its gradient is the transposed map of the gradient, and that one's gradient the map.
    """

    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor, mode: int, padding: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.settings = images.shape, mode, padding
        return torch.grid_sampler_2d(images, grid, mode, padding, False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ResampleTransposed.apply(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None


class ResampleTransposed(torch.autograd.Function):
    """The transposed map of Resample: gradients at the output's pixels to gradients at the input's."""

    @staticmethod
    def forward(ctx, gradient: Tensor, grid: Tensor, shape: torch.Size, mode: int, padding: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.settings = mode, padding
        images = gradient.new_empty(shape)  # only its shape counts: the map is linear
        return torch.ops.aten.grid_sampler_2d_backward(gradient, images, grid, mode, padding, False, [True, False])[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return Resample.apply(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None, None
