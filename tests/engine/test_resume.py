"""Exact resume, on the CPU: a run that is killed anywhere and started again ends with the bits of one that never stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.conftest import TINY, tiny_recipe
from mien.engine import checkpoint
from mien.engine.session import open_session
from mien.engine.state import TrainState, step_seed
from mien.errors import UserError
from mien.runs import Run, kimg_name

CPU = torch.device("cpu")
# What keeps a state of its own is all on: batch norm, spectral norm's vectors, lazy R1, augmentation, EMA, warm-up, dropout.
RICH = ("model.discriminator.dropout=0.2", "model.discriminator.input_noise=0.1", "augment.p=0.5", "regularizer.r1.every=3",
        "schedule.warmup_kimg=0.05", "schedule.lr=cosine", "model.discriminator.minibatch_stddev=4", "optimizer.clip_norm=1.0")  # fmt: skip

CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from mien.config import resolve
from mien.data.store import open_store
from mien.engine.session import open_session
begun = open_session(Path(sys.argv[2]), resolve("seed0", sys.argv[3:]), open_store(sys.argv[1]), device=torch.device("cpu"))
print("ready", flush=True)
begun.loop(on_tick=lambda nimg, values: print("tick", nimg, flush=True), on_snapshot=lambda path, nimg: None).train()
"""


def train(path: Path, store, *overrides, stop_at=None) -> TrainState:
    begun = open_session(path, tiny_recipe(*overrides), store, device=CPU, say=lambda message: None)
    loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None)
    if stop_at is not None:
        loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
    loop.train()
    return begun.state


def assert_same_bits(one: TrainState, other: TrainState):
    a, b = one.tensors(), other.tensors()
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]
    assert one.nimg == other.nimg


def test_stop_and_go_on_is_the_same_as_going_on(store, tmp_path):
    whole = train(tmp_path / "whole", store, *RICH)
    for stop_at in (8, 56):
        train(tmp_path / str(stop_at), store, *RICH, stop_at=stop_at)
        assert_same_bits(train(tmp_path / str(stop_at), store, *RICH), whole)


def test_kill_9_at_random_moments(store, tmp_path):
    """Two kills of one run, wherever they fall: between steps, inside one, while a checkpoint is being written."""
    whole = train(tmp_path / "whole", store, *RICH)
    path, draw = tmp_path / "killed", random.Random(time.time_ns())
    command = [sys.executable, "-c", CHILD, str(store.path), str(path), *TINY, *RICH]
    for _ in range(2):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(draw.randint(1, 5)):  # a few ticks, then a moment more
            child.stdout.readline()
        time.sleep(draw.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run(command, check=True, capture_output=True)
    final, _ = checkpoint.newest_valid(Run.open(path).checkpoints())
    killed = checkpoint.load_checkpoint(final)[0]
    mine = whole.tensors()
    assert [name for name in mine if not torch.equal(mine[name], killed[name])] == []
    ours, theirs = ((tmp_path / name / "snapshots" / "000000p096kimg.safetensors").read_bytes() for name in ("whole", "killed"))
    assert ours == theirs
    ticks = [record["nimg"] for record in Run.open(path).scalars()]
    assert ticks == sorted(set(ticks))  # nothing is told twice


@pytest.mark.parametrize("damage", ["cut", "flip", "no_manifest", "half_written"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(store, tmp_path, damage):
    whole = train(tmp_path / "whole", store)
    train(tmp_path / "run", store, stop_at=48)
    newest = Run.open(tmp_path / "run").checkpoints()[-1][1]
    tensors = newest / "state.safetensors"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "no_manifest":
        (newest / "manifest.json").unlink()
    else:
        newest.rename(newest.with_name(f".{newest.name}.77.tmp"))  # what a kill during a save leaves
    said = []
    begun = open_session(tmp_path / "run", tiny_recipe(), store, device=CPU, say=said.append)
    assert 0 < begun.state.nimg < int(newest.name)
    assert (damage == "half_written") == (not said) and all(newest.name in message for message in said)
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None).train()
    assert_same_bits(begun.state, whole)


def test_every_checkpoint_damaged_starts_again(store, tmp_path):
    whole = train(tmp_path / "whole", store)
    train(tmp_path / "run", store, stop_at=24)
    for _, path in Run.open(tmp_path / "run").checkpoints():
        (path / "state.json").write_text("{}")
    assert_same_bits(train(tmp_path / "run", store), whole)


def test_another_recipe_is_refused_with_the_differences(store, tmp_path):
    train(tmp_path / "run", store, stop_at=8)
    with pytest.raises(UserError, match=r"optimizer\.lr_g: 0\.0002 -> 0\.001"):
        open_session(tmp_path / "run", tiny_recipe("optimizer.lr_g=1e-3"), store, device=CPU)


def test_a_longer_run_may_go_on(store, tmp_path):
    train(tmp_path / "run", store)
    longer = train(tmp_path / "run", store, "train.images=128")
    assert longer.nimg == 128
    assert any("train.images: 96 -> 128" in event["message"] for event in Run.open(tmp_path / "run").events())
    assert_same_bits(longer, train(tmp_path / "whole", store, "train.images=128"))


def test_a_run_in_progress_is_left_alone(store, tmp_path):
    begun = open_session(tmp_path / "run", tiny_recipe(), store, device=CPU)  # not yet training: no status tells of it
    with pytest.raises(UserError, match="is being trained by process"):
        open_session(tmp_path / "run", tiny_recipe(), store, device=CPU)
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None).train()
    open_session(tmp_path / "run", tiny_recipe(), store, device=CPU).run.unlock()  # training ended, so the run is free
    status = tmp_path / "run" / "status.json"  # as on a file system without locks
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "running", "pid": os.getppid(), "locked": False}))
    with pytest.raises(UserError, match="is being trained by process"):
        open_session(tmp_path / "run", tiny_recipe(), store, device=CPU)


@pytest.mark.parametrize("preset, options", [
    ("seed0", ("train.micro_batch=4", "model.discriminator.minibatch_stddev=4", "train.precision=bf16")),
    ("seed0", ("balance.d_steps=2", "balance.g_steps=2", "regularizer.dragan.gamma=1", "regularizer.gp.gamma=1", "regularizer.gp.every=2")),
    ("seed4", ("data.attributes=all", "data.balance=uniform", "optimizer.name=adamw", "optimizer.weight_decay=0.01")),
])  # fmt: skip
def test_resume_is_exact_with(store, tmp_path, preset, options):
    """Micro-batches in bf16, several updates a step with drawn penalties, minibatch discrimination with label noise and dropout."""
    recipe = tiny_recipe(*options, "train.images=48", "sample.every_kimg=0", preset=preset)

    def go(path, stop_at=None):
        begun = open_session(path, recipe, store, device=CPU, say=lambda message: None)
        loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None)
        if stop_at:
            loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
        loop.train()
        return begun.state

    go(tmp_path / "parts", stop_at=16)
    assert_same_bits(go(tmp_path / "parts"), go(tmp_path / "whole"))


def test_the_same_command_again_writes_nothing_anew(store, tmp_path):
    train(tmp_path / "run", store)
    kept = [path for name in ("checkpoints", "snapshots", "samples") for path in (tmp_path / "run" / name).rglob("*")]
    files = {path: path.stat().st_mtime_ns for path in kept}
    train(tmp_path / "run", store)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_shorter_than_what_was_seen_is_refused_and_changes_nothing(store, tmp_path):
    train(tmp_path / "run", store)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with pytest.raises(UserError, match="has seen 96 images already"):
        open_session(tmp_path / "run", tiny_recipe("train.images=64"), store, device=CPU)
    assert before == {path: path.read_bytes() for path in before}
    assert train(tmp_path / "run", store, "train.images=90").nimg == 96  # where a run of 90 ends too, with batches of 8


def test_a_finished_run_with_longer_steps_by_hand_is_finished_still(store, tmp_path):
    """Its last step went 24 images past the end: more than one of the recipe's."""
    recipe = tiny_recipe()
    begun = open_session(tmp_path / "run", recipe, store, device=CPU)
    begun.run.request_control({"d_steps": 5.0})
    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None).train()
    assert begun.state.nimg == 120
    assert train(tmp_path / "run", store).nimg == 120 and Run.open(tmp_path / "run").status["state"] == "finished"
    with pytest.raises(UserError, match="has seen 120 images already"):
        open_session(tmp_path / "run", tiny_recipe("train.images=104"), store, device=CPU)


def test_an_old_request_to_stop_stops_nothing(store, tmp_path):
    train(tmp_path / "run", store, stop_at=8)
    (tmp_path / "run" / "control" / "stop").touch()
    assert train(tmp_path / "run", store).nimg == 96


def test_what_a_kill_left_half_written_is_swept_away(store, tmp_path):
    train(tmp_path / "run", store, stop_at=8)
    left = tmp_path / "run" / "checkpoints" / ".0000000016.77.tmp"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "samples" / ".mosaic.png.tmp").touch()
    train(tmp_path / "run", store)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_run_that_kept_nothing_may_begin_again_with_another_recipe(store, tmp_path):
    """As after a batch that did not fit into memory, or a kill before config.json was written."""
    open_session(tmp_path / "run", tiny_recipe(), store, device=CPU).run.unlock()
    smaller = train(tmp_path / "run", store, "train.batch=4")
    assert smaller.nimg == 96 and Run.open(tmp_path / "run").config["config"]["train"]["batch"] == 4
    (tmp_path / "early" / "control").mkdir(parents=True)
    (tmp_path / "early" / "architecture.json").write_text("{}")
    open_session(tmp_path / "early", tiny_recipe(), store, device=CPU)


def test_why_a_run_ended_is_written_down(store, tmp_path):
    for error, state, kind in ((RuntimeError("the lamp\nwent out"), "failed", "error"), (KeyboardInterrupt(), "interrupted", "stop")):
        begun = open_session(tmp_path / kind, tiny_recipe(), store, device=CPU)

        def fall(nimg, values, error=error):
            raise error

        with pytest.raises(type(error)):
            begun.loop(on_tick=fall, on_snapshot=lambda path, nimg: None).train()
        run = Run.open(tmp_path / kind)
        assert run.status["state"] == state and run.events()[-1]["kind"] == kind
        assert_same_bits(train(tmp_path / kind, store, "train.images=16"), train(tmp_path / f"{kind}-whole", store, "train.images=16"))
    assert "the lamp went out" in [event["message"] for event in Run.open(tmp_path / "error").events()]


def test_nan_is_refused_a_checkpoint(store, tmp_path):
    """A planted NaN stops the run with a word, and the newest checkpoint is a healthy one."""
    begun = open_session(tmp_path / "run", tiny_recipe(), store, device=CPU)
    loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None)

    def poison(nimg, values):
        if nimg == 40:
            next(begun.state.G.parameters()).data.view(-1)[0] = float("nan")

    loop.on_tick = poison
    with pytest.raises(UserError, match="NaN.*last healthy checkpoint is 0000000032"):
        loop.train()
    assert Run.open(tmp_path / "run").status["state"] == "failed"
    tensors, _ = checkpoint.load_checkpoint(checkpoint.newest_valid(Run.open(tmp_path / "run").checkpoints())[0])
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


def test_full_disk_keeps_older_checkpoints(store, tmp_path, monkeypatch):
    train(tmp_path / "run", store, stop_at=16)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(UserError, match="disk is full"):
        train(tmp_path / "run", store)
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert checkpoint.newest_valid(Run.open(tmp_path / "run").checkpoints())[0] is not None


def test_retention_keeps_the_newest_and_every_kth(tmp_path):
    for nimg in range(10, 110, 10):
        checkpoint.save_checkpoint(tmp_path / "checkpoints", nimg=nimg, tensors={"x": torch.zeros(1)}, plain={})
        checkpoint.prune(Run(tmp_path).checkpoints(), keep=2, keep_every_nimg=30)
    assert [nimg for nimg, _ in Run(tmp_path).checkpoints()] == [30, 60, 90, 100]


def test_a_damaged_later_checkpoint_does_not_push_out_the_one_just_saved(store, tmp_path):
    train(tmp_path / "run", store, "train.keep=1", stop_at=48)
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "0000000048", folder / "0000000088")
    (folder / "0000000088" / "state.json").write_text("{}")
    train(tmp_path / "run", store, "train.keep=1", stop_at=64)
    assert checkpoint.newest_valid(Run.open(tmp_path / "run").checkpoints())[0].name == "0000000064"


def test_snapshots_kept_are_the_newest_the_best_and_every_kth(store, tmp_path):
    begun = open_session(tmp_path / "run", tiny_recipe("train.snapshot_kimg=0.008", "train.keep_snapshots=2", "train.keep_every_kimg=0.04"),
                         store, device=CPU)  # fmt: skip

    def score(path, nimg):
        begun.run.append("metrics", nimg, metric="fd-face", value=5.0 if nimg == 24 else 9.0, protocol={})

    begun.loop(on_tick=lambda nimg, values: None, on_snapshot=score).train()
    assert [nimg for nimg, _ in begun.run.snapshots()] == [24, 40, 80, 88, 96]
    assert {path.stem for path in (begun.run.path / "snapshots").iterdir()} == {kimg_name(nimg) for nimg in (24, 40, 80, 88, 96)}
    assert begun.run.best_snapshot().stem == kimg_name(24)


def test_a_snapshot_may_be_read_by_others(tiny_snapshot):
    assert tiny_snapshot.stat().st_mode == tiny_snapshot.with_suffix(".json").stat().st_mode


def test_step_seeds_do_not_repeat():
    seeds = {step_seed(seed, nimg, salt) for seed in range(4) for nimg in range(0, 6400, 64) for salt in (0, 1)}
    assert len(seeds) == 4 * 100 * 2


def test_snapshot_round_trip_and_damage(store, tmp_path):
    state = train(tmp_path / "run", store)
    path = Run.open(tmp_path / "run").snapshots()[-1][1]
    net, meta = checkpoint.load_snapshot(path)
    z, attributes = torch.randn(3, 8), torch.ones(3, 2)
    assert torch.equal(net(z, attributes), state.ema(z, attributes))
    assert meta["attributes"] == ["Male", "Smiling"] and meta["nimg"] == 96
    assert sum(share for _, share in meta["attribute_table"]) == pytest.approx(1)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="cut short or altered"):
        checkpoint.load_snapshot(path)
