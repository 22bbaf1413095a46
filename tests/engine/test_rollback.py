"""Rollback: from a NaN anywhere, or a collapse, back to the last healthy checkpoint, calmer; at most so often; nothing healthy is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from engine.conftest import TINY, tiny_recipe
from engine.test_resume import assert_same_bits
from mien.apps.cli.main import app
from mien.apps.cli.train import _scorer
from mien.engine import checkpoint, loop
from mien.engine.balance import Trial
from mien.engine.diagnosis import Alarm, History
from mien.engine.loop import TrainingFailed
from mien.engine.session import open_session
from mien.engine.step import train_step
from mien.runs import Run

CPU = torch.device("cpu")
ON = ("balance.mode=on", "balance.patience_kimg=1", "optimizer.clip_norm=none")
NAN = float("nan")


def begin(path: Path, store, *overrides):
    said = []
    begun = open_session(path, tiny_recipe(*ON, *overrides), store, device=CPU, say=said.append)
    made = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=said.append)
    return begun, made, said


def in_weight(state, task):
    with torch.no_grad():
        weight = next(state.D.parameters())
        weight[(0,) * weight.dim()] = NAN


def in_average(state, task):
    with torch.no_grad():
        weight = next(state.ema.parameters())
        weight[(0,) * weight.dim()] = NAN


def in_batch(state, task):
    own = task.data.batch

    def spoilt(position, count):
        images, attributes = own(position, count)
        images = images.clone()
        images[0, 0, 0, 0] = NAN
        del task.data.batch  # this once
        return images, attributes

    task.data.batch = spoilt


def in_gradient(state, task):
    weight = next(state.G.parameters())
    handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * NAN)[1])


def in_penalty(state, task):
    """What bf16 does to a squared gradient beyond 3e38: an infinity, in one penalty."""
    [(name, penalty, every)] = task.penalties

    def overflow(*args, **kwargs):
        object.__setattr__(task, "penalties", ((name, penalty, every),))
        return penalty(*args, **kwargs) * float("inf")

    object.__setattr__(task, "penalties", ((name, overflow, 1),))


def plant(monkeypatch, spoil, at_nimg=56, times=1):
    """Before the step that begins at `at_nimg`, the first `times` it is met."""
    met = []

    def step(state, task, knobs, **kwargs):
        if state.nimg == at_nimg and len(met) < times:
            met.append(state.nimg)
            spoil(state, task)
        return train_step(state, task, knobs, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)
    return met


@pytest.mark.parametrize("spoil", [in_weight, in_average, in_batch, in_gradient, in_penalty])
def test_a_nan_anywhere_is_rolled_back_and_the_run_finishes_calmer(store, tmp_path, monkeypatch, spoil):
    met = plant(monkeypatch, spoil)
    begun, made, said = begin(tmp_path / "run", store)
    assert made.train() and met == [56]
    state, run = begun.state, begun.run
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors().values() if tensor.is_floating_point())
    assert (state.rollbacks, state.noise_salt, state.steering.calm) == (1, 1, 0.5) and state.steering.calm_clip_norm > 0
    [told] = [event for event in run.events() if event["kind"] == "rollback"]
    assert told["nimg"] == 48 and told["failed_nimg"] == 64 and told["message"] in said
    assert told["message"].startswith("Rolled back from 64 to 48 images (1 of 3): ") and "lr_g 0.0001, lr_d 0.0002" in told["message"]
    ticks = [record["nimg"] for record in run.scalars()]
    assert ticks == sorted(set(ticks)) and ticks[-1] == 96
    assert run.scalars()[-1]["lr_g"] == 1e-4 and run.status["state"] == "finished"


def test_off_and_watch_stop_at_a_nan_and_say_how_to_go_on(store, tmp_path, monkeypatch):
    """The rollback switched off: the same plant ends the run, with the healthy checkpoint named; switched on, it goes on from there."""
    plant(monkeypatch, in_weight)
    for mode in ("off", "watch"):
        begun, made, _ = begin(tmp_path / mode, store, f"balance.mode={mode}")
        with pytest.raises(TrainingFailed) as error:
            made.train()
        assert "the last healthy checkpoint is 0000000048 (48 images). Go on with --set balance.mode=on" in str(error.value)
        assert begun.run.status["state"] == "failed" and begun.run.events()[-1]["kind"] == "error"
        plant(monkeypatch, in_weight)
    begun, made, _ = begin(tmp_path / "watch", store)
    assert begun.resumed and made.train() and begun.state.rollbacks == 1


def test_a_last_step_that_spoils_the_weights_is_rolled_back_too(store, tmp_path, monkeypatch):
    """The numbers of the last step were finite, what it left is not: the final checkpoint must not be where that ends in a traceback."""
    def step(state, task, knobs, **kwargs):
        signals = train_step(state, task, knobs, **kwargs)
        if state.nimg == 96 and state.noise_salt == 0:
            in_weight(state, task)
        return signals

    monkeypatch.setattr(loop, "train_step", step)
    begun, made, _ = begin(tmp_path / "run", store)
    assert made.train() and begun.state.rollbacks == 1 and begun.state.nimg == 96


def test_after_so_many_rollbacks_there_is_a_clear_stop(store, tmp_path, monkeypatch):
    """Exit code 2 and one line; each time calmer, with another noise, and the second time from an older checkpoint."""
    plant(monkeypatch, in_gradient, times=99)
    args = ["train", store.path, "--preset", "seed0", "--run", tmp_path / "run", "--device", "cpu"]
    args += [part for setting in (*TINY, *ON, "balance.max_rollbacks=2") for part in ("--set", setting)]
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mien: ") and "after 2 rollbacks at 64 images; the last healthy checkpoint is 0000000048 (48 images)" in last
    assert "Begin another run (--run) with lower optimizer.lr_d and lr_g" in last and "balance.mode=on" not in last
    run = Run.open(tmp_path / "run")
    told = [event for event in run.events() if event["kind"] == "rollback"]
    assert [event["nimg"] for event in told] == [48, 32] and "noise stream 2" in told[1]["message"] and "lr_g 5e-05" in told[1]["message"]
    _, plain = checkpoint.load_checkpoint(run.checkpoints()[-1][1])
    assert (plain["rollbacks"], plain["noise_salt"], plain["steering"]["calm"]) == (2, 2, 0.25)


def test_a_change_on_trial_goes_with_the_rollback(store, tmp_path, monkeypatch):
    """D's rate was doubled, and D died of it: the checkpoint between the two holds the doubled rate."""
    begun, made, _ = begin(tmp_path / "run", store)
    state, own = begun.state, made.save_checkpoint

    def save():
        if state.nimg == 48 and not state.rollbacks:
            state.steering.controller["lr_d"], state.controller.trial = 2.0, Trial("lr_d", None, "G too strong", 0.57)
        own()

    monkeypatch.setattr(made, "save_checkpoint", save)
    plant(monkeypatch, in_gradient)
    assert made.train() and state.rollbacks == 1
    assert "lr_d" not in state.steering.controller and state.controller.harmful == {"G too strong": ["lr_d"]}
    assert begun.run.scalars()[-1]["lr_d"] == 2e-4  # half of the recipe's


def collapse_from(monkeypatch, made, at_nimg, *, suspected_at=None):
    """A diagnosis by hand: suspected, then named, while the run's noise stream is the first."""
    def observed(history, nimg, signals, *, patience_nimg):
        if made.state.noise_salt or nimg < (suspected_at or at_nimg):
            return history
        alarm = Alarm("mode collapse: nearest", "", since_nimg=nimg, named_nimg=nimg if nimg >= at_nimg else None)
        return History(varied=True, alarms=(alarm,))

    monkeypatch.setattr("mien.engine.supervisor.observe", observed)


def test_a_collapse_goes_back_to_before_it_was_suspected_and_what_it_made_is_gone(store, tmp_path, monkeypatch):
    begun, made, said = begin(tmp_path / "run", store, "train.keep=1", "train.snapshot_kimg=0.016", "sample.every_kimg=0.016",
                              "train.images=80")  # fmt: skip
    run = begun.run
    left = []

    def score(path, nimg):
        run.append("metrics", nimg, metric="fd-face", value=1.0 if nimg == 64 else 9.0, protocol={})

    own = run.rewind

    def rewind(nimg, **how):
        own(nimg, **how)
        left.append(([at for at, _ in run.snapshots()], [at for at, _ in run.samples()], [score["nimg"] for score in run.metrics()]))

    made.on_snapshot, run.rewind = score, rewind
    collapse_from(monkeypatch, made, 72, suspected_at=40)
    assert made.train()
    [told] = [event for event in run.events() if event["kind"] == "rollback"]
    # Checkpoints at 48 and 64 were made under suspicion; the one at 32 stayed although only the newest is kept.
    assert (told["nimg"], told["failed_nimg"]) == (32, 72) and "mode collapse" in told["reason"]
    assert left == [([16, 32], [0, 16, 32], [16, 32])]  # the best score of all went with the way it was made on
    assert [nimg for nimg, _ in run.checkpoints()] == [80] and run.best_snapshot() is not None


def test_the_first_score_due_after_a_rollback_is_made(store, tmp_path, monkeypatch):
    begun, made, said = begin(tmp_path / "run", store, "train.snapshot_kimg=0.016", "eval.every_kimg=0.016", "train.keep_snapshots=9",
                              "train.checkpoint_kimg=0.032")  # fmt: skip
    scored = []
    monkeypatch.setattr("mien.apps.cli.evaluate.score_snapshot", lambda run, path, store, settings, nimg: scored.append(nimg) or "scored")
    made.on_snapshot = _scorer(begun, store, SimpleNamespace(say=said.append))
    plant(monkeypatch, in_weight, at_nimg=80)  # told at 88, back to 64
    assert made.train() and begun.state.rollbacks == 1
    assert scored == [16, 32, 48, 64, 80, 80, 96]


def test_watch_names_a_collapse_and_lets_the_run_go_on(store, tmp_path, monkeypatch):
    begun, made, _ = begin(tmp_path / "run", store, "balance.mode=watch")
    collapse_from(monkeypatch, made, 40)
    monkeypatch.setattr(made.supervisor.state.controller, "advise", lambda *args, **kwargs: None)
    assert made.train() and begun.state.rollbacks == 0 and begun.state.steering.calm == 1.0


def test_the_way_after_a_rollback_is_another(store, tmp_path):
    """Without another noise stream the same draws would fail the run again."""
    seen = {}
    for salt in (0, 1):
        other, again, _ = begin(tmp_path / str(salt), store)
        other.state.noise_salt = salt
        again.train()
        seen[salt] = other.state.G.state_dict()
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_adaptive_augmentation_does_not_run_backwards_over_a_rollback(store, tmp_path, monkeypatch):
    """`images since the last tick` after going back from 64 to 48 is 8, not -8."""
    plant(monkeypatch, in_weight)
    begun, made, _ = begin(tmp_path / "run", store, "augment.mode=adaptive", "augment.p=0.4", "augment.speed_kimg=0.1",
                           "augment.target=-0.99", "augment.most=1", "train.images=64")  # fmt: skip
    made.train()
    tick = {record["nimg"]: record for record in begun.run.scalars()}
    assert tick[64]["augment_p"] - tick[56]["augment_p"] == pytest.approx(0.08, abs=1e-3)
    assert all(record["images_per_s"] > 0 for record in tick.values())


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from mien.config import resolve
from mien.data.store import open_store
from mien.engine import checkpoint, loop
from mien.engine.session import open_session
from mien.engine.step import train_step
place = sys.argv[3]
def step(state, task, knobs, **kwargs):
    signals = train_step(state, task, knobs, **kwargs)
    if state.nimg == 64 and state.noise_salt == 0:
        with torch.no_grad():
            next(state.D.parameters()).fill_(float("nan"))
    return signals
loop.train_step = step
begun = open_session(Path(sys.argv[2]), resolve("seed0", sys.argv[4:]), open_store(sys.argv[1]), device=torch.device("cpu"))
made = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None)
def kill(*args, **kwargs):
    if begun.state.rollbacks or place == "discard" :
        os.kill(os.getpid(), signal.SIGKILL)
if place == "discard":
    checkpoint.discard_after = kill
if place == "after":
    own = made._roll_back
    made._roll_back = lambda sickness: (own(sickness), kill())
if place == "aside":  # between the two renames of the calmer checkpoint
    own = os.replace
    def replace(source, target):
        own(source, target)
        if str(target).endswith(".old.tmp"):
            kill()
    os.replace = replace
made.train()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("place", ["discard", "aside", "after"])
def test_kill_9_in_the_middle_of_a_rollback_and_right_after_it(store, tmp_path, place, monkeypatch):
    """Wherever it falls, the run goes on from the healthy checkpoint: never from a sick one, and never from nothing."""
    settings = [*TINY, *ON, "train.keep=1"]
    child = [sys.executable, "-c", KILLED, str(store.path), str(tmp_path / "run"), place, *settings]
    ended = subprocess.run(child, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    begun, made, _ = begin(tmp_path / "run", store, "train.keep=1")
    assert begun.resumed and begun.state.nimg == 48
    assert begun.state.rollbacks == (1 if place == "after" else 0)
    assert made.train() and begun.state.nimg == 96
    if place == "after":  # as if it had never been killed
        whole, one_go, _ = begin(tmp_path / "whole", store, "train.keep=1")

        def step(state, task, knobs, **kwargs):
            signals = train_step(state, task, knobs, **kwargs)
            if state.nimg == 64 and state.noise_salt == 0:
                in_weight(state, task)
            return signals

        monkeypatch.setattr(loop, "train_step", step)
        one_go.train()
        assert_same_bits(begun.state, whole.state)
        assert json.dumps(begun.state.plain()) == json.dumps(whole.state.plain())
