"""`mien eval` and the scorer of snapshots, on an untrained generator and a small drawn store."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from mien.apps.cli.evaluate import evaluate, score_snapshot
from mien.errors import UserError
from mien.runs import Run


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("store") / "faces"
    folder.mkdir()
    np.save(folder / "images.npy", draw.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "attributes.npy", draw.integers(0, 2, (300, 2), dtype=np.uint8))
    np.save(folder / "splits.npy", np.repeat(np.array([0, 1], dtype=np.uint8), 150))
    (folder / "names.txt").write_text("".join(f"{i}.png\n" for i in range(300)))
    manifest = {"format": "mien-faces/1", "count": 300, "size": 32, "crop": "whole", "attributes": ["Male", "Smiling"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "cache"))


def run_eval(*arguments):
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture()
def run(tmp_path, tiny_snapshot):
    made = Run.create(tmp_path / "run", config={"config": {}}, architecture={})
    for suffix in (".safetensors", ".json"):
        (made.path / "snapshots" / f"000001kimg{suffix}").write_bytes(tiny_snapshot.with_suffix(suffix).read_bytes())
    return made


def test_scores_of_a_run_are_printed_with_their_protocol_and_written(run, store_folder):
    said = run_eval(run.path, "--data", store_folder, "--metrics", "kid,prdc,latent", "--features", "random", "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert "Protocol: 150 of run/000001kimg (EMA weights, seed 0" in said.stdout and "150 of faces val" in said.stdout
    assert "val has 150 images" in said.stdout and "kid-random" in said.stdout
    lines = run.metrics()
    assert {line["metric"] for line in lines} >= {"kid-random", "recall-random", "diversity"}
    assert all(line["nimg"] == 1000 and line["protocol"]["split"] == "val" for line in lines)
    snapshot = run.path / "snapshots" / "000001kimg.safetensors"
    again = run_eval(snapshot, "--data", store_folder, "--metrics", "kid", "--features", "random", "--json")
    score, = json.loads(again.stdout)
    assert score["value"] == lines[0]["value"] and score["details"]["reals_from_cache"] and len(run.metrics()) == len(lines) + 1


def test_only_another_precision_than_fp32_is_spoken_of(run, store_folder):
    asked = (run.path, "--data", store_folder, "--metrics", "kid", "--features", "random", "--device", "cpu")
    plain, other = run_eval(*asked), run_eval(*asked, "--precision", "bf16")
    assert plain.exit_code == other.exit_code == 0, other.output
    assert "features random in bf16; mien" in " ".join(other.stdout.split())
    assert "fp32" not in plain.stdout and "precision" not in plain.stdout
    assert [line["protocol"].get("precision") for line in run.metrics()] == [None, "bf16"]


def test_a_store_and_a_folder_can_be_scored(store_folder, tmp_path):
    from PIL import Image

    said = run_eval(store_folder, "--data", store_folder, "--metrics", "kid", "--features", "pixels", "--count", "100")
    assert said.exit_code == 0 and "as the store has them" in " ".join(said.stdout.split())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.fromarray(np.load(store_folder / "images.npy")[i]).save(pictures / f"{i}.png")
    said = run_eval(pictures, "--data", store_folder, "--metrics", "kid", "--features", "pixels", "--json")
    assert json.loads(said.stdout)[0]["protocol"]["n_fake"] == 40


def test_mistakes_are_user_errors(run, store_folder):
    for arguments, word in ((["--metrics", "kdi"], "kid"), (["--protocol", "clean"], "torcheval"), (["--features", "fase"], "face"),
                            (["--protocol", "torcheval", "--metrics", "fd"], "leave out"), (["--precision", "fp16"], "fp32, bf16"),
                            (["--protocol", "torcheval", "--precision", "bf16"], "fp32 alone")):  # fmt: skip
        said = run_eval(run.path, "--data", store_folder, *arguments)
        assert isinstance(said.exception, UserError) and word in str(said.exception)


def test_a_config_of_something_else_beside_the_model_costs_no_score(store_folder, tiny_snapshot, tmp_path):
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"mine{suffix}").write_bytes(tiny_snapshot.with_suffix(suffix).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gan"}')
    said = run_eval(tmp_path / "mine.safetensors", "--data", store_folder, "--metrics", "kid", "--features", "random", "--json")
    assert said.exit_code == 0 and json.loads(said.stdout)[0]["metric"] == "kid-random"
    assert "were not written to a run" in said.stderr and not list(tmp_path.glob("*.jsonl"))


def test_a_snapshot_is_scored_during_training(run, store_folder):
    from mien.data.store import open_store
    from mien.sections import Eval

    settings = Eval(metrics=["fd", "kid"], features="random", count=150, split="val")
    path = run.path / "snapshots" / "000001kimg.safetensors"
    line = score_snapshot(run, path, open_store(store_folder), settings, nimg=1000)
    assert "fd-random" in line and "reals" in line and " s)" in line
    assert [m["metric"] for m in run.metrics()] == ["fd-random", "kid-random"] and run.events()[-1]["kind"] == "score"
    assert run.best_snapshot() == path


def test_a_collapsed_snapshot_does_not_end_the_run(run, store_folder):
    from mien.data.store import open_store
    from mien.sections import Eval

    settings = Eval(metrics=["fd"], features="random", count=50, split="val")  # fewer images than features
    line = score_snapshot(run, run.path / "snapshots" / "000001kimg.safetensors", open_store(store_folder), settings, nimg=1000)
    assert "too few for 64 features" in line and run.metrics() == [] and "too few" in run.events()[-1]["message"]
