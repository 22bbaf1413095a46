"""`mien directions` on an untrained generator, with a judge that reads brightness."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_edit_command import BrightnessJudge, run

from mien.errors import UserError


@pytest.fixture(autouse=True)
def plain_judge(monkeypatch, tiny_generator):
    monkeypatch.setattr("mien.metrics.judge.load_judge", lambda *_, **__: BrightnessJudge(tiny_generator))


@pytest.fixture()
def mien_directions(tiny_snapshot):
    from mien.apps.cli.directions import directions

    return lambda *arguments: run(directions, tiny_snapshot, "--device", "cpu", *arguments)


def test_directions_are_found_shown_written_and_used(mien_directions, tiny_generator, tmp_path):
    from mien.apps.cli.directions import MEASURED_FROM
    from mien.explore.direction_set import DirectionSet
    from mien.explore.edit_effects import population
    from mien.explore.sample import render

    out, sheet = tmp_path / "new" / "directions.json", tmp_path / "sheet.png"
    said = mien_directions("--out", out, "--sheet", sheet, "--attributes", "Smiling,Male", "--count", 600, "--faces", 32)
    assert said.exit_code == 0, said.output
    rows = [line.split() for line in said.stdout.splitlines()]
    assert rows[0][0] == "direction" and [row[0] for row in rows[1:3]] == ["Smiling", "Male"] and "Measured on 32 faces" in said.stdout
    found = DirectionSet.from_json(out.read_text())
    assert found.model == tiny_generator.meta["sha256"] and found.made["count"] == 600
    judge, vector = BrightnessJudge(tiny_generator), torch.tensor(found.find("Smiling").vector)
    z, rows = population(tiny_generator, 32, seed=MEASURED_FROM)
    was, low, high = (judge.features_and_probabilities(render(tiny_generator, each, rows))[1][:, 0].mean() for each in
                      (z, z - 3 * vector, z + 3 * vector))  # fmt: skip
    assert low < high  # going along it does what its name says, and as much as the file says
    assert found.find("Smiling").effects[-1]["moved"]["Smiling"]["value"] == pytest.approx(high - was, abs=1e-3)
    width, height = Image.open(sheet).size
    assert width > 7 * 130 and height > 2 * 130


def test_against_is_orthogonal(mien_directions, tmp_path):
    files = [tmp_path / "plain.json", tmp_path / "free.json"]
    assert mien_directions("--out", files[0], "--attributes", "Smiling,Male", "--count", 600, "--faces", 8).exit_code == 0
    said = mien_directions("--out", files[1], "--attributes", "Smiling", "--against", "Male", "--count", 600, "--faces", 8)
    assert said.exit_code == 0 and "orthogonal to Male" in said.stdout
    plain, free = ({each["name"]: np.array(each["vector"]) for each in json.loads(file.read_text())["directions"]} for file in files)
    assert abs(plain["Smiling"] @ plain["Male"]) > 0.05 and abs(free["Smiling"] @ plain["Male"]) < 1e-6


@pytest.mark.parametrize("method", ["svm", "arithmetic", "pca", "sefa"])
def test_every_method_runs_and_tells_its_effects_as_json(mien_directions, tmp_path, method):
    some = ["--components", 2] if method in ("pca", "sefa") else ["--attributes", "Smiling,Male"]
    said = mien_directions("--out", tmp_path / "d.json", "--method", method, "--count", 300, "--faces", 8, "--json", *some)
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)["directions"]
    assert len(told) == 2 and all(each["method"] == method and each["target"] in ("Smiling", "Male") for each in told)
    assert [effect["strength"] for effect in told[0]["effects"]] == [-3, -2, -1, 1, 2, 3] and "vector" not in told[0]


def test_sums_of_mean_faces(mien_directions, tmp_path):
    text = "Smiling=1,Male=0 - Smiling=0,Male=0 + Smiling=0,Male=1"
    said = mien_directions("--out", tmp_path / "sum.png", "--sum", text, "--count", 1500, "--json")
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert [term["sign"] for term in told["terms"]] == [1, -1, 1] and all(term["faces"] >= 20 for term in told["terms"])
    assert Image.open(tmp_path / "sum.png").size[0] > 4 * 130


@pytest.mark.parametrize("text, message", [
    ("Smiling=1 - Smiling=0", "one more plus than minus"), ("Smiling=1", "2 to 8"), ("a - b + c", "write attributes as"),
    ("Smiling=2 - Smiling=0 + Male=1", "write attributes as"), ("Smilin=1 - Smiling=0 + Male=1", "Did you mean Smiling"),
    ("Young=1 - Smiling=0 + Male=1", "Only 0 of 100"),
])  # fmt: skip
def test_a_wrong_sum_is_told(mien_directions, tmp_path, text, message):
    said = mien_directions("--out", tmp_path / "sum.png", "--sum", text, "--count", 100)
    assert isinstance(said.exception, UserError) and message in str(said.exception)


def test_attributes_that_do_not_vary_are_left_out_unless_asked_for(mien_directions, tmp_path):
    said = mien_directions("--out", tmp_path / "d.json", "--count", 300, "--faces", 4)
    assert said.exit_code == 0 and "Young left out: 0 of 300" in said.stderr and "Young" not in said.stdout
    asked = mien_directions("--out", tmp_path / "d.json", "--count", 300, "--attributes", "Young")
    assert isinstance(asked.exception, UserError) and "Only 0 of 300 faces are judged with Young" in str(asked.exception)


@pytest.mark.parametrize("arguments, message", [
    ("--method probes", "Did you mean probe"), ("--attributes Smilin", "Did you mean Smiling"), ("--against Mael", "Did you mean Male"),
    ("--method pca --attributes Smiling", "looks at no attributes"), ("--count 10", "from 100"), ("--out d.txt", "written as .json"),
    ("--sheet sheet.gif", "give --out"), ("--faces 100000", "at most 10,000"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(mien_directions, tmp_path, arguments, message):
    said = mien_directions("--out", tmp_path / "d.json", "--count", 100, *arguments.split())
    assert isinstance(said.exception, UserError) and message in str(said.exception) and "\n" not in str(said.exception)
    assert not list(tmp_path.iterdir())
