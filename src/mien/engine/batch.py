"""The batch of an update, and how it is cut: into the processes' parts, and each part into pieces that go through the networks at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mien.config import Config
from mien.engine.rows import Rows
from mien.engine.state import TrainState
from mien.engine.task import Task
from mien.errors import UserError
from mien.models.layers import MinibatchDiscrimination, Spectral


def check_cut(config: Config, processes: int) -> None:
    """Raises UserError when batches cannot be cut equally, or what looks at several samples would see others than in the whole batch."""
    batch, critic = config.train.batch, config.model.discriminator
    mine, left = divmod(batch, processes)
    if left:
        raise UserError(f"{processes} processes cannot share train.batch={batch} equally: set a multiple of {processes}.")
    piece = min(config.train.micro_batch or mine, mine)
    pieces, what = batch // piece, "process" if piece == mine else "piece"
    if mine % piece:
        raise UserError(f"train.micro_batch={piece} does not divide the {mine} images that each process has of a batch: set one that does.")
    if pieces > 1 and critic.minibatch_stddev and piece % critic.minibatch_stddev:
        raise UserError(f"Each {what} has {piece} images of a batch, no multiple of model.discriminator.minibatch_stddev "
                        f"({critic.minibatch_stddev}): set another train.batch, or begin fewer processes.")  # fmt: skip
    if processes > 1 and critic.minibatch_discrimination:
        raise UserError("model.discriminator.minibatch_discrimination compares all images of a batch, and no process has them all: train "
                        "in one process, or leave it out (minibatch_stddev does the like).")  # fmt: skip
    if pieces > 1 and config.regularizer.path_length.gamma and batch % (2 * pieces):
        raise UserError(f"regularizer.path_length takes half of each batch, and {batch} / 2 images cannot be cut into {pieces}: "
                        f"set train.batch to a multiple of {2 * pieces}.")  # fmt: skip


def own_statistics(s: TrainState, task: Task) -> str | None:
    """What differs from an uncut batch where each process's part goes through in several pieces, in a sentence; None when nothing does."""
    config, n = task.config, task.piece
    if n == config.train.batch // task.ranks.size:
        return None
    layers = [layer for net in (s.G, s.D) for layer in net.modules()]
    found = {"batch norm's statistics": any(isinstance(layer, nn.BatchNorm2d) for layer in layers),
             "minibatch discrimination": any(isinstance(layer, MinibatchDiscrimination) for layer in layers),
             "feature means": config.loss.feature_matching > 0 or config.loss.perceptual > 0,
             "the mean path length": config.regularizer.path_length.gamma > 0}  # fmt: skip
    named = ", ".join(name for name, there in found.items() if there)
    return f"With train.micro_batch={n}, these see one piece of a batch instead of all of it: {named}." if named else None


@dataclass
class Batch:
    """Images are this process's part of the whole batch, all else is whole: it is small, and drawn alike everywhere."""

    real: Tensor  # [B / P, 3, R, R] in -1..1
    attributes: Tensor  # [B, A]
    latents: Tensor  # [B, Z]
    fake: Tensor | None = None  # [B / P, 3, R, R]: those that D has just seen, with G's graph
    drawn_at: Moment | None = None  # from where its fakes are drawn, where there are several pieces
    logit_means: list[Tensor] = field(default_factory=list)  # [2] of each piece: D's mean logits of reals and of fakes, for LeCam

    @classmethod
    def load(cls, s: TrainState, task: Task) -> Batch:
        """The next `train.batch` of the data's stream, and new latents."""
        n, ranks = task.config.train.batch, task.ranks
        if ranks.size == 1:
            return cls(*task.data.batch(s.nimg, n), task.latents(s.G.z_dim))
        mine = n // ranks.size
        real, _ = task.data.batch(s.nimg + ranks.rank * mine, mine)
        return cls(real, task.data.labels(s.nimg, n), task.latents(s.G.z_dim))

    def pieces(self, s: TrainState, task: Task) -> list[Piece]:
        """What goes through the networks, one by one, each inside its own `with`."""
        per_rank, ranks = len(self.real) // task.piece, task.ranks
        begin = Moment(s) if per_rank > 1 else None
        self.drawn_at = self.drawn_at or begin
        first = ranks.rank * per_rank
        return [Piece(self, s, task, i, first + i, per_rank * ranks.size, begin) for i in range(per_rank)]


class Piece:
    """Some rows of a batch; inside `with piece:` random draws, and batch norm, are those of the whole batch."""

    def __init__(self, whole: Batch, s: TrainState, task: Task, place: int, index: int, count: int, begin: Moment | None):
        """`place` among this process's pieces, `index` among all `count`. `begin`: from where each piece draws, where there are several."""
        n = task.piece
        rows = slice(index * n, (index + 1) * n)
        self.whole, self.real = whole, whole.real[place * n : (place + 1) * n]
        self.attributes, self.latents = whole.attributes[rows], whole.latents[rows]
        self.share = 1 / count
        self._s, self._index, self._count, self._begin = s, index, count, begin
        self._rows = Rows(rows.start, n, n * count, task.ranks) if count > 1 else None
        self._inside: AbstractContextManager[object] = self._rows or nullcontext()

    def __enter__(self) -> Piece:
        if self._begin is not None:
            self._begin.restore()
        self._inside.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.__exit__(*error)  # type: ignore[arg-type]

    def fakes(self) -> Tensor:
        """G's images of these rows: those that D has just seen, or the same made again, or, for a batch that D has not seen, new ones."""
        if self.whole.fake is not None:
            return self.whole.fake
        if self.whole.drawn_at is self._begin:
            return self._s.G(self.latents, self.attributes)
        now = Moment(self._s)
        self.whole.drawn_at.restore()  # type: ignore[union-attr]
        fake = self._s.G(self.latents, self.attributes)
        now.restore()
        return fake

    @contextmanager
    def of_first_half(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This piece's share of the first half of the whole batch, latents and attributes; inside, draws are made for that half."""
        half = max(1, len(self.whole.latents) // 2)
        each = half // self._count
        rows = slice(self._index * each, (self._index + 1) * each)
        with nullcontext() if self._rows is None else self._rows.over(rows.start, each, half):
            yield self.whole.latents[rows], self.whole.attributes[rows]


class Moment:
    """Where the random numbers stand, and the power iterations of spectral norm: what each piece of a batch begins with alike."""

    def __init__(self, s: TrainState):
        self._device = next(s.G.parameters()).device
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        self._mps = torch.mps.get_rng_state() if self._device.type == "mps" else None
        layers = [layer for net in (s.G, s.D) for layer in net.modules() if isinstance(layer, Spectral)]
        self._vectors = [(layer, layer.u.clone(), layer.v.clone()) for layer in layers]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        for layer, u, v in self._vectors:
            layer.u, layer.v = u.clone(), v.clone()
