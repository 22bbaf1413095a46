"""The same faces in several sizes: stores of one set of faces, and loaders that follow the size in use.

A size that has no store is averaged, k x k pixels to one, from the next larger store. As the stores hold the same faces in the same order,
sample i of the stream is the same face at every size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from mien.data.attributes import Combination
from mien.data.loader import FaceLoader, Weights
from mien.data.store import FaceStore
from mien.errors import UserError


class Pyramid:
    """Stores by size, and the size that its loaders serve: set `size` (px) and all of them follow."""

    def __init__(self, stores: Sequence[FaceStore]):
        """Raises UserError unless the stores hold the same faces, each in another size."""
        self.stores = sorted(stores, key=lambda store: store.size)
        self.size = self.largest.size
        for store in self.stores[:-1]:
            wrong = _difference(store, self.largest)
            if wrong:
                raise UserError(f"{store.path} and {self.largest.path} do not hold the same faces ({wrong}): prepare both from the same "
                                f"images with the same --crop, --attributes and --limit, or give only {self.largest.path}.")  # fmt: skip

    @property
    def largest(self) -> FaceStore:
        return self.stores[-1]

    def store_for(self, size: int) -> FaceStore:
        """The store of this size, or the next larger one. Raises UserError when even the largest is smaller, or no multiple."""
        store = next((store for store in self.stores if store.size >= size and store.size % size == 0), None)
        if store is None:
            raise UserError(f"No store has images of {size} px or a multiple: prepare one with --size {size}.")
        return store


class PyramidLoader:
    """A FaceLoader at the size in use: the same methods, the same stream. Only that size's pixels are held in memory."""

    def __init__(self, pyramid: Pyramid, *, split: str = "train", attributes: tuple[str, ...] | list[str] = (), seed: int = 0,
                 flip: bool = True, device: str | torch.device = "cpu", weights: Weights = "none") -> None:
        """As FaceLoader's."""
        self._pyramid, self._split, self._flip, self._weights = pyramid, split, flip, weights
        self.attribute_names, self.seed, self.device = tuple(attributes), seed, torch.device(device)
        self._loader: FaceLoader | None = None
        self.count = self._now().count

    @property
    def size(self) -> int:
        return self._pyramid.size

    def _now(self) -> FaceLoader:
        store = self._pyramid.store_for(self.size)
        if self._loader is None or self._loader.size != store.size:
            self._loader = None  # the old pixels go before the new ones come
            self._loader = FaceLoader(store, split=self._split, attributes=self.attribute_names, seed=self.seed, flip=self._flip,
                                      device=self.device, weights=self._weights)  # fmt: skip
        return self._loader

    def batch(self, position: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As FaceLoader.batch, at the pyramid's present size: images [count, 3, R, R], attributes [count, A]."""
        images, attributes = self._now().batch(position, count)
        return (F.avg_pool2d(images, images.shape[-1] // self.size) if images.shape[-1] != self.size else images), attributes

    def labels(self, position: int, count: int) -> torch.Tensor:
        return self._now().labels(position, count)

    def draw_attributes(self, count: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return self._now().draw_attributes(count, generator=generator)

    def combinations(self) -> list[tuple[Combination, float]]:
        return self._now().combinations()


def _difference(store: FaceStore, other: FaceStore) -> str | None:
    """What keeps two stores from being one set of faces in two sizes; None when nothing does."""
    if store.size == other.size:
        return f"both are of {store.size} px"
    if len(store) != len(other):
        return f"{len(store):,} and {len(other):,} images"
    if store.crop != other.crop:
        return f"crops {store.crop} and {other.crop}"
    if store.names != other.names:
        return "the names of the images differ"
    if not np.array_equal(store.splits, other.splits):
        return "the splits differ"
    if store.attribute_names != other.attribute_names or not np.array_equal(store.attributes, other.attributes):
        return "the attributes differ"
    return None
