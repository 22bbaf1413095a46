"""The run directory survives what happens to files."""

import json
import os
import subprocess
import sys

import pytest

from mien.errors import UserError
from mien.runs import Run, kimg_name, read_jsonl, write_json


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", config={"preset": "seed0"}, architecture={})


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="No such run"):
        Run.open(tmp_path / "absent")
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "mien-run/9"}')
    with pytest.raises(UserError, match="mien-run/9"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Run.open(tmp_path)


def test_a_line_cut_by_a_crash_costs_that_line_only(run):
    run.append("scalars", 10, loss_d=1.0)
    with open(run.path / "scalars.jsonl", "a") as file:
        file.write('{"nimg": 20, "loss')
    run.append("scalars", 30, loss_d=3.0)
    assert [record["nimg"] for record in run.scalars()] == [10, 30]


def test_numbers_that_json_cannot_hold_become_null(run):
    run.append("metrics", 1, value=float("nan"), details={"a": [float("inf"), 1.5]})
    line = (run.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["details"] == {"a": [None, 1.5]}


def test_rewind_drops_what_will_be_said_again(run):
    for nimg in (10, 20, 30):
        run.append("scalars", nimg)
    run.rewind(20)
    assert [record["nimg"] for record in run.scalars()] == [10, 20]


def test_a_running_status_of_a_dead_process_is_interrupted(run):
    run.write_status(state="running", nimg=1, total_nimg=2)
    assert run.status["state"] == "running"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    write_json(run.path / "status.json", {**run.status, "pid": int(dead.stdout)})
    assert run.status["state"] == "interrupted"
    write_json(run.path / "status.json", {**run.status, "state": "running", "pid": os.getpid(), "updated_s": 0})
    assert run.status["state"] == "interrupted"  # the number came round again


def test_names_by_thousands_sort_and_read_back(run):
    counts = [0, 64, 1000, 1024, 320_000, 1_000_064]
    for nimg in counts:
        (run.path / "samples" / f"{kimg_name(nimg)}.png").touch()
    (run.path / "samples" / "mosaic.png").touch()
    assert [nimg for nimg, _ in run.samples()] == counts


def test_best_snapshot_is_the_least_distance_of_the_newest_protocol(run):
    assert run.best_snapshot() is None
    for nimg in (1000, 2000, 3000):
        (run.path / "snapshots" / f"{kimg_name(nimg)}.safetensors").touch()
    assert run.best_snapshot().name == "000003kimg.safetensors"
    for nimg, value, count in ((1000, 5.0, 100), (1000, 9.0, 2000), (2000, 7.0, 2000), (3000, 8.0, 2000)):
        run.append("metrics", nimg, metric="fd-face", value=value, protocol={"n_fake": count})
    run.append("metrics", 3000, metric="kid-face", value=-1.0, protocol={})
    assert run.best_snapshot().name == "000002kimg.safetensors"


def test_the_best_is_chosen_by_the_protocol_that_tells_most_snapshots_apart_and_never_by_the_test_split(run):
    for nimg in (1000, 2000, 3000):
        (run.path / "snapshots" / f"{kimg_name(nimg)}.safetensors").touch()
    run.append("metrics", 1000, metric="fd-face", value=1.0, protocol={"split": "test"})
    assert run.best_snapshot().name == "000003kimg.safetensors"
    for nimg, value in ((1000, 9.0), (2000, 7.0), (3000, 8.0)):
        run.append("metrics", nimg, metric="fd-face", value=value, protocol={"split": "val"})
    run.append("metrics", 3000, metric="fd-inception-768", value=0.7, protocol={"split": "val"})  # of the last one alone
    for nimg in (1000, 2000, 3000):
        run.append("metrics", nimg, metric="fd-face", value=float(nimg), protocol={"split": "test"})
    assert run.best_snapshot().name == "000002kimg.safetensors"


def test_scores_of_another_precision_are_not_ranked_with_the_rest(run):
    """A protocol that names none is of before there was a choice: fp32."""
    for nimg in (1000, 2000, 3000):
        (run.path / "snapshots" / f"{kimg_name(nimg)}.safetensors").touch()
    for nimg, value, said in ((1000, 9.0, {}), (2000, 7.0, {"precision": "fp32"}), (3000, 8.0, {}), (3000, 1.0, {"precision": "bf16"})):
        run.append("metrics", nimg, metric="fd-face", value=value, protocol={"split": "val", **said})
    assert run.best_snapshot().name == "000002kimg.safetensors"


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


LOCKER = """
import sys
from mien.runs import Run
run = Run(sys.argv[1])
run.lock()
run.write_status(state="running", nimg=1, total_nimg=2)
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(run):
    """The lock of a killed process is free at once, whatever its status file and a reused process number say."""
    holder = subprocess.Popen([sys.executable, "-c", LOCKER, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    assert run.status["state"] == "running"
    with pytest.raises(UserError, match=f"is being trained by process {holder.pid}; 'mien stop"):
        run.lock()
    holder.kill()
    holder.communicate()
    write_json(run.path / "status.json", {**run.status, "state": "running", "pid": os.getppid()})  # a living process, but not the holder
    assert run.status["state"] == "interrupted"
    run.lock()
    run.write_status(state="running")
    assert Run(run.path).status["state"] == "running"
    run.unlock()
    assert Run(run.path).status["state"] == "interrupted"


def test_a_status_that_is_no_object(run):
    (run.path / "status.json").write_text("[]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        _ = run.status


def test_the_best_score_is_the_line_of_the_best_snapshot(run):
    for nimg in (1000, 2000):
        (run.path / "snapshots" / f"{kimg_name(nimg)}.safetensors").touch()
    assert run.best_score() is None
    for nimg, value, split in ((1000, 12.0, "val"), (2000, 10.0, "val"), (3000, 1.0, "val"), (2000, 5.0, "test")):
        run.append("metrics", nimg, metric="fd-face", value=value, protocol={"split": split})
    assert run.best_score()["value"] == 10.0 and run.best_snapshot().name == "000002kimg.safetensors"
