"""`mien control`: what it refuses, what it says, and that a run in another process obeys it."""

import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from engine.conftest import TINY, write_tiny_store
from mien.apps.cli.main import app
from mien.runs import Run


def control(*args):
    return CliRunner().invoke(app, ["control", *map(str, args)])


@pytest.fixture
def run(tmp_path):
    """A run directory as `mien train` leaves it when it was stopped."""
    made = Run.create(tmp_path / "run", config={"config": {}}, architecture={})
    made.write_status(state="stopped", nimg=48, total_nimg=96)
    return made


def test_it_says_what_and_when_and_lists_it(run):
    result = control(run.path, "--set", "lr_g=1e-4", "--set", "clip_norm=none", "--over", "200k")
    assert result.exit_code == 0 and "lr_g 0.0001, clip_norm None over 200,000 images, when it goes on (it is stopped)" in result.stdout
    [(_, request)] = run.control_requests()
    assert request == {"changes": {"lr_g": 1e-4, "clip_norm": None}, "over_nimg": 200_000}
    assert "lr_g 0.0001, clip_norm None over 200,000 images: not applied yet" in control(run.path).stdout
    assert json.loads(control(run.path, "--json").stdout) == [request]
    answer = json.loads(control(run.path, "--set", "lr_d=recipe", "--json").stdout)
    assert answer == {"changes": {"lr_d": "recipe"}, "over_nimg": 0, "state": "stopped"} and len(run.control_requests()) == 2


def test_nothing_asked_for_so_far(run):
    assert "Nothing was changed by hand" in control(run.path).stdout and json.loads(control(run.path, "--json").stdout) == []


@pytest.mark.parametrize("args, words", [
    (["--set", "lrg=1"], "Did you mean lr_g?"),
    (["--set", "lr_g=fast"], "lr_g=fast: write a number from 1e-08 to 1."),
    (["--set", "d_steps=99"], "write a whole number from 1 to 16"),
    (["--set", "lr_g"], "write lr_g=VALUE"),
    (["--set", "lr_g=1e-4", "--over", "soon"], "'soon' is not a count"),
    (["--set", "lr_g=1e-4", "--over", "-5k"], "--over -5k: write a count of images"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_asks_for_nothing(run, args, words):
    result = control(run.path, *args)
    assert result.exit_code == 2 and result.stdout == "" and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert run.control_requests() == []


def test_a_run_that_is_not_there_and_one_that_has_finished(run, tmp_path):
    assert "No such run directory" in control(tmp_path / "none", "--set", "lr_g=1").stderr
    assert "is not a run directory" in control(tmp_path, "--set", "lr_g=1").stderr
    run.write_status(state="finished", nimg=96, total_nimg=96)
    result = control(run.path, "--set", "lr_g=1e-4")
    assert result.exit_code == 2 and "has finished: there is nothing left to change" in result.stderr and run.control_requests() == []


def test_a_live_run_obeys_from_a_second_process(tmp_path):
    """The knob glides in scalars.jsonl, the event is there, and `mien control RUN` says at which image it was met."""
    data = write_tiny_store(tmp_path / "data")
    settings = [*TINY, "train.tick_kimg=0.016", "train.checkpoint_kimg=50", "train.snapshot_kimg=50", "sample.every_kimg=0",
                "schedule.lr=constant"]  # fmt: skip
    train = [sys.executable, "-m", "mien", "train", data, "--preset", "seed0", "--device", "cpu", "--run", tmp_path / "run"]
    train += ["--images", "1M"]
    train += [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen([*map(str, train)], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert "Training" in process.stderr.readline()
        run = Run.open(tmp_path / "run")
        wait_for(process, run.scalars)
        result = control(run.path, "--set", "lr_g=1e-3", "--over", "64")
        assert result.exit_code == 0 and "lr_g 0.001 over 64 images, at its next step." in result.stdout
        wait_for(process, lambda: run.scalars()[-1]["lr_g"] == 1e-3)
    finally:
        process.terminate()
        process.communicate(timeout=120)
    rates = list(dict.fromkeys(record["lr_g"] for record in run.scalars()))
    assert rates[0] == 2e-4 and rates[-1] == 1e-3 and len(rates) > 3 and rates == sorted(rates)
    [told] = [event for event in run.events() if event["kind"] == "control"]
    assert f"lr_g 0.001 over 64 images: from {told['nimg']:,} images on" in control(run.path).stdout


def wait_for(process, what):
    for _ in range(3000):
        if what():
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("it never came")
