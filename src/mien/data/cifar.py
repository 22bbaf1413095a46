"""CIFAR-10's python batches: pickles, read so that they can make arrays and nothing else."""

import functools
import io
import pickle
import zlib
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mien.data.files import Files
from mien.data.sources import Source, with_val
from mien.errors import UserError

SIDE = 32   # px


class CifarReader:
    """Images of the batches; a key is 'folder/data_batch_1:17'."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def read(self, name: str) -> Image.Image:
        """One image, 32x32 RGB."""
        batch, _, row = name.rpartition(":")
        return Image.fromarray(_batch(self.files, batch)[0][int(row)])


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain data. A pickle may call any function it names; these are all that an array needs."""

    ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
               ("_codecs", "encode"): lambda text, encoding: text.encode(encoding)}

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(0).__reduce__()[0]      # numpy's own, wherever this version keeps it
        if (module, name) in self.ALLOWED:
            return self.ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")


def _load(data: bytes, label: str) -> dict[str, Any]:
    try:
        found = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()     # written by Python 2, whose strings are bytes
    except Exception as error:      # a malformed pickle raises nearly anything
        raise UserError(f"{label} is not a CIFAR batch ({str(error)[:80] or type(error).__name__}); download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{label} is not a CIFAR batch (it holds a {type(found).__name__}); download it again")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}


def _text(value: Any) -> str:
    """A name, which is bytes in a batch that Python 3 wrote in the manner of the official ones."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


@functools.lru_cache(maxsize=8)
def _batch(files: Files, name: str) -> tuple[np.ndarray, list[int], list[str]]:
    """One batch file: images uint8 [n, 32, 32, 3], labels, file names."""
    batch = _load(files.read(name), name)
    data, labels = batch.get("data"), batch.get("labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * SIDE * SIDE
            and isinstance(labels, list) and len(labels) == len(data) and all(label in range(10) for label in labels)):
        raise UserError(f"{name} is not a CIFAR-10 batch (no images of 3,072 bytes with a label from 0 to 9 each); download it again")
    names = [_text(each) for each in batch.get("filenames", [f"{row:05d}.png" for row in range(len(data))])]
    return np.ascontiguousarray(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels, names


def cifar_batches(files: Files) -> Source:
    """CIFAR-10 from data_batch_1..5 and test_batch: the ten classes are attributes, the test batch is the test split."""
    batches = sorted(name for name in files.sizes if PurePosixPath(name).name.startswith(("data_batch_", "test_batch")))
    meta = next((name for name in files.sizes if PurePosixPath(name).name == "batches.meta"), None)
    classes = [_text(each) for each in _load(files.read(meta), meta).get("label_names", [])] if meta else []
    if len(classes) != 10:
        classes = [f"class_{number}" for number in range(10)]
    keys: list[str] = []
    names: list[str] = []
    marks: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    for batch in batches:
        last = PurePosixPath(batch).name
        images, numbers, filenames = _batch(files, batch)
        marks += [f"{zlib.crc32(image):08x}" for image in images]
        keys += [f"{batch}:{row}" for row in range(len(numbers))]
        names += [f"{last}/{filename}" for filename in filenames]
        labels += numbers
        splits += [2 if last == "test_batch" else 0] * len(numbers)
    return Source(files.label.removesuffix(".zip"), "CIFAR-10", CifarReader(files), keys, names, marks,
                  attribute_names=tuple(classes), attributes=np.eye(10, dtype=np.uint8)[labels], splits=with_val(splits, names),
                  listed=60_000)
