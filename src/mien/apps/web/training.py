"""The Train tab: start a run, watch it, turn its knobs, stop it. The work is done by `mien train` in a process of its own.

That process outlives the page and the app: what is shown is read from the run directory, as for a run begun anywhere else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mien import config
from mien.apps.cli.run import describe
from mien.apps.web.faces import command, number, whole
from mien.apps.web.places import Places
from mien.apps.web.server import Picture, Question
from mien.engine.schedules import KNOBS
from mien.engine.steering import STEPS
from mien.errors import UserError
from mien.runs import Run

TOY_FACES = Path("toy-faces")
EVENTS_SHOWN = 80
SHOWN = {  # the knobs that the page offers, and what it calls them
    "lr_g": "Learning rate of the generator",
    "lr_d": "Learning rate of the discriminator",
    "g_steps": "Generator updates a round",
    "d_steps": "Discriminator updates a round",
    "augment_p": "Augmentation probability",
    "r1_gamma": "R1 strength",
}


@dataclass
class _Launched:
    """A process that this app started."""

    process: subprocess.Popen[bytes]
    log: Path
    command: str
    began_s: float = field(default_factory=time.time)

    def failure(self) -> str | None:
        """Why it ended, in its own last words; None while it runs or when it ended well."""
        if not self.process.poll():
            return None
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return (lines[-1].removeprefix("mien: ") if lines else f"it ended with code {self.process.returncode}")[:500]


class Training:
    """Answers of the Train tab."""

    def __init__(self, places: Places):
        self.places = places
        self._launched: dict[str, _Launched] = {}
        self._guard = threading.Lock()

    # --- watching -----------------------------------------------------------------------------------------------------

    def runs(self, question: Question) -> dict[str, Any]:
        """Every run with its state, newest first; those that were just started too, though they have written nothing yet."""
        rows = []
        for name, run in self.places.runs().items():
            about = describe(run)
            rows.append({"name": name, **{key: about[key] for key in ("state", "nimg", "total_nimg", "updated_s", "preset")}})
        there = {row["name"] for row in rows}
        for name, launched in self._launched.items():
            if name not in there:
                state = "failed to start" if launched.failure() else "starting"
                rows.append({"name": name, "state": state, "nimg": 0, "total_nimg": None, "updated_s": launched.began_s, "preset": None})
        rows.sort(key=lambda row: -(row["updated_s"] or 0))
        return {"runs": rows, "stores": list(self.places.stores())}

    def watch(self, question: Question) -> dict[str, Any]:
        """{run, since} -> all the tab shows of a run; only `unchanged` when its files are as they were at `since`."""
        name = str(question.body.get("run", ""))
        launched = self._launched.get(name)
        if name not in self.places.runs() and launched:
            failure = launched.failure()
            state = "failed to start" if failure else "starting"
            said = f"It could not start: {failure}" if failure else "Starting: it reads the data and builds its networks."
            return {"version": f"{state}{failure}", "state": state, "verdict": said, "command": launched.command, "knobs": [],
                    "curves": "", "events": [], "samples": [], "nimg": 0, "total_nimg": None}  # fmt: skip
        run = self.places.run(name)
        version = _version(run)
        failure = launched.failure() if launched else None
        if question.body.get("since") == (told := f"{version} {failure}"):
            return {"unchanged": True}
        return {"version": told, **_seen(run), "failure": failure}

    def picture(self, question: Question) -> Picture:
        """?run=NAME&nimg=N -> that sample grid; without nimg the mosaic."""
        run = self.places.run(question.body.get("run"))
        if "nimg" in question.body:
            path = next((path for nimg, path in run.samples() if str(nimg) == question.body["nimg"]), None)
        else:
            path = run.path / "samples" / "mosaic.png"
        if path is None or not path.is_file():
            raise UserError(f"{run.name} has no such picture.")
        return Picture(self.places.inside(run, path))

    # --- doing --------------------------------------------------------------------------------------------------------

    def train(self, question: Question) -> dict[str, Any]:
        """{name, store, preset, images, seed} -> a run is started. {resume: name} goes on with one."""
        if "resume" in question.body:
            return self._resume(self.places.run(question.body["resume"]))
        body = question.body
        store = self.places.store(body.get("store"))
        preset = str(body.get("preset"))
        if preset not in config.preset_names():
            raise UserError("Choose a recipe from the list.")
        images = config.parse_count(str(body.get("images") or ""))
        seed = whole(body, "seed", 0, 2**31, of="The seed")
        path = self.places.new_run(body.get("name"))
        line = command("train", str(store), preset=preset, run=path, images=images, seed=seed)
        return self._launch(path, shlex.split(line)[1:], line)

    def _resume(self, run: Run) -> dict[str, Any]:
        given = run.config.get("command")
        words = [str(word) for word in given[1:]] if isinstance(given, list) else []
        if words[:1] != ["train"]:
            raise UserError(f"{run.name} does not say how it was begun: go on with it by the 'mien train' command that began it.")
        if run.status.get("state") == "running":
            raise UserError(f"{run.name} is running already.")
        words += ["--run", str(run.path)]  # where it is now, from here
        return self._launch(run.path, words, shlex.join(["mien", *words]))

    def _launch(self, path: Path, words: Sequence[str], line: str) -> dict[str, Any]:
        name = path.relative_to(self.places.runs_folder).as_posix()
        with self._guard:
            before = self._launched.get(name)
            if before and before.process.poll() is None:
                raise UserError(f"{name} was started already.")
            log = Path(tempfile.mkdtemp(prefix="mien-app-")) / "train.log"
            self._launched[name] = _Launched(_process(words, log), log, line)
        return {"run": name, "command": line}

    def stop(self, question: Question) -> dict[str, Any]:
        """{run}: it is asked to save a checkpoint and stop, as `mien stop` does; whoever watches sees when it has."""
        run = self.places.run(question.body.get("run"))
        if run.status.get("state") != "running":
            raise UserError(f"{run.name} is not running (it is {run.status.get('state', 'not begun')}).")
        request = run.path / "control" / "stop"
        request.parent.mkdir(exist_ok=True)
        request.touch()
        return {"said": f"{run.name} was asked to stop: it will, after its present step and a checkpoint.",
                "command": command("stop", str(run.path))}  # fmt: skip

    def control(self, question: Question) -> dict[str, Any]:
        """{run, changes: {knob: value}, over_nimg} -> the live run is asked to turn them, at once or over that many images."""
        run, changes = self.places.run(question.body.get("run")), question.body.get("changes")
        if not isinstance(changes, dict) or not changes:
            raise UserError("Change a knob first.")
        values: dict[str, float | str | None] = {}
        for name in changes:
            if name not in SHOWN:
                raise UserError(f"There is no knob named {str(name)[:40]!r}.")
            least, most, _ = KNOBS[name]
            if name in STEPS:
                values[name] = whole(changes, name, int(least), int(most), of=SHOWN[name])
            else:
                values[name] = number(changes, name, least, most, of=SHOWN[name])
        over = whole(question.body, "over_nimg", 0, 10**9, of="The number of images to change over")
        if run.status.get("state") != "running":
            raise UserError(f"{run.name} is not running: its knobs can be turned while it does.")
        run.request_control(values, over)
        words = [word for name, value in values.items() for word in ("--set", f"{name}={value:g}")]
        line = command("control", str(run.path), *words, over=over or None)
        return {"said": "Asked for. The event log says when the run has done it.", "command": line}

    def draw(self, question: Question) -> dict[str, Any]:
        """Drawn toy faces, for who has no data yet; it takes some seconds."""
        if not TOY_FACES.exists():
            with self._guard:
                done = subprocess.run(_mien(["data", "synth", "--out", str(TOY_FACES)]), env=_environment(), stdin=subprocess.DEVNULL,
                                      capture_output=True, check=False)  # fmt: skip
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
                raise UserError(f"Drawing toy faces failed: {lines[-1].removeprefix('mien: ')}")
        return {"store": str(TOY_FACES), "stores": list(self.places.stores())}


def _mien(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "mien", *words]


def _environment() -> dict[str, str]:
    """This process's, with mien importable as it is here."""
    source = str(Path(config.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}


def _process(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A mien process in a session of its own: Ctrl-C in the app's terminal does not reach it."""
    with open(log, "wb") as out:
        alone: dict[str, Any] = {"creationflags": 0x00000200} if os.name == "nt" else {"start_new_session": True}
        return subprocess.Popen(_mien(words), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_environment(), **alone)


def _version(run: Run) -> str:
    """Changes whenever there is something new to show."""
    from mien.reports import findings

    sizes = []
    for name in ("scalars.jsonl", "events.jsonl", "metrics.jsonl"):
        try:
            sizes.append((run.path / name).stat().st_size)
        except OSError:
            sizes.append(0)
    state = findings.status(run)
    return f"{sizes} {state.get('state')} {state.get('nimg')} {len(run.samples())}"


def _seen(run: Run) -> dict[str, Any]:
    """What the tab shows of a run."""
    from mien.reports import curves, findings  # they need numpy, which the first page does not wait for
    from mien.reports.page import duration

    scalars, status, events = run.scalars(), findings.status(run), run.events()
    reached, total, speed = findings.nimg(run), findings.finite(status.get("total_nimg")), findings.finite(status.get("images_per_s"))
    running = status.get("state") == "running"
    last = scalars[-1] if scalars else {}
    return {
        "state": status.get("state", "not begun"),
        "verdict": findings.verdict(run),
        "nimg": reached,
        "total_nimg": total,
        "images_per_s": speed,
        "left": duration((total - reached) / speed) if running and total and speed else None,
        "curves": curves.one_run(scalars, findings.marks(run), reached / 1000 if reached else None),
        "events": [{key: event.get(key) for key in ("nimg", "time_s", "kind", "message")} for event in reversed(events[-EVENTS_SHOWN:])],
        "samples": [nimg for nimg, _ in run.samples()],
        "mosaic": (run.path / "samples" / "mosaic.png").is_file(),
        "knobs": [
            {"name": name, "called": called, "value": last[name]}
            for name, called in SHOWN.items()
            if findings.finite(last.get(name)) is not None
        ],
        "resumable": status.get("state") in ("stopped", "interrupted") and bool(run.checkpoints()),
        "command": findings.command(run),
    }
