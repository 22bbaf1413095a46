"""Sources that other libraries download: `kaggle:owner/name` through kagglehub, `hf:name` through datasets."""

from pathlib import Path
from typing import Any

import numpy as np

from mien.data.formats import BadImageError
from mien.data.sources import SPLIT_FOLDERS, Source, with_val
from mien.errors import UserError

INSTALL = "install it with: pip install 'mien[hub]'"


def kaggle_folder(name: str) -> Path:
    """Download `kaggle:owner/name` (or take it from kagglehub's cache): the folder it lies in."""
    handle = name.removeprefix("kaggle:")
    if handle.count("/") < 1:
        raise UserError(f"{name} is no Kaggle name: write kaggle:owner/name, for example kaggle:jessicali9530/celeba-dataset")
    try:
        import kagglehub
    except ImportError:
        raise UserError(f"{name} needs the package kagglehub; {INSTALL}") from None
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:      # no network, no such name, no permission: kagglehub has many classes for them
        raise UserError(f"kagglehub could not download {handle}: {_line(error)}") from None


class HuggingFaceReader:
    """Images of a loaded data set, still encoded; a key is 'train/17'."""

    def __init__(self, splits: dict[str, Any], column: str) -> None:
        self.splits, self.column = splits, column

    def read(self, name: str) -> bytes:
        """The bytes of one image file."""
        split, _, row = name.rpartition("/")
        cell = self.splits[split][int(row)][self.column]
        if cell.get("bytes"):
            return cell["bytes"]
        if not cell.get("path"):
            raise BadImageError("empty cell")
        return Path(cell["path"]).read_bytes()


def hugging_face(name: str) -> Source:
    """`hf:name`: a data set with an image column. Its yes/no columns, and the classes of its class column, become attributes."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} needs the package datasets; {INSTALL}") from None
    try:
        loaded = datasets.load_dataset(name.removeprefix("hf:"))
    except Exception as error:      # no network, no such name, a script that may not run: datasets has many classes for them
        raise UserError(f"datasets could not load {name.removeprefix('hf:')}: {_line(error)}") from None
    tables = dict(loaded.items())
    features = next(iter(tables.values())).features
    columns = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if not columns:
        raise UserError(f"{name} has no column of images (its columns: {', '.join(features)}); choose another data set")
    encoded = {split: table.cast_column(columns[0], datasets.Image(decode=False)) for split, table in tables.items()}
    keys = [f"{split}/{row}" for split, table in tables.items() for row in range(len(table))]
    attribute_names, attributes = _attributes(tables, features)
    codes = [SPLIT_FOLDERS.get(split.lower(), 0) for split, table in tables.items() for _ in range(len(table))]
    return Source(name.removeprefix("hf:"), "hf", HuggingFaceReader(encoded, columns[0]), keys, keys, [""] * len(keys),
                  attribute_names=attribute_names, attributes=attributes, splits=with_val(codes, keys))


def _attributes(tables: dict[str, Any], features: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and uint8 [n, A]: columns of booleans or of two values (0/1, -1/1), and a column per class of class columns."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    for name, feature in features.items():
        classes = getattr(feature, "names", None)
        kind = getattr(feature, "dtype", "")
        if classes is None and not (kind == "bool" or str(kind).startswith(("int", "uint"))):
            continue
        values = np.concatenate([np.asarray(table[name][:]) for table in tables.values()])
        if classes and len(classes) > 2:
            names += classes
            columns += [values == number for number in range(len(classes))]
        elif set(np.unique(values).tolist()) <= {0, 1} or set(np.unique(values).tolist()) <= {-1, 1}:
            names.append(name)
            columns.append(values == 1)
    rows = sum(len(table) for table in tables.values())
    return tuple(names), np.stack(columns, axis=1).astype(np.uint8) if columns else np.zeros((rows, 0), np.uint8)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
