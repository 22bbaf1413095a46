import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from mien.apps.cli.classifier import judge, likely, parse_phases, train_classifier
from mien.data.synthetic import draw_faces
from mien.data.writer import write_store
from mien.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder: a square face, the same in CelebA's frame, one in grey with an odd shape, and a text file called .png."""
    folder = tmp_path_factory.mktemp("pictures")
    face = Image.fromarray(draw_faces(1, size=256, seed=2)[0][0])
    face.save(folder / "a.png")
    frame = Image.new("RGB", (178, 218), "white")
    frame.paste(face.resize((178, 178), Image.Resampling.LANCZOS), (0, 20))
    frame.save(folder / "b.png")
    face.convert("L").resize((300, 200)).save(folder / "c.jpg")
    (folder / "d.png").write_text("no picture")
    return folder


def as_json(capsys, *paths, **options):
    judge(list(paths), as_json=True, device="cpu", **options)
    return json.loads(capsys.readouterr().out)


def test_a_folder_is_judged_and_what_is_no_picture_is_named(pictures, capsys):
    result = as_json(capsys, pictures)
    assert [row["crop"] for row in result["images"]] == ["square", "center178", "square"]
    assert [each["file"].endswith("d.png") for each in result["skipped"]] == [True]
    assert all(len(row["probabilities"]) == 40 and all(0 <= p <= 1 for p in row["probabilities"].values()) for row in result["images"])


def test_celebas_frame_is_cropped_as_training_was(pictures, capsys):
    """The face pasted where center178 looks is judged as the square face is; without the crop the white bands would count."""
    square, framed, _ = (row["probabilities"] for row in as_json(capsys, pictures)["images"])
    assert np.mean([abs(square[name] - framed[name]) for name in square]) < 0.03


def test_attributes_are_picked_in_the_order_asked(pictures, capsys):
    result = as_json(capsys, pictures / "a.png", attributes="Smiling, Male")
    assert list(result["images"][0]["probabilities"]) == ["Smiling", "Male"]
    judge([pictures / "a.png"], attributes="Smiling,Male", device="cpu")
    assert capsys.readouterr().out.splitlines()[0].split() == ["file", "Smiling", "Male"]


def test_the_table_names_likely_attributes():
    assert likely({"a": 0.6, "b": 0.9, "c": 0.49}) == "b 0.90, a 0.60"
    assert likely({"a": 0.1}) == "none over 0.5"


def test_bad_input_gets_one_line(pictures, tmp_path):
    for paths, options, words in (([tmp_path / "none"], {}, "no file or folder"), ([tmp_path], {}, "no pictures"),
                                  ([pictures / "d.png"], {}, "none of the 1 files"),
                                  ([pictures], {"attributes": "Smilling"}, "Did you mean Smiling"),
                                  ([pictures], {"attributes": ","}, "names nothing"),
                                  ([pictures], {"weights": tmp_path / "w.safetensors"}, "cannot be read")):
        with pytest.raises(UserError, match=words) as caught:
            judge(paths, device="cpu", **options)
        assert "\n" not in str(caught.value)


def test_training_by_command_and_judging_by_its_weights(tmp_path, pictures, capsys):
    images, attributes = draw_faces(24, seed=1)
    write_store(tmp_path / "store", images=images, attributes=attributes[:, :2], attribute_names=["Male", "Smiling"],
                splits=np.array([0] * 16 + [1] * 8, np.uint8), names=[f"{i}" for i in range(24)], crop="whole",
                source=[{"name": "toys", "count": 24}])
    train_classifier(tmp_path / "store", tmp_path / "out", phases="32:1,64:1", batch=8, precision="fp32", device="cpu")
    assert "accuracy on 8 validation images" in capsys.readouterr().out
    result = as_json(capsys, pictures / "a.png", weights=tmp_path / "out" / "face.safetensors")
    assert list(result["images"][0]["probabilities"]) == ["Male", "Smiling"]


def test_a_polite_kill_saves_the_step_it_strikes(tmp_path, capsys, monkeypatch):
    """SIGTERM in the middle of a step: that step is finished and saved, and the same command goes on to the end."""
    from mien.metrics.train_classifier import Training

    images, attributes = draw_faces(24, seed=1)
    write_store(tmp_path / "store", images=images, attributes=attributes[:, :2], attribute_names=["Male", "Smiling"],
                splits=np.zeros(24, np.uint8), names=[f"{i}" for i in range(24)], crop="whole", source=[{"name": "toys", "count": 24}])
    options = {"phases": "64:1", "batch": 8, "precision": "fp32", "device": "cpu"}
    update = Training.update

    def struck(training, *tensors):
        if training.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(training, *tensors)

    monkeypatch.setattr(Training, "update", struck)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(tmp_path / "store", tmp_path / "out", **options)
    assert json.loads((tmp_path / "out" / "state.json").read_text())["step"] == 2
    assert "goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    train_classifier(tmp_path / "store", tmp_path / "out", **options)
    assert "fewer than two validation images" in capsys.readouterr().out and (tmp_path / "out" / "face.safetensors").exists()


@pytest.mark.parametrize("phases", ["64", "32:4", "40:1,64:1", "64:0", "a:b", "", "64:1,32:1"])
def test_phases_that_cannot_be(phases, tmp_path):
    with pytest.raises(UserError, match="--phases"):
        train_classifier(tmp_path, tmp_path, phases=phases)
    assert parse_phases("32:10,64:14") == [[32, 10], [64, 14]]


def test_hidden_files_and_dots_of_pictures_are_left_out(tmp_path, capsys):
    face = Image.fromarray(draw_faces(1, size=64, seed=2)[0][0])
    for name in ("a.png", ".hidden.png", "._a.png"):
        face.save(tmp_path / name)
    face.resize((1, 1)).save(tmp_path / "dot.png")
    result = as_json(capsys, tmp_path)
    assert [row["file"] for row in result["images"]] == [str(tmp_path / "a.png")]
    assert result["skipped"] == [{"file": str(tmp_path / "dot.png"), "reason": "only 1x1 pixels"}]
