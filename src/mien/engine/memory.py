"""How much memory a training step takes, told before the first one; and the micro-batch that fits into a given memory.

Two steps of a handful of images are run, and every block of memory that an operation returns is counted while it lives. The same operations
run whatever the number of images, so what is alive after each of them is a straight line in that number: extended to the real batch,
and the highest point taken. That counts weights, gradients, Adam's moments, the average, what is kept for the backward passes and the
penalties' double ones, for any family and any recipe, on any device.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mien.config import Config
from mien.data.store import FaceStore
from mien.engine import build
from mien.engine.batch import check_cut
from mien.engine.schedules import knobs_at
from mien.engine.state import TrainState
from mien.engine.step import train_step
from mien.errors import UserError
from mien.sections import Growth

GB = 1e9
FLOAT = 4  # bytes
HEAP = 0.07  # of a step: what the heap of the C library keeps between blocks, the median over recipes (benchmarks/memory.py)
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 2**17  # glibc's malloc.h; bytes
LEAST_PIECE = 2  # batch norm and the path-length penalty need two images


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step."""

    piece: int
    """Images that go through the networks at once."""
    weights: int
    """Of G, D and the average, with their buffers."""
    moments: int
    """The optimisers' state."""
    step: int
    """What comes and goes: activations, gradients, the batch itself."""
    scratch: int
    """What the allocator does not give back and libraries take inside of an operation; 0 on a GPU, whose allocator reuses blocks."""
    data: int
    """Pixels of the training split, where they are held in memory."""
    base: int
    """What the process had before: the interpreter and its libraries; 0 on a GPU, where the driver's share is not torch's to count."""

    @property
    def above_base(self) -> int:
        return self.weights + self.moments + self.step + self.scratch

    @property
    def total(self) -> int:
        return self.above_base + self.data + self.base

    def plain(self) -> dict[str, Any]:
        parts = ("weights", "moments", "step", "scratch", "data", "base", "total")
        return {"images_at_once": self.piece, **{f"{name}_mb": round(getattr(self, name) / 1e6, 1) for name in parts}}


class Watch(TorchDispatchMode):
    """Counts the bytes of living blocks; `seen` has the count after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, weakref.ref[Any]] = {}
        self.bytes = 0
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.count(value.untyped_storage())
        self.seen.append(self.bytes)
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.living or size == 0:
            return

        def gone(_: Any) -> None:
            del self.living[key]
            self.bytes -= size

        self.living[key] = weakref.ref(storage, gone)
        self.bytes += size


class StepMemory:
    """What a recipe's step keeps alive, as a function of the number of images that go through the networks at once."""

    def __init__(self, config: Config, *, size_px: int, attributes: Sequence[str], device: torch.device):
        self.config, self.size_px, self.attributes, self.device = config, size_px, tuple(attributes), device
        self.weights = self.moments = 0
        self._lines: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    def peak(self, piece: int, *, mine: int | None = None) -> int:
        """Bytes at the highest point of a step whose batch, or this process's part of it, `mine`, goes through in pieces of `piece`."""
        batch = self.config.train.batch if mine is None else mine
        whole = piece == batch
        if whole not in self._lines:
            self._lines[whole] = self._line(whole)
        offset, slope = self._lines[whole]
        waiting = max(0, batch - 2 * piece)  # images of the batch beyond the two pieces that were watched
        z_dim = self.config.model.generator.z_dim
        return int((offset + slope * piece).max()) + waiting * FLOAT * (3 * self.size_px**2 + z_dim + len(self.attributes))

    def memory(self, piece: int, store: FaceStore, processes: int = 1) -> Memory:
        """The parts of the peak, on this process's side, when it trains on `store`."""
        on_gpu = self.device.type == "cuda"
        step = self.peak(piece, mine=self.config.train.batch // processes) - self.weights - self.moments
        return Memory(piece=piece, weights=self.weights, moments=self.moments, step=step, scratch=0 if on_gpu else int(HEAP * step),
                      data=data_bytes(store, self.device), base=0 if on_gpu else resident_bytes())  # fmt: skip

    def _line(self, whole: bool) -> tuple[np.ndarray, np.ndarray]:
        """(bytes alive after each operation at 0 images, bytes more for each image)."""
        few = least_piece(self.config)
        more = 2 * few
        low, high = (np.array(self._watch(count, whole), dtype=np.float64) for count in (few, more))
        if len(low) != len(high):  # an operation that only larger batches need: the highest points alone are comparable
            low, high = low.max(keepdims=True), high.max(keepdims=True)
        slope = (high - low) / (more - few)
        return low - slope * few, slope

    def _watch(self, piece: int, whole: bool) -> list[int]:
        """Bytes alive after each operation of a real step of `piece` images, or of two such pieces."""
        batch = piece if whole else 2 * piece
        small = shrunk(self.config, batch=batch, piece=piece)
        task = build.build_task(small, noise_store(self.attributes, size_px=self.size_px, count=batch), self.device)
        knobs = knobs_at(task.config, 0)
        knobs = replace(knobs, d_steps=min(knobs.d_steps, 2))  # a third of D's updates needs no more than the second
        if task.augment.names:
            knobs = replace(knobs, augment_p=max(knobs.augment_p, 0.5))
        with torch.random.fork_rng(), watching() as watch:
            state = build.build_state(task.config, size=self.size_px, attributes=len(self.attributes), device=self.device)
            fill_moments(state)
            tensors = state.tensors()
            of_moments = [tensor for name, tensor in tensors.items() if name.startswith("opt_")]
            self.weights = sum(tensor.nbytes for tensor in tensors.values()) - (moments := sum(tensor.nbytes for tensor in of_moments))
            self.moments = moments
            del tensors, of_moments
            watch.seen.clear()
            train_step(state, task, knobs, measure=True)
            return watch.seen


@contextmanager
def watching() -> Iterator[Watch]:
    """Count while the body runs, undisturbed by what the collector of garbage happens to free."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        with Watch() as watch:
            yield watch
    finally:
        if was_on:
            gc.enable()


def shrunk(config: Config, *, batch: int, piece: int | None) -> Config:
    """The recipe at its last size, in smaller batches, with nothing beside its steps."""
    train = config.train.model_copy(update={"batch": batch, "micro_batch": piece})
    balance, data = config.balance.model_copy(update={"probe_kimg": 0.0}), config.data.model_copy(update={"balance": "none"})
    return config.model_copy(update={"train": train, "balance": balance, "data": data, "growth": Growth()})


def fill_moments(state: TrainState) -> None:
    """Make the optimisers' state, as the first step does."""
    for optimizer in (state.opt_g, state.opt_d):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def noise_store(attributes: Sequence[str], *, size_px: int, count: int) -> FaceStore:
    """A store in memory of `count` images of noise: enough to build a recipe's networks and to time its steps."""
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
    labels = random.integers(0, 2, (count, len(attributes)), dtype=np.uint8)
    manifest = {"attributes": list(attributes), "size": size_px, "crop": "whole"}
    return FaceStore(Path("noise"), manifest, images, labels, np.zeros(count, np.uint8))


def least_piece(config: Config) -> int:
    """The fewest images that may go through the networks at once."""
    return math.lcm(LEAST_PIECE, max(1, config.model.discriminator.minibatch_stddev))


def resident_bytes() -> int:
    """This process's resident set now (at its peak, where the system tells only that; 0 where it tells nothing)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        try:
            import resource
        except ImportError:  # Windows
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    import resource

    return pages * resource.getpagesize()


@dataclass(frozen=True)
class Forecast:
    """A recipe that fits, and what its step will take."""

    config: Config
    memory: Memory
    words: str
    """One line for people."""


def forecast(
    config: Config, store: FaceStore, *, device: torch.device, processes: int = 1, kept: Mapping[str, Any] | None = None
) -> Forecast:
    """What training `config` on `store` takes in one of `processes`; under train.memory_gb, in the largest pieces that fit.

    `kept`: the flat recipe that a run began with: asked for the same memory, it keeps its pieces, and so its very numbers.
    Raises UserError when nothing fits. `config` must be settled.
    """
    build.check_batch(config, store)  # before any work
    mine, limit_gb = config.train.batch // processes, config.train.memory_gb
    if limit_gb is not None and kept and kept.get("train.memory_gb") == limit_gb:
        config, limit_gb = in_pieces(config, kept.get("train.micro_batch")), None
    names = build.attribute_names(config, store)
    step = StepMemory(config, size_px=store.size, attributes=names, device=device)
    if limit_gb is None:
        memory = step.memory(min(config.train.micro_batch or mine, mine), store, processes)
        return Forecast(config, memory, sentence(memory))
    if device.type == "cpu":
        return_large_blocks()
    smallest = None
    for piece in pieces_of(config, processes):
        memory = smallest = step.memory(piece, store, processes)
        if memory.total <= limit_gb * GB:
            fitting = in_pieces(config, piece if piece < config.train.batch else None)
            return Forecast(fitting, memory, f"{sentence(memory)} {why(fitting, piece, processes)}")
    assert smallest is not None
    raise UserError(f"train.memory_gb={limit_gb:g} is too little: even {smallest.piece} images at once take about "
                    f"{smallest.total / GB:.2g} GB ({parts_of(smallest)}); allow more, or lower the widths or the size.")  # fmt: skip


def pieces_of(config: Config, processes: int) -> Iterator[int]:
    """How a process's part of a batch may be cut, the largest pieces first: at least the whole of it."""
    mine = config.train.batch // processes
    for count in range(1, mine + 1):
        piece, left = divmod(mine, count)
        if left or (count > 1 and piece % least_piece(config)):
            continue
        try:
            check_cut(in_pieces(config, piece), processes)
        except UserError:
            continue
        yield piece


def in_pieces(config: Config, piece: int | None) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": piece})})


def why(config: Config, piece: int, processes: int) -> str:
    limit, mine = f"train.memory_gb={config.train.memory_gb:g}", config.train.batch // processes
    if piece == mine:
        return f"{limit} lets the batch go whole."
    norms = config.model.batch_norm_in_d or config.model.generator_options().get("norm") == "batch"
    same = "the same gradient, but batch norm sees one piece at a time" if norms else "the same gradient"
    return f"To fit {limit}, batches of {mine} go in pieces of {piece}: {same}."


def sentence(memory: Memory) -> str:
    return f"Memory: about {memory.total / GB:.2g} GB at the peak ({parts_of(memory)})."


def parts_of(memory: Memory) -> str:
    named = (("the networks, their average and optimisers", memory.weights + memory.moments),
             (f"a step of {memory.piece} images", memory.step + memory.scratch),
             ("the data", memory.data), ("Python and its libraries", memory.base))  # fmt: skip
    return ", ".join(f"{what} {size / GB:.2f}" for what, size in named if size)


def data_bytes(store: FaceStore, device: torch.device) -> int:
    """What the pixels of the training split take while they are served.

    On the CPU the store's file, once read, counts beside the copy, though the system may take its pages back.
    """
    split = len(store.indices("train")) * store.size**2 * 3
    return split if device.type == "cuda" else split + (store.images.nbytes if isinstance(store.images, np.memmap) else 0)


def return_large_blocks() -> None:
    """Have the C library (glibc) give every large block back to the system as soon as it is free, for as long as this process lives.

    Its heap otherwise keeps holes, up to three quarters of what is in use (wgan-gp with five steps of D: 334 MB for 195 MB), but is
    faster: a step took 1.2 to 1.7 times as long with this on. So only where memory was asked to be small.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
