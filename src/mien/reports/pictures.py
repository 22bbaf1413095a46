"""Sample pictures for a page: cut from the grids in a run directory and put into the page as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.errors import UserError
from mien.reports.page import Html, esc
from mien.runs import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_SIDE_PX = 1600  # a larger picture is made smaller: the page has to stay light


@dataclass(frozen=True)
class Layout:
    """samples/grid.json: how a sample grid is laid out."""

    rows: list[str]
    columns: int
    cell_px: int
    padding_px: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a cell; there is padding around each."""
        step = self.cell_px + self.padding_px
        left, top = self.padding_px + column * step, self.padding_px + row * step
        return left, top, left + self.cell_px, top + self.cell_px


    def fitting(self, width_px: int) -> Layout:
        """The layout of a picture this wide: the same rows and columns, in cells that fill it."""
        cell, rest = divmod(width_px - self.padding_px, self.columns)
        return replace(self, cell_px=cell - self.padding_px) if rest == 0 and cell > self.padding_px else self


def layout(folder: Path) -> Layout | None:
    """What grid.json in `folder` says; None when it is absent, damaged or incomplete."""
    try:
        said = read_json(folder / "grid.json") or {}
    except UserError:
        return None
    rows, columns, cell, padding = said.get("rows"), said.get("columns"), said.get("cell_px"), said.get("padding_px")
    if not (isinstance(rows, list) and isinstance(columns, int) and isinstance(cell, int) and isinstance(padding, int)):
        return None
    return Layout([row_name(str(row)) for row in rows], columns, cell, padding) if rows and min(columns, cell, padding + 1) > 0 else None


def row_name(row: str) -> str:
    """'Male, not Smiling' for 'Male=1 Smiling=0'; a label of another kind as it is, and 'all' for no attributes."""
    words = {"1": "{}", "0": "not {}"}
    pairs = [part.partition("=") for part in row.split()]
    return ", ".join(words[value].format(name) for name, _, value in pairs) or "all" if all(v in words for _, _, v in pairs) else row


def read(path: Path) -> Image | None:
    """The picture in a file as RGB; None when it is absent or cut short."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow says SyntaxError for some broken PNGs
        return None


def cells(grid: Image, where: Layout, places: Sequence[tuple[int, int]], *, across: int, gap_px: int = 2) -> Image | None:
    """A new picture of the named (row, column) cells, `across` to a line; None when the grid does not hold them all.

    A grid with cells of another size, as a run draws before it has grown, gives them enlarged to the layout's.
    """
    from PIL import Image

    its_own = where.fitting(grid.width)
    boxes = [its_own.box(*place) for place in places]
    if not boxes or max(box[2] for box in boxes) > grid.width or max(box[3] for box in boxes) > grid.height:
        return None
    step, lines = where.cell_px + gap_px, -(-len(boxes) // across)
    out = Image.new("RGBA", (min(across, len(boxes)) * step - gap_px, lines * step - gap_px), (0, 0, 0, 0))
    for i, box in enumerate(boxes):
        cell = grid.crop(box)
        if its_own != where:
            cell = cell.resize((where.cell_px, where.cell_px), Image.Resampling.NEAREST)
        out.paste(cell, (i % across * step, i // across * step))
    return out


def image_tag(picture: Image, alt: str, *, most_bytes: int, css: str = "") -> Html:
    """<img> with the picture inside it: lossless (PNG) within `most_bytes`, else WebP of good quality. Large pictures are made smaller."""
    if max(picture.size) > MOST_SIDE_PX:
        picture = picture.copy()
        picture.thumbnail((MOST_SIDE_PX, MOST_SIDE_PX))
    kind, data = "png", _encoded(picture, "PNG", compress_level=6)
    for quality in (92, 80, 60):
        if len(data) <= most_bytes:
            break
        kind, data = "webp", _encoded(picture, "WEBP", quality=quality)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Html(f'<img{f" class={css}" if css else ""} src="{uri}" width="{picture.width}" height="{picture.height}" alt="{esc(alt)}">')


def reals(store: Path, count: int) -> Image | None:
    """`count` images spread evenly over a store (images.npy, uint8 [N, R, R, 3]), side by side; None when there is no such store."""
    from PIL import Image

    try:
        images = np.load(store / "images.npy", mmap_mode="r")
        strip = np.concatenate([images[i] for i in np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)], axis=1)
        return Image.fromarray(np.ascontiguousarray(strip))
    except (OSError, ValueError, TypeError):
        return None


def _encoded(picture: Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()
