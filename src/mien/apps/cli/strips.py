"""Sheets of faces with a caption over each column and beside each row, and small files written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.errors import UserError
from mien.whole import whole_file, write_text

if TYPE_CHECKING:
    from torch import Tensor

FACE_PX = 128  # smaller faces are enlarged to about this, so that captions fit and differences are seen


def captioned_sheet(images: Tensor, *, rows: Sequence[str], columns: Sequence[str]) -> Any:
    """uint8 [rows x columns, 3, R, R], row by row -> a PIL picture; captions may have several lines."""
    import torch
    from PIL import Image, ImageDraw, ImageFont

    from mien.explore.sample import labelled_grid

    side = images.shape[-1] * max(1, FACE_PX // images.shape[-1])
    if side != images.shape[-1]:
        larger = torch.nn.functional.interpolate(images.float(), size=side, mode="bicubic", align_corners=False)
        images = larger.round().clamp(0, 255).to(torch.uint8)
    faces = labelled_grid(images, rows)
    step = side + 2
    margin = faces.width - (step * len(columns) + 2)
    font_px = max(8.0, min(14.0, side / 8))
    font = ImageFont.load_default(size=font_px)
    top = 8 + max(len(column.splitlines()) for column in columns) * round(font_px * 1.3)
    sheet = Image.new("RGB", (faces.width, faces.height + top), "white")
    sheet.paste(faces, (0, top))
    pen = ImageDraw.Draw(sheet)
    for i, column in enumerate(columns):
        middle = margin + 1 + step * (i + 0.5)
        pen.multiline_text((middle, top - 4), column, fill="black", font=font, anchor="md", align="center", spacing=2)
    return sheet


def check_file(path: Path, option: str = "--out") -> None:
    """Raises UserError when no file can be written at `path`: before the work, not after it."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{option} {path}: {above} is a file, where a folder is needed. Name another place.")


def check_apart(path: Path, given: Path | None, option: str = "--out") -> None:
    """Raises UserError when `path` is the very file that was given to be read."""
    if given is not None and path.exists() and given.exists() and path.samefile(given):
        raise UserError(f"{option} {path} is the file that is read: it would be lost. Name another.")


def save_picture(picture: Any, path: Path) -> None:
    """A PIL picture as .png; the folder is made."""
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")


def save_text(text: str, path: Path) -> None:
    """A text file; the folder is made."""
    write_text(path, text + "\n")
