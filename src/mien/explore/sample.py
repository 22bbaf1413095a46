"""Faces from a generator: pixels as saved, conditions drawn as the training data had them, grids to look at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mien.combinations import parse_facts
from mien.errors import UserError, did_you_mean
from mien.explore.load import LoadedGenerator
from mien.models.latents import at_shares, chosen
from mien.models.pictures import PADDING_PX, grid, to_uint8

LOWEST, HIGHEST = -2.0, 3.0  # of an attribute: as far beyond 0 and 1 as twice the way from one to the other
MAX_COMBINATIONS = 64  # that a balanced set is spread over
BALANCES = ("none", "data", "uniform")


@torch.inference_mode()
def render(generator: LoadedGenerator, z: Tensor, attributes: Tensor, *, batch: int = 64) -> Tensor:
    """z [N, Z], attributes [N, A] -> uint8 [N, 3, R, R] on the CPU, each face's bits its own."""
    none = torch.empty(0, 3, generator.size, generator.size, dtype=torch.uint8)
    return torch.cat([none, *(to_uint8(images).cpu() for images in _drawn(generator, z, attributes, batch))]).contiguous()


@torch.no_grad()
def generate(generator: LoadedGenerator, z: Tensor, attributes: Tensor, *, batch: int = 64) -> Tensor:
    """As `render`, before pixels are rounded: float32 [N, 3, R, R] in -1..1."""
    none = torch.empty(0, 3, generator.size, generator.size)
    return torch.cat([none, *(images.float().cpu() for images in _drawn(generator, z, attributes, batch))]).contiguous()


def _drawn(generator: LoadedGenerator, z: Tensor, attributes: Tensor, batch: int) -> Iterator[Tensor]:
    """The network's images, at most `batch` at a time, where it is.

    Every call of the network sees exactly `batch` rows, the last ones repeats: kernels are chosen by shape, so a face's bits do not
    depend on how many others were asked for.
    """
    net, device = generator.net.eval(), generator.device
    for start in range(0, len(z), batch):
        rows = torch.arange(start, start + batch).clamp(max=len(z) - 1)
        yield net(z[rows].to(device), attributes[rows].to(device))[: len(z) - start]


# ------------------------------------------------------------------------------------------------------------------------------
# Conditions


def parse_where(text: str | None, names: Sequence[str]) -> dict[str, float]:
    """'Male=1,Smiling=0' -> {'Male': 1.0, 'Smiling': 0.0}. Raises UserError for an unknown attribute, one named
    twice or a value outside -2..3.

    0 and 1 are what training showed; between them the generator interpolates, beyond them it extrapolates, and may draw no face at all.
    """
    where: dict[str, float] = {}
    for name, value in parse_facts(text).items():
        if name not in names:
            known = f"this model knows {', '.join(names)}" if names else "this model was trained without attributes"
            raise UserError(f"No attribute {name!r}: {known}.{did_you_mean(name, names)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not LOWEST <= number <= HIGHEST:
            raise UserError(f"{name}={value}: write {name}=1, {name}=0 or from {LOWEST:g} to {HIGHEST:g} (beyond 0..1: extrapolation).")
        where[name] = number
    return where


def _table(generator: LoadedGenerator, where: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """(rows [K, A], shares [K]) of the training data's combinations, restricted by `where` and with its values put in.

    A fractional value, or one that no combination has, restricts nothing: it is put into every row.
    """
    names = list(generator.attribute_names)
    entries = [(row, share) for row, share in generator.meta.get("attribute_table", []) if share > 0] or [([0] * len(names), 1.0)]
    rows = np.array([row for row, _ in entries], dtype=np.float32).reshape(len(entries), len(names))
    shares = np.array([share for _, share in entries], dtype=np.float64)
    for name, value in where.items():
        agrees = rows[:, names.index(name)] == value
        if agrees.any():
            rows, shares = rows[agrees], shares[agrees]
    for name, value in where.items():
        rows[:, names.index(name)] = value
    return rows, shares / shares.sum()


def attribute_rows(generator: LoadedGenerator, where: Mapping[str, float], count: int, seed: int) -> Tensor:
    """float32 [count, A]: conditions of faces seed, seed + 1, ... drawn as often as in the training data where `where` holds.

    A face's condition is a function of its number and `where` alone.
    """
    rows, shares = _table(generator, where)
    return torch.from_numpy(rows[chosen(range(seed, seed + count), shares)])


def balanced_rows(generator: LoadedGenerator, where: Mapping[str, float], places: range, *, balance: str) -> Tensor:
    """float32 [N, A]: conditions of the faces at `places` (0 is the first) of a set whose combinations come in fixed proportions.

    'uniform': every combination of the attributes that `where` leaves free equally often, to within one face (the 64 commonest in the data
    when there are more). 'data': as often as in the training data where `where` holds, to within log2(N) faces. Both are functions of the
    place alone and hold for every beginning of the set: the second by van der Corput's sequence in the place of chance.
    """
    if balance == "uniform":
        rows = combinations(generator, where, limit=MAX_COMBINATIONS)
        return rows[torch.tensor(places, dtype=torch.int64) % len(rows)]
    if balance != "data":
        raise UserError(f"No balance is named {balance!r}: there are {', '.join(BALANCES)}.")
    table, shares = _table(generator, where)
    return torch.from_numpy(table[at_shares(_van_der_corput(np.array(places, dtype=np.uint64)), shares)])


def _van_der_corput(numbers: np.ndarray) -> np.ndarray:
    """float64 in 0..1: the binary digits of each number behind the point, in reverse (van der Corput 1935). Even for every beginning."""
    return sum(((numbers >> np.uint64(bit)) & np.uint64(1)).astype(np.float64) * 2.0 ** -(bit + 1) for bit in range(48))  # type: ignore[return-value]


def combinations(generator: LoadedGenerator, where: Mapping[str, float], *, limit: int = 8) -> Tensor:
    """float32 [K, A]: every combination of the attributes that `where` leaves free, when that is at most `limit`; else the commonest."""
    names = generator.attribute_names
    free = [name for name in names if name not in where]
    if 2 ** len(free) <= limit:
        rows = [[where.get(name, choice.get(name, 0)) for name in names] for choice in
                (dict(zip(free, values)) for values in itertools.product((0.0, 1.0), repeat=len(free)))]  # fmt: skip
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(names))
    table, shares = _table(generator, where)
    order = np.argsort(-shares, kind="stable")
    return torch.from_numpy(np.array(list(dict.fromkeys(map(tuple, table[order])))[:limit], dtype=np.float32))


def captions(rows: Tensor, names: Sequence[str]) -> list[str]:
    """A caption for each row of conditions [K, A], a line per attribute: all up to three, else those that differ, at most four."""
    shown = [i for i in range(len(names)) if len(names) <= 3 or len(set(rows[:, i].tolist())) > 1]
    return ["\n".join(f"{names[i]} {row[i]:g}" for i in shown[:4]) for row in rows.tolist()]


# ------------------------------------------------------------------------------------------------------------------------------
# Grids


def labelled_grid(images: Tensor, labels: Sequence[str]) -> Image.Image:
    """uint8 [K x C, 3, R, R] as K rows of C, each with its label on the left; labels may have several lines."""
    faces = grid(images, columns=len(images) // len(labels))
    step = images.shape[-1] + PADDING_PX
    lines = [line for label in labels for line in label.splitlines()]
    deepest = max(len(label.splitlines()) for label in labels)
    font = ImageFont.load_default(size=max(6, min(14, 0.7 * step / max(1, deepest))))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = 8 + max((round(pen.textlength(line, font=font)) for line in lines), default=0) + 8 if lines else 0
    sheet = Image.new("RGB", (margin + faces.width, faces.height), "white")
    sheet.paste(faces, (margin, 0))
    pen = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        middle = margin - 8, PADDING_PX + i * step + step / 2
        pen.multiline_text(middle, label, fill="black", font=font, anchor="rm", align="right", spacing=2)
    return sheet
