"""docs/make_ladder.py: takes the scores of its own protocol only, compares at equal images and at equal time, says what differs."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from engine.conftest import write_tiny_store
from mien.config import resolve
from mien.data.store import open_store
from mien.runs import Run

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def ladder():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("make_ladder"), importlib.import_module("ladder_page")
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture
def store(tmp_path):
    return open_store(write_tiny_store(tmp_path / "store"))


def make_run(path, store, distances, *, speed, preset="stable64-cpu", overrides=()):
    """A run whose snapshots have these distances, {nimg: fd}, at `speed` images/s."""
    config = resolve(preset, ["train.images=4000", "train.seed=0", *overrides]).config.model_dump(mode="json")
    said = {"config": config, "store": {"size": 64, "attributes": []}, "machine": {"threads": 1, "cores": 2}}
    networks = {"generator": [{"parameters": 30}, {"parameters": 12}], "discriminator": [{"parameters": 7}]}
    run = Run.create(path, config=said, architecture=networks)
    for nimg, value in distances.items():
        run.append("scalars", nimg, images_per_s=speed)
        (run.path / "snapshots" / f"{nimg // 1000:06d}kimg.safetensors").touch()
        protocol = {"store": store.digest, "split": "val", "n_real": 4, "truncation": 1.0, "seed": 0}
        run.append("metrics", nimg, metric="fd-face", value=value, low=value - 1, high=value + 1, floor=2.0, protocol=protocol)
    return run


def attempt(ladder, name, runs):
    make, _ = ladder
    (rung,) = [each for each in make.read_spec(DOCS / "ladder.toml").rungs if each.name == name]
    return make.find(rung, 0, runs)


@pytest.mark.parametrize("name", ["ladder.toml", "ladder-gpu.toml"])
def test_the_ladders_of_the_repository_name_real_recipes(ladder, name):
    make, page = ladder
    spec = make.read_spec(DOCS / name)
    assert set(spec.against) <= {rung.name for rung in spec.rungs} and len(spec.rungs) >= 8
    for rung in spec.rungs:
        resolve(rung.preset, [*rung.set, f"train.images={rung.images}"])
        assert page.train_command(rung, 0, store="S", runs="R")[:3] == ["mien", "train", "S"]


def test_equal_images_and_equal_time_are_different_questions(ladder, store, tmp_path):
    """The second recipe is half as far off after as many images, and four times as slow."""
    _, page = ladder
    make_run(tmp_path / "seed3-s0", store, {1000: 80.0, 2000: 40.0, 4000: 20.0}, speed=100.0)
    make_run(tmp_path / "best64-s0", store, {1000: 40.0, 2000: 20.0, 4000: 10.0}, speed=25.0)
    plain, best = ([attempt(ladder, name, tmp_path)] for name in ("seed3", "best64"))
    assert page.ratio(best, plain, store, over="images") == (pytest.approx(0.5), 4.0)
    assert page.ratio(best, plain, store, over="hours") == (pytest.approx(40 / 20), pytest.approx(40 / 3600))
    halfway = page.at([(1.0, 80.0), (4.0, 20.0)], 2.0)
    assert halfway == pytest.approx(40.0) and page.at([(1.0, 80.0)], 2.0) is None


def test_a_score_of_another_protocol_is_not_taken(ladder, store, tmp_path):
    _, page = ladder
    run = make_run(tmp_path / "seed3-s0", store, {4000: 20.0}, speed=100.0)
    run.append("metrics", 4000, metric="fd-face", value=1.0, protocol={"store": "another", "split": "val", "n_real": 4, "truncation": 1.0})
    run.append("metrics", 4000, metric="fd-face", value=1.0, protocol={"store": store.digest, "split": "test", "n_real": 4})
    assert page.score_of(run, "fd-face", 4000, store).value == 20.0 and page.score_of(run, "kid-face", 4000, store) is None


def test_the_page_says_what_was_not_run_and_what_was_run_otherwise(ladder, store, tmp_path):
    make, page = ladder
    spec = make.read_spec(DOCS / "ladder.toml")
    said = ["train.images=320k", "train.snapshot_kimg=40"]
    make_run(tmp_path / "stable64-s0", store, {4000: 20.0}, speed=100.0, overrides=said)
    make_run(tmp_path / "fast64-s0", store, {4000: 10.0}, speed=100.0, preset="fast64-cpu", overrides=[*said, "optimizer.lr_g=1e-3"])
    rungs = {name: [attempt(ladder, name, tmp_path)] for name in ("stable64", "fast64")}
    page.write_page(spec, rungs, store, out=tmp_path / "ladder.md", weights=False, name="ladder.toml")
    text = (tmp_path / "ladder.md").read_text()
    assert "Not run yet: plain DCGAN (seed 3)" in text and "| stable64-cpu | 4,000 | 20.0 (19.0 to 21.0) |" in text
    assert "`fast64-s0` was trained with another recipe than its command says: optimizer.lr_g: 0.0004 -> 0.001." in text
    assert "`stable64-s0` was trained" not in text and "| stable64-cpu | 42 | 7 |" in text and json.dumps(str(tmp_path))[1:-1] not in text


def test_the_readme_s_table_is_replaced_and_nothing_around_it(ladder, store, tmp_path):
    _, page = ladder
    make_run(tmp_path / "seed3-s0", store, {4000: 20.0}, speed=100.0)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    table = page.digest({"seed3": [attempt(ladder, "seed3", tmp_path)]}, store)
    assert "| plain DCGAN (seed 3) | 4,000 | 1 | 20.0 |" in table
    page.write_digest(readme, table)
    assert readme.read_text() == f"before\n{page.BEGIN}\n{table}\n{page.END}\nafter\n"
