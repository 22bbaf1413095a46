"""Fine-tuning on a few faces: a snapshot that brings its discriminator, the preset that takes its networks over, a group as a store."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from engine.conftest import tiny_recipe, write_tiny_store
from mien.apps.cli.main import app
from mien.apps.cli.train import networks_of
from mien.apps.export.package import bundle_critic
from mien.data.store import open_store, problems
from mien.data.subset import parse_group, write_subset
from mien.engine import checkpoint, surgery
from mien.engine.session import open_session
from mien.engine.surgery import Origin
from mien.errors import UserError
from mien.explore.load import bundled_models, find_snapshot, load_generator
from mien.runs import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    begun = open_session(tmp_path_factory.mktemp("from") / "source", tiny_recipe("train.tick_kimg=0.048"), store, device=CPU)
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None).train()
    return begun


@pytest.fixture
def model(source, tmp_path):
    """A snapshot away from its run, with the discriminator beside it."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(find_snapshot(source.run.path).with_suffix(suffix), tmp_path / f"model{suffix}")
    bundle_critic(load_generator(source.run.path), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def begin(path, store, origin, *overrides):
    begun = open_session(path, tiny_recipe("balance.probe_kimg=0", "sample.every_kimg=0", *overrides), store, device=CPU,
                         origin=Origin(str(origin), find_snapshot), say=lambda message: None)  # fmt: skip
    begun.run.unlock()
    return begun


def test_a_snapshot_brings_its_discriminator_in_half_the_bits(store, source, model, tmp_path):
    begun = begin(tmp_path / "run", store, model)
    for name, mine in begun.state.D.state_dict().items():
        theirs = source.state.D.state_dict()[name]
        assert torch.equal(mine, theirs) or (mine.ndim > 1 and torch.allclose(mine, theirs, rtol=1e-3, atol=1e-7)), name
    assert begun.state.warming == {} and len(begun.run.config["from"]["critic_sha256"]) == 64
    assert checkpoint.critic_stem(model).with_name("model.critic.safetensors").stat().st_size < 0.6 * 4 * sum(
        p.numel() for p in source.state.D.parameters()) + 8192  # fmt: skip


def test_without_a_discriminator_nothing_can_be_frozen(store, model, tmp_path):
    for suffix in (".json", ".safetensors"):
        checkpoint.critic_stem(model).with_name("model.critic" + suffix).unlink()
    with pytest.raises(UserError, match="model.safetensors brings no discriminator"):
        begin(tmp_path / "run", store, model, "surgery.freeze_d=1")
    assert not (tmp_path / "run").exists() and begin(tmp_path / "run", store, model).state.warming


def test_a_damaged_discriminator_is_named(store, model):
    path = checkpoint.critic_stem(model).with_name("model.critic.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="model.critic.safetensors was cut short"):
        surgery.read(Origin(str(model), find_snapshot))


def test_a_folder_with_a_discriminator_is_one_model_still(model):
    assert find_snapshot(model.parent) == model
    assert "celeba64" in bundled_models() and not any(name.endswith("critic") for name in bundled_models())


def test_the_preset_takes_the_networks_over_and_freezes_the_blocks_at_the_image(store, source, model, tmp_path):
    """D's blocks nearest the image stay the snapshot's; the rest learns. The data lack an attribute, and have one more."""
    data = write_tiny_store(tmp_path / "mine", count=30, attributes=("Smiling", "Hat"))
    words = ["train", str(data), "--from", str(model), "--preset", "finetune64", "--run", str(tmp_path / "run"), "--images", "32",
             "--set", "train.batch=8", "--set", "sample.every_kimg=0", "--set", "balance.probe_kimg=0", "--device", "cpu"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    run = Run.open(tmp_path / "run")
    said = run.config
    assert said["config"]["model"]["generator"]["width"] == 16 == said["config"]["model"]["discriminator"]["width"]
    assert said["config"]["data"]["attributes"] == ["Smiling"] and said["provenance"]["model.generator.width"] == f"from {model}"
    tensors, _ = checkpoint.load_checkpoint(run.checkpoints()[-1][1])
    before = surgery.read(Origin(str(model), find_snapshot)).D.named_parameters()
    still = {name: torch.equal(tensors[f"D.{name}"], was) for name, was in before if tensors[f"D.{name}"].shape == was.shape}
    assert still == {name: name.startswith(("trunk.16x16", "trunk.8x8")) for name in still} and len(set(still.values())) == 2
    again = CliRunner().invoke(app, [*words, "--images", "64"])
    assert again.exit_code == 0 and Run.open(tmp_path / "run").status["nimg"] == 64


def test_the_conditions_of_a_run_on_all_attributes_come_along(store, source, tmp_path):
    """Its recipe names none: "all" is of its own data."""
    said = json.loads((source.run.path / "config.json").read_text())
    said["config"]["data"]["attributes"] = None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(said))
    mine = write_tiny_store(tmp_path / "mine", count=30, attributes=("Smiling", "Hat"))
    for data, names in ((store.path, ["Male", "Smiling"]), (mine, ["Smiling"])):
        assert networks_of(str(tmp_path / "run"), None, "finetune64", [], data)["data.attributes"] == names


def test_another_preset_keeps_its_own_networks(store, model, tmp_path):
    words = ["train", str(store.path), "--from", str(model), "--preset", "stable64-cpu", "--run", str(tmp_path / "run"), "--images", "8",
             "--set", "train.batch=8", "--set", "sample.every_kimg=0", "--set", "balance.probe_kimg=0", "--device", "cpu"]  # fmt: skip
    assert CliRunner().invoke(app, words).exit_code == 0
    assert Run.open(tmp_path / "run").config["config"]["model"]["generator"]["width"] == 96


def test_a_group_of_a_store_is_a_store(store, tmp_path):
    made = write_subset(store, tmp_path / "part", where={"Male": 1}, limit=7, attributes=["Smiling"])
    assert not list(problems(made.path)) and made.attribute_names == ("Smiling",)
    male = store.attributes[:, 0] == 1
    assert len(made.indices("train")) == 7 and len(made.indices("val")) == int((male & (store.splits == 1)).sum())
    rows = [store.names.index(name) for name in made.names]
    assert male[rows].all() and np.array_equal(made.images, store.images[rows])
    assert np.array_equal(made.attributes[:, 0], store.attributes[rows, 1])
    train = [row for row in store.indices("train") if male[row]]
    whole = write_subset(store, tmp_path / "whole", where={"Male": 1}, limit=7, rest_held_out=True)
    learnt = [[one.names[row] for row in one.indices("train")] for one in (whole, made)]
    assert len(whole) == int(male.sum()) and learnt[0] == learnt[1] and not list(problems(whole.path))
    assert rows[0] == train[0] and train[-1] in rows  # evenly spread, from the first to the last
    with pytest.raises(UserError, match="has no attribute 'Mail'"):
        write_subset(store, tmp_path / "none", where={"Mail": 1})
    with pytest.raises(UserError, match="write NAME=1"):
        parse_group("Male")
    result = CliRunner().invoke(app, ["data", "subset", str(store.path), "--where", "Male=0,Smiling=1", "--out", str(tmp_path / "other")])
    assert result.exit_code == 0 and json.loads((tmp_path / "other" / "manifest.json").read_text())["source"][0]["kind"] == "subset"
    assert (open_store(tmp_path / "other").attributes == [0, 1]).all()
