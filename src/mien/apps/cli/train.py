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
    from mien.config import Recipe
    from mien.data.store import FaceStore
    from mien.engine.loop import Loop
    from mien.engine.session import Session


SET_HELP = "Override one key of the recipe, e.g. optimizer.lr_g=1e-4 (keys: 'mien presets NAME --all')."


def train(
    data: Annotated[Path, typer.Argument(help="A prepared data store (mien data prepare).")],
    preset: Annotated[str | None, typer.Option(help="A recipe's name ('mien presets' lists them) or a .toml file.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory. [default: runs/PRESET-DATA-SEED]")] = None,
    images: Annotated[str | None, typer.Option(help="Length of the run in real images shown, e.g. 300k or 2M.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. [default: the best there is]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random in the run.")] = None,
) -> None:
    """Train a conditional face GAN. The same command again resumes it.

    mien train stores/celeba64 --preset seed0 --images 2M
    """
    from mien import config

    overrides: list[str | tuple[str, Any]] = list(set_ or [])
    if images is not None:
        overrides.append(("train.images", config.parse_count(images)))
    if seed is not None:
        overrides.append(("train.seed", seed))
    recipe = config.resolve(preset, overrides)
    path = run or Path("runs") / f"{Path(preset).stem if preset else 'default'}-{data.resolve().name}-s{recipe.config.train.seed}"
    start(data, recipe, path, device)


def start(data: Path, recipe: Recipe, path: Path, device_name: str | None) -> None:
    from mien.apps.cli import console
    from mien.data.store import open_store
    from mien.engine import build, session

    store, device = open_store(data), build.choose_device(device_name)
    if recipe.config.eval.every_kimg > 0:
        from mien.apps.cli.evaluate import check_settings

        check_settings(recipe.config.eval, store)  # now, not at the first score an hour from here
    begun: Session | None = None
    try:
        begun = session.open_session(path, recipe, store, device=device, command=sys.argv, say=console.note)
        log = Log(path / "log.txt")
        log.say(_opening(begun, store))
        finished = _train(begun, store, log)
    except (RuntimeError, MemoryError) as error:
        if not session.is_out_of_memory(error):
            raise
        begun = None  # the error's traceback and the session hold the memory: both must go before anything smaller is tried
    if begun is None:
        raise session.out_of_memory(recipe, store, device)
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
    return (
        f"{what} {begun.run.path}: {begun.task.data.count:,} faces at {store.size} px, attributes {names}; "
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
        with stopping_gently(loop):
            finished = loop.train()
        advance(begun.state.nimg - shown)
        return finished


def _scorer(begun: Session, store: FaceStore, log: Log) -> Callable[[Path, int], None]:
    """Scores a snapshot when eval.every_kimg says so."""
    settings = begun.task.config.eval
    last = begun.state.nimg

    def on_snapshot(path: Path, nimg: int) -> None:
        nonlocal last
        from mien.engine.loop import due

        if due(settings.every_kimg, last, nimg):
            from mien.apps.cli.evaluate import score_snapshot

            log.say(score_snapshot(begun.run, path, store, settings, nimg=nimg))
        last = nimg

    return on_snapshot


@contextlib.contextmanager
def stopping_gently(loop: Loop) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step in hand, with a checkpoint; a second Ctrl-C ends it at once."""

    def stop(number: int, frame: object) -> None:
        if loop.should_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        loop.should_stop = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
