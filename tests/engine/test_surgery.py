"""--from: what fits is loaded, what has a meaning re-shaped, what is new warmed up; and the surgery that once killed a run."""

import shutil

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from engine.conftest import tiny_recipe, write_tiny_store
from engine.test_resume import assert_same_bits
from mien.apps.cli.main import app
from mien.apps.cli.train import inherit
from mien.config import resolve
from mien.data.store import open_store
from mien.engine import build, surgery
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session
from mien.engine.step import train_step
from mien.engine.surgery import Origin
from mien.engine.warmup import regroup, set_shares, warmth
from mien.errors import UserError
from mien.explore.load import find_snapshot
from mien.rules import settle
from mien.runs import Run

CPU = torch.device("cpu")
MORE = ("surgery.warmup_kimg=0.08", "sample.every_kimg=0", "balance.probe_kimg=0")


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    """A run of 96 images on Male and Smiling, finished."""
    begun = open_session(tmp_path_factory.mktemp("from") / "source", tiny_recipe("train.tick_kimg=0.048"), store, device=CPU)
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None).train()
    return begun


def begin(path, store, name, *overrides, stop_at=None, train=True, said=None):
    """A run from `name`."""
    begun = open_session(path, tiny_recipe(*MORE, *overrides), store, device=CPU, origin=name and Origin(str(name), find_snapshot),
                         say=(said if said is not None else []).append)  # fmt: skip
    if not train:
        begun.run.unlock()
        return begun
    loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None)
    if stop_at is not None:
        loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
    loop.train()
    return begun


def seen(state, attributes=((0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0))):
    """(faces of the average, logits of 8 images) of networks at rest."""
    torch.manual_seed(1)
    z, images, rows = torch.randn(4, 8), torch.rand(8, 3, 32, 32) * 2 - 1, torch.tensor(attributes)
    training, state.D.training = state.D.training, False
    with torch.no_grad():
        faces, logits = state.ema(z, rows), state.D.eval()(images, rows.repeat(2, 1))
    state.D.train(training)
    return faces, logits


def test_the_same_architecture_goes_on_where_it_was(store, source, tmp_path):
    said = []
    begun = begin(tmp_path / "run", store, source.run.path, train=False, said=said)
    assert [line.split() for line in said[0].splitlines()[2:]] == [["G", "14", "0", "0", "0"], ["D", "9", "0", "0", "0"]]
    mine, theirs = begun.state.tensors(), source.state.tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs if not name.startswith(("meter", "seen")))
    record = begun.run.config["from"]
    assert record["nimg"] == 96 and record["path"].endswith("checkpoints/0000000096") and len(record["sha256"]) == 64
    assert [event["message"] for event in begun.run.events() if event["kind"] == "surgery"] == [
        f"Began with the weights of {record['path']} (96 images): parameters 23 loaded."]  # fmt: skip
    assert begun.state.warming == {} and begun.state.nimg == 0 and begun.state.origin_nimg == 96


def test_minibatch_stddev_put_into_a_trained_d(store, source, tmp_path):
    """Seed 0's seventh experiment. The new channel is silent at first, and so is its optimiser."""
    said = []
    begun = begin(tmp_path / "run", store, source.run.path, "model.discriminator.minibatch_stddev=4", train=False, said=said)
    assert "  re-shaped  D.trunk.4x4.conv.weight  [16, 8, 4, 4] -> [16, 9, 4, 4]: + 1 input (stddev)" in said[0].splitlines()
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(seen(begun.state), seen(source.state)))
    assert list(begun.state.warming) == ["D.trunk.4x4.conv.weight"]
    moved = dict(begun.state.D.named_parameters())["trunk.4x4.conv.weight"]
    assert moved not in begun.state.opt_d.state and len(begun.state.opt_d.state) == 8


def step(state, task):
    set_shares(state, task.config)
    return train_step(state, task, knobs_at(task.config, state.nimg))


def test_the_careful_surgery_is_gentler_than_the_naive_one(store, source):
    """Naive: a random channel, learnt at the full rate with the moments of another tensor's past."""
    config = tiny_recipe(*MORE, "model.discriminator.minibatch_stddev=4", "optimizer.lr_d=2e-3", "surgery.warmup_kimg=1").config
    results = {}
    for careful in (True, False):
        task = build.build_task(config, store, CPU)
        state = build.build_state(config, size=32, attributes=2, device=CPU)
        fresh = state.D.trunk[-1].conv.weight.detach().clone()
        surgery.transplant(surgery.read(Origin(str(source.run.path), find_snapshot)), state, ("Male", "Smiling"))
        if not careful:
            with torch.no_grad():
                state.D.trunk[-1].conv.weight[:, 8] = fresh[:, 8]
            old = source.state.opt_d.state[source.state.D.trunk[-1].conv.weight]
            widened = {slot: torch.cat([value, torch.zeros(16, 1, 4, 4)], 1) if value.ndim else value for slot, value in old.items()}
            state.opt_d.state[state.D.trunk[-1].conv.weight] = {slot: value.clone() for slot, value in widened.items()}
            state.warming = {}
        regroup(state, config)
        jump = float((seen(state)[1] - seen(source.state)[1]).abs().max())
        channel = state.D.trunk[-1].conv.weight[:, 8].detach().clone()
        step(state, task)
        moved = float((state.D.trunk[-1].conv.weight[:, 8] - channel).detach().abs().max())
        results[careful] = jump, moved
        signals = [step(state, task) for _ in range(4)][-1]
        assert all(torch.isfinite(value) for value in signals.values())
    assert results[True][0] < 1e-5 < results[False][0]  # rounding: one channel more may be summed in another order
    assert results[False][1] > 20 * results[True][1] > 0  # a step of the naive one: the rate x 10, for Adam's averages of it are empty


def test_conditions_are_moved_by_name(store, source, tmp_path):
    """In another order: the same function. Beside a new one: it makes no difference yet. Without one: as if it were unknown."""
    name = source.run.path
    faces, logits = seen(source.state)
    swapped = seen(begin(tmp_path / "swapped", store, name, 'data.attributes=["Smiling","Male"]', train=False).state,
                   ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)))  # fmt: skip
    assert torch.allclose(swapped[0], faces, atol=1e-6) and torch.allclose(swapped[1], logits, atol=1e-5)
    three = open_store(write_tiny_store(tmp_path / "three", attributes=("Hat", "Male", "Smiling")))
    rows = ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    said = []
    more = begin(tmp_path / "more", three, name, "data.attributes=all", train=False, said=said)
    assert torch.allclose(seen(more.state, rows)[0], faces, atol=1e-6) and torch.allclose(seen(more.state, rows)[1], logits, atol=1e-5)
    assert "G.blocks.4x4.conv.weight  [256, 10] -> [256, 11]: + 1 input (Hat)" in said[0]
    fewer = seen(begin(tmp_path / "fewer", store, name, 'data.attributes=["Smiling"]', train=False).state, ((1.0,), (1.0,), (0.0,), (0.0,)))
    unknown = seen(source.state, ((0.5, 1.0), (0.5, 1.0), (0.5, 0.0), (0.5, 0.0)))
    assert torch.allclose(fewer[0], unknown[0], atol=1e-6)


def test_a_wider_generator_draws_the_same_faces(store, source, tmp_path):
    begun = begin(tmp_path / "run", store, source.run.path, "model.generator.width=24", "model.generator.z_dim=8", train=False)
    assert torch.allclose(seen(begun.state)[0], seen(source.state)[0], atol=1e-5)
    assert begun.state.G.blocks[0].conv.weight.shape[0] == 24 * 16


def test_another_size_says_which_layers_are_new(source, tmp_path):
    large, said = open_store(write_tiny_store(tmp_path / "s64", size=64)), []
    begun = begin(tmp_path / "run", large, source.run.path, train=False, said=said)
    new = [line.split()[1] for line in said[0].splitlines() if line.startswith("  new")]
    assert new == ["G.blocks.64x64.conv.weight", "G.blocks.64x64.norm.weight", "G.blocks.64x64.norm.bias", "G.blocks.image.conv.weight",
                   "D.trunk.32x32.conv.weight", "D.trunk.32x32.conv.bias", "D.trunk.16x16.conv.weight"]  # fmt: skip
    assert "--set growth.at_kimg=0 would fade the new blocks in" in said[1] and begun.state.G.size == 64
    faded = begin(tmp_path / "faded", large, source.run.path, "growth.at_kimg=0", train=False)
    torch.manual_seed(1)
    z, rows = torch.randn(4, 8), torch.ones(4, 2)
    assert torch.equal(faded.state.ema(z, rows), nn.functional.interpolate(source.state.ema(z, rows), scale_factor=2.0))


def test_a_snapshot_has_no_d_so_g_waits(store, tiny_snapshot, tmp_path):
    said = []
    begun = begin(tmp_path / "run", store, tiny_snapshot, "model.generator.stem=transpose", "model.generator.head=transpose", train=False,
                  said=said)  # fmt: skip
    assert "new        all of D" in said[0] and begun.run.config["from"]["nimg"] == 1000
    assert set(begun.state.warming) == {f"G.{name}" for name, _ in begun.state.G.named_parameters()}
    assert {group["share"] for group in begun.state.opt_g.param_groups} == {warmth(0, 80)} == {0.05}
    assert {group["share"] for group in begun.state.opt_d.param_groups} == {1.0}


def test_resume_is_exact_with_a_warm_up_in_flight_and_without_the_source(store, source, tmp_path):
    gone, changed = shutil.copytree(source.run.path, tmp_path / "gone"), "model.discriminator.minibatch_stddev=4"
    whole = begin(tmp_path / "whole", store, gone, changed)
    begin(tmp_path / "parts", store, gone, changed, stop_at=40)
    shutil.rmtree(gone)
    again = begin(tmp_path / "parts", store, gone, changed)
    assert again.resumed and again.state.nimg == 96 and again.run.config["from"]["name"] == str(gone)
    assert_same_bits(again.state, whole.state)
    with pytest.raises(UserError, match="was begun from .*gone; name another run with --run to begin from demo"):
        begin(tmp_path / "parts", store, "demo", changed)


def test_old_parts_learn_at_their_rate_and_frozen_ones_not_at_all(store, source, tmp_path):
    changed = ("model.discriminator.minibatch_stddev=4", "surgery.freeze_d=2", "train.images=16")
    begun = begin(tmp_path / "run", store, source.run.path, *changed)
    was = source.state.D.state_dict()
    same = [name for name, p in begun.state.D.named_parameters() if p.shape == was[name].shape and torch.equal(p, was[name])]
    assert same == ["trunk.16x16.conv.weight", "trunk.16x16.conv.bias", "trunk.8x8.conv.weight", "trunk.8x8.conv.bias"]
    shares = {group["born_nimg"]: group["share"] for group in begun.state.opt_d.param_groups if not group["frozen"]}
    assert shares == {None: 1.0, 0: warmth(16, 80)} and 0.05 < warmth(16, 80) < warmth(40, 80) < warmth(80, 80) == 1.0
    with pytest.raises(UserError, match="there is no --from"):
        begin(tmp_path / "other", store, None, "surgery.freeze_d=2")


def test_what_from_did_not_bring_is_not_frozen(source, tmp_path):
    """From another size D's first block is random: it learns, warmed up at first, and also after a resume."""
    large = open_store(write_tiny_store(tmp_path / "s64", size=64))
    changed, first = ("surgery.freeze_d=2", "surgery.warmup_kimg=0.02", "train.images=48"), ("trunk.32x32", "trunk.16x16")
    begun = begin(tmp_path / "run", large, source.run.path, *changed, train=False)
    was = {name: p.detach().clone() for name, p in begun.state.D.named_parameters()}
    begin(tmp_path / "run", large, source.run.path, *changed, stop_at=16)
    state = begin(tmp_path / "run", large, source.run.path, *changed).state
    still = [name for name, p in state.D.named_parameters() if torch.equal(p, was[name])]
    assert still == ["trunk.16x16.conv.bias"] and any(name.startswith(first[0]) for name in was)
    shares = {name: group["share"] for group in state.opt_d.param_groups for name, p in state.D.named_parameters()
              if any(p is each for each in group["params"])}  # fmt: skip
    assert {name: share for name, share in shares.items() if name.startswith(first)} == {
        "trunk.32x32.conv.weight": 1.0, "trunk.32x32.conv.bias": 1.0, "trunk.16x16.conv.weight": 1.0, "trunk.16x16.conv.bias": 0.0}


def test_a_new_attributes_plane_learns_though_its_block_is_frozen(store, tmp_path):
    planes = ("model.discriminator.condition=channels", "balance.probe_kimg=0", "sample.every_kimg=0", "surgery.warmup_kimg=0")
    begun = open_session(tmp_path / "old", tiny_recipe(*planes, 'data.attributes=["Male"]', "train.images=16"), store, device=CPU)
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None).train()
    state = begin(tmp_path / "new", store, tmp_path / "old", *planes, "surgery.freeze_d=1", "train.images=16").state
    assert float(state.D.trunk[0].conv.weight[:, 4].detach().abs().max()) > 0  # 0 at first


def test_how_old_the_weights_are_adds_up_over_a_chain(store, source, tmp_path):
    begin(tmp_path / "second", store, source.run.path, "train.images=16")
    assert begin(tmp_path / "third", store, tmp_path / "second", train=False).state.origin_nimg == 96 + 16


def test_from_a_smaller_model_the_hint_is_one_that_works(source, tmp_path):
    large, said = open_store(write_tiny_store(tmp_path / "s64", size=64)), []
    begin(tmp_path / "run", large, source.run.path, "surgery.freeze_d=2", train=False, said=said)
    hint = said[1].partition(": ")[2].partition(" would")[0]
    faded = begin(tmp_path / "faded", large, source.run.path, "surgery.freeze_d=2", *hint.replace("--set ", "").split(), train=False)
    assert faded.state.G.size == 64 and faded.state.G.alpha == 0


def test_what_does_not_fit_at_all_and_what_is_not_there(store, source, tmp_path):
    read = surgery.read(Origin(str(source.run.path), find_snapshot))
    read.G.blocks, read.ema.blocks, read.D.trunk = nn.Sequential(), nn.Sequential(), nn.Sequential()
    read.D.logit = nn.Linear(3, 1)
    state = build.build_state(tiny_recipe().config, size=32, attributes=2, device=CPU)
    with pytest.raises(UserError, match="its networks are of another kind"):
        surgery.transplant(read, state, ("Male", "Smiling"))
    with pytest.raises(UserError, match="No model or run is named nowhere"):
        begin(tmp_path / "run", store, "nowhere")
    assert not (tmp_path / "run").exists()


def test_auto_is_auto_for_the_next_run_too(store, tmp_path):
    """A number by a rule belongs to the size and batch that it was made for."""
    auto = ("regularizer.r1.gamma=auto", "ema.half_life_kimg=auto")
    begun = open_session(tmp_path / "run", tiny_recipe(*auto), store, device=CPU)
    begun.run.unlock()
    assert begun.run.config["config"]["regularizer"]["r1"]["gamma"] == 0.05
    inherited = inherit(str(tmp_path / "run"), None)
    assert inherited["regularizer.r1.gamma"] == inherited["ema.half_life_kimg"] == "auto" and inherited["train.batch"] == 8
    larger, _ = settle(resolve(None, inherited.items()).config, 64)
    assert larger.regularizer.r1.gamma == 0.2


def test_from_on_the_command_line_takes_the_recipe_along(store, source, tmp_path):
    run = tmp_path / "run"
    command = ["train", str(store.path), "--from", str(source.run.path), "--run", str(run), "--device", "cpu", "--images", "16",
               "--set", "sample.every_kimg=0"]  # fmt: skip
    first, again = CliRunner().invoke(app, command), CliRunner().invoke(app, command)
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert "From " in first.stderr and "Resuming" in again.stderr
    said = Run.open(run).config
    assert said["config"]["model"] == source.run.config["config"]["model"] and said["config"]["train"]["images"] == 16
    assert said["provenance"]["model.generator.width"] == f"from {source.run.path}" and said["provenance"]["train.images"] == "command line"
    assert "No model or run is named" in CliRunner().invoke(app, ["train", str(store.path), "--from", "nowhere", "--run", "x"]).stderr
