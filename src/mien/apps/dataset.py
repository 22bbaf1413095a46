"""A labelled set of generated faces, written in pieces: a folder of PNGs with attributes.csv, or a store.

While it is made it stands in a hidden folder beside its place, with a note of how far it is. A killed command that is given again goes on
there, and what comes out is the same to the byte. Every set tells where it comes from: provenance.json, or `generated` in the manifest.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

import mien
from mien.apps.together import Draw
from mien.combinations import combination_name
from mien.data.sources import hash_splits
from mien.data.writer import HEADER_BYTES, StoreWriter, flush, refuse_existing
from mien.errors import UserError
from mien.explore.load import LoadedGenerator
from mien.explore.sample import BALANCES
from mien.explore.select import WARNING, Faces, Score, draw_set
from mien.runs import read_json, try_lock, write_json

FORMAT = "mien-samples/1"
TABLE, PROVENANCE, PROGRESS = "attributes.csv", "provenance.json", "progress.json"
FORMATS = ("png", "store")
CHUNK = 1024  # faces at a time, fewer of large ones: memory does not grow with the count
CHUNK_PX = 2**24
WRITERS = min(4, os.cpu_count() or 1)  # threads that write PNGs while the next faces are drawn
ABOUT = "Faces drawn by a generator: nobody's portrait. 'seed' is a face's number, by which the same model draws it again."


@dataclass(frozen=True)
class Selection:
    """The best of `of` candidates by `score`, and what to say of it: a JSON object that tells one score from another."""

    of: int
    by: str
    score: Score
    identity: dict[str, Any]
    data: str | None = None  # the store with the reals, as the user names it


@dataclass(frozen=True)
class Order:
    """What determines every byte of a set but the generator itself."""

    count: int
    seed: int
    where: dict[str, float]
    balance: str = "none"
    truncation: float = 1.0
    form: str = "png"
    selection: Selection | None = None

    def draw(self, generator: LoadedGenerator, places: range) -> Faces:
        of, score = (self.selection.of, self.selection.score) if self.selection else (1, None)
        return draw_set(generator, places, seed=self.seed, where=self.where, balance=self.balance, truncation=self.truncation,
                        best_of=of, score=score)  # fmt: skip


def write_dataset(generator: LoadedGenerator, out: Path, order: Order, *, model: str, force: bool = False, draw: Draw | None = None,
                  advance: Callable[[int], None] = lambda n: None) -> Path:
    """Draws the set into `out`, there whole or not at all, going on where a killed command of the same order was; returns `out`.

    model: how the user names the generator. draw: in the place of the order's own. advance(n): called with the faces that an earlier
    command had drawn, then as more are.
    UserError when `out` is there (unless `force`: see `check_replaceable` for PNGs; a store may be replaced by a store), when an unfinished
    set of another order lies beside it (unless `force`), when another process is at it, or for labels that a store cannot hold.
    """
    _check(generator, out, order, force)
    note = provenance(generator, order, model=model, out=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(out, note, force) as work:
        advance(work.done)
        digits = max(6, len(str(order.seed + order.count * (order.selection.of if order.selection else 1) - 1)))
        with _sink(generator, out, order, work, force) as sink:
            with work.table(generator.attribute_names) as table:
                for places in pieces(generator, order, work.done):
                    faces = draw(places) if draw else order.draw(generator, places)  # while the pool writes the ones before
                    sink.settle()
                    work.record(table)
                    names = [f"{number:0{digits}d}.png" for number in faces.numbers]
                    sink.add(faces, names)
                    lines = zip(names, faces.numbers, faces.attributes.tolist())
                    csv.writer(table).writerows([name, number, *(f"{value:g}" for value in row)] for name, number, row in lines)
                    work.pending = places.stop
                    advance(len(places))
                sink.settle()
                work.record(table)
            note["combinations"] = _combinations(work.labels)
            sink.finish(work.labels, note)
    return out


def provenance(generator: LoadedGenerator, order: Order, *, model: str, out: Path) -> dict[str, Any]:
    """Where a set comes from: the model by its sha256, the command that makes it again, and what was done to the distribution."""
    meta, selection = generator.meta, order.selection
    command = ["mien", "sample", model, "--out", out.name, "--count", str(order.count), "--seed", str(order.seed), "--format", order.form,
               "--balance", order.balance, "--truncation", f"{order.truncation:g}"]  # fmt: skip
    if order.where:
        command += ["--where", combination_name(order.where, order.where.values())]
    if selection:
        command += ["--best-of", str(selection.of), "--by", selection.by, *(["--data", selection.data] if selection.data else [])]
    return {
        "format": FORMAT, "about": ABOUT, "made_by": f"mien {mien.__version__}", "torch": torch.__version__,
        "device": generator.device.type, "command": shlex.join(command),
        "model": {"name": model, **{key: meta.get(key) for key in ("sha256", "family", "size", "preset", "nimg", "store")}},
        "attributes": list(generator.attribute_names), "count": order.count, "seed": order.seed, "where": order.where,
        "balance": order.balance, "truncation": order.truncation, "file_format": order.form,
        "best_of": None if selection is None else {"of": selection.of, "by": selection.by, **selection.identity,
                                                   "warning": WARNING.format(of=selection.of, by=selection.by)},
    }  # fmt: skip


def check_replaceable(folder: Path, force: bool) -> None:
    """Raises UserError when `folder` is there, unless `force` was given and it holds nothing but samples."""
    if not folder.exists():
        return
    if not force:
        raise UserError(f"{folder} is there already: give another --out, or --force to replace it.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder of samples is to stand there: give another --out.")
    if (folder / "images.npy").is_file() and (folder / "manifest.json").is_file():
        raise UserError(f"{folder} is a data store: only --format store --force replaces it. Give another --out.")
    if any(each.suffix != ".png" and each.name not in (TABLE, PROVENANCE) for each in folder.iterdir()):
        raise UserError(f"{folder} holds more than samples: --force will not delete it. Give another --out.")


def unfinished_folder(out: Path) -> Path:
    """Where a set stands while it is made."""
    return out.absolute().with_name(f".{out.name}.unfinished")


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _check(generator: LoadedGenerator, out: Path, order: Order, force: bool) -> None:
    for option, value, known in (("format", order.form, FORMATS), ("balance", order.balance, BALANCES)):
        if value not in known:
            raise UserError(f"--{option} {value}: choose {_or(known)}.")
    if order.form == "png":
        check_replaceable(out, force)
        return
    refuse_existing(out, force=force)
    odd = [f"{name}={value:g}" for name, value in order.where.items() if value not in (0, 1)]
    if odd:
        raise UserError(f"--where {odd[0]}: a store's labels are 0 or 1; write PNGs (--format png), whose table holds any value.")


def pieces(generator: LoadedGenerator, order: Order, done: int = 0) -> Iterator[range]:
    """The places of a set from `done` on, as many at a time as memory holds with all their candidates."""
    of = order.selection.of if order.selection else 1
    step = max(1, min(CHUNK, CHUNK_PX // (generator.size**2 * of)))
    for start in range(done, order.count, step):  # `done` is a multiple of step: a piece is the same in every attempt
        yield range(start, min(start + step, order.count))


def _combinations(labels: Path) -> dict[str, int]:
    """How many faces each combination of attributes has, by its name, the commonest first."""
    with open(labels, newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        names = next(table)[2:]
        counts = Counter(combination_name(names, map(float, row[2:])) for row in table)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) if names else {}


# ------------------------------------------------------------------------------------------------------------------------------
# How far it is


class _Work:
    """The hidden folder: `data/`, which becomes the set, the table of labels, and progress.json, which is true at every moment."""

    def __init__(self, folder: Path, note: dict[str, Any]):
        self.folder, self.data, self.labels = folder, folder / "data", folder / TABLE
        self.note = {key: value for key, value in note.items() if key != "command"}
        kept = read_json(folder / PROGRESS) or {}
        self.other = bool(kept) and kept.get("order") != json.loads(json.dumps(self.note))
        self.done: int = kept["done"] if kept and not self.other else 0
        self.pending = self.done
        self._bytes: int = kept["table_bytes"] if self.done else 0

    @contextmanager
    def table(self, names: Sequence[str]) -> Iterator[IO[str]]:
        """The table of labels, open to be added to; lines of faces that were not finished are gone."""
        with open(self.labels, "r+" if self.done else "w", newline="", encoding="utf-8") as file:
            file.truncate(self._bytes)
            file.seek(0, io.SEEK_END)
            if not self.done:
                csv.writer(file).writerow(["name", "seed", *names])
            yield file

    def record(self, table: IO[str]) -> None:
        """All up to `pending` is written."""
        if self.pending > self.done:
            table.flush()
            os.fsync(table.fileno())
            self.done = self.pending
            write_json(self.folder / PROGRESS, {"done": self.done, "table_bytes": self.labels.stat().st_size, "order": self.note})


@contextmanager
def _unfinished(out: Path, note: dict[str, Any], force: bool) -> Iterator[_Work]:
    """The work on `out`, locked for this process. Nothing is left of it when it is finished, or had not come to its first piece."""
    folder = unfinished_folder(out)
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "a+b") as lock:
        try:
            try_lock(lock)
        except BlockingIOError:
            raise UserError(f"Another command is drawing {out}: wait for it, or give another --out.") from None
        work = _Work(folder, note)
        if work.other:
            if not force:
                raise UserError(f"Beside {out} lies the unfinished set of another command ({folder}): --force drops it.")
            work.other = False
        if not work.done:
            shutil.rmtree(work.data, ignore_errors=True)
            (folder / PROGRESS).unlink(missing_ok=True)
        whole = False
        try:
            yield work
            whole = True
        finally:
            if whole or not work.done:
                lock.close()  # Windows deletes no open file
                shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------------------------
# The two forms


class _Pngs:
    """A folder of NNNNNN.png, written by threads."""

    def __init__(self, out: Path, data: Path):
        self._out, self._data = out, data
        self._pool = ThreadPoolExecutor(WRITERS)  # zlib lets go of the interpreter: threads are enough
        self._running: list[Future[None]] = []
        data.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> _Pngs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, faces: Faces, names: list[str]) -> None:
        pictures = faces.images.permute(0, 2, 3, 1).numpy()
        parts = [range(start, len(names), WRITERS) for start in range(WRITERS)]
        self._running = [self._pool.submit(self._write, pictures, names, part) for part in parts]

    def _write(self, pictures: np.ndarray, names: list[str], part: range) -> None:
        for i in part:
            Image.fromarray(pictures[i]).save(self._data / names[i], compress_level=1)  # twice as fast, 4 % larger than the default

    def settle(self) -> None:
        for each in self._running:
            each.result()
        self._running = []

    def finish(self, labels: Path, note: dict[str, Any]) -> None:
        shutil.copyfile(labels, self._data / TABLE)
        write_json(self._data / PROVENANCE, note)
        if self._out.exists():
            shutil.rmtree(self._out)
        os.replace(self._data, self._out)


class _ResumedWriter(StoreWriter):
    """A store's writer that leaves what it has when it is stopped, and goes on after `done` images of an earlier one."""

    def __init__(self, out: Path, data: Path, *, done: int, count: int, size: int, crop: str, force: bool):
        super().__init__(out, count=count, size=size, crop=crop, force=force)
        self.temporary, self._done = data, done

    def __enter__(self) -> _ResumedWriter:
        if not self._done:
            super().__enter__()
            return self
        self._file = open(self.temporary / "images.npy", "r+b")  # noqa: SIM115 (closed by finish or __exit__)
        self._hash = hashlib.sha256()
        left = HEADER_BYTES + self._done * self.size**2 * 3
        self._file.truncate(left)
        while left:
            data = self._file.read(min(left, 2**24))
            self._hash.update(data)
            left -= len(data)
        self.count = self._done
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise self._no_room() from None

    def flush(self) -> None:
        flush(self._file)


class _Store:
    """A store of faces."""

    def __init__(self, writer: _ResumedWriter):
        self._writer = writer

    def __enter__(self) -> _Store:
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)

    def add(self, faces: Faces, names: list[str]) -> None:
        self._writer.add(faces.images.permute(0, 2, 3, 1).numpy())

    def settle(self) -> None:
        self._writer.flush()

    def finish(self, labels: Path, note: dict[str, Any]) -> None:
        with open(labels, newline="", encoding="utf-8") as file:
            table = csv.reader(file)
            attribute_names = next(table)[2:]
            rows = [(row[0], bytes(map(int, row[2:]))) for row in table]
        names = [name for name, _ in rows]
        attributes = np.frombuffer(b"".join(row for _, row in rows), dtype=np.uint8).reshape(len(rows), len(attribute_names))
        source = [{"name": note["model"]["sha256"][:12], "count": len(rows), "path": "", "kind": "generated", "listed": len(rows)}]
        self._writer.finish(attributes=attributes, attribute_names=attribute_names, splits=hash_splits(names), names=names,
                            source=source, extra={"skipped": [], "generated": note})  # fmt: skip


def _sink(generator: LoadedGenerator, out: Path, order: Order, work: _Work, force: bool) -> _Pngs | _Store:
    if order.form == "png":
        return _Pngs(out, work.data)
    crop = generator.crop or "whole"
    return _Store(_ResumedWriter(out, work.data, done=work.done, count=order.count, size=generator.size, crop=crop, force=force))
