"""Drawn toy faces whose attributes are known exactly: for tests, for the demo, and to check that what measures faces measures right.

Face `index` of `seed` is a pure function of the two, whatever else is drawn with it: its numbers come from a Philox stream keyed by them
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and the painting keeps to arithmetic that rounds
alike on every machine.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mien.data.face_drawing import paint_faces
from mien.data.face_shapes import Array, Canvas, Look, mix
from mien.errors import UserError

TOY_ATTRIBUTES: tuple[str, ...] = (
    "Male",
    "Smiling",
    "Eyeglasses",
    "Young",
    "Blond_Hair",
    "Bangs",
    "Wearing_Hat",
    "No_Beard",
    "Mouth_Slightly_Open",
    "Bald",
)
"""CelebA's names. Independent but for: a beard or a bald head is a man's; blond hair is a young one's;
a bald head has no bangs, no hat and is not blond."""

SIZES = (32, 64, 128, 256)
_NUMBERS = 320  # uniform numbers a face may use
_CHUNK_PX = 16 * 64 * 64  # pixels painted at a time: they stay in a core's cache

_SKIN = ((248, 218, 198), (243, 206, 178), (234, 190, 156), (216, 165, 126), (188, 134, 97), (154, 104, 73), (118, 77, 54), (90, 58, 43))
_DARK_HAIR = ((30, 25, 28), (44, 31, 28), (66, 43, 31), (94, 60, 40), (128, 60, 34), (120, 80, 50))
_BLOND_HAIR = ((226, 186, 112), (240, 208, 136), (214, 168, 92), (244, 222, 170))
_GREY_HAIR = ((122, 122, 128), (164, 163, 165), (202, 200, 197))
_IRIS = ((84, 50, 30), (62, 38, 26), (110, 74, 38), (92, 116, 72), (78, 124, 168), (106, 138, 150))
_LIPSTICK = ((196, 58, 74), (214, 92, 104), (176, 46, 84), (206, 100, 92), (226, 110, 128))
_CLOTH = (
    *((58, 86, 130), (188, 66, 62), (236, 232, 224), (44, 48, 58), (92, 140, 110), (230, 178, 72)),
    *((150, 106, 160), (92, 162, 178), (206, 128, 140), (128, 92, 70), (112, 124, 140), (214, 110, 60)),
)
_WALL = (
    *((168, 204, 226), (240, 214, 176), (186, 214, 168), (238, 190, 186), (120, 150, 186), (96, 116, 132)),
    *((190, 160, 132), (140, 196, 188), (240, 234, 222), (178, 156, 200), (128, 164, 110), (232, 176, 124)),
)
_FRAME = ((24, 22, 26), (84, 50, 32), (120, 30, 40), (40, 60, 110), (138, 98, 38), (86, 90, 100))
_LIGHT_FRAME = ((222, 184, 98), (204, 206, 212), (204, 66, 62), (240, 232, 214), (88, 146, 206), (14, 12, 14))
_HAT = ((176, 58, 56), (60, 84, 128), (70, 72, 80), (206, 160, 84), (92, 128, 96), (222, 212, 196), (130, 84, 122))


def draw_faces(count: int, *, size: int = 64, seed: int = 0, start: int = 0) -> tuple[Array, Array]:
    """Faces `start` to `start + count` of `seed`.

    Returns images uint8 [N, size, size, 3] (RGB) and attributes uint8 [N, A] of 0 and 1 in the order of `TOY_ATTRIBUTES`.
    Another size shows the same faces. Raises UserError for a size that is not 32, 64, 128 or 256, or a
    negative number.
    """
    if size not in SIZES:
        raise UserError(f"toy faces come at {', '.join(map(str, SIZES))} pixels, not {size}")
    if min(count, seed, start) < 0:
        raise UserError(f"count, seed and start of the toy faces may not be negative: {count}, {seed}, {start}")
    return _draw(np.arange(start, start + count), size=size, seed=seed, force={})


def _draw(indices: Array, *, size: int, seed: int, force: dict[str, int]) -> tuple[Array, Array]:
    """`draw_faces` for any indices; `force` sets attributes against the draw; what does not hang on them stays."""
    images = np.empty((len(indices), size, size, 3), np.uint8)
    attributes = np.empty((len(indices), len(TOY_ATTRIBUTES)), np.uint8)
    step = max(1, _CHUNK_PX // size**2)

    def draw(first: int) -> None:
        part = slice(first, first + step)
        numbers = _Numbers(indices[part], seed)
        has = _attributes(numbers, force)
        attributes[part] = np.stack([has[name] for name in TOY_ATTRIBUTES], axis=1)
        images[part] = _render(_look(numbers, has), size)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(draw, range(0, len(indices), step)))
    return images, attributes


class _Numbers:
    """Uniform numbers in [0, 1), a row for each face, handed out a column at a time."""

    def __init__(self, indices: Array, seed: int) -> None:
        keys = ([seed % 2**64, int(index)] for index in indices)
        self.rows = np.stack([np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))).random(_NUMBERS) for key in keys])
        self.used = 0

    def uniform(self, low: Array | float = 0.0, high: Array | float = 1.0) -> Array:
        self.used += 1
        return low + (high - low) * self.rows[:, self.used - 1]

    def bell(self, low: Array | float, high: Array | float) -> Array:
        """Between low and high, mostly in the middle."""
        return low + (high - low) * (self.uniform() + self.uniform() + self.uniform()) / 3

    def chance(self, share: Array | float) -> Array:
        return self.uniform() < share

    def colour(self, table: tuple[tuple[int, int, int], ...]) -> Array:
        """One of the table's colours, between two of them or not: [N, 3] in 0..1."""
        return _along(table, np.floor(self.uniform() * len(table)) / len(table)) * self.uniform(0.92, 1.08)[:, None]


def _along(table: tuple[tuple[int, int, int], ...], t: Array) -> Array:
    """The colour at t (0..1) of a ramp of colours: [N, 3] in 0..1."""
    colours = np.array(table, np.float64) / 255
    place = np.clip(t, 0, 1) * (len(table) - 1)
    low = np.minimum(np.floor(place).astype(int), len(table) - 2)
    return colours[low] + (colours[low + 1] - colours[low]) * (place - low)[:, None]


def _attributes(n: _Numbers, force: dict[str, int]) -> dict[str, Array]:
    """Boolean [N] by name, natural exceptions applied."""
    rates = {
        "Male": 0.45,
        "Smiling": 0.5,
        "Eyeglasses": 0.2,
        "Young": 0.78,
        "Blond_Hair": 0.22,
        "Bangs": 0.22,
        "Wearing_Hat": 0.1,
        "No_Beard": 0.6,
        "Mouth_Slightly_Open": 0.45,
        "Bald": 0.12,
    }
    has = {name: n.chance(rates[name]) for name in TOY_ATTRIBUTES}
    for name, value in force.items():
        has[name] = np.full_like(has[name], bool(value))
    has["No_Beard"] = has["No_Beard"] | ~has["Male"]
    has["Bald"] = has["Bald"] & has["Male"] & ~has["Bangs"] & ~has["Wearing_Hat"]
    has["Blond_Hair"] = has["Blond_Hair"] & has["Young"] & ~has["Bald"]
    return has


def _look(n: _Numbers, has: dict[str, Array]) -> Look:
    """All that is drawn, in the units of `face_drawing`. The order of the draws is part of the face."""
    parts: dict[str, Array] = {}
    for group in (_pose, _colours, _head, _features, _hair, _extras):
        parts |= group(n, has, parts)
    shaped = {name: value.T[:, :, None, None] if value.ndim == 2 else value[:, None, None] for name, value in parts.items()}
    return Look(**{name: np.ascontiguousarray(value, np.float32) for name, value in shaped.items()})


def _pose(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Where the head is, how it is turned, where the light comes from, and the wall behind."""
    yaw, half_tilt = n.bell(-0.42, 0.42), n.bell(-0.09, 0.09)
    light_x, light_y = n.uniform(-0.8, 0.8), n.uniform(-0.7, -0.2)
    wall = n.colour(_WALL)
    spots = {
        f"spot{i}_{axis}": n.uniform(*limits)
        for i in range(3)
        for axis, limits in (("x", (-1.2, 1.2)), ("y", (-1.1, 0.6)), ("r", (0.25, 0.7)))
    }
    return spots | {
        "scale": n.bell(0.86, 1.02),
        "shift_x": n.bell(-0.1, 0.1),
        "shift_y": n.bell(-0.02, 0.1),
        "yaw": yaw,
        "yaw_cos": np.sqrt(1 - yaw**2),
        "tilt_cos": (1 - half_tilt**2) / (1 + half_tilt**2),
        "tilt_sin": 2 * half_tilt / (1 + half_tilt**2),
        "light_x": light_x,
        "light_y": light_y,
        "light_z": np.sqrt(1.15 - light_x**2 * 0.8 - light_y**2),
        "wall": wall,
        "wall_far": np.minimum(wall * n.uniform(0.55, 1.2)[:, None], 1),
        "wall_x": n.uniform(-1, 1),
        "wall_y": n.uniform(-1, 1),
        "spot": np.minimum(wall * n.uniform(0.75, 1.4)[:, None] + n.uniform(-0.05, 0.1)[:, None], 1),
        "warmth": n.bell(-0.05, 0.05),
    }


def _colours(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Skin, hair, eyes, lips, clothes."""
    male, blond, old = has["Male"][:, None], has["Blond_Hair"][:, None], ~has["Young"][:, None]
    tone = n.uniform(0, np.where(has["Blond_Hair"], 0.5, 1.0))
    skin = _along(_SKIN, tone)
    red, lipstick = np.array([0.74, 0.36, 0.34]), n.colour(_LIPSTICK)
    dark_hair = _along(_DARK_HAIR, n.uniform() * np.where(tone > 0.6, 0.3, 1.0))
    hair = np.where(blond, n.colour(_BLOND_HAIR), np.where(old, n.colour(_GREY_HAIR), dark_hair))
    brow = np.where(blond, hair * 0.58, np.where(old, mix(hair, skin * 0.5, 0.4), np.minimum(hair * 0.8, skin * 0.5)))
    lips = np.where(male, skin * 0.66 + red * 0.29, mix(skin * 0.9, lipstick, n.uniform(0.5, 0.9)[:, None]))
    iris = np.where((tone > 0.55)[:, None], _along(_IRIS[:2], n.uniform()), n.colour(_IRIS))
    cloth = n.colour(_CLOTH)
    return {
        "tone": tone,
        "skin": skin,
        "skin_dark": skin * np.array([0.62, 0.50, 0.47]),
        "skin_light": np.minimum(skin * 1.05 + 0.02, 1.0),
        "shine": 0.45 + 0.6 * tone,
        "blush_colour": skin * np.array([1.0, 0.62, 0.60]),
        "blush": np.where(has["Male"], n.uniform(0.1, 0.35), n.uniform(0.3, 0.6)) * (1 - 0.5 * tone),
        "hair_colour": hair,
        "brow_colour": brow,
        "lips": lips,
        "iris": iris,
        "lash_colour": np.where(male, skin * 0.28, np.full(3, 0.07)),
        "beard_colour": np.where(blond, hair * np.array([0.76, 0.64, 0.56]), hair * 0.95),
        "cloth": cloth,
        "trim": cloth * n.uniform(0.65, 1.1)[:, None],
        "metal": np.where(n.chance(0.6)[:, None], np.array([0.87, 0.70, 0.32]), np.array([0.82, 0.83, 0.86])) * np.ones((len(tone), 1)),
    }


def _head(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Head, neck, shoulders. A man's jaw is broad and long, a woman's narrows to the chin."""
    male = has["Male"]
    width = np.where(male, n.bell(0.47, 0.55), n.bell(0.44, 0.52))
    vee = n.chance(0.4)
    return {
        "width": width,
        "chin": np.where(male, n.bell(0.64, 0.74), n.bell(0.58, 0.67)),
        "jaw": np.where(male, n.bell(0.35, 1.0), n.bell(-0.45, 0.1)),
        "ear": n.bell(0.85, 1.2),
        "neck": width * np.where(male, n.bell(0.68, 0.84), n.bell(0.48, 0.6)),
        "shoulder": np.where(male, n.bell(1.0, 1.25), n.bell(0.8, 1.02)),
        "vee": 1.0 * vee,
        "collar": n.uniform(0.26, 0.42),
        "neckline": np.where(vee, n.uniform(0.15, 0.4), n.uniform(0.05, 0.16)),
        "fold": n.uniform(-1.5, 1.5),
        "stripes": 0.3 * n.chance(0.2),
        "old": 1.0 * ~has["Young"],
        "bags": np.where(has["Young"], 0.05, n.uniform(0.25, 0.4)),
    }


def _features(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Eyes, brows, nose, mouth and beard."""
    male, smile, ajar = has["Male"], has["Smiling"], has["Mouth_Slightly_Open"]
    happy = np.where(smile, n.uniform(0.75, 1.0), 0.0)
    eye = np.where(male, n.bell(0.105, 0.134), n.bell(0.116, 0.146))
    up = np.where(male, n.bell(0.058, 0.08), n.bell(0.07, 0.096))
    beard = np.where(has["No_Beard"], 0.0, n.uniform(0.72, 0.95))
    shadow = np.where(male & has["Young"] & has["No_Beard"], n.uniform(-0.12, 0.14), 0.0)
    kind = n.uniform()
    only_tache, goatee = (kind < 0.2) & ~has["No_Beard"], (kind >= 0.2) & (kind < 0.45)
    gape = np.where(ajar, np.where(smile, n.uniform(0.07, 0.115), n.uniform(0.06, 0.10)), 0.0)
    return {
        "smile": happy,
        "eye": eye,
        "eye_apart": n.bell(0.41, 0.47),
        "eye_y": n.bell(-0.02, 0.03),
        "slant": n.bell(-0.06, 0.16),
        "lid_up": up * (1 - 0.1 * happy),
        "lid_low": n.bell(0.042, 0.058) * (1 - 0.5 * happy),
        "iris_r": n.bell(0.056, 0.066),
        "gaze_x": n.bell(-0.04, 0.04),
        "gaze_y": n.bell(-0.02, 0.012),
        "lash": np.where(male, n.uniform(0.018, 0.026), n.uniform(0.028, 0.04)),
        "wing": np.where(male, 0.0, n.uniform(0.3, 1.0)),
        "brow": np.where(male, n.bell(0.037, 0.058), n.bell(0.015, 0.03)),
        "brow_half": n.bell(0.125, 0.155),
        "brow_arch": np.where(male, n.bell(0.0, 0.03), n.bell(0.02, 0.055)),
        "brow_y": np.where(male, n.bell(-0.19, -0.14), n.bell(-0.23, -0.18)) - 0.015 * happy,
        "brow_slant": n.bell(-0.035, 0.01),
        "nose": np.where(male, n.bell(0.068, 0.092), n.bell(0.05, 0.072)),
        "nose_y": n.bell(0.21, 0.25),
        "mouth": np.where(smile, n.bell(0.2, 0.24), n.bell(0.135, 0.17)),
        "mouth_y": n.bell(0.39, 0.43) + np.where(male, 0.015, -0.01),
        "bend": np.where(smile, n.uniform(0.075, 0.105) + 0.025 * ~ajar, n.uniform(-0.008, 0.018)),
        "lip_up": np.where(male, n.bell(0.018, 0.03), n.bell(0.028, 0.044)),
        "lip_low": np.where(male, n.bell(0.026, 0.04), n.bell(0.036, 0.052)),
        "gape": gape,
        "teeth": np.where(smile, n.uniform(0.6, 1.0), n.uniform(-0.1, 0.3)),
        "beard": np.maximum(beard, shadow),
        "beard_long": np.where(has["No_Beard"], 0.0, n.uniform(0.0, 1.0)),
        "beard_bare": n.uniform(0.62, 0.86),
        "beard_wide": n.uniform(),
        "goatee": 1.0 * (goatee & ~has["No_Beard"]),
        "beard_cheeks": 1.0 * ~only_tache,
        "tache": 1.0 * (only_tache | n.chance(0.8)),
    }


def _hair(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Length, curls, parting, fringe, and how much is left of it."""
    male, bangs, bald, old = has["Male"], has["Bangs"], has["Bald"], ~has["Young"]
    width = parts["width"]
    long = n.uniform() < np.where(male, 0.07, 0.82)
    curly = n.chance(0.22)
    full = n.uniform()
    length = np.where(n.chance(0.35), n.uniform(0.55, 0.8), n.uniform(0.95, 1.5))
    bottom = np.where(long, length, 0.5)
    around = np.where(long, n.bell(0.09, 0.22), n.bell(0.02, 0.06)) + 0.07 * curly
    recede = np.where(male & ~bangs & ~long, n.uniform(-0.2, 0.14) + 0.06 * old, 0.0)
    bun = ~male & ~long & ~has["Wearing_Hat"] & n.chance(0.6)
    return {
        "long": 1.0 * (long & ~bald),
        "bun": 1.0 * bun,
        "earrings": 1.0 * (~male & ~long & n.chance(0.6)),
        "hair_width": np.where(bald, width + 0.012, width + around),
        "hair_top": np.where(bald | has["Wearing_Hat"], 0.67, 0.72 + 0.13 * full + 0.05 * curly),
        "hair_bottom": np.where(bald, 0.5, bottom),
        "hair_square": np.where(long, n.uniform(0.3, 0.8), 0.3),
        "wavy": n.uniform(0, 1) * long,
        "curly": 1.0 * curly,
        "phase": n.uniform(0, 7),
        "part": np.where(n.chance(0.3), 0.0, n.uniform(-1, 1)) * np.where(bangs, 0.25, 1.0) * (recede <= 0),
        "jag": np.where(bangs, n.uniform(0.02, 0.05), n.uniform(0.0, 0.02)),
        "hairline": np.where(bangs, n.uniform(0.19, 0.27), n.uniform(0.40, 0.50)),
        "recede": np.maximum(recede, 0),
        "curtain": np.where(bangs | male, 0.0, 1.0 * n.chance(0.5)) * n.uniform(0.3, 1.0),
        "opening": width * np.where(long, n.bell(0.82, 0.92), n.bell(0.90, 0.97)),
        "hair_front_square": np.where(bangs, 0.9, n.uniform(0.2, 0.8)),
        "sideburn": np.where(long, 3.0, np.where(male, n.uniform(-0.02, 0.16), n.uniform(0.1, 0.3))),
        "bald": 1.0 * bald,
    }


def _extras(n: _Numbers, has: dict[str, Array], parts: dict[str, Array]) -> dict[str, Array]:
    """Glasses and hats."""
    frame = n.uniform()
    rounded, thin = frame < 0.4, n.chance(0.3)
    tall = np.where(rounded, n.uniform(0.15, 0.175), n.uniform(0.11, 0.145))
    return {
        "glasses": 1.0 * has["Eyeglasses"],
        "lens_wide": np.where(rounded, n.uniform(0.16, 0.18), n.uniform(0.175, 0.2)),
        "lens_tall": tall,
        "lens_round": np.where(rounded, tall * 0.95, n.uniform(0.04, 0.09)),
        "cat": 0.6 * (n.chance(0.3) & ~has["Male"]),
        "rim": np.where(thin, 0.029, n.uniform(0.034, 0.05)),
        "frame": np.where((parts["tone"] > 0.6)[:, None], n.colour(_LIGHT_FRAME), n.colour(_FRAME)),
        "lens_colour": np.array([0.75, 0.85, 0.9]) * n.uniform(0.2, 1.1)[:, None],
        "tint": np.where(n.chance(0.2), n.uniform(0.25, 0.5), 0.1),
        "hat": has["Wearing_Hat"] * np.floor(1 + 3 * n.uniform()),
        "hat_line": n.uniform(-0.35, -0.29) - 0.06 * has["Bangs"],
        "hat_width": np.maximum(parts["hair_width"] * 0.97, parts["width"] + 0.05),
        "hat_high": n.uniform(0.56, 0.66),
        "hat_colour": n.colour(_HAT),
        "hat_trim": n.colour(_HAT),
    }


def _render(look: Look, size: int) -> Array:
    """The pictures of a batch of looks: uint8 [N, size, size, 3]."""
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = (axis[None, None, :] - look.shift_x) / look.scale, (axis[None, :, None] - look.shift_y) / look.scale
    x, y = np.broadcast_arrays(x, y)
    pixels = np.empty((3, *x.shape), np.float32)
    px = np.float32(2 / size) / look.scale
    canvas = Canvas(pixels, look.tilt_cos * x + look.tilt_sin * y, look.tilt_cos * y - look.tilt_sin * x, px)
    paint_faces(canvas, Canvas(pixels, x, y, px), look)
    for plane, share in zip(pixels, (1.0, 0.1, -1.0)):
        plane *= 1 + look.warmth * np.float32(share)
    return (np.clip(pixels, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 3, 0)
