"""`mien ablate` and `mien mix` from the outside: what they write, and one line for each mistake."""

import csv
import json

import pytest
from PIL import Image

from mien.apps.cli import ablate as command
from mien.apps.cli.main import app
from mien.explore.edit import Edit


def mien(capsys, *args):
    """(exit code, stdout, stderr) of a command line."""
    with pytest.raises(SystemExit) as end:
        app([str(arg) for arg in args])
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def few(monkeypatch):
    """Fewer faces: the numbers mean nothing for an untrained model anyway."""
    for name in ("RANK_FACES", "CHOICE_FACES", "MEASURE_FACES"):
        monkeypatch.setattr(command, name, 8)


def test_ablate_writes_picture_channels_effects_and_an_edit_that_fits(few, tiny_snapshot, tmp_path, capsys):
    out = tmp_path / "no-eyes"
    what = ("--target", "eyes", "--layer", "8x8", "--channels", "3,1", "--count", 3)
    code, said, _ = mien(capsys, "ablate", tiny_snapshot, *what, "--out", out, "--json")
    assert code == 0
    found = json.loads(said)
    assert found == json.loads((out / "ablation.json").read_text()) and found["channels"] == [1, 3] and found["layer"] == "8x8"
    assert set(found["fell"]) == {"eyes", "mouth", "hair"} and "Smiling" in found["logits"] and -1 <= found["identity"] <= 1
    with open(out / "channels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["channel"]) for row in rows) == list(range(16))
    assert {row["channel"] for row in rows if row["used"] == "1"} == {"1", "3"}
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    edit = Edit.from_json((out / "edit.json").read_text())
    assert edit.model == json.loads(tiny_snapshot.with_suffix(".json").read_text())["sha256"] and edit.steps[0].channels == (1, 3)
    with Image.open(out / "before-after.png") as picture:
        assert picture.height == 2 * 130 + 2
    assert [each.name for each in tmp_path.iterdir()] == ["no-eyes"]


@pytest.mark.parametrize(("args", "says"), [
    (["--target", "moth"], "Did you mean mouth"),
    (["--layer", "16"], "Did you mean 16x16"),
    (["--action", "silent"], "Did you mean silence"),
    (["--channels", "3"], "name it with --layer"),
    (["--channels", "3,x", "--layer", "8x8"], "write channel numbers"),
    (["--channels", "99", "--layer", "8x8"], "channels 0 to 15, not 99"),
    (["--value", "2"], "goes with --action scale or insert"),
    (["--action", "insert", "--value", "nan"], "from -10000 to 10000"),
    (["--count", "99"], "at most 32 faces"),
    (["--at", "moth"], "Did you mean mouth"),
    (["--where", "Hat=1"], "No attribute 'Hat'"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(few, tiny_snapshot, tmp_path, capsys, args, says):
    code, _, wrong = mien(capsys, "ablate", tiny_snapshot, "--out", tmp_path / "out", *args)
    assert code == 2 and says in wrong and wrong.strip().splitlines()[-1].startswith("mien: ") and not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(tiny_snapshot, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    for more, says in (([], "is there already"), (["--force"], "holds more than an ablation")):
        code, _, wrong = mien(capsys, "ablate", tiny_snapshot, "--out", tmp_path, *more)
        assert code == 2 and says in wrong and (tmp_path / "mine.txt").read_text() == "mine"


def test_mix_draws_a_table(tiny_snapshot, tmp_path, capsys):
    out = tmp_path / "mix.png"
    code, said, _ = mien(capsys, "mix", tiny_snapshot, "--content", "1,2,3", "--style", "4,5", "--layers", "8x8", "--out", out)
    assert code == 0 and "3 contents by 2 styles" in said
    with Image.open(out) as picture:
        assert picture.height == 4 * 34 + 2  # the styles and three contents
    assert mien(capsys, "mix", tiny_snapshot, "--part", "mouth", "--mode", "whole", "--out", out)[0] == 0


@pytest.mark.parametrize(("args", "says"), [
    (["--out", "mix.jpg"], "Pictures are written as .png"),
    (["--out", "mix.png", "--content", "1,b"], "write numbers of faces"),
    (["--out", "mix.png", "--layers", "corse"], "Did you mean coarse"),
    (["--out", "mix.png", "--mode", "hole"], "Did you mean whole"),
    (["--out", "mix.png", "--part", "moth"], "Did you mean mouth"),
    (["--out", "mix.png", "--strength", "nan"], "outside 0..2"),
])  # fmt: skip
def test_a_mistake_in_mix_is_one_line(tiny_snapshot, tmp_path, capsys, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    code, _, wrong = mien(capsys, "mix", tiny_snapshot, *args)
    assert code == 2 and says in wrong and not list(tmp_path.iterdir())
