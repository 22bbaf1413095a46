"""The README's way through mien, on a small scale: draw, train, stop, resume, sample, score, report, compare."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.main import app
from mien.runs import Run

NETS = ["--set", "model.generator.width=32", "--set", "model.discriminator.width=32", "--set", "train.batch=16", "--device", "cpu"]


def mien(*args) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of 400 drawn faces and two short runs on it."""
    place = tmp_path_factory.mktemp("e2e")
    mien("data", "synth", "--out", place / "faces", "--count", 400, "--size", 32)
    for seed in (0, 1):
        mien("train", place / "faces", "--preset", "demo", "--run", place / f"run{seed}", "--images", 480, "--seed", seed, *NETS)
    return place


def test_the_same_command_again_says_that_it_is_done(place):
    before = Run.open(place / "run0").path.joinpath("scalars.jsonl").read_bytes()
    mien("train", place / "faces", "--preset", "demo", "--run", place / "run0", "--images", 480, "--seed", 0, *NETS)
    assert Run.open(place / "run0").path.joinpath("scalars.jsonl").read_bytes() == before
    assert Run.open(place / "run0").status["state"] == "finished"


def test_longer_goes_on_where_it_was(place):
    mien("train", place / "faces", "--preset", "demo", "--run", place / "run1", "--images", 640, "--seed", 1, *NETS)
    run = Run.open(place / "run1")
    assert run.status["nimg"] == 640 and [event["kind"] for event in run.events()].count("resume") == 1


def test_samples_follow_what_was_asked(place):
    mien("sample", place / "run0", "--out", place / "folder", "--count", 12, "--where", "Male=1", "--seed", 5)
    rows = (place / "folder" / "attributes.csv").read_text().splitlines()
    male = rows[0].split(",").index("Male")
    assert len(rows) == 13 and all(float(row.split(",")[male]) == 1 for row in rows[1:])
    mien("sample", place / "run0", "--out", place / "grid.png", "--count", 8, "--grid")
    assert np.asarray(Image.open(place / "grid.png")).std() > 5


def test_scores_carry_their_protocol_and_reach_the_report(place):
    said = json.loads(mien("eval", place / "run0", "--data", place / "faces", "--split", "train", "--count", 300, "--metrics", "fd,kid",
                           "--features", "pixels", "--json"))  # fmt: skip
    assert {line["metric"] for line in said} >= {"fd-pixels", "kid-pixels"}
    for line in said:
        assert line["protocol"]["n_real"] == line["protocol"]["n_fake"] and line["protocol"]["split"] == "train"
        assert line["low"] is None or line["low"] <= line["value"] <= line["high"]
    mien("report", place / "run0")
    page = (place / "run0" / "report.html").read_text()
    assert "fd-pixels" in page and "http://" not in page.replace("http://www.w3.org", "")
    table = json.loads(mien("compare", place / "run0", place / "run1", "--json", "--out", place / "compare.html"))
    assert (place / "compare.html").is_file() and "train.seed" in json.dumps(table)


def test_runs_are_listed(place):
    names = {Path(row["run"]).name: row for row in json.loads(mien("runs", place, "--json"))}
    assert names["run0"]["state"] == "finished" and names.keys() >= {"run0", "run1"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [("eval.metrics=fdd", "Did you mean fd"), ("eval.features=fac", "face"), ("eval.split=test", "no test images")],
)
def test_scores_that_cannot_be_had_are_refused_before_the_run(place, setting, says):
    result = CliRunner().invoke(app, ["train", str(place / "faces"), "--preset", "demo", "--run", str(place / "never"), "--images", "480",
                                      "--set", "eval.every_kimg=1", "--set", setting, *NETS])  # fmt: skip
    assert result.exit_code == 2 and says in result.stderr
    assert not (place / "never").exists()


def test_snapshots_are_scored_while_the_run_goes(place):
    asked = ["eval.every_kimg=0.2", "eval.features=pixels", "eval.count=40", "eval.split=val", 'eval.metrics=["kid"]']
    settings = [part for setting in asked for part in ("--set", setting)]
    mien("train", place / "faces", "--preset", "demo", "--run", place / "scored", "--images", 480, *settings, *NETS)
    scores = Run.open(place / "scored").metrics()
    assert [score["nimg"] for score in scores] == [208, 400] and {score["metric"] for score in scores} == {"kid-pixels"}
