"""Sets of faces to measure: reals from a store, a generator's samples, a folder of pictures; in batches, with labels and names."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mien.data.store import SPLITS, FaceStore
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

BATCH = 64
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SEED_STRIDE = 1 << 20  # faces of evaluation seed s are numbered from s * SEED_STRIDE, so that no two seeds share a face


@dataclass(frozen=True)
class FaceSet:
    """Faces as uint8 batches [n, 3, R, R], made anew at each reading.

    attributes: uint8 [N, A], 0 or 1, of the attributes `names_of_attributes`; [N, 0] when there are none. names: one a face.
    read(first=0, every=1): batches first, first + every, ... of BATCH faces each, the last perhaps of fewer.
    """

    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    names: Sequence[str]
    read: Callable[..., Iterator[Tensor]]

    def __len__(self) -> int:
        return len(self.names)


def real_faces(store: FaceStore, indices: np.ndarray, attribute_names: Sequence[str]) -> FaceSet:
    """Images `indices` of a store, in that order."""

    def read(first: int = 0, every: int = 1) -> Iterator[Tensor]:
        for start in range(first * BATCH, len(indices), every * BATCH):
            pixels = store.images[indices[start:start + BATCH]]                 # [n, R, R, 3]
            yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    attributes = store.attributes[indices][:, store.columns(attribute_names)]
    return FaceSet(attributes, tuple(attribute_names), [store.names[i] for i in indices], read)


def generated_faces(generator: LoadedGenerator, conditions: np.ndarray, *, seed: int, truncation: float = 1.0) -> FaceSet:
    """Faces seed * SEED_STRIDE + 0, 1, ... of a generator, one for each row of conditions [N, A]; quantised as saved."""
    from mien.explore.latents import latents, truncated
    from mien.explore.sample import render

    numbers = range(seed * SEED_STRIDE, seed * SEED_STRIDE + len(conditions))

    def read(first: int = 0, every: int = 1) -> Iterator[Tensor]:
        for start in range(first * BATCH, len(conditions), every * BATCH):
            view, z = truncated(generator, latents(numbers[start:start + BATCH], generator.z_dim), truncation)
            yield render(view, z, torch.from_numpy(conditions[start:start + BATCH].astype(np.float32)), batch=BATCH)

    return FaceSet(conditions, tuple(generator.attribute_names), [f"face {number}" for number in numbers], read)


def folder_faces(folder: Path, size: int, *, limit: int | None = None, seed: int = 0) -> FaceSet:
    """Pictures of a folder, scaled to size x size (antialiased Lanczos) where they differ; attributes from its attributes.csv, if any.

    The CSV has a column for the file's name and one for each attribute, 0 or 1 (or -1); one called `seed` is passed over, so folders of
    `mien sample` do. limit: so many pictures, drawn by `seed`.
    """
    files = pictures_of(folder)
    if limit is not None and limit < len(files):
        files = [files[i] for i in np.sort(np.random.default_rng(seed).permutation(len(files))[:limit])]
    attribute_names, rows = _labels(folder / "attributes.csv", [path.name for path in files])

    def read(first: int = 0, every: int = 1) -> Iterator[Tensor]:
        for start in range(first * BATCH, len(files), every * BATCH):
            yield torch.stack([_picture(path, size) for path in files[start:start + BATCH]])

    return FaceSet(rows, attribute_names, [path.name for path in files], read)


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder, by name. UserError when it holds none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise UserError(f"{folder} holds no pictures; give a folder of PNGs, a run, a snapshot or a store.")
    return files


def _picture(path: Path, size: int) -> Tensor:
    """Read as a store's preparation reads it, or the same photos would score differently from a folder and from a store."""
    from mien.data.formats import BadImageError, open_picture, render, upright_size

    try:
        with open_picture(path) as image:
            width, height = upright_size(image)
            if width != height:
                raise UserError(f"{path} is {width}x{height}; pictures to score must be square, cropped as the store's are.")
            pixels = render(image, crop="whole", size=size, allow_upscale=True)
    except BadImageError as error:
        raise UserError(f"{path} cannot be read as a picture ({error}).") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _labels(path: Path, files: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    if not path.is_file():
        return (), np.zeros((len(files), 0), dtype=np.uint8)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8.") from None
    names = tuple(table[0][1:]) if table else ()
    kept = [i for i, name in enumerate(names) if name != "seed"]
    given = {row[0]: row[1:] for row in table[1:] if row}
    missing = [name for name in files if name not in given]
    if missing:
        others = len(missing) - 1
        more = f" and {others:,} other picture{'s' if others > 1 else ''}" if others else ""
        raise UserError(f"{path} has no line for {missing[0]}{more}.")
    try:
        rows = [[int(float(given[name][i]) >= 0.5) for i in kept] for name in files]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} has a line with a missing or wrong value ({error}); write 0 or 1 for each attribute.") from None
    return tuple(names[i] for i in kept), np.array(rows, dtype=np.uint8).reshape(len(rows), len(kept))


def check_split(split: str) -> None:
    """Raises UserError for what a model cannot be scored against. 'all' is: training images would pass for held-out ones."""
    if split == "all":
        raise UserError("Split all holds the training images too, which would pass for held-out ones; say train, val or test.")
    if split not in SPLITS:
        raise UserError(f"No split is called {split!r}; say train, val or test.{did_you_mean(split, SPLITS)}")


def reference_indices(store: FaceStore, split: str, count: int, seed: int) -> np.ndarray:
    """`count` images of a split (all, when it has no more), drawn by `seed`, in rising order."""
    there = store.indices(split)
    if not len(there):
        sizes = ", ".join(f"{name} {len(store.indices(name)):,}" for name in SPLITS)
        raise UserError(f"The store {store.path} has no {split} images (it has {sizes}); choose another --split.")
    return drawn(there, count, seed)


def drawn(indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of these (all, when they are no more), drawn by `seed`, in rising order."""
    return indices if count >= len(indices) else np.sort(np.random.default_rng(seed).permutation(indices)[:count])


def scored_of(store: FaceStore, split: str) -> np.ndarray:
    """The images of a store in a model's place: all of generated ones, whose splits are for training; else those of the split."""
    return np.arange(len(store)) if "generated" in store.manifest else reference_indices(store, split, len(store), 0)


def floor_indices(store: FaceStore, reference: np.ndarray, attribute_names: Sequence[str], split: str, seed: int) -> np.ndarray:
    """Real images to stand in the model's place: as many as the reference, none of it, with the same combinations of attributes.

    They come from what the split has left, then from the other splits, and only from the sources the reference itself comes from (another
    source is another preparation, and would raise the floor). Fewer come back where there are not enough.
    """
    free = np.setdiff1d(_same_sources(store, reference), reference)
    order = [split] + [name for name in ("test", "val", "train") if name != split]
    draw = np.random.default_rng([seed, 1])
    pool = np.concatenate([draw.permutation(free[np.isin(free, store.indices(name))]) for name in order])
    columns = store.columns(attribute_names)
    wanted = _codes(store.attributes[reference][:, columns])
    offered = _codes(store.attributes[pool][:, columns])
    chosen = [pool[offered == code][:count] for code, count in zip(*np.unique(wanted, return_counts=True))]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def _same_sources(store: FaceStore, reference: np.ndarray) -> np.ndarray:
    """Indices of all images whose source gave some of the reference."""
    every = np.arange(len(store))
    if not store.manifest.get("source"):
        return every
    names = store.source_of(every)
    return every[np.isin(names, names[reference])]


def _codes(rows: np.ndarray) -> np.ndarray:
    """[N] of bytes: one value for each distinct row of [N, A]."""
    packed = np.packbits(rows.astype(bool), axis=1) if rows.shape[1] else np.zeros((len(rows), 1), dtype=np.uint8)
    return np.array([row.tobytes().hex() for row in packed])


def combinations_of(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(row [A], which [n] rows are it)] of the distinct rows of [N, A], the commonest first."""
    distinct, inverse, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(distinct[i], np.flatnonzero(inverse.reshape(-1) == i)) for i in order]
