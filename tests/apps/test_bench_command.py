"""`mien bench`: it measures what it says, in one schema, and its mistakes are one line."""

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from mien.apps.bench import others, timing, train
from mien.apps.cli.bench import SUBJECTS, understand
from mien.apps.cli.main import app
from mien.config import resolve
from mien.engine import build, memory
from mien.errors import UserError
from mien.rules import settle

TINY = ("model.generator.width=16", "model.discriminator.width=16", "model.generator.min_width=8", "model.discriminator.min_width=8",
        "train.batch=8", "data.attributes=none")  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(train, "ROUND_S", 0.01)
    monkeypatch.setattr(train, "PARTS_S", 0.01)
    monkeypatch.setattr(timing, "PEAK_S", 0.01)
    monkeypatch.setitem(timing.SIDE, "cpu", 64)
    monkeypatch.setattr(others, "JPEGS", 12)
    monkeypatch.setattr(others, "SCORED", 40)
    monkeypatch.setattr(others, "FOR_S", 0.01)
    monkeypatch.setattr(others, "BATCHES", (1, 3))


def run(*words):
    """What `mien bench` writes for a small recipe, as JSON."""
    result = CliRunner().invoke(app, ["bench", *words, "--device", "cpu", "--json", *(word for each in TINY for word in ("--set", each))])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["format"] == "mien-bench/1" and found["size_px"] == 64 and found["machine"]["matmul_fp32_gmacs_per_s"] > 0
    return found


def is_spread(rates):
    return set(rates) == {"median", "min", "max"} and 0 < rates["min"] <= rates["median"] <= rates["max"]


def test_it_measures_a_recipe_and_writes_a_trace(tmp_path):
    told = run("--profile", str(tmp_path / "traces"))["train"]
    assert is_spread(told["images_per_s"])
    assert told["s_per_kimg"] == pytest.approx(1000 / told["images_per_s"]["median"])
    assert {"data", "discriminator", "generator", "optimisers", "average"} <= set(told["ms_per_step_by_part"])
    assert 0 <= told["idle_share"] < 1 and told["memory_peak_mb"] > 50 and told["memory_predicted"]["total_mb"] > 50
    events = json.loads((tmp_path / "traces" / "train.json").read_text())["traceEvents"]
    assert any("conv" in event.get("name", "") for event in events)


def test_data_is_prepared_and_served():
    found = run("data")["data"]
    assert set(found) == {"prepare_images_per_s_by_workers", "loader_images_per_s", "batch"} and found["batch"] == 8
    assert set(found["prepare_images_per_s_by_workers"]) == {"1", str(torch.get_num_threads())}
    assert all(rate > 0 for rate in found["prepare_images_per_s_by_workers"].values()) and is_spread(found["loader_images_per_s"])


def test_a_score_is_measured():
    found = run("eval")["eval"]
    assert set(found) == {"features", "features_images_per_s", "score_images", "score_metrics", "score_s"}
    assert is_spread(found["features_images_per_s"]) and found["score_s"] > 0 and found["score_images"] == 40
    assert found["score_metrics"] == ["kid-face", "precision-face", "recall-face", "density-face", "coverage-face"]


def test_faces_are_drawn_one_by_one_and_in_batches():
    found = run("sample")["sample"]
    assert set(found["images_per_s_by_batch"]) == {"1", "3"} and all(rate > 0 for rate in found["images_per_s_by_batch"].values())
    assert 0 < found["one_face_ms"]["median"] <= found["one_face_ms"]["p95"] and found["one_face_ms"]["faces"] >= 3


def test_all_of_it_on_a_store_is_one_table(monkeypatch):
    monkeypatch.setattr("mien.apps.cli.bench.FACES", 64)
    result = CliRunner().invoke(app, ["bench", "all", "--device", "cpu", *(word for each in TINY for word in ("--set", each))])
    assert result.exit_code == 0, result.output
    for words in ("matrix products, fp32", "G multiply-adds an image", "serving batches", "face features", "one face", "batches of 3"):
        assert words in result.stdout


def test_multiply_adds_are_those_of_the_networks():
    """One update of D (reals and fakes, forward and both backward halves) and one of G, whose backward passes through a D that is held."""
    store = memory.noise_store((), size_px=32, count=8)
    config = resolve("seed3", [*TINY, "data.attributes=[]", "train.batch=4"]).config
    config, _ = settle(config, 32)
    state = build.build_state(config, size=32, attributes=0, device=CPU)
    rows = build.describe_architecture(state, size=32, attributes=0, device=CPU)
    g, d = (sum(row["macs"] for row in rows[role]) for role in ("generator", "discriminator"))
    first_g = rows["generator"][0]["macs"]
    first_d = rows["discriminator"][0]["macs"]
    by_hand = 3 * g + 6 * d + 2 * d - first_g - 2 * first_d  # nothing flows back into latents, nor in D's update into pictures
    assert train.macs_per_image(config, store, CPU) == pytest.approx(by_hand, rel=0.1)


def test_a_lazy_penalty_counts_its_share():
    def macs(*overrides):
        config, _ = settle(resolve("seed3", [*TINY, *overrides]).config, 32)
        return train.macs_per_image(config, memory.noise_store((), size_px=32, count=8), CPU)

    plain = macs("data.attributes=[]")
    each = macs("data.attributes=[]", "regularizer.r1.gamma=1", "regularizer.r1.every=1")
    fourth = macs("data.attributes=[]", "regularizer.r1.gamma=1", "regularizer.r1.every=4")
    assert each > plain
    assert fourth - plain == pytest.approx((each - plain) / 4, rel=1e-6)


def test_a_part_inside_another_is_taken_off():
    clock = train.Clock(CPU)
    with clock.part("outer"), clock.part("inner"):
        time.sleep(0.05)
    assert clock.spent_s["inner"] >= 0.05 > clock.spent_s["outer"] >= 0


def test_subjects_and_stores_are_told_apart(tmp_path):
    assert understand([]) == (("train",), None)
    assert understand(["all", str(tmp_path)]) == (SUBJECTS, tmp_path)
    assert understand([str(tmp_path)]) == (("train",), tmp_path)
    assert understand(["eval"]) == (("eval",), None)


@pytest.mark.parametrize("words", [["sampel"], ["train", "a", "b"]])
def test_other_words_are_refused(words):
    with pytest.raises(UserError):
        understand(words)


def test_a_profile_is_of_training():
    assert CliRunner().invoke(app, ["bench", "data", "--profile", "x"]).exit_code == 2
