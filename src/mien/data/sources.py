"""Where faces come from: what a person names on the command line, recognised by its layout.

    CelebA          a folder or zip holding img_align_celeba (also _png, _half), the folder itself, or Kaggle's; annotations inside,
                    beside or one level up (also in Anno/ and Eval/), as CelebA's text or Kaggle's CSVs; any part may be missing
    class folders   two or more folders of images: each name becomes an attribute, 1 for its own images. Above them may stand
                    train / val / test folders (CIFAR-10 as PNGs is laid out so)
    CIFAR-10        its python batches
    a folder or zip of images, with an optional CSV of attributes
    kaggle:owner/name, hf:name      downloaded by kagglehub or datasets, when these are installed

Splits are the source's own. Otherwise each image is drawn by the hash of its name, 90 % train and 10 % val, the same on every machine;
where a source has train and test but no val, val is drawn so from train.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mien.data import annotations
from mien.data.files import Files, FolderFiles, ZipFiles, is_image, open_files, stem
from mien.errors import UserError, did_you_mean

CELEBA_COUNT = 202_599
CELEBA_FOLDERS = ("img_align_celeba", "img_align_celeba_png", "img_align_celeba_half")      # the first that has an image gives it
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
SPLIT_FOLDERS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
NO_IMAGE = "not an image file"                     # listed, but no reason to doubt the source
TABLES = (".csv", ".tsv")
COMPANIONS = (*TABLES, ".json", ".html", ".md")      # files that stand beside images on purpose; README and LICENSE too


class Reader(Protocol):
    """Gives the bytes of an image, in whatever process it finds itself; its own pickle is small."""

    def read(self, name: str) -> Any: ...       # bytes, or a PIL image where the source has none


@dataclass
class Source:
    """The images of one source and what is known of them, nothing decoded yet. All lists have an entry per image."""

    name: str                               # in the manifest, and before the image's name when two sources share names
    kind: str                               # CelebA, images, class folders, CIFAR-10, hf
    reader: Reader
    keys: list[str]                         # what the reader calls each image
    names: list[str]                        # what the store calls it
    marks: list[str]                        # of each, changing when its bytes do, to know a source again
    attribute_names: tuple[str, ...] = ()
    attributes: np.ndarray | None = None    # uint8 [n, A]; None is [n, 0]
    splits: np.ndarray | None = None        # uint8 [n]: 0 train, 1 val, 2 test; None: drawn by hash
    listed: int | None = None               # how many images there should be, by the source's own account
    skipped: dict[str, str] = field(default_factory=dict)      # {file: reason} of files seen to be no images
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.attributes is None:
            self.attributes = np.zeros((len(self.keys), len(self.attribute_names)), np.uint8)
        if self.splits is None:
            self.splits = hash_splits(self.names)


def hash_splits(names: Sequence[str]) -> np.ndarray:
    """uint8 [n]: 0 (train) for nine tenths and 1 (val) for one tenth of the names, by sha256 of '0/name'. Joining or leaving out other
    images never moves one from a split to the other."""
    digests = (hashlib.sha256(f"0/{name}".encode("utf-8", "surrogateescape")).digest() for name in names)
    return np.array([int.from_bytes(digest[:8], "big") < 2**64 // 10 for digest in digests], np.uint8)


def with_val(splits: Sequence[int] | np.ndarray, names: Sequence[str]) -> np.ndarray:
    """uint8 [n]: these splits; where none is val, a tenth of train, drawn by the hash of the name, becomes it."""
    given = np.array(splits, np.uint8)
    return given if (given == 1).any() else np.where(given == 0, hash_splits(names), given).astype(np.uint8)


def find_sources(name: str, *, annotated: bool = True) -> list[Source]:
    """The sources behind one SOURCE of the command line; not `annotated`: without attributes, so that their table may be incomplete.

    UserError when there is nothing there, or no images in it.
    """
    if name.startswith("hf:"):
        from mien.data.hub import hugging_face
        return [hugging_face(name)]
    if name.startswith("kaggle:"):
        from mien.data.hub import kaggle_folder
        return _from_files(open_files(kaggle_folder(name)), annotated)
    path = Path(name).expanduser()
    if not path.exists() and path.parent.is_dir():
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
        raise UserError(f"no such folder or zip file: {path}.{near}".removesuffix("."))
    if (path / "manifest.json").is_file() and (path / "images.npy").is_file():
        raise UserError(f"{path} is a prepared store already; train on it as it is, or name the images it was made of")
    return _from_files(open_files(path), annotated)


def _from_files(files: Files, annotated: bool) -> list[Source]:
    images = [name for name in files.sizes if is_image(name)]
    celeba = _celeba_folders(files, images)
    if celeba:
        return _celeba(files, celeba, annotated)
    if any(name.endswith("data_batch_1") for name in files.sizes):
        from mien.data.cifar import cifar_batches
        return [cifar_batches(files)]
    inner = [files.path / f"{folder}.zip" for folder in CELEBA_FOLDERS] if isinstance(files, FolderFiles) and not images else []
    for archive in inner:
        if archive.is_file():       # as torchvision leaves it: the zip beside the annotations
            return _from_files(ZipFiles(archive), annotated)
    if not images:
        raise UserError(f"{files.path} holds no images (.jpg, .png, .webp, .bmp, .tif, .ppm, .gif); name the folder that does")
    table = annotations.find_file(_top(files), ["attributes.csv", "attributes.tsv"], files.read) or _only_table(files)
    classes = _classes(images, files.path) if table is None else None
    if classes is not None:
        return [_class_folders(files, images, *classes)]
    return [_plain(files, images, table, annotated)]


# ---- CelebA

def _celeba_folders(files: Files, images: list[str]) -> dict[str, list[str]]:
    """{folder name: its images} of the aligned CelebA folders, best first; empty when this is not CelebA's layout."""
    folders: dict[str, list[str]] = {}
    for name in images:
        parent = name.rpartition("/")[0].rpartition("/")[2]
        folders.setdefault(parent or files.label.removesuffix(".zip"), []).append(name)
    known = [folder for folder in CELEBA_FOLDERS if folder in folders]
    if known:
        return {folder: folders[folder] for folder in known}
    # An archive or a folder of another name is CelebA's when CelebA's annotations stand inside it or beside it.
    if len(folders) == 1 and _annotation(files, ATTRIBUTE_FILES):
        return folders
    return {}


def _annotation(files: Files, wanted: Sequence[str]) -> tuple[str, bytes] | None:
    """(label, bytes) of an annotation file: inside the source, beside it, or one level up, in Anno/ and Eval/ too."""
    found = annotations.find_file(files.sizes, wanted, files.read)
    if found:
        return found
    here = files.path.resolve()
    for folder in (here.parent, here.parent.parent):
        for place in (folder, folder / "Anno", folder / "Eval"):
            for name in wanted:
                if (place / name).is_file():
                    return str(place / name), (place / name).read_bytes()
    return None


def _celeba(files: Files, folders: dict[str, list[str]], annotated: bool) -> list[Source]:
    """A source per aligned folder. A folder adds only the images that the ones before it lack: the half-size one fills gaps, no more."""
    attributes = _annotation(files, ATTRIBUTE_FILES) if annotated else None
    partition = _annotation(files, PARTITION_FILES)
    table = annotations.read_table(attributes[1], attributes[0]) if attributes else None
    sources: list[Source] = []
    taken: set[str] = set()
    for folder, members in folders.items():
        by_stem = {stem(key): key for key in members}
        keys = [key for each, key in by_stem.items() if each not in taken]
        taken.update(by_stem)
        names = [key.rpartition("/")[2] for key in keys]
        splits, remarks = _celeba_splits(folder, names, partition)
        source = Source(folder, "CelebA", files, keys, names, [files.marks[key] for key in keys], splits=splits,
                        skipped=_strangers(files, members), notes=remarks)
        if len(keys) < len(members):
            better = sources[0].name if sources else folder
            source.notes.append(f"{folder}: {len(members) - len(keys):,} images left out, since {better} has them")
        if table:
            source.attribute_names, source.attributes, _ = table.select(table.rows_of(names))
        elif annotated:
            source.notes.append(f"{folder}: found no list_attr_celeba (.txt or .csv) in it, beside it or one level up, so no attributes")
        source.listed = len(table.lines) if table else CELEBA_COUNT
        if keys:
            sources.append(source)
        else:
            sources[0].notes += source.notes
    return sources


def _celeba_splits(folder: str, names: list[str], partition: tuple[str, bytes] | None) -> tuple[np.ndarray, list[str]]:
    """uint8 [n] from list_eval_partition (label, bytes), and remarks; for want of it, from the official numbers."""
    if partition is not None:
        return annotations.read_partition(partition[1], partition[0], names), []
    numbers = [annotations.official_split(name) for name in names]
    if None in numbers:
        return hash_splits(names), [f"{folder}: no list_eval_partition, and names are not CelebA's: 10 % drawn for val, no test split"]
    return np.array(numbers, np.uint8), [f"{folder}: no list_eval_partition (.txt or .csv); the official bounds by number were used"]


# ---- other people's images

def _top(files: Files) -> list[str]:
    """Names at the top of a source, looking through a single folder that holds all of it (as zips are often made)."""
    prefix = _common_prefix(list(files.sizes))
    return [name for name in files.sizes if "/" not in name.removeprefix(prefix)]


def _common_prefix(names: list[str]) -> str:
    """'faces/' when everything is inside one folder (or deeper, 'a/b/'); '' otherwise."""
    folders = [name.split("/")[:-1] for name in (min(names), max(names))] if names else [[], []]
    shared = []
    for left, right in zip(*folders):
        if left != right:
            break
        shared.append(left)
    return "".join(f"{part}/" for part in shared)


def _only_table(files: Files) -> tuple[str, bytes] | None:
    """The one CSV (or TSV) at the top, or the one beside a zip that bears its name."""
    tables = [name for name in _top(files) if name.lower().endswith(TABLES)]
    if len(tables) > 1:
        raise UserError(f"{files.path} has several CSVs ({annotations.first(tables)}); call the one with the attributes attributes.csv")
    if tables:
        return tables[0], files.read(tables[0])
    beside = [files.path.with_suffix(suffix) for suffix in TABLES] if isinstance(files, ZipFiles) else []
    return next(((str(table), table.read_bytes()) for table in beside if table.is_file()), None)


def _classes(images: list[str], path: Path) -> tuple[list[str], list[str], list[int] | None] | None:
    """For class folders: (class names, the class of each image, the split of each image or None). None when it is another layout.

    UserError where some folders bear names of splits and others do not: val would be a class, and trained on.
    """
    prefix = _common_prefix(images)
    parts = [name.removeprefix(prefix).split("/") for name in images]
    folders = sorted({part[0] for part in parts if len(part) > 1})
    ours = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    if ours and len(ours) < len(folders):
        others = [name for name in folders if name not in ours]
        raise UserError(f"{path} has the folders of splits {annotations.first(ours)} beside {annotations.first(others)}: put each image in "
                        "a split's folder, rename those that mean no split, or name one folder as the source")
    splits = None
    if all(len(part) > 2 and part[0].lower() in SPLIT_FOLDERS for part in parts):
        splits = [SPLIT_FOLDERS[part[0].lower()] for part in parts]
        parts = [part[1:] for part in parts]
    if any(len(part) < 2 for part in parts):
        return None     # images at the top too: folders are just how somebody sorted them
    labels = [part[0] for part in parts]
    names = sorted(set(labels))
    return (names, labels, splits) if len(names) > 1 and set(map(str.lower, names)) - set(SPLIT_FOLDERS) else None


def _untaken(names: list[str]) -> list[str]:
    """A note on folders that would be classes, or splits, did not some images stand beside them."""
    parts = [name.split("/") for name in names]
    if all(len(part) > 1 and part[0].lower() in SPLIT_FOLDERS for part in parts):
        parts = [part[1:] for part in parts]
    folders = sorted({part[0] for part in parts if len(part) > 1})
    loose = [name for name, part in zip(names, parts) if len(part) == 1]
    if len(folders) < 2 or not loose:
        return []
    what = "classes" if set(map(str.lower, folders)) - set(SPLIT_FOLDERS) else "splits"
    return [f"the folders {annotations.first(folders)} were not taken as {what}, because {annotations.first(loose)} "
            f"{'stands' if len(loose) == 1 else 'stand'} beside them"]


def _class_folders(files: Files, images: list[str], classes: list[str], labels: list[str], splits: list[int] | None) -> Source:
    place = {name: column for column, name in enumerate(classes)}
    prefix = _common_prefix(images)
    names = [name.removeprefix(prefix) for name in images]      # a folder and its zip give the same names, and so the same splits
    return Source(files.label.removesuffix(".zip"), "class folders", files, images, names, [files.marks[name] for name in images],
                  attribute_names=tuple(classes), attributes=np.eye(len(classes), dtype=np.uint8)[[place[label] for label in labels]],
                  splits=None if splits is None else with_val(splits, names), skipped=_strangers(files, images))


def _plain(files: Files, images: list[str], table: tuple[str, bytes] | None, annotated: bool) -> Source:
    prefix = _common_prefix(images)
    names = [name.removeprefix(prefix) for name in images]
    source = Source(files.label.removesuffix(".zip"), "images", files, images, names, [files.marks[name] for name in images],
                    skipped=_strangers(files, images), notes=[] if table else _untaken(names))
    read = annotations.read_table(table[1], table[0]) if table else None
    if read and "provenance.json" in {name.rpartition("/")[2] for name in _top(files)}:
        read.leave_out("seed")      # of a folder that mien sample wrote: the number of the face
    if read and (annotated or read.split_place is not None):
        rows = read.rows_of(images)     # whole paths: a table may write them from above the common folder or from inside it
        source.attribute_names, source.attributes, splits = read.select(rows)
        source.splits = source.splits if splits is None else with_val(splits, names)
        source.listed = len(read.lines)
        dropped = [name for name in read.names if name not in source.attribute_names]
        if dropped:
            reasons = [f"{name} ({read.odd_cell(rows, name)})" for name in dropped[:8]] + dropped[8:]
            source.notes.append(f"{source.name}: columns that are not 0/1, -1/1, yes/no or true/false were left out: "
                                f"{annotations.first(reasons, 8)}")
    elif all(name.split("/")[0].lower() in SPLIT_FOLDERS and "/" in name for name in names):
        source.splits = with_val([SPLIT_FOLDERS[name.split("/")[0].lower()] for name in names], names)
    return source


OTHER_KINDS = (".heic", ".heif", ".avif", ".jxl", ".jp2")
OTHER_KIND = "an image of a kind that is not read: save it as .jpg or .png"


def _strangers(files: Files, images: list[str]) -> dict[str, str]:
    """{file: reason} of the files that stand among these images and are none. Tables, pages and licences belong there."""
    folders = {name.rpartition("/")[0] for name in images}
    strangers = {}
    for name in files.sizes:
        if not is_image(name):
            folder, _, last = name.rpartition("/")
            on_purpose = last.lower().endswith(COMPANIONS) or last.upper().startswith(("README", "LICEN")) or last in KNOWN_FILES
            if folder in folders and not on_purpose:
                strangers[name] = OTHER_KIND if last.lower().endswith(OTHER_KINDS) else NO_IMAGE
    return strangers


KNOWN_FILES = (*ATTRIBUTE_FILES, *PARTITION_FILES, "identity_CelebA.txt", "list_bbox_celeba.txt", "list_landmarks_celeba.txt",
               "list_landmarks_align_celeba.txt")
