"""What was measured on real images, kept between calls in the user's cache folder, by a hash of all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mien.whole import whole_file

VARIABLE = "MIEN_CACHE"


def cache_folder() -> Path:
    """$MIEN_CACHE, or the platform's usual place for caches."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "mien" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mien"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mien"


def content_key(*parts: Any) -> str:
    """Hex sha256 of plain values and arrays, in order: equal only when all are."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def cached(key: str, compute: Callable[[], np.ndarray], *, use: bool = True) -> tuple[np.ndarray, bool]:
    """(array, whether it was found). A damaged entry is computed anew; a folder that cannot be written to is done without."""
    path = cache_folder() / "features" / f"{key}.npy"
    if use:
        try:
            return np.load(path, allow_pickle=False), True
        except (OSError, ValueError, EOFError):
            pass
    array = compute()
    if use:
        with contextlib.suppress(OSError), whole_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    return array, False
