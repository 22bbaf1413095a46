"""Training from the page: a process of its own, watched through its run directory."""

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from mien.apps.cli.main import app as cli
from mien.apps.web import training
from mien.apps.web.places import Places
from mien.runs import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small store of drawn faces in it."""
    folder = tmp_path_factory.mktemp("work")
    result = CliRunner().invoke(cli, ["data", "synth", "--out", str(folder / "faces"), "--count", "96", "--size", "32"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def trainer(serve, place, monkeypatch):
    """An app in that folder. What it starts is ended with the test, however the test ends."""
    started, start = [], training._process
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(training, "_process", lambda words, log: (started.append(start(words, log)), started[-1])[1])
    yield serve(None, runs=place / "runs")
    for process in started:
        process.kill()
        process.wait()


def wanted(**changes):
    return {"name": "first", "store": "faces", "preset": "demo", "images": "2M", "seed": 1, **changes}


def until(app, run, state, since=None, patience_s=200):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        seen = app.told("watch", run=run)
        if seen["state"] in (state, "failed", "failed to start"):
            return seen
        time.sleep(0.3)
    raise AssertionError(f"{run} is still {seen['state']}")


def test_a_run_is_started_watched_turned_and_stopped(trainer, place):
    begun = trainer.told("train", wanted())
    assert begun["command"] == f"mien train faces --preset demo --run {place}/runs/first --images 2000000 --seed 1"
    assert "already" in trainer.refused("train", wanted())
    seen = until(trainer, "first", "running")
    assert seen["state"] == "running" and seen["total_nimg"] == 2_000_000
    assert trainer.told("runs")["runs"][0]["state"] == "running"
    turned = trainer.told("control", run="first", changes={"lr_g": 1e-5, "d_steps": 2}, over_nimg=1000)
    assert turned["command"] == f"mien control {place}/runs/first --set lr_g=1e-05 --set d_steps=2 --over 1000"
    trainer.told("stop", run="first")
    seen = until(trainer, "first", "stopped")
    assert seen["state"] == "stopped" and seen["resumable"] and seen["verdict"].startswith("Stopped")
    assert Run.open(place / "runs" / "first").checkpoints()
    assert [event["kind"] for event in seen["events"]][-1] == "start"
    assert trainer.told("watch", run="first", since=trainer.told("watch", run="first")["version"]) == {"unchanged": True}
    assert "not running" in trainer.refused("stop", run="first")
    assert "not running" in trainer.refused("control", run="first", changes={"lr_g": 0.01}, over_nimg=0)


def test_a_run_that_cannot_start_says_why(trainer, place, monkeypatch):
    monkeypatch.setattr(Places, "store", lambda self, name: place / "no-such-store")
    trainer.told("train", wanted(name="broken"))
    seen = until(trainer, "broken", "failed to start")
    assert seen["state"] == "failed to start" and "no-such-store" in seen["verdict"] and "Traceback" not in seen["verdict"]


@pytest.mark.parametrize("changes, words", [
    ({"name": "../escape"}, "letters, digits"), ({"name": "/tmp/x"}, "letters, digits"), ({"store": "/etc"}, "from the list"),
    ({"store": "../faces"}, "from the list"), ({"preset": "../demo.toml"}, "recipe"), ({"preset": None}, "recipe"),
    ({"images": "many"}, "images"), ({"images": ""}, "images"), ({"seed": -1}, "seed"), ({"images": "--device"}, "images"),
])  # fmt: skip
def test_what_cannot_be_started(trainer, place, monkeypatch, changes, words):
    monkeypatch.setattr(training, "_process", lambda *_: pytest.fail("a process was started"))
    assert words in trainer.refused("train", wanted(name="other") | changes).replace("count", "images")


def test_a_recorded_command_is_run_only_when_it_trains(trainer, place, monkeypatch):
    from reports.fake_run import make_run

    started = []
    monkeypatch.setattr(training, "_process", lambda words, log: started.append(list(words)))
    run = make_run(place / "runs" / "elsewhere", total=4_000, samples=1)
    config = run / "config.json"
    told = config.read_text()
    config.write_text(told.replace('"mien", "train"', '"mien", "stop"'))
    assert "does not say how" in trainer.refused("train", resume="elsewhere")
    config.write_text(told)
    trainer.told("train", resume="elsewhere")
    assert started == [["train", "data/celeba64", "--preset", "watched", "--images", "600k", "--seed", "0", "--run", str(run)]]


@pytest.mark.parametrize(("changes", "said"), [
    ({}, "Change a knob"), (None, "Change a knob"), ([1], "Change a knob"), ({"colour": 1}, "no knob named 'colour'"),
    ({"lr_g": "fast"}, "from 1e-08 to 1"), ({"lr_g": None}, "from 1e-08 to 1"), ({"lr_g": 0}, "from 1e-08 to 1"),
    ({"d_steps": 17}, "whole number from 1 to 16"), ({"d_steps": 1.5}, "whole number from 1 to 16"),
    ({"d_steps": 16, "r1_gamma": 5000.0}, "is not running"),
])  # fmt: skip
def test_knobs_are_turned_within_what_the_run_takes(app, changes, said):
    assert said in app.refused("control", run="one", changes=changes, over_nimg=0)
    assert not Run.open(app.told("start")["runs_folder"] + "/one").control_requests()


def test_the_app_begins_without_torch():
    watch = "import sys, mien.apps.web.app, mien.apps.web.training; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", watch], check=True)


def test_a_finished_run_is_shown_whole(app):
    seen = app.told("watch", run="one")
    assert seen["state"] == "finished" and seen["verdict"].startswith("Finished after 40,000") and "overpowers" in seen["verdict"]
    assert seen["curves"].count("<svg") > 8 and "<script" not in seen["curves"]
    assert {"diagnosis", "rollback", "decision"} <= {event["kind"] for event in seen["events"]}
    assert seen["events"][0]["kind"] == "finish" and seen["samples"] == [10_000, 20_000, 30_000, 40_000]


def test_runs_are_compared(app):
    told = app.told("compare", runs=["one", "two"])
    assert "<svg" in told["html"] and "fd-face" in told["markdown"] and {run["run"] for run in told["json"]["runs"]} == {"one", "two"}
    assert told["command"].startswith("mien compare ")
    for runs, words in ((["one"], "two runs"), ([], "two runs"), (None, "two runs"), (["one", "one"], "twice"),
                        (["one", "../two"], "no run"), (["one"] * 9, "at most")):  # fmt: skip
        assert words in app.refused("compare", runs=runs)


def test_words_from_a_run_are_never_markup(serve, tmp_path):
    from reports.fake_run import make_run

    bad = "<img src=x onerror=alert(1)>"
    run = Run(make_run(tmp_path / "runs" / "bad", total=4_000, samples=1))
    run.event(4_000, "diagnosis", bad, name=bad)
    run.append("scalars", 4_000, **{bad: 1.0, "loss_g": 1.0})
    seen = serve(None, runs=tmp_path / "runs").told("watch", run="bad")
    assert "<img" not in seen["curves"] and "onerror" in str(seen["events"][0])  # events are put into the page as text
