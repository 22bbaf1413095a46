"""The names that a model can be given."""

import json
import shutil
import sys
import types

import pytest

from mien.errors import UserError
from mien.explore.load import bundled_models, find_snapshot, load_generator
from mien.runs import Run, kimg_name


@pytest.fixture
def run(tmp_path, tiny_snapshot):
    """A run with three snapshots."""
    run = Run.create(tmp_path / "run", config={"preset": "demo"}, architecture={})
    for nimg in (1000, 2000, 3000):
        for suffix in (".safetensors", ".json"):
            shutil.copy(tiny_snapshot.with_suffix(suffix), run.path / "snapshots" / (kimg_name(nimg) + suffix))
    return run


def test_a_snapshot_loads_with_what_is_known_of_it(tiny_snapshot):
    generator = load_generator(tiny_snapshot)
    assert (generator.attribute_names, generator.size, generator.z_dim) == (("Male", "Smiling"), 32, 8)
    assert generator.meta["preset"] == "demo" and not generator.net.training and generator.device.type == "cpu"
    assert find_snapshot(tiny_snapshot.with_suffix(".json")) == tiny_snapshot
    assert find_snapshot(tiny_snapshot.parent) == tiny_snapshot  # a folder with one snapshot


def test_a_run_stands_for_its_newest_snapshot_until_one_is_scored(run):
    assert find_snapshot(run.path).stem == "000003kimg"


def test_a_run_stands_for_its_best_snapshot(run):
    for nimg, value in ((1000, 30.0), (2000, 20.0), (3000, 25.0)):
        run.append("metrics", nimg, metric="fd-face", value=value, protocol={"split": "val"})
    run.append("metrics", 3000, metric="kid-face", value=0.0, protocol={})
    assert find_snapshot(run.path).stem == "000002kimg"


def test_scores_of_different_protocols_are_not_ranked_together(run):
    run.append("metrics", 1000, metric="fd-face", value=1.0, protocol={"split": "train"})
    run.append("metrics", 2000, metric="fd-face", value=20.0, protocol={"split": "val"})
    run.append("metrics", 3000, metric="fd-face", value=25.0, protocol={"split": "val"})
    assert find_snapshot(run.path).stem == "000002kimg"


def test_bundled_names(monkeypatch, tmp_path, tiny_snapshot):
    (tmp_path / "weights").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), tmp_path / "weights" / ("faces64" + suffix))
    (tmp_path / "weights" / "face.json").write_text('{"format": "mien-classifier/1"}')
    monkeypatch.setattr("mien.explore.load.resources.files", lambda package: tmp_path)
    assert list(bundled_models()) == ["faces64"]  # the classifier is no generator
    assert load_generator("faces64").size == 32
    with pytest.raises(UserError, match="Did you mean faces64"):
        find_snapshot("face64")


def test_what_came_with_the_package_is_whole():
    for name in bundled_models():
        assert load_generator(name).size >= 32


def test_a_hub_name_is_fetched(monkeypatch, tiny_snapshot):
    asked = []
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda repository, **_: asked.append(repository) or str(tiny_snapshot.parent)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load_generator("hf:user/repo").size == 32
    assert asked == ["user/repo"]
    with pytest.raises(UserError, match="hf:user/repo"):
        find_snapshot("hf:repo")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def refuse(repository, **_):
        raise OSError("no route to host\nand much more")

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match="could not be fetched: no route to host$"):
        find_snapshot("hf:user/repo")


def test_without_the_hub_extra_its_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mien\[hub\]'"):
        find_snapshot("hf:user/repo")


def damaged(path, tiny_snapshot, change):
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), path / ("bad" + suffix))
    change(path / "bad.safetensors", path / "bad.json")
    return path / "bad.safetensors"


@pytest.mark.parametrize("change, message", [
    (lambda weights, note: weights.write_bytes(weights.read_bytes()[:-10]), "cut short or altered"),
    (lambda weights, note: note.unlink(), "No such snapshot"),
    (lambda weights, note: note.write_text("{"), "not valid JSON"),
    (lambda weights, note: note.write_text(json.dumps({**json.loads(note.read_text()), "format": "mien-generator/9"})), "mien-generator/9"),
])  # fmt: skip
def test_a_damaged_snapshot_is_named(tmp_path, tiny_snapshot, change, message):
    with pytest.raises(UserError, match=message):
        load_generator(damaged(tmp_path, tiny_snapshot, change))


def test_wrong_names(tmp_path, run):
    for model, message in [("nothing", "No model or run is named nothing"), (tmp_path, "neither a run directory"),
                           (run.path / "snapshots", "3 snapshots"), (run.path / "architecture.json", "No such snapshot")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_generator(model)
    (tmp_path / "face.png").write_bytes(b"")
    with pytest.raises(UserError, match="is not a snapshot"):
        find_snapshot(tmp_path / "face.png")
    for _, snapshot in run.snapshots():
        snapshot.unlink()
    with pytest.raises(UserError, match="no snapshot yet"):
        find_snapshot(run.path)
