"""`mien train`."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from mien.config import Recipe
    from mien.data.store import FaceStore
    from mien.engine.distributed import Ranks
    from mien.engine.following import Follower
    from mien.engine.loop import Loop
    from mien.engine.session import Session

SAME_CTRL_C_S = 3.0

FROM_HELP = "Begin a new run with another's weights; without --preset, with its recipe too. What does not fit is named and learnt anew."
SET_HELP = "Override one key of the recipe, e.g. optimizer.lr_g=1e-4 (keys: 'mien presets NAME --all')."


def train(
    data: Annotated[list[Path], typer.Argument(help="A prepared data store (mien data prepare); to grow, the same faces in each size.")],
    preset: Annotated[str | None, typer.Option(help="A recipe's name ('mien presets' lists them) or a .toml file.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory. [default: runs/PRESET-DATA-SEED]")] = None,
    images: Annotated[str | None, typer.Option(help="Length of the run in real images shown, e.g. 300k or 2M.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. [default: the best there is]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random in the run.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="MODEL|RUN", help=FROM_HELP)] = None,
) -> None:
    """Train a conditional face GAN. The same command again resumes it.

    mien train stores/celeba64 --preset seed0 --images 2M

    mien train stores/celeba64 stores/celeba128 --preset stable128-progressive

    mien train stores/celeba64 --from runs/old --set model.discriminator.minibatch_stddev=4
    """
    from mien import config

    overrides: list[str | tuple[str, Any]] = list(set_ or [])
    if images is not None:
        overrides.append(("train.images", config.parse_count(images)))
    if seed is not None:
        overrides.append(("train.seed", seed))
    inherited = {} if from_ is None else inherit(from_, run) if preset is None else networks_of(from_, run, preset, overrides, data[-1])
    recipe = config.resolve(preset, [*inherited.items(), *overrides])
    own = {text.partition("=")[0].strip() if isinstance(text, str) else text[0] for text in overrides}
    recipe.provenance.update({key: f"from {from_}" for key in inherited if key not in own})
    kind = Path(preset).stem if preset else "default" if from_ is None else f"from-{Path(from_).stem.replace(':', '-')}"
    path = run or Path("runs") / f"{kind}-{data[-1].resolve().name}-s{recipe.config.train.seed}"
    start(data, recipe, path, device, begin_from=from_)


def networks_of(name: str, run: Path | None, preset: str, overrides: list[str | tuple[str, Any]], data: Path) -> dict[str, Any]:
    """The networks of what --from names, and its attributes as far as the data have them, where the preset asks for them."""
    from mien.config import resolve
    from mien.data.store import read_manifest
    from mien.runs import read_json

    if resolve(preset, overrides).config.surgery.networks != "origin":
        return {}
    inherited = inherit(name, run)
    there = read_manifest(data)["attributes"]
    names = inherited.get("data.attributes")
    if names is None:  # "all": of its own data
        names = (read_json(Path(name) / "config.json") or {}).get("store", {}).get("attributes", [])
    kept = [each for each in names if each in there]
    return {**{key: value for key, value in inherited.items() if key.startswith("model.")}, "data.attributes": kept}


def inherit(name: str, run: Path | None) -> dict[str, Any]:
    """The flat recipe of what --from names, where no preset is given: a run's own, or the generator that a snapshot states.

    A run that began from `name` earlier is asked first: it knows, also when `name` is gone.
    """
    from mien.config import DEFAULTS, flatten
    from mien.runs import Run, read_json

    said = (read_json(run / "config.json") if run is not None else None) or {}
    if (said.get("from") or {}).get("name") == name:
        return {key: value for key, value in _asked(said).items() if key in DEFAULTS}
    if (Path(name) / "config.json").is_file():
        model = _asked(Run.open(name).config)
    else:
        from mien.explore.load import find_snapshot

        weights = find_snapshot(name)
        meta, critic = (read_json(weights.with_suffix(suffix)) or {} for suffix in (".json", ".critic.json"))
        networks = {"generator": meta.get("options", {}), "discriminator": critic.get("options", {})}
        model = flatten({"model": {"family": meta.get("family", "dcgan"), **networks}})
        model["data.attributes"] = meta.get("attributes")
    return {key: value for key, value in model.items() if key in DEFAULTS and not key.startswith(("growth.", "surgery."))}


def _asked(said: dict[str, Any]) -> dict[str, Any]:
    """The flat recipe of a run's config.json, with "auto" where a rule gave the number."""
    from mien.config import flatten

    ruled = [key for key, whence in said.get("provenance", {}).items() if ", auto: " in whence]
    return {**flatten(said.get("config", {})), **dict.fromkeys(ruled, "auto")}


def start(data: list[Path], recipe: Recipe, path: Path, device_name: str | None, *, begin_from: str | None = None) -> None:
    """Train here, alone or as one of several processes."""
    from mien.apps.cli.data import stoppable
    from mien.data.store import open_store
    from mien.engine import build, distributed, following

    *smaller, store = sorted((open_store(each) for each in data), key=lambda store: store.size)
    device = build.choose_device(distributed.local_device(device_name))
    with distributed.joined(device, shared=device_name == str(device)) as ranks:
        if not ranks.leads:
            follower = following.follow(store, smaller=smaller, device=device, ranks=ranks)
            with stopping_gently(follower, alone=False):
                follower.train()
            return
        with stoppable():  # until the loop, which knows a gentler way
            lead(recipe, path, store, smaller, device, ranks, begin_from)


def lead(
    recipe: Recipe, path: Path, store: FaceStore, smaller: list[FaceStore], device: torch.device, ranks: Ranks, begin_from: str | None
) -> None:
    from mien.apps.cli import console
    from mien.engine import session
    from mien.engine.batch import own_statistics
    from mien.engine.surgery import Origin
    from mien.explore.load import find_snapshot

    origin = None if begin_from is None else Origin(begin_from, find_snapshot)
    if recipe.config.eval.every_kimg > 0:
        from mien.apps.cli.evaluate import check_settings

        check_settings(recipe.config.eval, store)  # now, not at the first score an hour from here
    begun: Session | None = None
    try:
        begun = session.open_session(path, recipe, store, device=device, smaller=smaller, origin=origin, command=sys.argv, ranks=ranks,
                                     say=console.note)  # fmt: skip
        log = Log(path / "log.txt")
        log.say(_opening(begun, store))
        if told := own_statistics(begun.state, begun.task):
            log.say(told)
        log.say(begun.memory)
        finished = _train(begun, store, log)
    except (RuntimeError, MemoryError) as error:
        if not session.is_out_of_memory(error):
            raise
        begun = None  # the error's traceback and the session hold the memory: both must go before anything smaller is tried
    if begun is None:
        raise session.out_of_memory(recipe, store, device, ranks)
    best = begun.run.best_snapshot()
    if finished:
        log.say(f"Finished at {begun.state.nimg:,} images. Samples: {path / 'samples' / 'mosaic.png'}. Generator: {best}.")
        log.say(f"Look at it with: mien report {path}")
    else:
        log.say(f"Stopped at {begun.state.nimg:,} images; nothing is lost. Go on with the same command.")


class Log:
    """Says things on the console and keeps them in log.txt."""

    def __init__(self, path: Path):
        self._path = path

    def say(self, message: str) -> None:
        from mien.apps.cli import console

        console.note(message)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")


def _opening(begun: Session, store: FaceStore) -> str:
    machine, config = begun.run.config["machine"], begun.task.config
    what = "Resuming" if begun.resumed else "Training"
    names = ", ".join(begun.meta["attributes"]) or "none"
    where = f"{machine.get('gpu', machine['device'])} ({machine['threads']} threads)"
    if (count := begun.task.ranks.size) > 1:
        where += f", {count} processes of {config.train.batch // count} images each"
    sizes = f"{begun.state.G.size} px" + (f", growing to {store.size} px" if begun.state.G.size < store.size else "")
    return (
        f"{what} {begun.run.path}: {begun.task.data.count:,} faces at {sizes}, attributes {names}; "
        f"{begun.state.nimg:,} of {config.train.images:,} images seen; {where}."
    )


def _train(begun: Session, store: FaceStore, log: Log) -> bool:
    from mien.apps.cli import console

    with console.progress("Training", begun.task.config.train.images, done=begun.state.nimg) as advance:
        shown = begun.state.nimg

        def on_tick(nimg: int, values: dict[str, float]) -> None:
            nonlocal shown
            advance(nimg - shown)
            shown = nimg

        loop = begun.loop(on_tick=on_tick, on_snapshot=_scorer(begun, store, log), say=log.say)
        with stopping_gently(loop, alone=loop.ranks.size == 1):
            finished = loop.train()
        advance(begun.state.nimg - shown)
        return finished


def _scorer(begun: Session, store: FaceStore, log: Log) -> Callable[[Path, int], None]:
    """Scores a snapshot when eval.every_kimg says so."""
    settings = begun.task.config.eval

    def on_snapshot(path: Path, nimg: int) -> None:
        from mien.engine.schedules import due

        before = max((at for at, _ in begun.run.snapshots() if at < nimg), default=0)  # what is there: a rollback goes back behind some
        if due(settings.every_kimg, before, nimg):
            from mien.apps.cli.evaluate import score_snapshot

            same_size = [each for each in begun.task.faces.stores if each.size == begun.state.ema.size]  # a run may grow
            log.say(score_snapshot(begun.run, path, [store, *same_size][-1], settings, nimg=nimg))

    return on_snapshot


@contextlib.contextmanager
def stopping_gently(loop: Loop | Follower, *, alone: bool = True) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step in hand, with a checkpoint; a second Ctrl-C ends it at once.

    Not `alone`, under torchrun, one Ctrl-C comes twice, from the terminal and from torchrun: there a second one counts after a while.
    """
    first_s = 0.0

    def stop(number: int, frame: object) -> None:
        nonlocal first_s
        if loop.should_stop and number == signal.SIGINT and (alone or time.monotonic() > first_s + SAME_CTRL_C_S):
            raise KeyboardInterrupt
        first_s = first_s or time.monotonic()
        loop.should_stop = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
