"""`mien control`: turn a run's knobs while it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.apps.cli.console import print_json, say
from mien.errors import UserError
from mien.runs import Run

SET_HELP = "KNOB=VALUE, repeatable: lr_g, lr_d, d_steps, g_steps, augment_p, r1_gamma ... KNOB=recipe gives it back to the recipe."


def control(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help=SET_HELP)] = None,
    over: Annotated[str, typer.Option(metavar="IMAGES", help="Glide there over so many images: 200k. By default at once.")] = "0",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Change a live run's knobs, at once or gradually.

    mien control runs/demo --set lr_g=1e-4 --over 200k

    The run takes it up at its next step, logs it as an event and keeps it in its checkpoints. A knob that was set by hand leaves its
    schedule, and the controller does not touch it. Without --set: what was asked for so far.
    """
    from mien.config import parse_count
    from mien.engine.steering import parse_changes

    there = Run.open(run)
    if not set_:
        told = [request for _, request in there.control_requests()]
        if json:
            print_json(told)
        for request in told if not json else []:
            met = f"from {request['at_nimg']:,} images on" if "at_nimg" in request else "not applied yet"
            asked = ", ".join(f"{knob} {value}" for knob, value in request.get("changes", {}).items())
            say(f"{asked}{_glide(request.get('over_nimg', 0))}: {met}")
        if not told and not json:
            say(f"Nothing was changed by hand in {run}. Change something with --set, for example --set lr_g=1e-4.")
        return
    changes = parse_changes(set_)
    over_nimg = parse_count(over)
    if over_nimg < 0:
        raise UserError(f"--over {over}: write a count of images, such as 200k, or 0 for at once.")
    state = there.status.get("state", "never started")
    if state == "finished":
        raise UserError(f"{run} has finished: there is nothing left to change. A longer run (mien train ... --images) can be changed.")
    there.request_control(changes, over_nimg)
    if json:
        print_json({"changes": changes, "over_nimg": over_nimg, "state": state})
        return
    when = "at its next step" if state == "running" else f"when it goes on (it is {state})"
    said = ", ".join(f"{knob} {'as in the recipe' if value == 'recipe' else value}" for knob, value in changes.items())
    say(f"{run}: {said}{_glide(over_nimg)}, {when}.")


def _glide(over_nimg: int) -> str:
    return f" over {over_nimg:,} images" if over_nimg else ""
