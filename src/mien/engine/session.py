"""Begin a run, or go on with one: what `mien train` does before and around the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import mien
from mien.config import MAY_CHANGE_ON_RESUME, Recipe, differences
from mien.data.store import FaceStore
from mien.engine import build
from mien.engine.loop import Loop, OnSnapshot, OnTick, Say, resume
from mien.engine.schedules import knobs_at
from mien.engine.state import TrainState
from mien.engine.step import Task, train_step
from mien.errors import UserError
from mien.runs import Run, write_json


@dataclass
class Session:
    """A run that is ready to train."""

    run: Run
    state: TrainState
    task: Task
    meta: dict[str, Any]
    resumed: bool

    def loop(self, *, on_tick: OnTick, on_snapshot: OnSnapshot) -> Loop:
        return Loop(self.run, self.state, self.task, meta=self.meta, on_tick=on_tick, on_snapshot=on_snapshot)


def open_session(
    path: Path, recipe: Recipe, store: FaceStore, *, device: torch.device, command: Sequence[str] = (), say: Say = print
) -> Session:
    """The run at `path`: new when there is none, else resumed from its newest whole checkpoint.

    Raises UserError when the recipe does not fit the store, when the run is going on in another process, or when it was begun
    with another recipe or other data.
    """
    config = recipe.config
    task = build.build_task(config, store, device)
    names = build.attribute_names(config, store)
    state = build.build_state(config, size=store.size, attributes=len(names), device=device)
    meta = build.snapshot_meta(config, store, names, preset=recipe.preset)
    record = {
        "mien": mien.__version__,
        "preset": recipe.preset,
        "command": list(command),
        "config": config.model_dump(mode="json"),
        "provenance": recipe.provenance,
        "store": build.describe_store(store, names),
        "machine": build.describe_machine(device),
    }
    if (path / "config.json").exists():
        run = Run.open(path)
        if run.status.get("state") == "running":
            raise UserError(f"{path} is being trained by process {run.status.get('pid')}; 'mien stop {path}' stops it after a checkpoint.")
        changed = check_same(run, record)
        resumed = resume(run, state, say)
        for change in changed:
            run.event(state.nimg, "control", f"Changed on resume: {change}.")
        if changed:
            write_json(run.path / "config.json", {**run.config, **{key: record[key] for key in ("config", "provenance", "command")}})
    else:
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} exists and is not a run directory; name another with --run.")
        architecture = build.describe_architecture(state, size=store.size, attributes=len(names), device=device)
        run = Run.create(path, config=record, architecture=architecture)
        run.event(0, "start", f"Began with {recipe.preset or 'the default recipe'} on {store.path} ({task.data.count:,} training images).")
        resumed = False
    return Session(run=run, state=state, task=task, meta=meta, resumed=resumed)


def check_same(run: Run, record: dict[str, Any]) -> list[str]:
    """The harmless differences between a run and how it is asked to go on. Raises UserError, listing them, when one is not."""
    before = run.config
    if before["store"]["digest"] != record["store"]["digest"]:
        raise UserError(f"{run.path} was begun with other data ({before['store']['path']}); name another run directory with --run.")
    changed = differences(before["config"], record["config"])
    refused = [change for change in changed if not change.startswith(MAY_CHANGE_ON_RESUME)]
    if refused:
        raise UserError(f"{run.path} was begun with another recipe ({'; '.join(refused)}); repeat it, or name another run with --run.")
    return changed


def largest_batch_that_fits(recipe: Recipe, store: FaceStore, device: torch.device) -> int | None:
    """The greatest halving of the recipe's batch whose step fits into memory; None when not even one image does."""
    batch = recipe.config.train.batch // 2
    while batch >= 1:
        train = recipe.config.train.model_copy(update={"batch": batch, "micro_batch": None})
        config = recipe.config.model_copy(update={"train": train})
        try:
            task = build.build_task(config, store, device)
            state = build.build_state(config, size=store.size, attributes=len(task.data.attribute_names), device=device)
            train_step(state, replace(task, config=config), knobs_at(config, 0))
            return batch
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        task = state = None  # type: ignore[assignment]  # let the memory go before the next try
        batch //= 2
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for a GPU's memory; on the CPU only the text tells."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
