"""`mien models`, and what comes with the package: whole, small, drawable at once, each with a card that matches."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mien.apps.cli.main import app
from mien.apps.cli.models import distance, said
from mien.explore.load import bundled_models, find_snapshot, load_generator

ROOT = Path(__file__).parents[2]
MAX_BYTES = 16_000_000


def mien(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_celeba64_came_with_the_package():
    model = load_generator("celeba64")
    assert model.size == 64 and set(model.attribute_names) >= {"Male", "Smiling"} and model.meta["precision"] == "fp16"


def test_every_bundled_model_is_small_and_has_its_card():
    assert bundled_models()
    for name in bundled_models():
        model = load_generator(name)
        assert model.path.stat().st_size <= MAX_BYTES
        card = (ROOT / "docs" / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# Model card: `{name}`") and f"{model.meta['nimg']:,} images seen" in card
        if model.meta["card"]["data"]["kind"] == "celeba":
            assert "non-commercial research only" in card
        for score in model.meta["card"]["scores"]:
            assert "worst" not in score["details"]  # which names pictures of the training data


@pytest.mark.parametrize("name, data, attributes", [
    ("celeba64", "celeba", ["Male", "Smiling"]),
    ("celeba64-8attr", "celeba", ["Male", "Smiling", "Eyeglasses", "Young", "Bangs", "Black_Hair", "Blond_Hair", "Wearing_Hat"]),
    ("toy64", "drawn", ["Male", "Smiling", "Eyeglasses", "Wearing_Hat"]),
])  # fmt: skip
def test_the_list_tells_size_attributes_and_score(name, data, attributes):
    (row,) = [row for row in json.loads(mien("models", "--json")) if row["name"] == name]
    assert row["size"] == 64 and row["attributes"] == attributes and row["megabytes"] <= 16 and row["data"] == data
    assert row["score"]["metric"] == "fd-face" and 0 < row["score"]["floor"] < row["score"]["low"] < row["score"]["value"]
    (line,) = [line for line in mien("models").splitlines() if line.split()[:1] == [name]]
    assert f"fd-face {row['score']['value']:.3g} ({row['score']['floor']:.2g})" in line and line.endswith(", ".join(attributes))


def test_faces_from_a_name_alone(tmp_path):
    mien("sample", "celeba64", "--out", tmp_path / "grid.png", "--count", "4")
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_the_judges_features_name_a_model_and_no_score_is_said_so():
    scores = [{"metric": "fd-inception-768", "value": 0.7, "low": 0.6, "high": 0.8, "floor": None},
              {"metric": "fd-face", "value": 14.3, "low": 13.0, "high": 15.0, "floor": 2.0}]  # fmt: skip
    assert distance({"card": {"scores": scores}})["value"] == 14.3
    assert said(distance({"card": {"scores": scores[:1]}})) == "fd-inception-768 0.7"
    assert distance({}) is None and said(None) is None


def test_a_model_without_a_card_is_listed_too(monkeypatch, tmp_path, tiny_snapshot):
    (tmp_path / "weights").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), tmp_path / "weights" / ("faces32" + suffix))
    monkeypatch.setattr("mien.explore.load.resources.files", lambda package: tmp_path)
    (row,) = json.loads(mien("models", "--json"))
    assert row["name"] == "faces32" and row["score"] is None and find_snapshot("faces32").parent == tmp_path / "weights"
    assert mien("models").splitlines()[1].startswith("faces32")
