"""What the Generate tab gets is what the command line makes."""

import base64
import copy
import io
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.main import app as cli
from mien.apps.web.faces import preview


def pixels(uri):
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def asked(name, **changes):
    return {"model": name, "seed": 0, "count": 1, "where": {}, "truncation": 1, **changes}


def test_about_is_known_before_the_model_is_loaded(serve, runs_folder, model):
    about = serve(None, runs=runs_folder).told("about", model=model)
    assert about["attributes"] == ["Male", "Smiling"] and about["size"] == 32 and about["title"] == "one"
    assert about["shares"] == pytest.approx({"Male": 0.5, "Smiling": 0.3})


def test_faces_are_there_before_the_model_is_and_are_the_same(serve, tmp_path, tiny_snapshot):
    from mien.explore.load import load_generator
    from mien.explore.sample import attribute_rows, render
    from mien.models.latents import latents
    from mien.models.pictures import grid
    from mien.runs import Run

    run = Run.create(tmp_path / "run", config={}, architecture={}).path
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), run / "snapshots" / f"000001kimg{suffix}")
    net = load_generator(run)
    images = render(net, latents(range(100), net.z_dim), attribute_rows(net, {}, 100, 0))
    grid(images, 10).save(run / "samples" / "mosaic.png")  # as training draws it
    app = serve(str(run), runs=tmp_path)
    shown = app.told("about", model=str(run))["preview"]
    drawn = app.told("generate", asked(str(run), count=16))["faces"]
    assert len(shown) == 16 and all(np.array_equal(pixels(a), pixels(b["png"])) for a, b in zip(shown, drawn))
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), run / "snapshots" / f"000002kimg{suffix}")
    assert preview(run / "snapshots" / "000001kimg.safetensors", 32) == []  # the mosaic is the newer one's
    (run / "samples" / "mosaic.png").write_bytes(b"half a picture")
    assert preview(run / "snapshots" / "000002kimg.safetensors", 32) == []


def test_a_run_made_anew_under_its_name_is_loaded_anew(serve, tmp_path, tiny_generator, tiny_snapshot):
    from mien.engine.checkpoint import save_snapshot
    from mien.runs import Run

    run, name = tmp_path / "run", str(tmp_path / "run")
    app = serve(None, runs=tmp_path)
    Run.create(run, config={}, architecture={})
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), run / "snapshots" / f"000001kimg{suffix}")
    first = app.told("generate", asked(name))["faces"][0]["png"]
    assert app.told("generate", asked(name))["faces"][0]["png"] == first
    shutil.rmtree(run)
    Run.create(run, config={}, architecture={})
    other = copy.deepcopy(tiny_generator.net)
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    meta = {key: value for key, value in tiny_generator.meta.items() if key != "sha256"}
    save_snapshot(run / "snapshots" / "000001kimg", other, meta)
    assert app.told("generate", asked(name))["faces"][0]["png"] != first


@pytest.mark.parametrize("changes", [
    {}, {"seed": 7, "count": 5, "where": {"Male": 1.0, "Smiling": 0.25}, "truncation": 0.7}, {"count": 16, "where": {"Smiling": 1.5}},
])  # fmt: skip
def test_the_command_line_makes_the_same_pixels(app, model, tmp_path, monkeypatch, changes):
    question = asked(model, **changes)
    sheet, told = app.told("sheet", question), app.told("generate", question)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, shlex.split(told["command"])[1:])
    assert result.exit_code == 0, result.output
    made = np.asarray(Image.open(tmp_path / "faces.png"))
    assert np.array_equal(made, pixels(sheet["png"]))
    assert np.array_equal(made[2:34, 2:34], pixels(told["faces"][0]["png"]))
    assert len(told["faces"]) == question["count"] and pixels(told["faces"][-1]["png"]).std() > 10


def test_an_attribute_set_changes_the_face_and_one_left_alone_is_drawn_from_the_data(app, model):
    free, male, not_male = (app.told("generate", asked(model, seed=3, where=where))["faces"][0] for where in ({}, {"Male": 1}, {"Male": 0}))
    assert male["attributes"]["Male"] == 1 and not_male["attributes"]["Male"] == 0
    assert not np.array_equal(pixels(male["png"]), pixels(not_male["png"]))
    assert free["attributes"] in ({"Male": 0, "Smiling": 0}, {"Male": 0, "Smiling": 1}, {"Male": 1, "Smiling": 0})


@pytest.mark.parametrize("changes, words", [
    ({"seed": -1}, "whole number"), ({"seed": 1.5}, "whole number"), ({"seed": 1e300}, "whole number"), ({"seed": True}, "whole number"),
    ({"seed": None}, "whole number"), ({"count": 0}, "number of faces"), ({"count": 65}, "number of faces"), ({"count": "4"}, "number"),
    ({"truncation": 3}, "Truncation"), ({"truncation": "x"}, "Truncation"), ({"where": {"Hat": 1}}, "no attribute"),
    ({"where": {"Male": 9}}, "Male is a number"), ({"where": [1]}, "names with values"), ({"model": ""}, "Choose a model"),
    ({"model": "/etc/passwd"}, "no model named"), ({"model": None}, "Choose a model"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_words(app, model, changes, words):
    assert words in app.refused("generate", asked(model, **changes))
    app.told("generate", asked(model))


def test_not_a_number_is_no_number(app, model):
    body = b'{"model": "%s", "seed": 0, "count": 1, "where": {}, "truncation": NaN}' % model.encode()
    assert "Truncation" in app.refused("generate", body)


def test_a_damaged_snapshot_is_told_and_mended_when_it_is_whole_again(serve, tmp_path, tiny_snapshot):
    whole = tiny_snapshot.read_bytes()
    path = tmp_path / "face.safetensors"
    path.write_bytes(whole[: len(whole) // 2])
    path.with_suffix(".json").write_bytes(tiny_snapshot.with_suffix(".json").read_bytes())
    app = serve(str(path), runs=tmp_path / "none")
    assert "face.safetensors" in app.refused("generate", asked(str(path)))
    path.write_bytes(whole)
    app.told("generate", asked(str(path)))
