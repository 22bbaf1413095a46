"""The data store `mien-faces/1`: a folder of memory-mapped arrays that `mien data prepare` writes and everything else reads.

    manifest.json    format, count, size, crop, filter, source, attributes, splits, sha256 of each array, made_by, skipped, inputs
    images.npy       uint8 [N, R, R, 3] RGB         splits.npy   uint8 [N]: 0 train, 1 val, 2 test
    attributes.npy   uint8 [N, A], 0 or 1           names.txt    one name a line, no two the same

Images of one source stand together, in the order of the manifest's `source` list, so its counts say where each image came from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mien.data.attributes import Combination, columns, combination_table
from mien.errors import UserError, did_you_mean

FORMAT = "mien-faces/1"
SPLITS = {"train": 0, "val": 1, "test": 2}
ARRAYS = ("images.npy", "attributes.npy", "splits.npy", "names.txt")     # what the sha256 table covers


class FaceStore:
    """A prepared folder of faces, opened for reading. Made by `open_store`; arrays stay on disk until they are looked at."""

    def __init__(self, path: Path, manifest: dict[str, Any], images: np.ndarray, attributes: np.ndarray, splits: np.ndarray) -> None:
        self.path = path
        self.manifest = manifest
        self.images = images            # uint8 [N, R, R, 3], memory-mapped
        self.attributes = attributes    # uint8 [N, A] in {0, 1}
        self.splits = splits            # uint8 [N] in {0, 1, 2}
        self.attribute_names: tuple[str, ...] = tuple(manifest["attributes"])
        self.size: int = manifest["size"]       # px
        self.crop: str = manifest["crop"]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)     # another process maps the same file instead of being sent the pixels

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> list[str]:
        """The name of each image, as its source calls it. UserError when names.txt is missing, no text, or of another length."""
        try:
            found = (self.path / "names.txt").read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the store {self.path} is damaged: names.txt cannot be read ({error}); prepare it again") from None
        if len(found) != len(self):
            raise UserError(f"the store {self.path} is damaged: names.txt has {len(found):,} names for {len(self):,} images; "
                            "prepare it again")
        return found

    @cached_property
    def sha256(self) -> dict[str, str]:
        """{file: hex sha256}. A manifest without the table (made by hand) has its arrays hashed when this is first asked for.

        UserError when a file is missing then.
        """
        try:
            return self.manifest.get("sha256") or {name: file_sha256(self.path / name) for name in ARRAYS}
        except OSError as error:
            raise UserError(f"the store {self.path} is damaged ({error}); prepare it again") from None

    @property
    def digest(self) -> str:
        """The store's identity: the sha256 (hex) of its sorted table of sha256."""
        return table_digest(self.sha256)

    def indices(self, split: str) -> np.ndarray:
        """Which images are in "train", "val", "test" or "all": int64, rising. UserError for another word."""
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise UserError(f"no split is called {split!r}; say train, val, test or all.{did_you_mean(split, [*SPLITS, 'all'])}")
        return np.flatnonzero(self.splits == SPLITS[split]).astype(np.int64)

    def columns(self, names: Sequence[str]) -> list[int]:
        """The columns of `attributes` for these names, in their order. UserError with the nearest name for one it has not."""
        return columns(names, self.attribute_names, where=f"the store {self.path}")

    def attribute_table(self, names: Sequence[str], split: str) -> list[tuple[Combination, float]]:
        """How often each combination of these attributes occurs in a split: [((0, 1), share)], absent ones left out, shares sum to 1."""
        rows = self.attributes[self.indices(split)][:, self.columns(names)]
        return [(combination, count / len(rows)) for combination, count in combination_table(rows)]

    def source_of(self, indices: int | np.ndarray) -> np.ndarray:
        """The names of the sources that these images came from, in the shape of `indices`."""
        ends = np.cumsum([source["count"] for source in self.manifest["source"]])
        return np.array([source["name"] for source in self.manifest["source"]])[np.searchsorted(ends, indices, side="right")]


def open_store(path: str | Path) -> FaceStore:
    """Open a store for reading. UserError when it is no store, of another format version, or its arrays disagree with its manifest."""
    path = Path(path)
    manifest = read_manifest(path)
    try:
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        attributes = np.load(path / "attributes.npy", allow_pickle=False)
        splits = np.load(path / "splits.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the store {path} is damaged ({error}); prepare it again") from None
    count, size, names = manifest["count"], manifest["size"], manifest["attributes"]
    for name, array, shape in (("images.npy", images, (count, size, size, 3)), ("attributes.npy", attributes, (count, len(names))),
                               ("splits.npy", splits, (count,))):
        if array.shape != shape or array.dtype != np.uint8:
            raise UserError(f"the store {path} is damaged: {name} is {array.dtype} {list(array.shape)}, "
                            f"the manifest says uint8 {list(shape)}; prepare it again")
    return FaceStore(path, manifest, images, attributes, splits)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store. UserError when there is none, it cannot be read, lacks something or is of another format version."""
    if not path.is_dir():
        raise UserError(f"no such data folder: {path}; make one with: mien data prepare SOURCE --out {path}")
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a data store (it has no manifest.json); make one of it with: "
                        f"mien data prepare {path} --out NEW_FOLDER") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the store {path} is damaged: manifest.json cannot be read ({error}); prepare it again") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}; this mien reads {FORMAT!r}: prepare the data again, or use the mien that made it")
    missing = [key for key, kind in (("count", int), ("size", int), ("crop", str), ("attributes", list))
               if not isinstance(manifest.get(key), kind)]
    if missing:
        raise UserError(f"the store {path} is damaged: manifest.json lacks {', '.join(missing)}; prepare it again")
    wrong = [key for key, is_right in _RIGHT.items() if key in manifest and not is_right(manifest[key])]
    if wrong:
        raise UserError(f"the store {path} is damaged: manifest.json has something odd as {', '.join(wrong)}; prepare it again")
    return manifest


def _is_source(entry: Any) -> bool:
    return (isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("count"), int)
            and isinstance(entry.get("listed", 0), int | None))


# What these parts of a manifest must be where they are present; a hand-made store may lack all but the attributes.
_RIGHT: dict[str, Callable[[Any], bool]] = {
    "attributes": lambda found: all(isinstance(name, str) for name in found),
    "source": lambda found: isinstance(found, list) and all(map(_is_source, found)),
    "sha256": lambda found: isinstance(found, dict) and all(isinstance(digest, str) for digest in found.values()),
    "skipped": lambda found: isinstance(found, list),
}


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table_digest(table: dict[str, str]) -> str:
    """Hex sha256 of a {file: sha256} table, whatever its order."""
    return hashlib.sha256("".join(f"{name} {table[name]}\n" for name in sorted(table)).encode()).hexdigest()


def problems(path: str | Path) -> Iterator[str]:
    """Everything wrong with a store, a sentence each: hashes, shapes, values, names, counts. None is a whole store.

    UserError as `open_store` for what is no store of this format at all.
    """
    path = Path(path)
    manifest = read_manifest(path)
    table = manifest.get("sha256")
    if not table:
        yield "manifest.json has no sha256 table, so changed bytes cannot be seen"
    for name in ARRAYS:
        if not (path / name).is_file():
            yield f"{name} is missing"
        elif table and file_sha256(path / name) != table.get(name):
            yield f"{name} is not what was written: its sha256 differs from the manifest's"
    try:
        store = open_store(path)
    except UserError as error:
        yield str(error)
        return
    if store.attributes.size and store.attributes.max() > 1:
        yield "attributes.npy holds values other than 0 and 1"
    if len(store) and store.splits.max() > 2:
        yield "splits.npy holds values other than 0, 1 and 2"
    try:
        repeated = len(store) - len(set(store.names))
        if repeated:
            yield f"names.txt has {repeated:,} repeated names"
    except UserError as error:
        yield str(error)
    if len(set(store.attribute_names)) != len(store.attribute_names):
        yield "manifest.json names an attribute twice"
    counts = {split: int((store.splits == code).sum()) for split, code in SPLITS.items()}
    if manifest.get("splits", counts) != counts:
        yield f"manifest.json says splits {manifest['splits']}, splits.npy has {counts}"
    sources = manifest.get("source")
    if sources is not None and sum(source["count"] for source in sources) != len(store):
        yield f"manifest.json's sources do not add up to {len(store):,} images"


def is_replaceable(path: Path) -> bool:
    """Whether --force may delete this folder: an empty one, or a store of any version. Never a person's other files."""
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        ours = str(manifest["format"]).startswith("mien-faces/")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return ours and all(entry.name in (*ARRAYS, "manifest.json") for entry in os.scandir(path))
