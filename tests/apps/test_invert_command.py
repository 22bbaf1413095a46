import json

import numpy as np
import pytest
from PIL import Image

from mien.apps.cli.main import app
from mien.explore.encoder import EncoderRecipe
from mien.explore.invert import draw, read_inversion
from mien.models.pictures import to_uint8


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mien.apps.encoders.EncoderRecipe", lambda: EncoderRecipe(steps=30, width=16))
    monkeypatch.setattr("mien.apps.encoders.HELD_OUT", 64)
    return tmp_path


def run(*words):
    with pytest.raises(SystemExit) as end:
        app(list(map(str, words)))
    return end.value.code


def test_the_strip_and_the_latent_that_draws_its_last_face(quick, tiny_snapshot, tiny_generator, capsys):
    photo, out = quick / "a b;'ü$.png", quick / "out put.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(photo)
    words = ["invert", tiny_snapshot, photo, "--out", out, "--steps", 6, "--offsets", "--anyway", "--compare", 1, "--json"]
    assert run(*words) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["errors"]) == {"encoder", "optimised", "offsets"} and set(report["beside"]) == {"floor", "ceiling"}
    assert report["condition"] == "judge" and Image.open(out).width > 4 * 32
    kept = read_inversion(out.with_suffix(".json").read_text(), tiny_generator)
    drawn = to_uint8(draw(tiny_generator, kept.z, kept.attributes, kept.offsets))
    target = np.asarray(Image.open(photo)).transpose(2, 0, 1)[None].astype(float)
    assert np.sqrt(((drawn.numpy() - target) ** 2).mean()) == pytest.approx(report["errors"]["offsets"]["pixel_rmse"], rel=1e-3)
    assert len(list((quick / "cache" / "encoders").glob("*.safetensors"))) == 1


def test_a_damaged_encoder_in_the_cache_is_made_anew(quick, tiny_generator):
    from mien.apps.encoders import witness
    from mien.metrics.judge import load_judge

    judge = load_judge()
    first = witness(tiny_generator, judge)
    (path,) = (quick / "cache" / "encoders").glob("*.safetensors")
    again = witness(tiny_generator, judge)
    assert all(bool((a == b).all()) for a, b in zip(first.encoder.state_dict().values(), again.encoder.state_dict().values()))
    path.write_bytes(path.read_bytes()[:1000])
    assert witness(tiny_generator, judge).calibration.sorted_scores.numel() == 32


@pytest.mark.parametrize("name", ["text", "cut", "large", "missing"])
def test_what_is_no_picture_exits_with_2_and_one_line(name, tmp_path, tiny_snapshot, capsys):
    path = tmp_path / f"{name}.png"
    if name == "text":
        path.write_text("no picture")
    elif name == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "large":
        Image.new("L", (10_000, 6_000)).save(path)
    assert run("invert", tiny_snapshot, path, "--out", tmp_path / "out.png") == 2
    said = capsys.readouterr()
    assert said.err.startswith("mien: ") and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out.png").exists()


def test_a_store_without_training_faces_is_refused_in_one_line(quick, tiny_snapshot, capsys):
    from mien.data.writer import StoreWriter

    photo, count = quick / "me.png", 70
    Image.new("RGB", (32, 32)).save(photo)
    with StoreWriter(quick / "store", count=count, size=32, crop="whole") as writer:
        writer.add(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        writer.finish(attributes=np.zeros((count, 0), np.uint8), attribute_names=[], splits=np.full(count, 2, np.uint8),
                      names=[f"{i}.png" for i in range(count)], source=[{"name": "x", "count": count, "path": ""}], extra={"skipped": []})
    assert run("invert", tiny_snapshot, photo, "--out", quick / "out.png", "--anyway", "--data", quick / "store") == 2
    assert "has no training faces" in capsys.readouterr().err
