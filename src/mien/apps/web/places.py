"""Which models, runs and stores the app may touch. A page names things; a name is looked up in a list, never joined to a path."""

from __future__ import annotations

import re
from pathlib import Path

from mien.apps.cli.run import find_runs
from mien.errors import UserError
from mien.runs import Run, read_json

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STORE_FORMAT = "mien-faces/1"
STORE_DEPTH = 2  # folders below the present one in which prepared stores are looked for


class Places:
    """runs: the folder of runs, which need not exist. model: what the command line named, wherever it is."""

    def __init__(self, runs: Path, model: str | None = None):
        self.runs_folder = runs
        self.given = model

    # --- runs ---------------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, Run]:
        """Name (relative to the folder) -> run, sorted. A link that leads out of the folder is left out."""
        if not self.runs_folder.is_dir():
            return {}
        inside = self.runs_folder.resolve()
        found = {}
        for run in find_runs(self.runs_folder):
            if run.path.resolve().is_relative_to(inside):
                found[run.path.relative_to(self.runs_folder).as_posix()] = run
        return found

    def run(self, name: object) -> Run:
        """Raises UserError for a name that is not in the list."""
        run = self.runs().get(str(name))
        if run is None:
            raise UserError(f"There is no run named {str(name)[:80]!r} in {self.runs_folder}.")
        return run

    def new_run(self, name: object) -> Path:
        """Where a run of this name goes. Raises UserError for a name that could be a path, or that is taken."""
        text = name.strip() if isinstance(name, str) else ""
        if not RUN_NAME.fullmatch(text):
            raise UserError("A run's name is up to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit.")
        path = self.runs_folder / text
        if path.exists() or path.is_symlink():
            raise UserError(f"There is something named {text} in {self.runs_folder} already: choose another name, or resume that run.")
        return path

    @staticmethod
    def inside(run: Run, path: Path) -> Path:
        """`path`, which a run lists as its own. Raises UserError when it is a link that leads out of the run."""
        if not path.resolve().is_relative_to(run.path.resolve()):
            raise UserError(f"{path.name} of {run.name} leads out of the run's folder: it is not shown.")
        return path

    # --- models -------------------------------------------------------------------------------------------------------

    def models(self) -> dict[str, str]:
        """What a person would type after `mien sample` -> 'given', 'run' or 'bundled'."""
        from mien.explore.load import bundled_models

        found = {} if self.given is None else {self.given: "given"}
        mine = None if self.given is None else Path(self.given).resolve()
        for run in self.runs().values():
            if run.snapshots() and run.path.resolve() != mine:
                found[str(run.path)] = "run"
        return found | {name: "bundled" for name in bundled_models() if name not in found}

    def snapshot(self, model: object) -> Path:
        """The snapshot that a listed model stands for. Raises UserError for another name, or when it has none."""
        from mien.explore.load import find_snapshot

        name = str(model)
        if name not in self.models():
            raise UserError(f"There is no model named {name[:80]!r} here: choose one from the list.")
        return find_snapshot(name)

    @staticmethod
    def title(model: str) -> str:
        """A model's name without its folders."""
        return model if model.startswith("hf:") else Path(model).resolve().name.removesuffix(".safetensors") if "/" in model else model

    # --- stores -------------------------------------------------------------------------------------------------------

    def stores(self) -> dict[str, Path]:
        """Prepared data, as a person would type it -> folder: those at hand, and those that the runs here were trained on."""
        near = [note.parent for level in range(STORE_DEPTH + 1) for note in sorted(Path().glob("*/" * level + "manifest.json"))]
        used = [Path(str((run.config.get("store") or {}).get("path") or "")) for run in self.runs().values()]
        found: dict[str, Path] = {}
        for folder in [*near, *used]:
            if folder.resolve() in {each.resolve() for each in found.values()} or not folder.name:
                continue
            if is_store(folder):
                found[str(folder)] = folder
        return found

    def store(self, name: object) -> Path:
        """Raises UserError for a name that is not in the list."""
        folder = self.stores().get(str(name))
        if folder is None:
            raise UserError("Choose data from the list: 'mien data prepare' makes a store, and those below the present folder are found.")
        return folder


def is_store(folder: Path) -> bool:
    try:
        return (read_json(folder / "manifest.json") or {}).get("format") == STORE_FORMAT
    except (UserError, OSError):
        return False
