"""Writing a store whole or not at all: a temporary folder beside it, fsynced, renamed when complete."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

import mien
from mien.data.formats import FILTER
from mien.data.store import ARRAYS, FORMAT, SPLITS, FaceStore, file_sha256, is_replaceable, open_store
from mien.errors import UserError

HEADER_BYTES = 128      # of images.npy, fixed, so that the count can be corrected when some images turned out unreadable


class StoreWriter:
    """Writes one store: `add` images batch by batch, then `finish`. Leaving the `with` block without `finish` removes every trace.

    UserError when `out` exists (unless `force`, and it is a store) or the disk has no room, before the start or in the middle.
    """

    def __init__(self, out: str | Path, *, count: int, size: int, crop: str, force: bool = False) -> None:
        """`count` images of `size` px are expected; fewer may come."""
        self.out, self.size, self.crop, self.force = Path(out), size, crop, force
        self.expected, self.count = count, 0
        refuse_existing(self.out, force=force)
        self.parent = self.out.absolute().parent
        self.temporary = self.parent / f".{self.out.name}.partial-{os.getpid()}"
        self.needed_bytes = HEADER_BYTES + count * (size * size * 3 + 128)     # 128: name, attributes, split
        self._file: BinaryIO
        self._whole = False

    def __enter__(self) -> "StoreWriter":
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.parent).free
            if free < self.needed_bytes:
                raise self._no_room()
            self._sweep()
            self.temporary.mkdir()
            self._file = open(self.temporary / "images.npy", "wb")  # noqa: SIM115 (closed by finish or __exit__)
        except OSError as error:
            raise UserError(f"cannot write to {self.parent}: {error.strerror or error}; choose another --out") from None
        self._hash = hashlib.sha256()
        self._put(npy_header((self.expected, self.size, self.size, 3)))
        return self

    def _sweep(self) -> None:
        """Remove what killed processes left of earlier attempts at this store: hidden, and perhaps gigabytes."""
        for left in self.parent.glob(f".{glob.escape(self.out.name)}.partial-*"):
            number = left.name.rpartition("-")[2]
            if number.isdigit() and not is_running(int(number)):
                shutil.rmtree(left, ignore_errors=True)

    def add(self, images: np.ndarray) -> None:
        """Append uint8 [n, R, R, 3]."""
        self.count += len(images)
        self._put(np.ascontiguousarray(images).data)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)     # hashed on the way, so that the file need not be read again

    def finish(self, *, attributes: np.ndarray, attribute_names: Sequence[str], splits: np.ndarray, names: Sequence[str],
               source: list[dict[str, Any]], extra: dict[str, Any] | None = None) -> FaceStore:
        """Write the rest and put the store in its place. attributes uint8 [N, A], splits uint8 [N]; `extra` goes into the manifest."""
        if not len(names) == len(attributes) == len(splits) == self.count or attributes.shape[1] != len(attribute_names):
            raise ValueError(f"{self.count} images, {attributes.shape} attributes, {len(splits)} splits, {len(names)} names")
        if self.count != self.expected:
            self._file.seek(0)
            self._file.write(npy_header((self.count, self.size, self.size, 3)))
        flush(self._file)
        self._file.close()
        digest = self._hash.hexdigest() if self.count == self.expected else file_sha256(self.temporary / "images.npy")
        for name, array in (("attributes.npy", attributes), ("splits.npy", splits)):
            with open(self.temporary / name, "wb") as file:
                np.save(file, np.ascontiguousarray(array, np.uint8))
                flush(file)
        self._write_text("names.txt", "".join(f"{name}\n" for name in names))
        sha256 = {name: digest if name == "images.npy" else file_sha256(self.temporary / name) for name in ARRAYS}
        manifest = {
            "format": FORMAT, "count": self.count, "size": self.size, "crop": self.crop, "filter": FILTER, "source": source,
            "attributes": list(attribute_names), "splits": {split: int((splits == code).sum()) for split, code in SPLITS.items()},
            "sha256": sha256, "made_by": f"mien {mien.__version__}", **(extra or {}),
        }
        self._write_text("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        self._put_in_place()
        return open_store(self.out)

    def _write_text(self, name: str, text: str) -> None:
        with open(self.temporary / name, "wb") as file:
            file.write(text.encode("utf-8"))
            flush(file)

    def _put_in_place(self) -> None:
        """Rename the finished folder to its name. An old store steps aside first and comes back if the renaming fails."""
        old = self.parent / f".{self.out.name}.old-{os.getpid()}"
        refuse_existing(self.out, force=self.force)     # again: somebody may have made it meanwhile
        replaced = self.out.exists()
        if replaced:
            self.out.rename(old)
        try:
            self.temporary.rename(self.out)
        except BaseException:
            if replaced:
                old.rename(self.out)
            raise
        self._whole = True
        flush_folder(self.parent)
        if replaced:
            shutil.rmtree(old, ignore_errors=True)

    def _no_room(self) -> UserError:
        free = shutil.disk_usage(self.parent).free
        return UserError(f"the disk of {self.parent} is full: the store needs {megabytes(self.needed_bytes)}, "
                         f"{megabytes(free)} are free; make room or choose another --out")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._whole:
            return
        with contextlib.suppress(OSError):      # a full disk complains again when the buffer is flushed
            self._file.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise self._no_room() from None


def refuse_existing(out: Path, *, force: bool) -> None:
    """UserError unless `out` is free, an empty folder, or (with `force`) a store that may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not force:
        raise UserError(f"{out} exists already; choose another --out, or replace a store with --force")
    if not is_replaceable(out):
        raise UserError(f"{out} holds other things than a data store, so --force will not delete it; choose another --out")


def write_store(out: str | Path, *, images: np.ndarray, attributes: np.ndarray, attribute_names: Sequence[str], splits: np.ndarray,
                names: Sequence[str], crop: str, source: list[dict[str, Any]], force: bool = False,
                extra: dict[str, Any] | None = None) -> FaceStore:
    """Write arrays that are in memory as a store: images uint8 [N, R, R, 3], attributes uint8 [N, A], splits uint8 [N]."""
    with StoreWriter(out, count=len(images), size=images.shape[1], crop=crop, force=force) as writer:
        writer.add(images)
        return writer.finish(attributes=attributes, attribute_names=attribute_names, splits=splits, names=names, source=source,
                             extra=extra)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a C-ordered uint8 .npy file (format 1.0), padded to HEADER_BYTES whatever the shape."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + text.ljust(HEADER_BYTES - 11).encode("ascii") + b"\n"


def is_running(pid: int) -> bool:
    """Whether another process of this number lives. Windows cannot be asked so (os.kill would end it): there, yes."""
    if pid == os.getpid() or os.name != "posix":
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def flush(file: BinaryIO) -> None:
    """To the disk itself, not only to the system's buffers."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Make a rename inside this folder lasting. Only POSIX can, and only POSIX needs it."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def megabytes(count: int) -> str:
    """'332.3 MB'."""
    return f"{count / 1e6:,.1f} MB"
