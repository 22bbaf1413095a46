"""Random views of faces to train the classifier with: moved, recoloured, partly covered, and some degraded as generated faces are."""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from mien.models.pictures import to_float, to_uint8

MOVED_SHARE = 0.6                # rotated and zoomed; the others are only mirrored and shifted by whole pixels, so they stay sharp
MAX_SHIFT = 1 / 16               # of the side
MAX_ANGLE = math.radians(10)
ZOOM = (0.92, 1.22)              # center148 shows faces 1.2 times as large as center178 does
DEGRADED_SHARE = 0.05            # of the batch, for each of the four kinds


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def move(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of them, shift all, rotate and zoom some. [N, 3, S, S] -> the same shape; the border is reflected."""
    count, size = len(images), images.shape[-1]
    moved = (torch.rand(count, generator=generator) < MOVED_SHARE).float()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    angle = uniform(count, -MAX_ANGLE, MAX_ANGLE, generator) * moved
    scale = 1 + (1 / uniform(count, *ZOOM, generator) - 1) * moved
    shift_px = (uniform(2 * count, -MAX_SHIFT, MAX_SHIFT, generator).view(count, 2) * size).round()
    shift = shift_px * 2 / size                                     # in the grid's units the side is 2
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, generator: Generator) -> Tensor:
    """Mild brightness, contrast and saturation: hair colour and pale skin must stay true."""
    count = len(images)
    saturation = uniform(count, 0.75, 1.25, generator).view(-1, 1, 1, 1)
    contrast = uniform(count, 0.8, 1.2, generator).view(-1, 1, 1, 1)
    brightness = uniform(count, -0.15, 0.15, generator).view(-1, 1, 1, 1)
    grey = images.mean(dim=1, keepdim=True)
    return ((images - grey) * (saturation * contrast) + (grey * contrast + brightness)).clamp(-1, 1)


def cover(images: Tensor, generator: Generator, share: float = 0.25) -> Tensor:
    """A grey rectangle of an eighth to a third of the side over `share` of the images (cutout, DeVries & Taylor 2017)."""
    size = images.shape[-1]
    for index in (torch.rand(len(images), generator=generator) < share).nonzero().flatten().tolist():
        height, width = (uniform(2, 1 / 8, 1 / 3, generator) * size).long().tolist()
        top, left = (torch.rand(2, generator=generator) * size).long().tolist()
        images[index, :, top:top + height, left:left + width] = 0
    return images


def blur(images: Tensor, sigma_px: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma_px))
    taps = torch.exp(-torch.arange(-radius, radius + 1).float() ** 2 / (2 * sigma_px**2))
    kernel = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=3), kernel[:, :, :, None], groups=3)


def shrink_and_grow(images: Tensor, factor: float) -> Tensor:
    size = images.shape[-1]
    small = F.interpolate(images, size=max(8, round(size / factor)), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)


def jpeg(images: Tensor, qualities: list[int]) -> Tensor:
    """Each image through a JPEG file of its own quality."""
    arrays = to_uint8(images).permute(0, 2, 3, 1).numpy()
    decoded = []
    for array, quality in zip(arrays, qualities, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return to_float(torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2))


def noise(shape: torch.Size, generator: Generator) -> Tensor:
    """White noise, of its own strength for each image."""
    return torch.randn(shape, generator=generator) * uniform(shape[0], 0.01, 0.12, generator).view(-1, 1, 1, 1)


def degrade(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blur, low resolution, noise and JPEG, each on a share of its own. Returns the images and which of them were softened, bool [N].

    Softened ones no longer tell whether the photograph itself was blurry, so that label should not be trained on them.
    """
    kind = torch.rand(len(images), generator=generator).div(DEGRADED_SHARE).long()
    sigma, factor = uniform(2, 0, 1, generator).tolist()            # one strength a batch: the operation stays batched
    relative = images.shape[-1] / 64
    for number, change in enumerate((
            lambda x: blur(x, (0.4 + 0.8 * sigma) * relative),
            lambda x: shrink_and_grow(x, 1.2 + 1.2 * factor),
            lambda x: (x + noise(x.shape, generator)).clamp(-1, 1),
            lambda x: jpeg(x, torch.randint(35, 96, (len(x),), generator=generator).tolist()))):
        chosen = (kind == number).nonzero().flatten()
        if len(chosen):
            images[chosen] = change(images[chosen])
    return images, kind < 2


def random_views(images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Views for one training step, a function of the images and `seed` alone.

    images: float [N, 3, S, S] in -1..1. Returns views of the same shape and range, and bool [N]: softened (see `degrade`).
    """
    generator = Generator().manual_seed(seed)
    views = recolour(move(images, generator), generator)
    views, softened = degrade(views, generator)
    return cover(views, generator), softened


def zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged to their size."""
    size = images.shape[-1]
    margin = round(size * (1 - 1 / factor) / 2)
    middle = images[:, :, margin:size - margin, margin:size - margin]
    return F.interpolate(middle, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)


# What may befall an image on its way to the judge: name -> change of float [N, 3, 64, 64] in -1..1. Each is fixed, the noise too.
STRESSES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "mirrored": lambda x: x.flip(-1),
    "zoomed 1.2 times (about center148)": lambda x: zoom(x, 1.2),
    "moved down and right by 4 px": lambda x: F.pad(x, (4, 0, 4, 0), mode="replicate")[:, :, :-4, :-4],
    "shrunk to 32 px and back": lambda x: shrink_and_grow(x, 2),
    "blurred, sigma 1 px": lambda x: blur(x, 1.0),
    "JPEG, quality 50": lambda x: jpeg(x, [50] * len(x)),
    "noise, sigma 10 of 255": lambda x: (x + torch.randn(x.shape, generator=Generator().manual_seed(0)) * 10 / 127.5).clamp(-1, 1),
    "grey": lambda x: x.mean(dim=1, keepdim=True).expand_as(x),
}
