"""The command line's frame: help, exit codes, one-line errors, and the commands sample, presets, models, runs, stop and doctor."""

import csv
import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from mien import __version__
from mien.apps.cli import console, doctor, main
from mien.apps.cli.main import COMMANDS, PLACES, app
from mien.apps.cli.run import describe
from mien.runs import Run, write_json

HEAVY = ("torch", "numpy", "pandas", "pydantic", "rich", "matplotlib", "PIL")


def mien(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def fails(*args):
    """The one line on stderr of a command that must fail with exit code 2 and say nothing on stdout."""
    result = mien(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mien: "), result.stderr
    return lines[0]


def python(*args, **env):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **env})


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    code = f"import sys\nfrom mien.apps.cli.main import app\ntry: app(['--help'])\nexcept SystemExit: pass\n" \
           f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"  # fmt: skip
    result = python("-c", code)
    assert result.stderr.strip() == "[]", result.stderr
    assert "sample" in result.stdout


def test_a_command_loads_only_its_own_module():
    code = "import sys\nfrom mien.apps.cli.main import app\ntry: app(['presets', '--help'])\nexcept SystemExit: pass\n" \
           "print(sorted(name for name in sys.modules if name.startswith('mien.apps.cli.')))"  # fmt: skip
    assert python("-c", code).stdout.splitlines()[-1] == "['mien.apps.cli.console', 'mien.apps.cli.main', 'mien.apps.cli.presets']"


def test_help_lists_every_command_in_its_section():
    text = mien("--help").stdout
    assert mien().stdout == text and text.startswith("Usage: mien COMMAND")
    for section, commands in COMMANDS.items():
        assert f"\n{section}\n" in text
        for name in commands:
            assert f"\n  {name} " in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", PLACES)
def test_each_help_begins_with_a_sentence_and_an_example(name):
    result = mien(name, "--help")
    assert result.exit_code == 0 and f"Usage: mien {name}" in result.stdout
    command = main._build(name)
    for path, each in [(name, command), *((f"{name} {inner}", c) for inner, c in getattr(command, "commands", {}).items())]:
        first, *rest = each.help.split("\n\n")
        assert first.strip().endswith(".") and len(first.strip().split(". ")) <= 2, path
        if not getattr(each, "commands", None):
            assert any(line.strip().startswith(f"mien {path} ") for part in rest for line in part.splitlines()), f"{path} shows no example"
        assert all(getattr(param, "help", None) for param in each.params), f"{path}: an option without a word of help"


def test_version():
    assert mien("--version").stdout == f"mien {__version__}\n"
    assert python("-m", "mien", "--version").stdout == f"mien {__version__}\n"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    (["sampel"], "No command is named sampel. Did you mean sample?"),
    (["--verbose"], "No such option: --verbose"),
    (["sample", "x", "--sed", "3"], "--sed. Did you mean --seed? 'mien sample --help'"),
    (["sample"], "Missing argument 'MODEL'"),
    (["sample", "x"], "Missing option '--out'"),
    (["sample", "x", "--out", "a.png", "--seed", "one"], "Invalid value for '--seed'"),
    (["sample", "x", "--out", "a.png", "--seed", "-1"], "Invalid value for '--seed'"),
    (["sample", "x", "--out", "a.png", "--count", "3x"], "'3x' is not a count"),
    (["sample", "x", "--out", "a.png", "--count", "0"], "at least one"),
    (["sample", "x", "--out", "faces", "--grid"], "ends in .png"),
    (["sample", "no-such-model", "--out", "a.png"], "No model or run is named no-such-model"),
    (["sample", "x", "--out", "a.png", "--device", "tpu"], "tpu"),
    (["presets", "seed00"], "Did you mean seed0?"),
    (["presets", "seed0", "--set", "optimizer.lrg=1"], "Did you mean optimizer.lr_g?"),
    (["presets", "seed0", "--set", "train.batch=-1"], "train.batch"),
    (["presets", "nowhere.toml"], "No such preset file"),
    (["runs", "nowhere"], "No such folder: nowhere"),
    (["stop", "nowhere"], "No such run directory"),
    (["doctor", "--model", "sed0"], "Did you mean seed0?"),
    (["doctor", "--set", "train.batch=2"], "--model PRESET"),
    (["doctor", "--model", "seed0", "--size", "65"], "65"),
    (["train", "nowhere"], "nowhere"),
    (["data", "prepar"], "Did you mean 'prepare'?"),
    (["data", "inspect", "nowhere"], "nowhere"),
    (["judge", "nowhere"], "nowhere"),
    (["report", "nowhere"], "nowhere"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails(*args)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("args, words", [
    (["sample", "x", "--out", "a.png", "--where", "Male=0", "--where=Smiling=1"], "--where is given twice: write --where Male=0,Smiling=1"),
    (["data", "prepare", "x", "--attributes", "Male", "--out", "y", "--attributes", "Young"], "write --attributes Male,Young."),
    (["presets", "demo", "--set", "a=1", "--set", "b=2"], "unknown key a"),  # may be repeated
    (["sample", "nowhere", "--out", "a.png", "--force", "--force"], "No model or run is named nowhere"),  # drops nothing
    (["sample", "nowhere", "--device", "--device", "--out", "a.png"], "--device"),  # an option's value
    (["report", "--out", "x.html", "--", "--out"], "No such run directory: --out"),
])  # fmt: skip
def test_an_option_that_cannot_be_repeated_is_not_silently_the_last(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails(*args)


def raising(monkeypatch, error):
    def command():
        """Fail."""
        raise error

    monkeypatch.setitem(PLACES, "fail", "fail:command")
    monkeypatch.setattr(main, "_load", lambda place: command)


def test_a_fault_of_ours_is_one_line_and_a_log(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(monkeypatch, RuntimeError("the lamp went out\nand more"))
    result = mien("fail")
    assert result.exit_code == 1
    assert "unexpected RuntimeError: the lamp went out (" in result.stderr and len(result.stderr.splitlines()) == 1
    (log,) = tmp_path.iterdir()
    assert str(log) in result.stderr and "in command" in log.read_text()
    monkeypatch.setenv("MIEN_DEBUG", "1")
    assert "in command" in mien("fail").stderr


def test_ctrl_c_is_130_with_a_word(monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    result = mien("fail")
    assert (result.exit_code, result.stderr) == (130, "mien: interrupted.\n")


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "No space left on device: a/b"), (errno.EACCES, "Permission denied: a/b")])
def test_trouble_with_the_disk_is_one_line(monkeypatch, number, words):
    raising(monkeypatch, OSError(number, os.strerror(number), "a/b"))
    assert words in fails("fail")


def test_a_command_may_choose_its_exit_code(monkeypatch):
    raising(monkeypatch, typer.Exit(3))
    assert mien("fail").exit_code == 3


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen([sys.executable, "-m", "mien", "presets", "seed0", "--all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as `head` does, before anything is written
    assert process.stderr.read() == b""
    process.wait(timeout=60)


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sample_writes_a_folder_with_its_table(tiny_snapshot, tmp_path):
    out = tmp_path / "new" / "faces"
    assert mien("sample", tiny_snapshot, "--out", out, "--count", 5, "--seed", 3, "--where", "Male=1").exit_code == 0
    rows = list(csv.DictReader((out / "attributes.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [f"{n:06d}.png" for n in range(3, 8)] == sorted(path.name for path in out.glob("*.png"))
    assert all((row["seed"], row["Male"]) == (str(int(row["name"][:6])), "1") for row in rows)
    assert Image.open(out / "000003.png").size == (32, 32)
    assert len(list(out.parent.iterdir())) == 1  # no temporary left


def test_the_same_face_whatever_is_asked_for_beside_it(tiny_snapshot, tmp_path):
    for name, options in [("many", ["--count", 70]), ("one", ["--count", 1, "--seed", 66])]:
        assert mien("sample", tiny_snapshot, "--out", tmp_path / name, *options).exit_code == 0
    face = (tmp_path / "one" / "000066.png").read_bytes()
    assert face == (tmp_path / "many" / "000066.png").read_bytes() != (tmp_path / "many" / "000065.png").read_bytes()


def test_truncation_makes_faces_alike(tiny_snapshot, tmp_path):
    spread = []
    for psi in (1.0, 0.05):  # an untrained net saturates: only the last stretch is calm
        out = tmp_path / str(psi)
        assert mien("sample", tiny_snapshot, "--out", out, "--count", 8, "--where", "Male=1,Smiling=0", "--truncation", psi).exit_code == 0
        spread.append(np.stack([np.asarray(Image.open(path), float) for path in sorted(out.glob("*.png"))]).std(axis=0).mean())
    assert spread[1] < 0.6 * spread[0]
    assert "outside 0..2" in fails("sample", tiny_snapshot, "--out", tmp_path / "x", "--truncation", 9)
    assert not (tmp_path / "x").exists()


def test_a_picture_is_one_grid(tiny_snapshot, tmp_path):
    assert mien("sample", tiny_snapshot, "--out", tmp_path / "a.png", "--count", 9).exit_code == 0
    assert Image.open(tmp_path / "a.png").size == (3 * 34 + 2, 3 * 34 + 2)
    assert mien("sample", tiny_snapshot, "--out", tmp_path / "b.png", "--count", 12, "--grid").exit_code == 0
    grid = Image.open(tmp_path / "b.png")
    assert grid.height == 4 * 34 + 2 and grid.width > 3 * 34 + 2  # four combinations, captions beside them
    mien("sample", tiny_snapshot, "--out", tmp_path / "c.png", "--count", 12, "--grid", "--where", "Male=0")
    assert Image.open(tmp_path / "c.png").height == 2 * 34 + 2
    mien("sample", tiny_snapshot, "--out", tmp_path / "d.png", "--count", 9, "--grid", "--where", "Male=0,Smiling=1")
    assert Image.open(tmp_path / "d.png").size == (3 * 34 + 2, 3 * 34 + 2)  # one combination: no row of nine


def test_an_existing_folder_is_refused_unless_forced(tiny_snapshot, tmp_path):
    out = tmp_path / "faces"
    assert mien("sample", tiny_snapshot, "--out", out, "--count", 3).exit_code == 0
    assert "--force" in fails("sample", tiny_snapshot, "--out", out, "--count", 1)
    assert mien("sample", tiny_snapshot, "--out", out, "--count", 1, "--force").exit_code == 0
    assert len(list(out.glob("*.png"))) == 1
    (out / "thesis.txt").write_text("years of work")
    assert "more than samples" in fails("sample", tiny_snapshot, "--out", out, "--count", 1, "--force")
    assert (out / "thesis.txt").exists()
    assert "is a folder" in fails("sample", tiny_snapshot, "--out", folder_named_png(tmp_path), "--count", 1)


def folder_named_png(parent):
    (parent / "x.png").mkdir()
    return parent / "x.png"


def test_sampling_that_fails_leaves_nothing(tiny_snapshot, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    for out in ("faces", "faces.png"):
        result = mien("sample", tiny_snapshot, "--out", tmp_path / out, "--count", 3)
        assert result.exit_code == 2 and "No space left" in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- presets and models -----------------------------------------------------------------------------------------------


def test_presets_lists_and_explains():
    listed = json.loads(mien("presets", "--json").stdout)
    assert {"seed0", "seed1", "seed2", "seed3", "seed4"} <= {row["name"] for row in listed} and all(row["description"] for row in listed)
    text = mien("presets").stdout
    assert all(row["name"] in text for row in listed)
    shown = json.loads(mien("presets", "seed0", "--set", "train.batch=8", "--json").stdout)["values"]
    assert shown["train.batch"] == {"value": 8, "from": "command line"}
    assert shown["loss.name"] == {"value": "hinge", "from": "preset seed0"}
    assert shown["ema.ramp"]["from"] == "default"
    brief, full = mien("presets", "seed0").stdout, mien("presets", "seed0", "--all").stdout
    assert "loss.name" in brief and "ema.ramp" not in brief and "ema.ramp" in full


def test_models_lists_what_came_with_the_package():
    listed = json.loads(mien("models", "--json").stdout)
    assert all(Path(row["path"]).is_file() and row["size"] for row in listed)
    text = mien("models").stdout
    assert all(row["name"] in text for row in listed) and text.strip()


# --- runs and stop ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "runs" / "deep" / "one", config={"preset": "demo"}, architecture={})
    run.write_status(state="running", nimg=1000, total_nimg=4000, images_per_s=50.0)
    return run


def test_a_fresh_folder_has_no_runs_yet_and_that_is_no_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mien("runs").exit_code == 0 and mien("runs").stdout.startswith("No runs here yet")
    assert json.loads(mien("runs", "--json").stdout) == []


def test_a_page_is_written_over_pages_only(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    assert "should end in .html" in fails("report", run.path, "--out", "notes.txt")
    assert Path("notes.txt").read_text() == "mine"


def test_runs_shows_state_progress_and_best_score(run, tmp_path):
    folder = tmp_path / "runs"
    for nimg, value in ((1000, 30.0), (2000, 20.0), (3000, 25.0)):
        (run.path / "snapshots" / f"{nimg // 1000:06d}kimg.safetensors").touch()
        run.append("metrics", nimg, metric="fd-face", value=value, low=value - 1, high=value + 1, protocol={})
    (folder / "config.json").write_text('{"format": "of something else"}')  # not a run: passed over
    (row,) = json.loads(mien("runs", folder, "--json").stdout)
    assert (row["state"], row["nimg"], row["total_nimg"], row["preset"]) == ("running", 1000, 4000, "demo")
    assert row["best"] == {"metric": "fd-face", "value": 20.0, "low": 19.0, "high": 21.0, "nimg": 2000}
    text = mien("runs", folder).stdout
    assert "fd-face 20.00 at 2,000" in text and "1 min 00 s" in text
    run.append("metrics", 2000, metric="fd-face", value=5.0, protocol={"split": "test"})
    assert describe(run)["best"]["value"] == 20.0


def test_a_run_whose_process_is_gone_is_interrupted(run, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write_json(run.path / "status.json", {**run.status, "pid": process.pid})
    assert "interrupted" in mien("runs", tmp_path / "runs").stdout
    assert "is not running (it is interrupted)" in fails("stop", run.path)


def test_stop_asks_and_waits_until_the_run_has_saved(run):
    def loop():
        request = run.path / "control" / "stop"
        deadline = time.monotonic() + 20
        while not request.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        request.unlink()
        run.write_status(state="stopped", nimg=1064, total_nimg=4000)

    thread = threading.Thread(target=loop)
    thread.start()
    result = mien("stop", run.path)
    thread.join()
    assert result.exit_code == 0 and "stopped at 1,064 images" in result.stdout


def test_stop_does_not_wait_for_ever(run):
    result = mien("stop", run.path, "--wait", 0)
    assert result.exit_code == 0 and "asked to stop" in result.stdout and (run.path / "control" / "stop").exists()


def test_an_empty_folder_has_no_runs(tmp_path):
    assert mien("runs", tmp_path).stdout.startswith("No runs in")
    assert json.loads(mien("runs", tmp_path, "--json").stdout) == []


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_tells_the_machine(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["torch>=2.11", 'no-such-package>=1; extra == "hub"', 'pytest; extra == "dev"'])
    found = json.loads(mien("doctor", "--json").stdout)
    assert found["machine"]["mien"] == __version__ and found["machine"]["cores"] >= 1 and found["machine"]["disk_free_gb"] > 0
    torch_row, missing = found["packages"]
    assert torch_row["version"] and torch_row["install"] is None
    assert missing == {"name": "no-such-package", "extra": "hub", "version": None, "install": "pip install 'mien[hub]'"}
    assert "pip install 'mien[hub]'" in mien("doctor").stdout


def test_doctor_shows_networks_and_predicts_the_cost(capsys):
    small = ["--set", "model.generator.width=16", "--set", "model.discriminator.width=16", "--set", "train.batch=4"]
    found = json.loads(mien("doctor", "--model", "seed0", "--size", 32, "--device", "cpu", *small, "--json").stdout)
    generator, discriminator = found["networks"]["generator"], found["networks"]["discriminator"]
    assert generator[-1]["output"] == [3, 32, 32] and sum(row["macs"] for row in generator) > 0 < len(discriminator)
    cost = found["cost"]
    assert cost["images_per_s"] > 0 and cost["hours"] == pytest.approx(cost["images"] / cost["images_per_s"] / 3600)
    assert cost["memory_mb"] > 50 and cost["batch"] == 4 and cost["measured_steps"] >= 1
    doctor._show_networks(found["networks"])
    doctor._show_cost(cost)
    text = capsys.readouterr().out
    assert "3 x 32 x 32" in text and "estimated from" in text


# --- console ----------------------------------------------------------------------------------------------------------


def test_durations_read_well():
    spans = [0.2, 59, 65, 7_500, 90_000, 300_000]
    assert [console.duration(s) for s in spans] == ["0 s", "59 s", "1 min 05 s", "2 h 05 min", "1 d 01 h", "3 d 11 h"]


def test_progress_writes_few_plain_lines_where_there_is_no_terminal(capsys):
    with console.progress("Drawing", 1000, done=500) as advance:
        for _ in range(500):
            advance(1)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("Drawing: 1,000 of 1,000 images, ")


def test_tables_align(capsys):
    console.print_table(["name", "count"], [["a", 1], ["long", 20_000], ["none", None]])
    assert capsys.readouterr().out.splitlines() == ["name   count", "a          1", "long  20,000", "none       -"]


def test_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"value": float("nan")})
