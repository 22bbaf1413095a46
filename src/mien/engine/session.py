"""Begin a run, or go on with one: what `mien train` does before and around the loop."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mien
from mien.config import MAY_CHANGE_ON_RESUME, Recipe, differences
from mien.data.store import FaceStore
from mien.engine import build, checkpoint
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

    def loop(self, *, on_tick: OnTick, on_snapshot: OnSnapshot, say: Say = print) -> Loop:
        return Loop(self.run, self.state, self.task, meta=self.meta, on_tick=on_tick, on_snapshot=on_snapshot, say=say)


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
    run = take(path)
    try:
        if (path / "config.json").exists() and (run.checkpoints() or run.snapshots()):
            resumed = go_on(run, record, state, say)
        else:  # also where a run ended before it had anything to keep: it begins again, perhaps with a smaller batch
            architecture = build.describe_architecture(state, size=store.size, attributes=len(names), device=device)
            Run.create(path, config=record, architecture=architecture)
            run.rewind(0)
            recipe_name = recipe.preset or "the default recipe"
            run.event(0, "start", f"Began with {recipe_name} on {store.path} ({task.data.count:,} training images).")
            resumed = False
    except BaseException:
        run.unlock()
        raise
    return Session(run=run, state=state, task=task, meta=meta, resumed=resumed)


def take(path: Path) -> Run:
    """The run at `path`, or the place for one, locked and rid of half-written files.

    Raises UserError when it is something else, or in the hands of another process.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a run directory; name another with --run.")
    if (path / "config.json").exists():
        run = Run.open(path)
    elif path.exists() and any(_is_foreign(file) for file in path.rglob("*")):
        raise UserError(f"{path} exists and is not a run directory; name another with --run.")
    else:
        run = Run(path)
    status = run.status
    if status.get("state") == "running":  # a lock is not seen across machines, nor by every file system
        where = f"process {status.get('pid')} on {status.get('host')}"
        raise UserError(f"{path} is being trained by {where}; 'mien stop {path}' stops it after a checkpoint.")
    run.lock()
    checkpoint.sweep(run)
    return run


def _is_foreign(file: Path) -> bool:
    """Whether a file in a folder without config.json is more than what a run killed at its very beginning leaves."""
    return not file.is_dir() and file.name not in ("architecture.json", "lock") and file.suffix != ".tmp"


def go_on(run: Run, record: dict[str, Any], state: TrainState, say: Say) -> bool:
    """Resume `run` as `record` asks; False when all of its checkpoints are damaged. Raises UserError for another recipe or other data."""
    changed = check_same(run, record)
    train, d_steps = record["config"]["train"], record["config"]["balance"]["d_steps"]
    resumed = resume(run, state, say, past_end_nimg=train["images"] + train["batch"] * d_steps)
    for change in changed:
        run.event(state.nimg, "control", f"Changed on resume: {change}.")
        say(f"Changed on resume: {change}.")
    if changed:
        write_json(run.path / "config.json", {**run.config, **{key: record[key] for key in ("config", "provenance", "command")}})
    return resumed


def check_same(run: Run, record: dict[str, Any]) -> list[str]:
    """The harmless differences between a run and how it is asked to go on. Raises UserError, listing them, when one is not."""
    before = run.config
    if "config" not in before or "digest" not in before.get("store", {}):
        raise UserError(f"{run.path} does not say with what it was begun (its config.json lacks it); name another with --run.")
    if before["store"]["digest"] != record["store"]["digest"]:
        raise UserError(f"{run.path} was begun with other data ({before['store']['path']}); name another run directory with --run.")
    changed = differences(before["config"], record["config"])
    refused = [change for change in changed if not change.startswith(MAY_CHANGE_ON_RESUME)]
    if refused:
        raise UserError(f"{run.path} was begun with another recipe ({'; '.join(refused)}); repeat it, or name another run with --run.")
    return changed


def largest_batch_that_fits(recipe: Recipe, store: FaceStore, device: torch.device) -> int | None:
    """The greatest halving of the recipe's batch (or micro-batch) whose step fits into memory; None when not even one image does.

    Call it when the failed step's tensors are gone: outside of the `except`, whose traceback holds them.
    """
    batch = (recipe.config.train.micro_batch or recipe.config.train.batch) // 2
    while batch >= 1:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        train = recipe.config.train.model_copy(update={"batch": batch, "micro_batch": None})
        config = recipe.config.model_copy(update={"train": train})
        try:
            task = build.build_task(config, store, device)
            state = build.build_state(config, size=store.size, attributes=len(task.data.attribute_names), device=device)
            train_step(state, task, knobs_at(config, 0))
            return batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        task = state = None  # type: ignore[assignment]  # let the memory go before the next try
        batch //= 2
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for a GPU's memory; on the CPU only the text tells."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def out_of_memory(recipe: Recipe, store: FaceStore, device: torch.device) -> UserError:
    """What to say of a step that did not fit: the batch, the largest that fits, and how to set it."""
    train = recipe.config.train
    asked = f"train.batch={train.batch}" + (f" in pieces of {train.micro_batch}" if train.micro_batch else "")
    fits = largest_batch_that_fits(recipe, store, device)
    if fits is None:
        return UserError(f"Out of memory on {device} with {asked}; not even one image fits: lower the widths or the size of the images.")
    piece = max(size for size in range(1, fits + 1) if train.batch % size == 0)
    return UserError(f"Out of memory on {device} with {asked}; {fits} fits: --set train.batch={fits}, "
                     f"or --set train.micro_batch={piece} for the same gradient in pieces.")  # fmt: skip
