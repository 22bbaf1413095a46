"""What a run writes while it goes: ticks of scalars, grids of fixed latents, the mosaic."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mien.combinations import combination_name
from mien.models.latents import chosen, latents
from mien.models.pictures import PADDING_PX, grid, to_uint8
from mien.runs import Run, kimg_name, write_json
from mien.whole import whole_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MAX_ROWS = 8
MOSAIC_SIDE = 10


class Scalars:
    """scalars.jsonl and TensorBoard, side by side."""

    def __init__(self, run: Run, *, after_nimg: int = 0):
        """`after_nimg`: what a killed process had told TensorBoard beyond it is hidden there, for it will be told again."""
        self._run, self._after_nimg = run, after_nimg

    def write(self, nimg: int, values: dict[str, float]) -> None:
        self._run.append("scalars", nimg, **{name: float(f"{value:.6g}") for name, value in values.items()})
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, nimg)

    @functools.cached_property
    def _tensorboard(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # seconds of imports, for which the first step does not wait

        return SummaryWriter(str(self._run.path / "tensorboard"), purge_step=self._after_nimg + 1)

    def close(self) -> None:
        if "_tensorboard" in self.__dict__:
            self._tensorboard.close()


def grid_rows(names: Sequence[str], table: Sequence[tuple[Sequence[int], float]]) -> list[tuple[int, ...]]:
    """The attribute combinations that a sample grid shows: all of them, or the commonest where they are too many."""
    if 2 ** len(names) <= MAX_ROWS:
        return list(itertools.product((0, 1), repeat=len(names)))
    return sorted(tuple(row) for row, _ in sorted(table, key=lambda entry: -entry[1])[:MAX_ROWS])


@torch.inference_mode()
def render(net: torch.nn.Module, z: torch.Tensor, attributes: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Latents [N, Z] and attributes [N, A] on the CPU -> uint8 [N, 3, R, R] there."""
    pieces = zip(z.split(64), attributes.split(64))
    return torch.cat([to_uint8(net(latent.to(device), rows.to(device))).cpu() for latent, rows in pieces])


def save_png(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")


class SampleGrid:
    """The same latents under every attribute combination, drawn again and again: column j is face number j in each row."""

    def __init__(self, run: Run, *, z_dim: int, names: Sequence[str], table: Sequence[tuple[Sequence[int], float]], columns: int):
        rows = grid_rows(names, table)
        self._run, self._columns = run, columns
        self._z = latents(range(columns), z_dim).repeat(len(rows), 1)  # [rows * columns, Z]
        self._attributes = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(names)).repeat_interleave(columns, dim=0)
        self._table, self._z_dim = table, z_dim
        self.labels = [combination_name(names, row, between=" ") for row in rows]

    def draw(self, net: torch.nn.Module, nimg: int, device: torch.device) -> Path:
        images = render(net, self._z, self._attributes, device)
        path = self._run.path / "samples" / f"{kimg_name(nimg)}.png"
        save_png(grid(images, self._columns), path)
        layout = {"rows": self.labels, "columns": self._columns, "cell_px": images.shape[-1], "padding_px": PADDING_PX}
        write_json(self._run.path / "samples" / "grid.json", layout)
        return path

    def draw_mosaic(self, net: torch.nn.Module, device: torch.device) -> Path:
        """Faces number 0 to 99, nothing picked out, with conditions in the proportions of the training data."""
        count = MOSAIC_SIDE**2
        attributes = torch.zeros(count, self._attributes.shape[1])
        if attributes.shape[1]:
            rows, shares = zip(*self._table)
            attributes = torch.tensor(np.array(rows)[chosen(range(count), shares)], dtype=torch.float32)
        images = render(net, latents(range(count), self._z_dim), attributes, device)
        path = self._run.path / "samples" / "mosaic.png"
        save_png(grid(images, MOSAIC_SIDE), path)
        return path
