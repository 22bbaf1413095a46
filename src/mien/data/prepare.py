"""From pictures to a store: find the sources, check that they suit, crop and resample in several processes, write the store whole.

Every worker reads, decodes, crops and resamples a few dozen images at a time; this process writes them in order and hashes them on the way.
"""

import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mien.data.annotations import counted, first
from mien.data.attributes import columns
from mien.data.formats import (
    FILTER,
    SIZES,
    BadImageError,
    UnfitImageError,
    check_crop,
    check_fit,
    check_size,
    crop_box,
    is_framed,
    is_integral,
    open_picture,
    render,
    upright_size,
)
from mien.data.sources import NO_IMAGE, Reader, Source, find_sources
from mien.data.store import FaceStore, open_store
from mien.data.writer import StoreWriter, refuse_existing
from mien.errors import UserError

CHUNK = 64                  # images a worker takes at a time; fewer when they are large
CHUNK_BYTES = 16 * 2**20
FEW = 400                   # below this many images, starting processes costs more than it saves
UNREADABLE = 0.01           # share of files that may be unreadable, unless told otherwise
SAMPLE = 48                 # images whose headers are looked at before anything starts

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Trouble = tuple[int, str, str]      # place in the chunk, "bad" / "unfit", reason


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; the same for every image."""

    readers: tuple[Reader, ...]
    crop: str
    size: int
    allow_upscale: bool

    def open(self, source: int, key: str) -> Image.Image:
        """The opened picture, not decoded. BadImageError with the reason."""
        try:
            found = self.readers[source].read(key)
        except OSError as error:
            raise BadImageError(error.strerror or "cannot be read") from None
        return open_picture(found) if isinstance(found, bytes) else found

    def run(self, chunk: Sequence[tuple[int, str]]) -> tuple[np.ndarray, list[Trouble]]:
        """Prepare some images: uint8 [n, R, R, 3] of the good ones in order, and what was wrong with the others."""
        pixels = np.empty((len(chunk), self.size, self.size, 3), np.uint8)
        troubles: list[Trouble] = []
        for place, (source, key) in enumerate(chunk):
            try:
                image = self.open(source, key)
                pixels[place - len(troubles)] = render(image, crop=self.crop, size=self.size, allow_upscale=self.allow_upscale)
            except BadImageError as error:
                troubles.append((place, "bad", str(error)))
            except UnfitImageError as error:
                troubles.append((place, "unfit", str(error)))
        return pixels[:len(chunk) - len(troubles)], troubles


@dataclass
class Plan:
    """All images of all sources in the order of the store; every list has an entry per image."""

    sources: list[Source]
    source: np.ndarray              # int64 [n]: index into sources
    keys: list[str]
    names: list[str]
    marks: list[str]                # what changes when the bytes of an image do
    attribute_names: tuple[str, ...]
    attributes: np.ndarray          # uint8 [n, A]
    splits: np.ndarray              # uint8 [n]
    skipped: dict[str, str]         # {name: reason} of what was seen to be no image

    def keep(self, rows: np.ndarray) -> None:
        """Keep only these images (int64, rising)."""
        self.source, self.attributes, self.splits = self.source[rows], self.attributes[rows], self.splits[rows]
        self.keys, self.names, self.marks = ([values[row] for row in rows] for values in (self.keys, self.names, self.marks))

    def fingerprint(self, crop: str, size: int) -> str:
        """Hex sha256 of all that decides what the store will hold, but the bytes of the images, for which their marks stand."""
        settings = [size, crop, FILTER, self.attribute_names, [source.name for source in self.sources]]
        hashed = hashlib.sha256(json.dumps(settings).encode())
        hashed.update("".join(f"{name}\0{mark}\n" for name, mark in zip(self.names, self.marks)).encode("utf-8", "surrogateescape"))
        for array in (self.source, self.attributes, self.splits):
            hashed.update(np.ascontiguousarray(array).data)
        return hashed.hexdigest()


def prepare(names: Sequence[str], out: str | Path, *, size: int = 64, crop: str | None = None, attributes: Sequence[str] | None = None,
            limit: int | None = None, workers: int | None = None, force: bool = False, allow_upscale: bool = False,
            max_skipped: float | None = None, note: Callable[[str], None] = lambda line: None,
            progress: Progress = lambda label, total: nullcontext(lambda count: None)) -> tuple[FaceStore, bool]:
    """Prepare the images of these sources (see `sources`) as the store `out`: (the store, whether it was made now).

    `crop` None is center178 for pictures of the CelebA frame, square for others. `attributes` None keeps all that every source has, []
    none. `limit` takes that many images, evenly spread over the sources. `max_skipped` (0..1) is the share of files that may be left out,
    unreadable ones and pictures that the crop or the size does not suit; None: one in a hundred may be unreadable, every picture must suit.
    False comes back when `out` is already the store of these files and settings. `note` is given a line of news at a time.
    UserError, with nothing left behind, for whatever the user can mend.
    """
    check_size(size)
    if crop is not None:
        check_crop(crop)
    if limit is not None and limit < 1 or workers is not None and workers < 1:
        raise UserError(f"--{'limit' if limit is not None and limit < 1 else 'workers'} must be at least 1")
    if max_skipped is not None and not 0 <= max_skipped <= 1:
        raise UserError(f"--max-skipped {max_skipped:g} is not a share; write 0.05 for five files in a hundred")
    out = Path(out)
    if not (out / "manifest.json").is_file():
        refuse_existing(out, force=force)      # before the long work; a store may turn out to be the one asked for
    plan = _plan([source for name in names for source in find_sources(name, annotated=attributes != [])], attributes, note)
    if limit is not None and limit < len(plan.names):
        plan.keep(np.arange(limit) * len(plan.names) // limit)
    job, crop = _job(plan, crop, size, allow_upscale, max_skipped, note)
    inputs = plan.fingerprint(crop, size)
    if not force and _is_made(out, inputs):
        return open_store(out), False
    with StoreWriter(out, count=len(plan.names), size=size, crop=crop, force=force) as writer:
        _write_images(plan, job, writer, _worker_count(workers, len(plan.names)), max_skipped, progress)
        _judge_skipped(plan, UNREADABLE if max_skipped is None else max_skipped)
        counts = Counter(plan.source.tolist())
        source = [{"name": each.name, "count": counts[at], "path": Path(str(names[0])).name if len(names) == 1 else each.name,
                   "kind": each.kind, "listed": each.listed} for at, each in enumerate(plan.sources)]
        extra = {"skipped": [{"name": name, "reason": reason} for name, reason in plan.skipped.items()], "inputs": inputs}
        return writer.finish(attributes=plan.attributes, attribute_names=plan.attribute_names, splits=plan.splits, names=plan.names,
                             source=source, extra=extra), True


def _plan(sources: list[Source], wanted: Sequence[str] | None, note: Callable[[str], None]) -> Plan:
    """Join the sources: names made distinct, attributes chosen."""
    for source in sources:
        there = counted(len(source.keys), "image") if source.listed is None else f"{len(source.keys):,} of {source.listed:,} images present"
        note(f"{source.name}: {there}")
        for line in source.notes:
            note(line)
    skipped = {name if len(sources) == 1 else f"{source.name}/{name}": reason
               for source in sources for name, reason in source.skipped.items()}
    chosen, table = _attributes(sources, wanted, note)
    _rename_sources(sources)
    plan = Plan(
        sources=sources, source=np.repeat(np.arange(len(sources)), [len(source.keys) for source in sources]),
        keys=[key for source in sources for key in source.keys], names=_distinct(sources),
        marks=[mark for source in sources for mark in source.marks], attribute_names=chosen, attributes=table,
        splits=np.concatenate([source.splits for source in sources if source.splits is not None]), skipped=skipped)
    unwritable = [row for row, name in enumerate(plan.names) if not _is_text(name)]
    for row in unwritable:
        plan.skipped[plan.names[row].encode("unicode_escape").decode()] = "its name is not a line of text"
    if unwritable:
        plan.keep(np.setdiff1d(np.arange(len(plan.names)), unwritable))
    return plan


def _is_text(name: str) -> bool:
    return name.isprintable() or not ({"\n", "\r"} & set(name) or any("\ud800" <= letter <= "\udfff" for letter in name))


def _rename_sources(sources: list[Source]) -> None:
    seen: Counter[str] = Counter()
    for source in sources:
        seen[source.name] += 1
        if seen[source.name] > 1:
            source.name = f"{source.name}-{seen[source.name]}"


def _distinct(sources: list[Source]) -> list[str]:
    """The names of all images. When two are the same, all bear the name of their source: 'img_align_celeba_half/000001.jpg'."""
    names = [name for source in sources for name in source.names]
    if len(set(names)) < len(names):
        names = [f"{source.name}/{name}" for source in sources for name in source.names]
    if len(set(names)) < len(names):    # twice in one source, as a hand-made CIFAR batch may have it
        seen: Counter[str] = Counter()
        for at, name in enumerate(names):
            seen[name] += 1
            names[at] = name if seen[name] == 1 else f"{name}~{seen[name]}"
    return names


def _attributes(sources: list[Source], wanted: Sequence[str] | None, note: Callable[[str], None]) -> tuple[tuple[str, ...], np.ndarray]:
    """The attributes of the store and their values uint8 [n, A]: those asked for, or all that every source has."""
    if wanted is None:
        shared = [name for name in sources[0].attribute_names if all(name in source.attribute_names for source in sources)]
        lost = sorted({name for source in sources for name in source.attribute_names} - set(shared))
        if lost:
            note(f"attributes that not every source has were left out: {first(lost, 8)}")
        wanted = shared
    tables = []
    for source in sources:
        assert source.attributes is not None
        tables.append(source.attributes[:, columns(wanted, source.attribute_names, where=f"the source {source.name}")])
        for name in wanted:
            if "=" in name or "," in name or name != name.strip():
                what = "folder" if source.kind == "class folders" else "column"
                raise UserError(f"the {what} {name!r} of {source.name} cannot be an attribute: no name with '=', ',' or a space at its end "
                                f"can be asked for; rename the {what}, or keep others with --attributes")
    return tuple(wanted), np.concatenate(tables)


def _job(plan: Plan, crop: str | None, size: int, allow_upscale: bool, max_skipped: float | None,
         note: Callable[[str], None]) -> tuple[Job, str]:
    """Settle the crop, after a look at some headers; stop now, not in an hour, if the crop or the size does not suit the images."""
    readers = tuple(source.reader for source in plan.sources)
    peek = Job(readers, crop or "square", size, allow_upscale)
    rows = np.unique(np.linspace(0, len(plan.keys) - 1, min(SAMPLE, len(plan.keys))).astype(int)) if plan.keys else np.empty(0, int)
    sizes = {row: found for row in rows.tolist() if (found := _header(peek, plan, row))}
    if crop is None:
        crop = "center178" if sizes and all(is_framed(*found) for found in sizes.values()) else "square"
    job = Job(readers, crop, size, allow_upscale)
    note(f"crop {crop}, {size}x{size} px, Lanczos")
    if any(_misfit(job, found) for found in sizes.values()):
        headers = [_header(job, plan, row) for row in range(len(plan.names))]
        every = {row: why for row, found in enumerate(headers) if found and (why := _misfit(job, found))}
        if len(every) > (max_skipped or 0) * len(plan.names):
            raise _unfit(every, plan, job, len(_doubtful(plan)) + headers.count(None))
    boxes = {crop_box(crop, *found) for found in sizes.values() if not _misfit(job, found)}
    for box in sorted(box for box in boxes if not is_integral(box)):
        edges = ", ".join(f"{edge:g}" for edge in box)
        note(f"the crop {crop} falls between pixels for some images ({edges}): cut and resampled in one step")
    return job, crop


def _header(job: Job, plan: Plan, row: int) -> tuple[int, int] | None:
    """(width, height) of an image as shown, without decoding it; None when it cannot be read (it will be skipped later)."""
    try:
        with job.open(int(plan.source[row]), plan.keys[row]) as image:
            return upright_size(image)
    except BadImageError:
        return None


def _misfit(job: Job, found: tuple[int, int]) -> str | None:
    try:
        check_fit(*found, crop=job.crop, size=job.size, allow_upscale=job.allow_upscale)
    except UnfitImageError as error:
        return str(error)
    return None


def _unfit(why: dict[int, str], plan: Plan, job: Job, others: int) -> UserError:
    """The error for the images of these rows of the plan, {row: reason}; so many others are left out too, for other reasons."""
    row, reason = next(iter(why.items()))
    culprits = sorted({plan.sources[plan.source[each]].name for each in why})
    name = plan.names[row] if len(plan.sources) == 1 else f"{plan.names[row]} of {plan.sources[plan.source[row]].name}"
    leave = f"leave out {' and '.join(culprits)}" if len(culprits) < len(plan.sources) else None
    if leave is None and len(why) < len(plan.names):
        leave = f"leave them out with --max-skipped {math.ceil(100 * (len(why) + others) / len(plan.names)) / 100:g}"
    headers = [found for each in why if (found := _header(job, plan, each))]
    fitting = [size for size in SIZES if size < job.size and not any(_misfit(replace(job, size=size), found) for found in headers)]
    remedy = "use --crop square" if "the shape" in reason else f"choose --size {max(fitting)}" if fitting else None
    remedies = [each for each in (remedy, leave, None if "the shape" in reason else "pass --allow-upscale") if each]
    return UserError(f"{len(why):,} of {len(plan.names):,} images do not suit: {name} {reason}; "
                     + (", ".join(remedies[:-1]) + " or " if len(remedies) > 1 else "") + remedies[-1])


def _is_made(out: Path, inputs: str) -> bool:
    """Whether `out` is already the store of these inputs. UserError when it is another store."""
    if not (out / "manifest.json").is_file():
        return False
    try:
        same = open_store(out).manifest.get("inputs") == inputs
    except UserError:
        same = False
    if not same:
        refuse_existing(out, force=False)
    return same


def _write_images(plan: Plan, job: Job, writer: StoreWriter, workers: int, max_skipped: float | None, progress: Progress) -> None:
    """Prepare and write every image; the plan then keeps those written and lists those skipped. UserError if too many are unfit."""
    step = max(1, min(CHUNK, CHUNK_BYTES // (job.size * job.size * 3)))
    items = list(zip(plan.source.tolist(), plan.keys))
    chunks = [items[start:start + step] for start in range(0, len(items), step)]
    bad: dict[int, str] = {}
    unfit: dict[int, str] = {}
    with progress("prepare", len(items)) as advance:
        for number, (pixels, troubles) in enumerate(_results(job, chunks, workers)):
            writer.add(pixels)
            for place, kind, reason in troubles:
                (bad if kind == "bad" else unfit)[number * step + place] = reason
            advance(len(chunks[number]))
    if len(unfit) > (max_skipped or 0) * len(plan.names):
        raise _unfit(unfit, plan, job, len(_doubtful(plan)) + len(bad))
    left_out = dict(sorted((bad | unfit).items()))
    plan.skipped |= {plan.names[row]: reason for row, reason in left_out.items()}
    plan.keep(np.setdiff1d(np.arange(len(plan.names)), list(left_out)))


def _results(job: Job, chunks: list[list[tuple[int, str]]], workers: int) -> Iterator[tuple[np.ndarray, list[Trouble]]]:
    """`job.run` of every chunk, in order, by this many processes. Few chunks are in flight, so memory stays small."""
    if workers == 1:
        yield from map(job.run, chunks)
        return
    # Started afresh, not forked: a fork of a process with threads (a progress bar, torch) can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (job,))
    try:
        waiting: deque[Future[Any]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_run, chunk))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, perhaps for want of memory; try again with --workers 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(job: Job) -> None:
    global _worker_job
    _worker_job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C reaches every process; the parent alone acts on it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")                 # Pillow's remarks on odd EXIF and large images; what matters raises


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(chunk: list[tuple[int, str]]) -> tuple[np.ndarray, list[Trouble]]:
    return _worker_job.run(chunk)


_worker_job: Job    # of a worker process: given once, not with every chunk


def _worker_count(asked: int | None, count: int) -> int:
    if count < FEW and asked is None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked or cores, max(1, count))


def _doubtful(plan: Plan) -> dict[str, str]:
    """{name: reason} of the skipped files that should have been images; a note or a film among them is no sign of damage."""
    return {name: reason for name, reason in plan.skipped.items() if reason != NO_IMAGE}


def _judge_skipped(plan: Plan, max_skipped: float) -> None:
    """UserError with the list when too many files were skipped, or nothing is left."""
    skipped = _doubtful(plan)
    total = len(plan.names) + len(skipped)
    if not plan.names or len(skipped) > max_skipped * total:
        listed = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:20])
        more = f" and {len(skipped) - 20:,} more" if len(skipped) > 20 else ""
        advice = "mend or remove them" if not plan.names else "mend or remove them, or allow more with --max-skipped"
        raise UserError(f"{len(skipped):,} of {total:,} files cannot be used, over {max_skipped:.0%}: {listed}{more}; {advice}")
