"""Batches of faces as a pure function of (seed, position): no state, no worker processes, exact resume for free.

Sample i of the endless stream is image `permutation(seed, epoch = i // N)[i % N]` of the split, mirrored if a bit drawn from (seed, i)
says so. So any batch size gives the same stream, and a run that starts again at image i goes on as if it had never stopped.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mien.combinations import parse_facts
from mien.data.attributes import Combination, combination_table
from mien.data.order import hash64, permutation
from mien.data.store import FaceStore
from mien.errors import UserError

MEMORY_SHARE = 0.5      # of the free memory that the pixels of a split may take
Weights = Literal["none", "uniform"] | Mapping[str, float]


class FaceLoader:
    """Serves one split of a store as float images and attributes."""

    def __init__(self, store: FaceStore, *, split: str = "train", attributes: tuple[str, ...] | list[str] = (), seed: int = 0,
                 flip: bool = True, device: str | torch.device = "cpu", weights: Weights = "none") -> None:
        """`attributes` are the names wanted, in order.

        `weights`: "none" draws every image once an epoch; "uniform" draws every combination of `attributes` that occurs equally often;
        {"Young=0": 3.0, "Male=1,Smiling=0": 2.0} draws an image as many times as often as the product of the factors that fit it says, of
        any attributes of the store. All are scaled to sum to 1; a factor of 0 leaves images out.

        UserError for an attribute the store has not, an empty split, or a factor that fits no image.
        """
        self.attribute_names = tuple(attributes)
        self.size, self.seed, self.flip = store.size, seed, flip
        self.device = torch.device(device)
        indices = store.indices(split)
        if isinstance(weights, str) and weights not in ("none", "uniform"):
            raise UserError(f"no sampling weights are called {weights!r}: say none or uniform, or give factors by combination")
        if not len(indices):
            raise UserError(f"the {split} split of {store.path} has no images; name another split, or prepare the data with one")
        self.count = len(indices)                                                   # images in the split: an epoch
        self._labels = np.ascontiguousarray(store.attributes[indices][:, store.columns(self.attribute_names)])   # uint8 [count, A]
        self._table = combination_table(self._labels)
        self._law = None if weights == "none" else self._cumulative(store, indices, weights)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))           # the last epoch asked for: the next batch wants it too
        self._label_floats = torch.from_numpy(self._labels).to(self.device, torch.float32)
        self._law_tensor = None if self._law is None else torch.from_numpy(self._law).to(self.device)
        self._place_pixels(store, indices)

    def _place_pixels(self, store: FaceStore, indices: np.ndarray) -> None:
        """Keep the split's pixels where they are served fastest: on the GPU, else in memory, else mapped from the disk."""
        needed = self.count * self.size * self.size * 3
        self._rows: np.ndarray | None = None            # where the split's images stand in _pixels; None when they are all of it, in order
        self._resident: torch.Tensor | None = None      # uint8 [count, R, R, 3] on the GPU
        if self.device.type == "cuda" and needed < MEMORY_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            self._resident = torch.empty((self.count, self.size, self.size, 3), dtype=torch.uint8, device=self.device)
            for start in range(0, self.count, 4096):    # in pieces, so that the host never holds a second copy
                piece = store.images[indices[start:start + 4096]]
                self._resident[start:start + len(piece)] = torch.from_numpy(piece).to(self.device)
        elif needed < MEMORY_SHARE * available_bytes():
            self._pixels = store.images[indices]        # uint8 [count, R, R, 3]
        else:
            self._pixels, self._rows = store.images, indices

    def _cumulative(self, store: FaceStore, indices: np.ndarray, weights: Weights) -> np.ndarray:
        """float64 [count + 1], rising from 0 to 1: image `_lawful[i]` owns the stretch from [i] to [i + 1], as wide as its probability.

        Images of one combination and weight lie side by side: evenly spaced points over an arrangement that alternates would hit only one
        kind.
        """
        widths = np.ones(self.count)
        if isinstance(weights, Mapping):
            for words, factor in weights.items():
                widths[_fitting(store, indices, words, factor)] *= factor
        else:
            for row, count in self._table:
                widths[(self._labels == np.array(row, np.uint8)).all(axis=1)] = 1 / count
        if not widths.sum() > 0:
            raise UserError("the sampling weights leave no image to draw; give at least one combination a weight above 0")
        self._lawful = np.lexsort((widths, *self._labels.T[::-1]))
        edges = np.concatenate([[0.0], np.cumsum(widths[self._lawful])])
        return edges / edges[-1]

    def indices(self, position: int, count: int) -> np.ndarray:
        """int64 [count]: which images of the split the stream has at `position` (images drawn so far) and on."""
        places = np.arange(position, position + count)
        result = np.empty(count, np.int64)
        for epoch in range(position // self.count, (position + count - 1) // self.count + 1):
            if self._order[0] != epoch:
                self._order = (epoch, self._epoch(epoch))
            inside = places // self.count == epoch
            result[inside] = self._order[1][places[inside] % self.count]
        return result

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of one epoch. Under weights: systematic sampling, N evenly spaced points of the cumulative law in shuffled order, so
        an image of probability p comes floor(N p) or ceil(N p) times an epoch, and rare combinations are spread, not clumped."""
        order = permutation(self.seed, epoch, self.count)
        if self._law is None:
            return order
        offset = (int(hash64(self.seed, 2 * epoch, np.array([self.count]))[0]) >> 11) / 2**53       # in [0, 1), another each epoch
        points = np.minimum((order + offset) / self.count, np.nextafter(1.0, 0.0))      # rounding must not reach 1, which nobody owns
        return self._lawful[np.searchsorted(self._law, points, side="right") - 1]

    def flips(self, position: int, count: int) -> np.ndarray:
        """bool [count]: which samples of the stream are mirrored. Never any without `flip`."""
        if not self.flip:
            return np.zeros(count, bool)
        return (hash64(self.seed, 1, np.arange(position, position + count)) >> np.uint64(63)).astype(bool)

    def batch(self, position: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples `position` to `position + count` of the stream: images float32 [count, 3, R, R] in [-1, 1] (channels_last), attributes
        float32 [count, A] in {0, 1}, both on the device. `position` counts the images drawn so far."""
        chosen = self.indices(position, count)
        flips = self.flips(position, count)
        straight = count - int(flips.sum())
        # Mirrored ones are fetched apart and shuffled back into place: gathers copy whole images, a masked write goes byte by byte.
        fetched = np.concatenate([chosen[~flips], chosen[flips]])
        place = np.argsort(np.argsort(flips, kind="stable"), kind="stable")
        rows, order, labels = self._upload(np.stack([fetched, place, chosen]))
        pixels = self._fetch(fetched, rows)                                                      # uint8 [N, R, R, 3]
        pixels = torch.cat([pixels[:straight], pixels[straight:].flip(2)]).index_select(0, order)
        images = pixels.to(torch.float32).div_(127.5).sub_(1.0).permute(0, 3, 1, 2)              # [N, 3, R, R], the bytes stay in place
        return images, self._label_floats.index_select(0, labels)

    def labels(self, position: int, count: int) -> torch.Tensor:
        """The attributes of `batch(position, count)` alone."""
        return self._label_floats.index_select(0, self._upload(self.indices(position, count)))

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """On the device. To a GPU from pinned memory, so that the host does not wait for the step that the GPU is still busy with."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor.to(self.device)

    def _fetch(self, rows: np.ndarray, places: torch.Tensor) -> torch.Tensor:
        """uint8 [n, R, R, 3] on the device: these images of the split, by their numbers here and on the device."""
        if self._resident is not None:
            return self._resident.index_select(0, places)
        stored = rows if self._rows is None else self._rows[rows]
        return self._upload(np.take(self._pixels, stored, axis=0))

    def draw_attributes(self, count: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """float32 [count, A] on the device: rows drawn from the split's own attributes, under the same weights as the images."""
        where = self.device if generator is None else generator.device
        if self._law_tensor is None:
            rows = torch.randint(self.count, (count,), generator=generator, device=where).to(self.device)
        else:
            points = torch.rand(count, generator=generator, device=where, dtype=torch.float64).to(self.device)
            places = torch.searchsorted(self._law_tensor, points, right=True) - 1
            rows = torch.from_numpy(self._lawful).to(self.device)[places]
        return self._label_floats[rows]

    def combinations(self) -> list[tuple[Combination, float]]:
        """How often each combination of the attributes occurs in the split (not in the weighted stream): [((0, 1), share)]."""
        return [(row, count / self.count) for row, count in self._table]


def _fitting(store: FaceStore, indices: np.ndarray, words: str, factor: float) -> np.ndarray:
    """bool [count]: which images of a split `words`, such as 'Male=1,Smiling=0', fit. UserError when none does."""
    facts = parse_facts(words)
    if not facts or any(value not in ("0", "1") for value in facts.values()) or not factor >= 0:
        raise UserError(f"the factor {words!r} = {factor} is not possible: write a combination as Male=1,Smiling=0, and 0 or more")
    columns = store.columns(list(facts))
    fits = (store.attributes[indices][:, columns] == np.array([int(value) for value in facts.values()], np.uint8)).all(axis=1)
    if not fits.any():
        raise UserError(f"no image of the split has {words}, so it cannot be drawn more or less often")
    return fits


def available_bytes() -> int:
    """Memory that can be taken without pushing others out, in bytes: the system's free memory, or a container's limit if that is lower."""
    if not hasattr(os, "sysconf"):
        return 8 * 2**30        # Windows tells this only through its own calls; a machine that trains a GAN has it
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()      # counts the page cache as free, which it is
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else max(0, min(free, int(limit) - used))
    except (OSError, ValueError, StopIteration):
        return free
