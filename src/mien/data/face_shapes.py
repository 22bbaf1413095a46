"""Canvas and shapes the toy faces are painted with: antialiased signed distances on a batch of pictures.

On pixels only `+ - * /`, `sqrt`, `floor`, `abs`, minimum and maximum are used: IEEE arithmetic rounds these alike everywhere,
where `exp` or `sin` differ in the last bit from machine to machine.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Look(SimpleNamespace):
    """What distinguishes the faces of a batch, see `synthetic._look`. Numbers [B, 1, 1], colours [3, B, 1, 1], float32."""

    def take(self, keep: Array) -> Look:
        """The faces of the boolean mask or index `keep`."""
        return Look(**{name: value[:, keep] if value.ndim == 4 else value[keep] for name, value in vars(self).items()})


class Canvas:
    """A batch of pictures and the frame they are painted in.

    `pixels` [3, B, H, W] in 0..1, `x` and `y` [B, H, W] of each pixel, `px` [B, 1, 1] the size of a pixel.
    """

    def __init__(self, pixels: Array, x: Array, y: Array, px: Array) -> None:
        self.pixels, self.x, self.y, self.px = pixels, x, y, px

    def rows(self, first: int) -> Canvas:
        """The part from row `first` down."""
        return Canvas(self.pixels[:, :, first:], self.x[:, first:], self.y[:, first:], self.px)

    def window(self, x: Array | float, y: Array | float, radius: float) -> Canvas:
        """The part within `radius` of (x, y) in every face, with the origin there. Paint nothing further out than `radius`."""
        x, y = self.x - x, self.y - y
        near = ((x * x + y * y) < (radius * radius)).max(axis=0)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(rows):
            return Canvas(self.pixels[..., :0, :0], x[..., :0, :0], y[..., :0, :0], self.px)
        box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return Canvas(self.pixels[box], x[box], y[box], self.px)

    def fill(self, distance: Array, softness: Array | float = 0.0) -> Array:
        """Coverage 0..1 of a shape given its signed distance (negative inside), its edge one pixel or `softness` wide."""
        cover = distance * (-1 / np.maximum(self.px, np.float32(softness)))
        cover += 0.5
        return clip(cover)

    def stroke(self, distance: Array, width: Array | float) -> Array:
        """Coverage of a line `width` wide around distance 0; fades rather than vanishes below a pixel."""
        return self.fill(np.abs(distance) - width / 2) - self.fill(np.abs(distance) + width / 2)

    def paint(self, colour: Array, alpha: Array) -> None:
        """Lay `colour` ([3, B, 1, 1] or [3, B, H, W]) over the pictures with opacity `alpha` [B, H, W]."""
        layer = colour - self.pixels
        layer *= alpha
        self.pixels += layer

    def darken(self, alpha: Array, tint: tuple[float, float, float] = (0.75, 0.95, 1.0)) -> None:
        """Multiply by 1 - alpha * tint: a shadow that keeps more red, as on skin."""
        for plane, share in zip(self.pixels, tint):
            plane *= 1 - alpha * np.float32(share)

    def lighten(self, alpha: Array) -> None:
        """Move towards white by `alpha`."""
        self.pixels += (1 - self.pixels) * alpha


def rgb(*values: int) -> Array:
    """A colour 0..255 as [3, 1, 1, 1] in 0..1."""
    return (np.array(values, np.float32) / 255).reshape(3, 1, 1, 1)


def mix(a: Array, b: Array, share: Array | float) -> Array:
    return a + (b - a) * np.float32(share) if isinstance(share, float) else a + (b - a) * share


def clip(t: Array) -> Array:
    """Limit to 0..1, in place."""
    return np.minimum(np.maximum(t, 0, out=t), 1, out=t)


def smooth(t: Array) -> Array:
    """Smoothstep of a 0..1 ramp."""
    left = t * -2
    left += 3
    left *= t
    left *= t
    return left


def bump(x: Array, y: Array, rx: Array | float, ry: Array | float) -> Array:
    """A soft spot: 1 at the centre, 0 from the ellipse (rx, ry) on."""
    left, across = x * (1 / rx), y * (1 / ry)
    left *= left
    across *= across
    left = 1 - left - across
    np.maximum(left, 0, out=left)
    left *= left
    return left


def wave(t: Array) -> Array:
    """A smooth wave of period 1 between 0 and 1, near a cosine."""
    saw = t - np.floor(t)
    saw *= 2
    saw -= 1
    return smooth(np.abs(saw, out=saw))


def egg(
    x: Array,
    y: Array,
    width: Array | float,
    top: Array | float,
    bottom: Array | float,
    square: Array | float,
    square_top: Array | float = 0.1,
) -> tuple[Array, Array, Array]:
    """The shape everything large is made of: (x/width)^2 = (1 - v^2)(1 + k v^2).

    v is y over the half-height, `top` above and `bottom` below; k = 0 is an ellipse, k > 0 a broader jaw,
    k < 0 a pointed one. Returns (distance to first order, x/width, v).
    """
    below = y > 0
    height, k = np.where(below, bottom, top), np.where(below, square, square_top)
    h, v = x / width, y / height
    vv = v * v
    level = h * h - (1 - vv) * np.maximum(1 + k * vv, 0.25)
    slope_x, slope_y = 2 * h / width, 2 * v * np.maximum(1 - k + 2 * k * vv, 0.25) / height
    return level / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1e-4), h, v


def lens(x: Array, y: Array, half: Array | float, above: Array | float, below: Array | float, bend: Array | float = 0.0) -> Array:
    """Distance to the area between two parabolas that meet at x = +-half, `above` and `below` high; `bend` > 0 lifts the ends."""
    rest = 1 - np.square(x / half)
    middle = y - bend * (rest - 1)
    slope = 2 * x / (half * half)
    up = -(middle + above * rest) / np.sqrt(1 + np.square(slope * (above - bend)))
    down = (middle - below * rest) / np.sqrt(1 + np.square(slope * (below + bend)))
    return np.maximum(np.maximum(up, down), np.abs(x) - half)


def lit(h: Array, v: Array, look: Look) -> Array:
    """Soft Lambert light 0..1 on a rounded body with relative position (h, v)."""
    front = np.sqrt(np.maximum(1 - h * h - v * v, 0))
    return np.clip(0.42 + 0.58 * (h * look.light_x + v * look.light_y + front * look.light_z), 0, 1)
