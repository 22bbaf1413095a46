"""Does a trained model help with a few hundred faces of one's own? `python docs/make_finetune.py STORE [--where A=1] [--limit 500]`.

Takes a group of STORE's faces (500 training images; all others are held out), trains on them in two ways, equally long: from a model with
FreezeD (`--from MODEL --preset finetune64`), and from scratch with the same networks (stable64-cpu's recipe). Scores both, and the model
as it came, against the held-out faces of the group, and prints a Markdown table. A score that is there is not taken again.

The bundled model was trained on STORE's training faces, the group's among them, also those that are held out here. `--model RUN`, trained
on `mien data subset STORE --where Eyeglasses=0`, has never seen the group.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from mien.data.store import open_store
from mien.explore.load import find_snapshot
from mien.reports import findings
from mien.reports.compare import markdown_table
from mien.reports.page import number
from mien.runs import Run, read_json

METRICS = ("fd-face", "kid-face", "precision-face", "recall-face", "memorization")


def mien(*words: object) -> list[dict]:
    """Run a mien command; the JSON it printed, where it was asked for."""
    command = ["mien", *map(str, words)]
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    wants_json = "--json" in command
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE if wants_json else sys.stderr, text=True)
    return json.loads(done.stdout) if wants_json else []


def widths(model: str) -> list[str]:
    """The networks of `model`, as --set words."""
    weights = find_snapshot(model)
    said = []
    for role, suffix in (("generator", ".json"), ("discriminator", ".critic.json")):
        options = (read_json(weights.with_suffix(suffix)) or {}).get("options", {})
        said += [word for key, value in options.items() for word in ("--set", f"model.{role}.{key}={json.dumps(value)}")]
    return said


def scores(run: Path, store: Path) -> dict[str, findings.Score]:
    """Of the run's last snapshot; taken when they are not there."""
    last, model = Run.open(run).snapshots()[-1]
    digest = open_store(store).digest
    for _ in range(2):
        found = {score.metric: score for score in findings.scores(Run.open(run))
                 if score.nimg == last and score.protocol.get("store") == digest and score.protocol.get("split") == "val"
                 and "precision" not in score.protocol}  # fmt: skip
        if set(METRICS) <= found.keys():
            break
        mien("eval", model, "--data", store, "--split", "val", "--metrics", "fd,kid,prdc,memorization")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tuning against training from scratch, on a few hundred faces.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--where", default="Eyeglasses=1")
    parser.add_argument("--limit", default="500")
    parser.add_argument("--model", default="celeba64")
    parser.add_argument("--images", default="40k")
    parser.add_argument("--seeds", default="0", help="0,1,2")
    parser.add_argument("--attributes", default="Male,Smiling")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    given = parser.parse_args()
    group = f"{given.store.resolve().name}-{given.where.replace('=', '').replace(',', '-').lower()}-{given.limit}"
    small = given.out / group
    if not (small / "manifest.json").is_file():
        kept = ("--where", given.where, "--limit", given.limit, "--attributes", given.attributes, "--rest-held-out")
        mien("data", "subset", given.store, *kept, "--out", small)
    rows, held_out = [], len(open_store(small).indices("val"))
    pace = ("--set", "train.snapshot_kimg=5", "--set", "ema.half_life_kimg=5")  # as finetune64's
    ways = {
        f"from {given.model}": ["--from", given.model, "--preset", "finetune64"],
        "from scratch": ["--preset", "stable64-cpu", *widths(given.model), *pace],
    }
    for way, words in ways.items():
        for seed in given.seeds.split(","):
            run = given.out / f"{group}-{way.replace(' ', '-').replace('/', '-')}-s{seed}"
            if not (run / "snapshots").is_dir() or Run.open(run).status.get("state") != "finished":
                mien("train", small, *words, "--images", given.images, "--seed", seed, "--run", run)
            found = scores(run, small)
            rows.append([f"{way}, seed {seed}", *(told(found.get(metric)) for metric in METRICS)])
    came = {score["metric"]: score for score in
            mien("eval", given.model, "--data", small, "--split", "val", "--metrics", "fd,kid,prdc,memorization", "--json")}  # fmt: skip
    rows.append([f"{given.model} as it came", *(number(came[metric]["value"]) for metric in METRICS)])
    rows.append(["real against real", *(number(came[metric]["floor"]) for metric in METRICS)])
    print(f"{given.limit} training images of {given.where}, {given.images} images shown, {held_out} held-out faces:\n")
    print(markdown_table(["", *METRICS], rows))


def told(score: findings.Score | None) -> str:
    if score is None:
        return "–"
    span = f" ({number(score.low)} to {number(score.high)})" if score.low is not None and score.high is not None else ""
    return number(score.value) + span


if __name__ == "__main__":
    main()
