"""What the Morph, Edit and Ablate tabs get: the same as the command line makes, and refusals in words."""

import base64
import io
import json
import shlex
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.main import app as cli

from .test_faces import pixels

FACE = {"seed": 3, "attributes": {"Male": 0, "Smiling": 1}, "truncation": 1}


def ask(model, **changes):
    return {"model": model, "face": FACE, **changes}


def run_command(told, folder, monkeypatch, *more, files=()):
    """Run the command line that an answer gives, with the files it names beside it; the picture it makes."""
    monkeypatch.chdir(folder)
    for name, text in files:
        (folder / name).write_text(text)
    words = [*shlex.split(told["command"])[1:], *more]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return folder / words[words.index("--out") + 1]


def holds(sheet, face):
    """Whether a face, enlarged as the command line's sheets enlarge it, is somewhere in a sheet."""
    given = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float()
    large = torch.nn.functional.interpolate(given, size=128, mode="bicubic", align_corners=False).round().clamp(0, 255)[0].permute(1, 2, 0)
    wanted, found = large.numpy().astype(int), sheet.astype(int)
    corners = np.argwhere(np.abs(found[:-127, :-127] - wanted[0, 0]).max(axis=2) <= 1)
    return any(np.abs(found[y : y + 128, x : x + 128] - wanted).max() <= 1 for y, x in corners)


@pytest.mark.parametrize("changes", [
    {"to": {"Male": 1.5}, "strength": 0.5},
    {"channels": [{"layer": "8x8", "channels": [0, 1], "value": 0, "region": [0.2, 0.2, 0.8, 0.8]}]},
    {"to": {"Smiling": 0}, "along": {"sefa-2": -1.5}, "face": {**FACE, "truncation": 0.6}},
])  # fmt: skip
def test_the_command_line_makes_the_same_face(app, model, tmp_path, monkeypatch, changes):
    told = app.told("edit", ask(model, **changes))
    assert not np.array_equal(pixels(told["before"]), pixels(told["after"]))
    files = [("edit.json", told["edit"])] + ([("face.json", told["face"])] if told["face"] else [])
    sheet = np.asarray(Image.open(run_command(told, tmp_path, monkeypatch, "--measure", "0", files=files)).convert("RGB"))
    assert holds(sheet, pixels(told["before"])) and holds(sheet, pixels(told["after"]))


def test_an_edit_that_does_nothing_leaves_the_face(app, model):
    told = app.told("edit", ask(model, to={}, along={}))
    assert told["before"] == told["after"] and told["command"] is None and told["steps"] == 0


def test_the_judge_says_what_it_sees(app, model):
    told = app.told("edit", ask(model, to={"Smiling": 0}, judge=True))
    assert told["seen"][0]["name"] == "Smiling" and 0 <= told["seen"][0]["before"] <= 1 and -1 <= told["identity"] <= 1.0001


def test_a_saved_edit_is_used_again_and_composed(app, model):
    saved = app.told("edit", ask(model, to={"Male": 1}))
    both = app.told("edit", ask(model, to={"Smiling": 0}, edits=[saved["edit"]]))
    assert [step["attribute"] for step in json.loads(both["edit"])["steps"]] == ["Male", "Smiling"]
    at_once = app.told("edit", ask(model, to={"Male": 1, "Smiling": 0}))
    assert both["after"] == at_once["after"]


@pytest.mark.parametrize("changes, words", [
    ({"face": None}, "Choose a face"), ({"face": {"seed": 1, "attributes": {}}}, "another model"), ({"to": {"Hat": 1}}, "No attribute"),
    ({"face": {"photo": "../x"}}, "not kept"), ({"along": {"up": 1}}, "no direction"), ({"along": {"sefa-1": 1e9}}, "sefa-1 is a number"),
    ({"edits": ["{"]}, "not an edit"), ({"strength": 1000}, "Strength"),
    ({"channels": [{"layer": "9x9", "channels": [0], "value": 0}]}, "No layer"),
    ({"channels": [{"layer": "8x8", "channels": [999], "value": 0}]}, "has channels"), ({"channels": "all"}, "list"),
    ({"channels": [{"layer": "8x8", "channels": ["0"], "value": 0}]}, "channel numbers"), ({"to": {"Male": 50}}, "Male is a number"),
    ({"face": {**FACE, "seed": -1}}, "whole number"),
])  # fmt: skip
def test_what_cannot_be_edited(app, model, changes, words):
    assert words in app.refused("edit", ask(model, **changes))


def test_channels_that_draw_a_place(app, model):
    told = app.told("channels", ask(model, x=0.5, y=0.75, layer="16x16"))
    inside = [each["inside"] for each in told["channels"]]
    assert told["layer"] == "16x16" and inside == sorted(inside, reverse=True) and inside[0] > 0
    strongest = told["channels"][0]["channel"]
    edited = app.told("edit", ask(model, channels=[{"layer": "16x16", "channels": [strongest], "value": 0, "region": told["region"]}]))
    moved = np.abs(pixels(edited["after"]).astype(int) - pixels(edited["before"])).mean(axis=2)
    assert moved[20:28, 12:20].mean() > 2 * moved[:8].mean() and moved[20:28, 12:20].mean() > 0
    assert app.told("channels", ask(model, x=0, y=1))["layers"] == ["4x4", "8x8", "16x16"]
    for changes in ({"x": 2, "y": 0}, {"x": None, "y": 0}, {"x": 0.5, "y": 0.5, "layer": "../4x4"}):
        app.refused("channels", ask(model, **changes))


def test_a_direction_is_learnt_and_used(app, model, monkeypatch):
    from mien.apps.web import editing

    monkeypatch.setattr(editing, "LEARNT_FROM", 256)
    before = app.told("directions", model=model)
    assert before["directions"] == [f"sefa-{i}" for i in range(1, 7)] and "Smiling" not in before["learnable"]
    status, told = app.ask("learn", model=model, attribute="Attractive")
    if status == 200:  # the tiny generator draws no faces: the judge may find too few of any kind, which is said in words
        assert "Attractive" in told["directions"]
        app.told("edit", ask(model, along={"Attractive": 2}))
    else:
        assert status == 400 and "Attractive" in told["error"]
    assert "does not know" in app.refused("learn", model=model, attribute="Height")


# --- films ------------------------------------------------------------------------------------------------------------


def film(model, **changes):
    return {"model": model, "seeds": [1, 2], "frames": 9, **changes}


def test_a_film_goes_from_face_to_face(app, model, tmp_path, monkeypatch):
    told = app.told("morph", film(model))
    first = app.told("generate", model=model, seed=1, count=1, where={}, truncation=1)["faces"][0]["png"]
    assert len(told["frames"]) == 9 and told["frames"][0] == first and len(set(told["frames"])) == 9
    strip = app.told("film", film(model, kind="png"))
    made = run_command(strip, tmp_path, monkeypatch)
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(io.BytesIO(base64.b64decode(strip["file"].split(",")[1])))))


def test_films_are_kept_as_files_that_play(app, model):
    mp4, gif = (base64.b64decode(app.told("film", film(model, kind=kind))["file"].split(",")[1]) for kind in ("mp4", "gif"))
    assert mp4[4:8] == b"ftyp" and Image.open(io.BytesIO(gif)).n_frames == 9


def test_attributes_glide_and_loops_close(app, model):
    one = app.told("morph", film(model, seeds=[4], first={"Smiling": 0}, last={"Smiling": 1}, loop=True, even=True, mode="spline"))
    assert len(set(one["frames"])) > 4
    assert "--from-attributes Smiling=0 --to-attributes Smiling=1 --loop --mode spline --even" in one["command"]


@pytest.mark.parametrize("changes, words", [
    ({"seeds": [1]}, "does not move"), ({"seeds": []}, "1 to 12"), ({"seeds": [1] * 13}, "1 to 12"), ({"seeds": ["1", 2]}, "whole number"),
    ({"frames": 10_000}, "frames"), ({"frames": 1}, "frames"), ({"mode": "jump"}, "--mode"), ({"where": {"Hat": 1}}, "no attribute"),
    ({"first": {"Male": 0}, "where": {"Male": 1}}, "both"), ({"seeds": None}, "1 to 12"),
])  # fmt: skip
def test_what_is_no_film(app, model, changes, words):
    assert words in app.refused("morph", film(model, **changes))


@pytest.mark.parametrize("kind", ["exe", "../mp4", None, ""])
def test_kinds_of_film(app, model, kind):
    assert "mp4, gif or png" in app.refused("film", film(model, kind=kind))


# --- photos -----------------------------------------------------------------------------------------------------------


def picture(side=40):
    out = io.BytesIO()
    y, x = np.mgrid[0:side, 0:side] * 255 // side
    Image.fromarray(np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def huge_png(width=10_000, height=6_000):
    """60 megapixels in some kilobytes: a whole PNG, of one deflated part over and over, for deflating 60 MB takes seconds."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj(9, wbits=-15)
    part = deflate.compress(bytes((width + 1) * 100)) + deflate.flush(zlib.Z_FULL_FLUSH)
    check = zlib.adler32(bytes((width + 1) * height))
    rows = b"\x78\xda" + part * (height // 100) + b"\x03\x00" + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_photo_is_found_again_and_edited(app, model, monkeypatch):
    from mien.apps.web import sources

    monkeypatch.setattr(sources, "STEPS", 8)
    read = app.told(f"photo?model={model}&crop=square", picture())
    assert pixels(read["png"]).shape == (32, 32, 3)
    face = {"photo": read["photo"]}
    assert "not found in the model yet" in app.refused("edit", ask(model, face=face))
    found = app.told("invert", model=model, photo=read["photo"])
    assert found["rmse"] > 0 and set(found["attributes"]) == {"Male", "Smiling"}
    told = app.told("edit", ask(model, face=face, to={"Male": 1}))
    assert told["photo"] == read["png"] and "--image face.json" in told["command"]
    assert json.loads(told["face"])["format"] == "mien-inversion/1"


@pytest.mark.parametrize("content", [b"", b"just some text, no picture", b"\x89PNG\r\n\x1a\n broken", picture()[:120], huge_png(),
                                     b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0"])  # fmt: skip
def test_what_is_no_photo_is_told_and_leaves_it_working(app, model, content):
    app.refused(f"photo?model={model}", content)
    app.told(f"photo?model={model}&crop=square", picture())


def test_uploads_are_written_nowhere(app, model, tmp_path, monkeypatch):
    import builtins
    import tempfile

    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, mode="r", *a, **k: (opened.append((file, mode)), real(file, mode, *a, **k))[1])
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda *a, **k: pytest.fail("a file was made"))
    app.told(f"photo?model={model}&crop=whole", picture())
    assert not [each for each in opened if any(letter in each[1] for letter in "wax+")]


def test_a_photo_belongs_to_its_model(app, model):
    assert "no model named" in app.refused("photo?model=../one", picture())
    assert "Choose a model" in app.refused("photo", picture())
    assert "No way to crop" in app.refused(f"photo?model={model}&crop=../x", picture())
    assert "not kept" in app.refused("invert", model=model, photo="nothing")
