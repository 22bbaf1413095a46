import csv
import json

import numpy as np
import pytest
from PIL import Image

from mien.apps.cli.main import app
from mien.explore.encoder import EncoderRecipe
from mien.explore.latents import latents
from mien.explore.sample import attribute_rows, render


def test_the_planted_pictures_come_first(tmp_path, tiny_snapshot, tiny_generator, monkeypatch, capsys):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mien.apps.encoders.EncoderRecipe", lambda: EncoderRecipe(steps=100, width=16))
    monkeypatch.setattr("mien.apps.encoders.HELD_OUT", 128)
    folder, out, sheet = tmp_path / "pictures; odd", tmp_path / "scores.csv", tmp_path / "worst.png"
    folder.mkdir()
    for i, face in enumerate(render(tiny_generator, latents(range(6), 8), attribute_rows(tiny_generator, {}, 6, 0)).permute(0, 2, 3, 1)):
        Image.fromarray(face.numpy()).save(folder / f"face {i}.png")
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"noise, {i}.png")
    (folder / "text.png").write_text("no picture")
    words = ["anomaly", tiny_snapshot, folder, "--out", out, "--sheet", sheet, "--json"]
    with pytest.raises(SystemExit) as end:
        app(list(map(str, words)))
    assert end.value.code == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "text.png" in said.err and [each["file"] for each in report["skipped"]] == ["text.png"]
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert len(rows) == 8 and {row["file"] for row in rows[:2]} == {"noise, 0.png", "noise, 1.png"}
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and Image.open(sheet).width > 8 * 32


def test_a_folder_without_pictures_exits_with_2(tmp_path, tiny_snapshot, capsys):
    with pytest.raises(SystemExit) as end:
        app(["anomaly", str(tiny_snapshot), str(tmp_path), "--out", str(tmp_path / "scores.csv")])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_folder_in_the_sheets_place_is_told_before_the_work(tmp_path, tiny_snapshot, monkeypatch, capsys):
    monkeypatch.setattr("mien.explore.load.load_generator", None)
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    (tmp_path / "sheet.png").mkdir()
    words = ["anomaly", tiny_snapshot, tmp_path, "--out", tmp_path / "scores.csv", "--sheet", tmp_path / "sheet.png"]
    with pytest.raises(SystemExit) as end:
        app(list(map(str, words)))
    assert end.value.code == 2 and "sheet.png is a folder" in capsys.readouterr().err
