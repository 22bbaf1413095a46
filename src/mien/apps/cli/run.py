"""`mien runs` and `mien stop`: what the run directories say, and a word to a live one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mien.apps.cli.console import duration, print_json, print_table, say
from mien.errors import UserError
from mien.runs import Run

DEPTH = 3  # folders below DIR in which runs are looked for


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look: runs up to three folders down are found.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs with their state, progress and best score.

    mien runs runs --json
    """
    if not folder.is_dir() and folder != Path("runs"):  # the usual place is made by the first run
        raise UserError(f"No such folder: {folder}. 'mien train' puts its runs in ./runs unless told otherwise.")
    rows = [describe(run) for run in find_runs(folder)]
    if json:
        print_json(rows)
    elif rows:
        columns = ["run", "state", "images", "of", "images/s", "left", "best score", "preset"]
        cells = [[row[key] for key in ("run", "state", "nimg", "total_nimg", "images_per_s", "preset")] for row in rows]
        print_table(columns, [[*head, _left(row), _best(row), preset] for row, (*head, preset) in zip(rows, cells)])
    else:
        say(f"No runs in {folder}." if folder.is_dir() else "No runs here yet: 'mien train' puts them in ./runs unless told otherwise.")


def stop(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for it to have saved; 0 only asks.")] = 60.0,
) -> None:
    """Ask a live run to save a checkpoint and stop.

    mien stop runs/demo

    The same 'mien train' command goes on from there.
    """
    there = Run.open(run)
    state = there.status.get("state", "never started")
    if state != "running":
        raise UserError(f"{run} is not running (it is {state}).")
    request = there.path / "control" / "stop"
    request.parent.mkdir(exist_ok=True)
    request.touch()
    deadline = time.monotonic() + wait
    while (status := there.status).get("state") == "running":
        if time.monotonic() >= deadline:
            say(f"{run}: asked to stop; it will after its present step. 'mien runs {run}' shows when it has.")
            return
        time.sleep(0.2)
    if status.get("state") not in ("stopped", "finished"):
        raise UserError(f"{run} ended without saving (it is {status.get('state')}); its last checkpoint is whole. See {run / 'log.txt'}.")
    say(f"{run}: {status['state']} at {status.get('nimg', 0):,} images. The same 'mien train' command goes on from there.")


def find_runs(folder: Path) -> list[Run]:
    """The run directories at or below `folder`, by name. A folder with a config.json of another kind is passed over."""
    found = []
    for level in range(DEPTH + 1):
        for config in folder.glob("*/" * level + "config.json"):
            try:
                found.append(Run.open(config.parent))
            except UserError:
                continue
    return sorted(found, key=lambda run: str(run.path))


def describe(run: Run) -> dict[str, Any]:
    """What `mien runs` says of a run; a value that is not known is None."""
    status, config, best = run.status, run.config, run.best_score()
    return {
        "run": str(run.path),
        "state": status.get("state", "never started"),
        "nimg": status.get("nimg"),
        "total_nimg": status.get("total_nimg"),
        "images_per_s": status.get("images_per_s"),
        "updated_s": status.get("updated_s"),
        "best": best and {key: best.get(key) for key in ("metric", "value", "low", "high", "nimg")},
        "preset": config.get("preset"),
    }


def _best(row: dict[str, Any]) -> str | None:
    best = row["best"]
    return best and f"{best['metric']} {best['value']:.2f} at {best['nimg']:,}"


def _left(row: dict[str, Any]) -> str | None:
    if row["state"] != "running" or not row["images_per_s"]:
        return None
    return duration((row["total_nimg"] - row["nimg"]) / row["images_per_s"])
