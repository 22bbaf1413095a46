"""`mien interpolate` from end to end on a tiny generator, and what it refuses."""

import re

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.interpolate import build_morph, face_numbers
from mien.apps.cli.main import app
from mien.errors import UserError
from mien.explore.sample import attribute_rows, parse_where


def mien(*args):
    return CliRunner().invoke(app, ["interpolate", *map(str, args)])


def test_a_film_has_the_frames_and_size_asked_for(tiny_snapshot, tmp_path):
    result = mien(tiny_snapshot, "--out", tmp_path / "a.mp4", "--seeds", "1,2", "--frames", 10, "--scale", 2)
    assert result.exit_code == 0 and "10 frames of 64 px through faces 1, 2" in result.stdout
    assert iio.imread(tmp_path / "a.mp4").shape == (10, 64, 64, 3)


def test_a_strip_begins_and_ends_with_its_faces(tiny_snapshot, tmp_path):
    assert mien(tiny_snapshot, "--out", tmp_path / "a.png", "--seeds", "4,5", "--scale", 1).exit_code == 0
    strip = np.asarray(Image.open(tmp_path / "a.png"))
    assert strip.shape == (32, 12 * 32, 3)
    CliRunner().invoke(app, ["sample", str(tiny_snapshot), "--out", str(tmp_path / "faces"), "--seed", "4", "--count", "2"])
    for name, place in (("000004", strip[:, :32]), ("000005", strip[:, -32:])):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "faces" / f"{name}.png")), place)


def test_a_loop_comes_back_and_is_even_when_asked(tiny_snapshot, tmp_path):
    result = mien(tiny_snapshot, "--out", tmp_path / "a.gif", "--frames", 8, "--scale", 1, "--loop", "--mode", "spline", "--even",
                  "--truncation", 0.1)  # fmt: skip
    assert result.exit_code == 0 and "and back to 1" in result.stdout and "perceived steps stray by" in result.stderr
    after, before = map(int, re.findall(r"(\d+)%", result.stderr))
    assert after <= before
    film = iio.imread(tmp_path / "a.gif").astype(float)
    steps = np.abs(np.diff(np.concatenate([film, film[:1]]), axis=0)).mean((1, 2, 3))
    assert len(film) == 8 and steps[-1] < 2 * steps.mean()  # the step that closes it is a step like the others


def test_faces_keep_their_own_attributes_unless_told(tiny_generator):
    def morph(held=None, first=None, last=None):
        held, first, last = (parse_where(text, ("Male", "Smiling")) for text in (held, first, last))
        return build_morph(tiny_generator, [0, 1, 2], held=held, first=first, last=last, mode="slerp", loop=False, truncation=1.0)

    own = attribute_rows(tiny_generator, {}, 3, 0)
    assert morph().attributes.tolist() == own.tolist() and not morph().glides
    assert (morph(held="Male=0.5").attributes[:, 0] == 0.5).all()
    assert morph(first="Male=0", last="Male=1").glides == {0: (0.0, 1.0)}
    assert morph(last="Smiling=2").glides == {1: (float(own[0, 1]), 2.0)}
    with pytest.raises(UserError, match="both held by --where and gliding"):
        morph(held="Male=0", last="Male=1")


@pytest.mark.parametrize("options, message", [
    (["--out", "a.avi"], "films are written as"), (["--out", "a.gif", "--seeds", "1,x"], "write the numbers of faces"),
    (["--out", "a.gif", "--seeds", "1"], "does not move"), (["--out", "a.gif", "--mode", "slurp"], "slerp, lerp, spline"),
    (["--out", "a.gif", "--to-attributes", "Smile=1"], "No attribute 'Smile'"), (["--out", "a.gif", "--fps", "90"], "up to 50"),
    (["--out", "a.gif", "--truncation", "7"], "outside 0..2"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(tiny_snapshot, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = mien(tiny_snapshot, *options)
    told = [line for line in result.stderr.splitlines() if line.startswith("mien: ")]
    assert result.exit_code == 2 and len(told) == 1 and message in told[0]
    assert list(tmp_path.iterdir()) == []


def test_face_numbers_are_read():
    assert face_numbers("1, 22,0") == [1, 22, 0]
    for text in ("", ",", "-1", "1.5", "one"):
        with pytest.raises(UserError, match="1,2,3"):
            face_numbers(text)


def test_a_folder_in_the_films_place_is_told_before_a_frame_is_drawn(tiny_snapshot, tmp_path, monkeypatch):
    (tmp_path / "a.gif").mkdir()
    monkeypatch.setattr("mien.explore.load.load_generator", None)
    result = mien(tiny_snapshot, "--out", tmp_path / "a.gif")
    assert result.exit_code == 2 and "is a folder" in result.stderr and result.stderr.count("\n") == 1
