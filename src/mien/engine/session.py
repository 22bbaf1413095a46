"""Begin a run, or go on with one: what `mien train` does before and around the loop."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mien
from mien.config import MAY_CHANGE_ON_RESUME, Recipe, differences, flatten
from mien.data.store import FaceStore
from mien.engine import build, checkpoint, memory, surgery
from mien.engine.distributed import ALONE, Ranks
from mien.engine.following import introduce
from mien.engine.growth import follow
from mien.engine.loop import Loop, OnSnapshot, OnTick, Say, resume
from mien.engine.schedules import knobs_at
from mien.engine.state import TrainState
from mien.engine.step import train_step
from mien.engine.surgery import Origin
from mien.engine.task import Task
from mien.engine.warmup import regroup
from mien.errors import UserError
from mien.rules import settle
from mien.runs import Run, write_json
from mien.sections import Growth


@dataclass
class Session:
    """A run that is ready to train."""

    run: Run
    state: TrainState
    task: Task
    meta: dict[str, Any]
    resumed: bool
    memory: str
    """What it is foreseen to take, in words."""

    def loop(self, *, on_tick: OnTick, on_snapshot: OnSnapshot, say: Say = print) -> Loop:
        return Loop(self.run, self.state, self.task, meta=self.meta, on_tick=on_tick, on_snapshot=on_snapshot, say=say)


def open_session(
    path: Path, recipe: Recipe, store: FaceStore, *, device: torch.device, smaller: Sequence[FaceStore] = (), origin: Origin | None = None,
    command: Sequence[str] = (), ranks: Ranks = ALONE, say: Say = print,
) -> Session:  # fmt: skip
    """The run at `path`: new when there is none, else resumed from its newest whole checkpoint.

    `smaller`: stores of the same faces in sizes that the run grows through. `origin`: whose weights a new run begins with. Of several
    processes the first calls this, the others `following.follow`.
    Raises UserError when the recipe does not fit the stores or the origin, when the run is going on in another process, or when it was
    begun with another recipe, other data or another origin.
    """
    before = flatten(Run(path).config.get("config", {})) if path.is_dir() else {}
    config, settled = settle(recipe.config, store.size, kept=before)
    if config.surgery.freeze_d and origin is None and not (path / "config.json").exists():
        raise UserError("surgery.freeze_d freezes blocks that --from loaded, and there is no --from: add it, or set surgery.freeze_d=0.")
    foreseen = memory.forecast(config, store, device=device, processes=ranks.size, kept=before)
    config = foreseen.config  # perhaps in smaller pieces
    task = build.build_task(config, store, device, smaller=smaller, ranks=ranks)
    names = build.attribute_names(config, store)
    state = build.build_state(config, size=task.plan.first.size, attributes=len(names), device=device)
    meta = build.snapshot_meta(config, store, names, preset=recipe.preset)
    record = {
        "mien": mien.__version__,
        "preset": recipe.preset,
        "command": list(command),
        "config": config.model_dump(mode="json"),
        "provenance": recipe.provenance | {key: f"{recipe.provenance[key]}, auto: {rule}" for key, rule in settled.items()},
        "store": build.describe_store(store, names),
        "smaller_stores": [build.describe_store(each, names) for each in task.faces.stores[:-1]],
        "machine": build.describe_machine(device, ranks.size),
    }
    begun = (path / "config.json").exists() and bool(Run(path).checkpoints() or Run(path).snapshots())
    told = [] if begun else plant(state, task, origin, names, record)  # before anything is written: a mistake leaves no run
    run = take(path)
    try:
        resumed = False
        if begun:
            check_origin(run, origin)
            resumed = go_on(run, record, state, task, say)
            if not resumed and origin is None and (lost := run.config.get("from")):
                raise UserError(f"{path} has no whole checkpoint left, and was begun from {lost['name']}: give that --from again.")
            told = [] if resumed else plant(state, task, origin, names, record)
        else:  # also where a run ended before it had anything to keep: it begins again, perhaps with a smaller batch
            architecture = build.describe_architecture(state, size=state.G.size, attributes=len(names), device=device)
            Run.create(path, config=record, architecture=architecture)
            run.rewind(0)
            recipe_name = recipe.preset or "the default recipe"
            run.event(0, "start", f"Began with {recipe_name} on {store.path} ({task.data.count:,} training images).")
        for kind, message, whole in told:
            run.event(0, kind, message)
            say(whole)
        introduce(task, store, state)
    except BaseException:
        run.unlock()
        raise
    return Session(run=run, state=state, task=task, meta=meta, resumed=resumed, memory=foreseen.words)


Told = tuple[str, str, str]  # kind of event, a sentence for events.jsonl, what the console says


def plant(state: TrainState, task: Task, origin: Origin | None, names: tuple[str, ...], record: dict[str, Any]) -> list[Told]:
    """Make a fresh `state` ready for its first step: weights from `origin`, which goes into the run's `record`, and a growth at image 0.

    What is to be told of it.
    """
    told: list[Told] = []
    if origin is not None:
        source = surgery.read(origin)
        if task.config.surgery.freeze_d and source.D is None:
            raise UserError(f"{origin.name} brings no discriminator, of which surgery.freeze_d keeps a part: begin from a run, or "
                            "set surgery.freeze_d=0.")  # fmt: skip
        fates = surgery.transplant(source, state, names)
        told.append(("surgery", surgery.sentence(source, fates), "\n".join(surgery.table(source, fates))))
        if source.size < state.G.size and task.config.model.family == "dcgan":
            melt = " --set surgery.freeze_d=0" if task.config.surgery.freeze_d else ""
            hint = f"{origin.name} makes images of {source.size} px: --set growth.at_kimg=0{melt} would fade the new blocks in."
            told.append(("surgery", hint, hint))
        record["from"] = {"name": origin.name, **source.describe()}
        regroup(state, task.config)
    grown = follow(state, task)
    return told if grown is None else [*told, ("growth", grown, grown)]


def check_origin(run: Run, origin: Origin | None) -> None:
    """Raises UserError when `run` was begun from something else than `origin`. To go on, --from need not be said again."""
    begun = (run.config.get("from") or {}).get("name")
    if origin is not None and origin.name != begun:
        was = f"was begun from {begun}" if begun else "was begun without --from"
        raise UserError(f"{run.path} {was}; name another run with --run to begin from {origin.name}.")


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


def go_on(run: Run, record: dict[str, Any], state: TrainState, task: Task, say: Say) -> bool:
    """Resume `run` as `record` asks; False when all of its checkpoints are damaged. Raises UserError for another recipe or other data."""
    changed = check_same(run, record)
    check_smaller_stores(run, task)
    train, d_steps = record["config"]["train"], record["config"]["balance"]["d_steps"]
    same_length = run.config["config"]["train"]["images"] == train["images"]  # its end may be further on: more d_steps than the recipe's
    resumed = resume(run, state, task, say, past_end_nimg=None if same_length else train["images"] + train["batch"] * d_steps)
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


def check_smaller_stores(run: Run, task: Task) -> None:
    """Raises UserError when a store that `run` still needs is another one now, or is missing, or is new. Outgrown ones may go."""
    before = {store["size"]: store for store in run.config.get("smaller_stores", [])}
    now = {store.size: store for store in task.faces.stores[:-1]}
    newest = run.checkpoints()[-1][0] if run.checkpoints() else 0
    for size in sorted(before.keys() | now.keys()):
        same = size in before and size in now and before[size]["digest"] == now[size].digest
        if size >= task.plan.at(newest).size and not same:
            was = f"with {before[size]['path']}" if size in before else "without a store"
            raise UserError(f"{run.path} was begun {was} for {size} px, and still trains at such a size: give the same stores again, "
                            "or name another run with --run.")  # fmt: skip


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
        config = recipe.config.model_copy(update={"train": train, "growth": Growth()})  # at the last size, the most demanding
        try:
            task = build.build_task(config, store, device)
            state = build.build_state(config, size=store.size, attributes=len(task.data.attribute_names), device=device)
            train_step(state, task, knobs_at(task.config, 0))
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


def out_of_memory(recipe: Recipe, store: FaceStore, device: torch.device, ranks: Ranks = ALONE) -> UserError:
    """What to say of a step that did not fit: the batch, the largest that fits, and how to set it."""
    train = recipe.config.train
    asked = f"train.batch={train.batch}" + (f" in pieces of {train.micro_batch}" if train.micro_batch else "")
    if ranks.size > 1:
        mine = min(train.micro_batch or train.batch, train.batch // ranks.size)
        return UserError(f"Out of memory on {device}, one of {ranks.size} processes, with {asked}: "
                         f"--set train.micro_batch={max(1, mine // 2)} cuts its part into pieces.")  # fmt: skip
    fits = largest_batch_that_fits(recipe, store, device)
    if fits is None:
        return UserError(f"Out of memory on {device} with {asked}; not even one image fits: lower the widths or the size of the images.")
    piece = max(size for size in range(1, fits + 1) if train.batch % size == 0)
    return UserError(f"Out of memory on {device} with {asked}; {fits} fits: --set train.batch={fits}, "
                     f"or --set train.micro_batch={piece} for the same gradient in pieces.")  # fmt: skip
