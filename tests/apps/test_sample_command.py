"""`mien sample`: what it says, what it refuses, the best of K. (Its pictures and folders: tests/test_cli.py; sets: test_dataset.py.)"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mien.apps.cli.main import app, explain
from mien.apps.cli.sample import check_picture, choose_score, is_picture
from mien.apps.cli.strips import save_text
from mien.errors import UserError
from mien.explore.select import draw_set


def test_a_picture_is_a_png_and_anything_else_a_folder():
    assert is_picture(Path("a b/faces.PNG")) and not is_picture(Path("faces")) and not is_picture(Path("faces.v2"))
    with pytest.raises(UserError, match=r"--out faces.png, or a folder\.$"):
        is_picture(Path("faces.jpg"), or_folder=True)
    with pytest.raises(UserError, match=r"--out faces.png\.$"):
        is_picture(Path("faces.jpg"))


def test_a_picture_that_no_memory_holds_is_refused_before_a_face_is_drawn():
    check_picture(24_414, 64)
    with pytest.raises(UserError, match="--count 10,000,000: one picture holds at most 24,414 faces of 64 px"):
        check_picture(10_000_000, 64)


def test_a_pictures_candidates_do_not_count_as_its_faces(tiny_snapshot, tmp_path, monkeypatch):
    """What is shown is limited, what is chosen from is drawn in pieces; the picture is that of one piece."""
    options = (tiny_snapshot, "--out", tmp_path / "a.png", "--count", 30, "--best-of", 4, "--force")
    assert mien(*options).exit_code == 0
    whole = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("mien.apps.cli.sample.MAX_PICTURE_PX", 30 * 32 * 32)
    monkeypatch.setattr("mien.apps.dataset.CHUNK_PX", 40 * 32 * 32)  # ten faces of four candidates
    assert mien(*options).exit_code == 0 and (tmp_path / "a.png").read_bytes() == whole
    refused = mien(tiny_snapshot, "--out", tmp_path / "b.png", "--count", 31, "--best-of", 4)
    assert refused.exit_code == 2 and "--count 31: one picture holds at most 30 faces" in refused.stderr


def mien(*args):
    return CliRunner().invoke(app, ["sample", *map(str, args)])


def test_the_best_of_k_is_said_wherever_faces_are_drawn(tiny_snapshot, tmp_path):
    for out in ("faces.png", "faces"):
        result = mien(tiny_snapshot, "--out", tmp_path / out, "--count", 4, "--best-of", 2)
        assert result.exit_code == 0 and "no sample of the generator's own distribution" in result.stdout
    assert json.loads((tmp_path / "faces" / "provenance.json").read_text())["best_of"]["judge_sha256"]
    mien(tiny_snapshot, "--out", tmp_path / "plain.png", "--count", 4)
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "faces.png").read_bytes()


def test_the_judge_prefers_faces_that_show_what_was_asked(tiny_generator):
    """On any generator, the kept candidates are judged as asked no less than the first ones."""
    chosen = choose_score(tiny_generator, 4, "judge", None)
    asked = {"Male": 1.0, "Smiling": 1.0}
    kept = draw_set(tiny_generator, range(8), seed=0, where=asked, best_of=4, score=chosen.score)
    first = draw_set(tiny_generator, range(8), seed=0, where=asked)
    assert chosen.score(kept.images, kept.attributes).mean() >= chosen.score(first.images, first.attributes).mean()


def test_realism_takes_its_reals_from_a_store(tiny_snapshot, tmp_path):
    CliRunner().invoke(app, ["data", "synth", "--out", str(tmp_path / "toys"), "--count", "200", "--size", "32"])
    result = mien(tiny_snapshot, "--out", tmp_path / "faces", "--count", 2, "--best-of", 2, "--by", "realism", "--data", tmp_path / "toys")
    assert result.exit_code == 0, result.output
    note = json.loads((tmp_path / "faces" / "provenance.json").read_text())
    said = note["best_of"]
    assert f"--by realism --data {tmp_path / 'toys'}" in note["command"]
    assert said["by"] == "realism" and said["reals_count"] > 6 and len(said["reals"]) == 64


@pytest.mark.parametrize("options, message", [
    (["--out", "a", "--best-of", "2", "--by", "realism"], "name their store with --data"), (["--out", "a", "--balance", "even"], "uniform"),
    (["--out", "a", "--best-of", "2", "--by", "luck"], "judge and realism"), (["--out", "a.png", "--format", "store"], "writes a folder"),
    (["--out", "a", "--by", "realism"], "--by realism chooses among candidates: say of how many with --best-of K"),
    (["--out", "a", "--data", "x"], "--data chooses among candidates"),
    (["--out", "a", "--data", "x", "--best-of", "2"], "--data names the real faces of --by realism"),
    (["--out", "a.png", "--grid", "--best-of", "2"], "give one of them"), (["--out", "a", "--format", "zip"], "png or store"),
    (["--out", "a", "--format", "store", "--where", "Male=2"], "labels are 0 or 1"), (["--out", "a", "--where", "Male=9"], "from -2 to 3"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(tiny_snapshot, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = mien(tiny_snapshot, *options)
    told = [line for line in result.stderr.splitlines() if line.startswith("mien: ")]
    assert result.exit_code == 2 and len(told) == 1 and message in told[0], result.output
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_set_says_how_to_go_on(tiny_snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr("mien.apps.dataset.CHUNK", 8)
    pieces = iter(range(3))

    def interrupted(*args, **options):
        if next(pieces) == 2:
            raise KeyboardInterrupt
        return draw_set(*args, **options)

    monkeypatch.setattr("mien.apps.dataset.draw_set", interrupted)
    result = mien(tiny_snapshot, "--out", tmp_path / "set", "--count", 32)
    assert result.exit_code != 0 and "the same command goes on from there" in result.stderr
    monkeypatch.setattr("mien.apps.dataset.draw_set", draw_set)
    assert mien(tiny_snapshot, "--out", tmp_path / "set", "--count", 32).exit_code == 0
    assert len(list((tmp_path / "set").glob("*.png"))) == 32 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("out, told", [
    ("file/x.png", "file is a file, where a folder is needed"), ("file/set", "File exists: file."),
    ("a" * 300 + ".png", "File name too long"), ("a" * 300, "File name too long"),
])  # fmt: skip
def test_a_place_that_no_file_system_gives_is_told_in_one_line(tiny_snapshot, tmp_path, monkeypatch, out, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    result = mien(tiny_snapshot, "--out", out, "--count", 1)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("mien: ") and told in line
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_trouble_with_a_place_names_the_place_and_not_the_file_that_was_to_go_there(tmp_path, capsys):
    with pytest.raises(OSError) as caught:
        save_text("text", tmp_path)
    assert explain(caught.value) == 2 and capsys.readouterr().err.rstrip().endswith(f": {tmp_path}.")


def test_force_says_what_stands_in_the_way(tiny_snapshot, tmp_path):
    (tmp_path / "file").write_text("x")
    CliRunner().invoke(app, ["data", "synth", "--out", str(tmp_path / "toys"), "--count", "16", "--size", "32"])
    for out, words in (("file", "is a file"), ("toys", "is a data store: only --format store --force replaces it")):
        result = mien(tiny_snapshot, "--out", tmp_path / out, "--count", 2, "--force")
        assert result.exit_code == 2 and words in result.stderr
