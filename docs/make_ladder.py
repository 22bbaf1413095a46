"""Writes docs/ladder.md, its pictures and the README's table: `python docs/make_ladder.py STORE [--runs DIR] [--train] [--weights FILE]`.

docs/ladder.toml names the rungs. With --train, what is missing is trained, one run after the other; every snapshot there is gets its
Frechet distance, the last one all scores, by the `mien eval` commands that the page prints. A score that metrics.jsonl has under the same
protocol is not taken again, so the script can be run again at any time. Only the validation split is looked at.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import ladder_page as page
from ladder_page import ALL, Attempt, Rung, Spec, eval_command, score_of, train_command

from mien.config import parse_count
from mien.data.store import FaceStore, open_store
from mien.runs import Run

DOCS = Path(__file__).parent
PAGE = DOCS / "ladder.md"


def read_spec(path: Path) -> Spec:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    common = table["all"]
    rungs = [Rung(name=each["name"], title=each["title"], preset=each["preset"], images=each.get("images", common["images"]),
                  seeds=tuple(each.get("seeds", common["seeds"])), set=(*common.get("set", ()), *each.get("set", ())))
             for each in table["rung"]]  # fmt: skip
    return Spec(note=table.get("note", ""), store=table["store"], runs=table["runs"], against=tuple(table["against"]), rungs=tuple(rungs))


def run_command(command: Sequence[str]) -> bool:
    """Whether a mien command succeeded; what it said is on the console."""
    print(f"$ {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode == 0


def train_missing(spec: Spec, store: Path, runs: Path, device: str | None) -> None:
    for rung in spec.rungs:
        for seed in rung.seeds:
            there = find(rung, seed, runs)
            if there is None or there.last_nimg < parse_count(rung.images):
                run_command(train_command(rung, seed, store=str(store), runs=str(runs), device=device))


def find(rung: Rung, seed: int, runs: Path) -> Attempt | None:
    """The run of a rung from a seed, when it has a snapshot to be scored."""
    path = runs / f"{rung.name}-s{seed}"
    if not (path / "config.json").is_file():
        return None
    run = Run.open(path)
    snapshots = [(nimg, file) for nimg, file in run.snapshots() if nimg > 0]
    return Attempt(rung, seed, run, snapshots) if snapshots else None


def score_missing(attempt: Attempt, store: FaceStore, *, weights: Path | None) -> None:
    """Frechet distances along the run, everything at its end."""
    conditional = bool(attempt.run.config.get("store", {}).get("attributes"))
    everything = [name for name in ALL if conditional or name != "control"]
    for nimg, file in attempt.snapshots:
        wanted = everything if nimg == attempt.last_nimg else ["fd"]
        missing = [name for name in wanted if score_of(attempt.run, f"{FIRST[name]}", nimg, store) is None]
        if missing:
            run_command(eval_command(str(file), missing, store=str(store.path)))
    if weights is not None and score_of(attempt.run, "fd-inception-768", attempt.last_nimg, store) is None:
        model = str(attempt.snapshots[-1][1])
        run_command(eval_command(model, ["fd", "kid"], store=str(store.path), features="inception-768", weights=str(weights)))


FIRST = {"fd": "fd-face", "kid": "kid-face", "prdc": "precision-face", "control": "control", "memorization": "memorization"}
"""The score by which one sees that a metric was taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/ladder.md from the runs that docs/ladder.toml names.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--spec", type=Path, default=DOCS / "ladder.toml")
    parser.add_argument("--runs", type=Path, help="where the runs are [default: what the spec says]")
    parser.add_argument("--train", action="store_true", help="train the runs that are missing or short")
    parser.add_argument("--no-score", action="store_true", help="use the scores there are, take none")
    parser.add_argument("--weights", type=Path, help="the FID Inception's weights, for inception-768")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    spec = read_spec(given.spec)
    runs, store = given.runs or Path(spec.runs), open_store(given.store)
    if given.train:
        train_missing(spec, given.store, runs, given.device)
    rungs = {rung.name: found for rung in spec.rungs if (found := [each for seed in rung.seeds if (each := find(rung, seed, runs))])}
    if not rungs:
        sys.exit(f"No run of the ladder is in {runs} (RUNG-sSEED): --train makes them.")
    for attempts in [] if given.no_score else rungs.values():
        for each in attempts:
            score_missing(each, store, weights=given.weights)
    pictures = given.out.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    page.draw_curves(rungs, store, pictures / f"{given.out.stem}-curves.png")
    page.draw_faces(rungs, pictures / f"{given.out.stem}-faces.jpg")
    page.write_page(spec, rungs, store, out=given.out, weights=given.weights is not None, name=given.spec.name)
    if given.out == PAGE:
        page.write_digest(DOCS.parent / "README.md", page.digest(rungs, store))
    print(f"Wrote {given.out}.")


if __name__ == "__main__":
    main()
