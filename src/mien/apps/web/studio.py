"""The generators of the app: which there are, and each loaded behind the page's back, once, when it is first wanted."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.apps.web.places import Places
from mien.apps.web.turns import Turn
from mien.errors import UserError
from mien.runs import read_json

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

KEPT = 3  # loaded generators; the one used longest ago goes
SMALL_PX = 64
LEAD_S = 1.0  # of the page over torch, whose import leaves little time to anything else
LOOK_S = 0.02  # between looks whether a request that waits is still wanted


class _Loading:
    """One generator on its way: `done` is set when it has come, or an error in its place."""

    def __init__(self, path: Path):
        self.path = path
        self.done = threading.Event()
        self.generator: LoadedGenerator | None = None
        self.error: Exception | None = None
        threading.Thread(target=self._load, daemon=True, name=f"load {path.name}").start()

    def _load(self) -> None:
        try:
            from mien.explore.load import load_generator

            self.generator = load_generator(self.path)
            if self.generator.size <= SMALL_PX:
                _one_thread()
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


class Studio:
    """Generators by the names that `places` lists. Nothing here blocks but `using`, and that gives way to newer requests."""

    def __init__(self, places: Places):
        self.places = places
        self._known: OrderedDict[tuple[Any, ...], _Loading] = OrderedDict()
        self._guard = threading.Lock()
        self._work = threading.RLock()  # hooks change a network for everyone: one request at a time draws

    def begin(self, model: str) -> Path:
        """Start to load `model` if it is not there; returns its snapshot. Raises UserError for a name that is not listed."""
        return self._loading(model).path

    @contextmanager
    def using(self, model: str, turn: Turn) -> Iterator[LoadedGenerator]:
        """The generator, to this thread alone, as soon as it is loaded and free. Raises Superseded when a newer request comes meanwhile."""
        loading = self._loading(model)
        while not loading.done.wait(LOOK_S):
            turn.check()
        if loading.error is not None:
            raise loading.error
        while not self._work.acquire(timeout=LOOK_S):
            turn.check()
        try:
            turn.check()
            assert loading.generator is not None
            yield loading.generator
        finally:
            self._work.release()

    def _loading(self, model: str) -> _Loading:
        path = self.places.snapshot(model)
        key = path, _written(path), _written(path.with_suffix(".json"))  # a run may be removed and made anew under its name
        with self._guard:
            there = self._known.pop(key, None)
            if there is None or there.error is not None:  # a file that was damaged may be whole by now
                there = _Loading(path)
            self._known[key] = there
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return there

    def about(self, model: str) -> dict[str, Any]:
        """What the page needs to draw its controls, read without torch."""
        path = self.places.snapshot(model)
        meta = read_json(path.with_suffix(".json"))
        if meta is None:
            raise UserError(f"{model}: {path.name} has no .json beside it; copy both files.")
        table = [entry for entry in meta.get("attribute_table", []) if entry[1] > 0]
        names = list(meta.get("attributes", []))
        shares = {name: sum(share for row, share in table if row[i]) for i, name in enumerate(names)}
        return {
            "model": model,
            "title": self.places.title(model),
            "attributes": names,
            "shares": shares,
            "size": meta.get("size"),
            "nimg": meta.get("nimg"),
            "family": meta.get("family"),
            "preset": meta.get("preset"),
            "snapshot": path.name,
            "sha256": str(meta.get("sha256", "")),
        }

    def warm_up(self, model: str | None) -> None:
        """Import torch, and load `model`, once the page has had time to be fetched. Errors wait for whoever asks."""

        def later() -> None:
            time.sleep(LEAD_S)
            if model is None:
                import mien.explore.sample  # noqa: F401
            else:
                self.begin(model)

        threading.Thread(target=later, daemon=True, name="warm up").start()


def _written(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that was there before it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _one_thread() -> None:
    """For small faces: they are drawn few at a time, perhaps beside a run that trains, and threads that wait for one another are slower."""
    import torch

    torch.set_num_threads(1)
