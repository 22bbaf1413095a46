"""Folders and zip archives seen alike: a list of relative names with sizes and marks, and a way to read each.

A file's mark changes when its bytes do. Both kinds can be sent to another process.
"""

import functools
import os
import zipfile
from pathlib import Path

from mien.data.formats import IMAGE_SUFFIXES, MAX_FILE_BYTES, BadImageError
from mien.errors import UserError

SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class FolderFiles:
    """The files under a folder, symbolic links followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = path.resolve().name or str(path)
        found = [entry for entry in _walk(path) if not is_system(entry[0])]
        self.sizes = {name: size for name, size, _ in found}    # {relative posix name: bytes}
        # When each was written says whether it is the same, and costs nothing; reading some of every file would take minutes of a large
        # set and still miss a change in the middle of a BMP. The price: a copy made without its times counts as new, and is refused
        # where a store already is, which the user sees; a stale store nobody would.
        self.marks = {name: f"{size} {written_ns}" for name, size, written_ns in found}

    def __getstate__(self) -> dict:
        return {"path": self.path}      # a reader in another process opens by name and needs no list

    def read(self, name: str) -> bytes:
        """The bytes of one file. OSError when the system will not give them."""
        with open(os.path.join(self.path, name), "rb", buffering=0) as file:
            return file.readall()


class ZipFiles:
    """The files of a zip archive, read without unpacking it. UserError for an archive that is damaged, locked or not to be trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = path.name
        try:
            entries = _archive(str(path)).infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not a readable zip archive ({error}); download or make it again") from None
        for entry in entries:
            self._check(entry)
        self.sizes = {entry.filename: entry.file_size for entry in entries if not entry.is_dir() and not is_system(entry.filename)}
        # The checksum of the content stands in the archive's list: better than times, which change when a zip is packed again.
        self.marks = {entry.filename: f"{entry.file_size} {entry.CRC:08x}" for entry in entries if entry.filename in self.sizes}

    def _check(self, entry: zipfile.ZipInfo) -> None:
        # Python turns "\\" into "/" on Windows only; both are looked at, since an archive made for one system is opened on another.
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise UserError(f"{self.path} holds an unsafe name, {entry.filename!r}, which points outside the archive; do not use it")
        if entry.flag_bits & 1:
            raise UserError(f"{self.path} is locked with a password ({entry.filename}); unlock it first")
        if entry.file_size > MAX_FILE_BYTES and is_image(entry.filename):
            raise UserError(f"{self.path} holds {entry.filename}, which unpacks to {entry.file_size / 2**20:,.0f} MB: no photo is so "
                            "large, this looks like a zip bomb; do not use it")

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def read(self, name: str) -> bytes:
        """The bytes of one entry, checked against its checksum. BadImageError when they are damaged."""
        try:
            return _archive(str(self.path)).read(name)      # reads no more than the size the entry declares
        except (zipfile.BadZipFile, EOFError, NotImplementedError, KeyError, ValueError) as error:
            raise BadImageError(f"damaged in the archive ({str(error)[:60]})") from None
        except Exception as error:      # zlib.error and its like from bz2 and lzma have no common class but this
            if type(error).__name__ in ("error", "LZMAError"):
                raise BadImageError("damaged in the archive") from None
            raise


Files = FolderFiles | ZipFiles


def open_files(path: Path) -> Files:
    """A folder or a zip archive. UserError when there is none of that name, or it is something else."""
    if path.is_dir():
        return FolderFiles(path)
    if not path.exists():
        raise UserError(f"no such folder or zip file: {path}")
    if zipfile.is_zipfile(path):
        return ZipFiles(path)
    what = "a damaged zip archive" if path.suffix.lower() == ".zip" else "neither a folder nor a zip archive"
    raise UserError(f"{path} is {what}; give a folder of images, or a zip of one (unpack other archives first)")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name[-5:].lower().endswith(IMAGE_SUFFIXES)


def stem(name: str) -> str:
    """'000001' of 'folder/000001.jpg'. Plain text work: pathlib would take seconds for the names of all of CelebA."""
    last = name.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def is_system(name: str) -> bool:
    """Whether a file is a system's own leftover, which nobody meant to be there: hidden files, Thumbs.db, __MACOSX."""
    last = name.rpartition("/")[2]
    return name.startswith((".", "__MACOSX/")) or "/." in name or last.lower() in SYSTEM_FILES


def _walk(root: Path) -> list[tuple[str, int, int]]:
    """(relative name, bytes, when it was last written in ns) of every file under a folder, sorted. A link that leads back up is
    not followed twice."""
    found: list[tuple[str, int, int]] = []
    pending, seen = [("", os.path.realpath(root))], set()
    while pending:
        prefix, folder = pending.pop()
        if folder in seen:
            continue
        seen.add(folder)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    pending.append((f"{prefix}{entry.name}/", os.path.realpath(entry.path)))
            elif entry.is_file():       # not a broken link, a socket, a device
                facts = entry.stat()
                found.append((prefix + entry.name, facts.st_size, facts.st_mtime_ns))
    return sorted(found)


@functools.lru_cache(maxsize=4)
def _archive(path: str) -> zipfile.ZipFile:
    """An archive, opened once a process."""
    return zipfile.ZipFile(path)
