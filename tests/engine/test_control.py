"""Requests by hand: taken up at the next step, logged, in checkpoints, met again at the same image; exact resume with all in flight."""

import json
import os
import subprocess
import sys

import pytest
import torch

from engine.conftest import TINY, tiny_recipe
from engine.test_resume import assert_same_bits
from mien.config import resolve
from mien.engine import build, checkpoint, following, loop
from mien.engine.diagnosis import Alarm, History
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session
from mien.engine.steering import Steering
from mien.engine.step import train_step
from mien.engine.supervisor import Supervisor
from mien.runs import Run

CPU = torch.device("cpu")
STEADY = ("schedule.lr=constant", "balance.mode=on")


def begin(path, store, *overrides, ask=None):
    """(session, loop). `ask`: {nimg: changes or (changes, over_nimg)}, asked for at the tick at nimg when not there yet."""
    begun = open_session(path, tiny_recipe(*STEADY, *overrides), store, device=CPU, say=lambda message: None)

    def on_tick(nimg, values):
        if nimg in (ask or {}) and len(begun.run.control_requests()) <= list(ask).index(nimg):
            wish = ask[nimg]
            begun.run.request_control(*(wish if isinstance(wish, tuple) else (wish,)))

    return begun, begun.loop(on_tick=on_tick, on_snapshot=lambda path, nimg: None, say=lambda message: None)


def column(run, name):
    return {record["nimg"]: record[name] for record in run.scalars()}


def test_a_request_is_met_at_the_next_step_logged_and_kept(store, tmp_path):
    begun, made = begin(tmp_path / "run", store, ask={24: ({"lr_g": 1e-3}, 32)})
    made.train()
    run = begun.run
    rates = column(run, "lr_g")  # of the step that ended there: it began 8 images earlier
    assert [rates[nimg] for nimg in (24, 32, 48, 64, 96)] == pytest.approx([2e-4, 2e-4, 6e-4, 1e-3, 1e-3])
    [told] = [event for event in run.events() if event["kind"] == "control"]
    assert told["message"] == "By hand: lr_g from 0.0002 to 0.001 over 32 images." and told["nimg"] == 24
    _, plain = checkpoint.load_checkpoint(run.checkpoints()[-1][1])
    assert plain["steering"]["by_hand"]["lr_g"] == {"start": 2e-4, "end": 1e-3, "start_nimg": 24, "over_nimg": 32}
    assert [request["at_nimg"] for _, request in run.control_requests()] == [24]


def test_several_at_once_then_given_back(store, tmp_path):
    """Two requests in one instant, the later one wins where they touch the same knob; 'recipe' gives a knob back."""
    begun, made = begin(tmp_path / "run", store)
    begun.run.request_control({"lr_g": 1e-3, "d_steps": 2.0})
    begun.run.request_control({"lr_g": 5e-3, "clip_norm": None})
    made.on_tick = lambda nimg, values: begun.run.request_control({"lr_g": "recipe", "d_steps": "recipe"}) if nimg == 48 else None
    made.train()
    rates, steps = column(begun.run, "lr_g"), column(begun.run, "d_steps")
    assert (rates[48], rates[56], steps[48], steps[56]) == (5e-3, 2e-4, 2, 1)
    told = [event["message"] for event in begun.run.events() if event["kind"] == "control"]
    assert told[:4] == ["By hand: lr_g from 0.0002 to 0.001.", "By hand: d_steps from 1 to 2.0.", "By hand: lr_g from 0.001 to 0.005.",
                        "By hand: clip_norm from 10.0 to None."]  # fmt: skip
    assert told[4:] == ["Gave lr_g back to the recipe.", "Gave d_steps back to the recipe."]


def test_a_damaged_request_is_told_and_harms_nothing(store, tmp_path):
    begun, made = begin(tmp_path / "run", store, "augment.ops=[]", "augment.p=0")
    folder = begun.run.path / "control"
    damaged = ['{"changes": {"lr', "[1]", '{"changes": [1], "over_nimg": 0}', '{"changes": {"lr_g": 1}, "over_nimg": "x"}',
               '{"changes": {}, "over_nimg": 0, "at_nimg": "soon"}']  # fmt: skip
    for number, text in enumerate(damaged):
        (folder / f"{number}.json").write_text(text)
    begun.run.request_control({"lr_g": 99.0, "lr_x": 1.0, "r2_gamma": 1.0, "lr_d": 3e-4})  # three that cannot be, one that can
    made.train()
    wrong = [event["message"] for event in begun.run.events() if event["kind"] == "error"]
    assert wrong[:5] == [f"Left out a change by hand: control/{number}.json is damaged." for number in range(5)]
    assert len(wrong) == 8 and "lr_g=99.0" in wrong[5] and "lr_x" in wrong[6] and "began without that penalty" in wrong[7]
    assert column(begun.run, "lr_g")[96] == 2e-4 and column(begun.run, "lr_d")[96] == 3e-4


@pytest.mark.parametrize("knob, recipe, allows, why", [
    ("path_gamma", ("model.family=style", "model.generator.w_dim=8", "model.generator.mapping=2", "model.generator.condition=concat",
                    "model.discriminator.condition=projection"), "regularizer.path_length.gamma=2", "without that penalty"),
    ("consistency_real", ("model.discriminator.norm=batch",), "train.separate_batches=true", "separate_batches"),
    ("consistency_fake", ("model.discriminator.norm=batch",), "train.separate_batches=true", "separate_batches"),
])  # fmt: skip
def test_a_knob_is_turned_only_where_there_is_something_to_turn(store, tmp_path, knob, recipe, allows, why):
    def supervisor(*overrides):
        config = resolve(None, [*TINY, *recipe, "balance.probe_kimg=0", *overrides]).config
        task = build.build_task(config, store, CPU)
        state = build.build_state(task.config, size=store.size, attributes=2, device=CPU)
        return Supervisor(Run(tmp_path), state, task, lambda message: None)

    assert supervisor(allows)._why_not(knob) is None
    assert why in supervisor()._why_not(knob)


class Two:
    """Two processes, of which this is the first; a request comes while it waits for the other."""

    size, leads = 2, True

    def __init__(self, run):
        self.run, self.words = run, []

    def agree(self, word, memory_mb=0.0):
        self.words.append(word)
        if len(self.words) == 1:
            self.run.request_control({"lr_g": 1e-3})
        return word, memory_mb

    def tell(self, words):
        return words


def test_of_several_processes_none_takes_up_a_request_after_they_agreed(store, tmp_path, monkeypatch):
    begun, made = begin(tmp_path / "run", store, "train.tick_kimg=1", "train.checkpoint_kimg=1")
    used = []

    def step(state, task, knobs, **kwargs):
        used.append(knobs.lr_g)
        return train_step(state, task, knobs, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)
    made.ranks, made._told = Two(begun.run), begun.state.steering.plain()
    for _ in range(2):
        assert not made._consult()
        made._advance(1000)
    assert made.ranks.words == [loop.GO, loop.STEER] and used == [2e-4, 1e-3]


def test_what_the_controller_turned_on_stays_on_when_it_only_watches(store):
    def built(mode):
        bare = ("regularizer.r1.gamma=0", "augment.ops=[]", "augment.p=0", "balance.probe_kimg=0")
        config = tiny_recipe(f"balance.mode={mode}", *bare).config
        task = build.build_task(config, store, CPU)
        return task, build.build_state(task.config, size=store.size, attributes=2, device=CPU)

    task, state = built("on")
    state.steering.controller = {"r1_gamma": 0.4, "augment_p": 0.3}
    tensors, plain = {name: tensor.clone() for name, tensor in state.tensors().items()}, {"nimg": 0, **state.plain()}
    watching, again = built("watch")
    assert not watching.penalties and not watching.augment.names
    build.restore(again, watching, tensors, json.loads(json.dumps(plain)))
    assert [(name, every) for name, _, every in watching.penalties] == [("r1", 16)] and watching.augment.names == task.augment.names
    build.restore(again, watching, tensors, json.loads(json.dumps(plain)))  # a second time adds nothing
    assert len(watching.penalties) == 1
    for each, its in ((state, task), (again, watching)):
        assert "r1_penalty" in train_step(each, its, each.steering.apply(knobs_at(its.config, 0), 0))
    assert_same_bits(again, state)
    untouched, fresh = built("watch")
    build.restore(fresh, untouched, tensors, {**plain, "steering": {}})
    assert not untouched.penalties and not untouched.augment.names


def test_a_request_is_met_at_the_same_image_after_a_kill_and_after_a_rollback(store, tmp_path, monkeypatch):
    """Asked for at 40, with the last checkpoint at 32: who goes on from there meets it at 40, not at 32."""
    ask = {40: {"lr_g": 1e-3}}
    whole, one_go = begin(tmp_path / "whole", store, ask=ask)
    one_go.train()
    begun, made = begin(tmp_path / "killed", store, ask=ask)
    while begun.state.nimg < 48:
        if begun.state.nimg == 0 and not hasattr(made, "scalars"):
            made.scalars = loop.Scalars(begun.run)
        made._advance(96)
    (begun.run.path / "checkpoints" / "0000000048").rename(tmp_path / "gone")  # killed before it was written
    begun.run.unlock()
    again, rest = begin(tmp_path / "killed", store, ask=ask)
    assert again.state.nimg == 32
    rest.train()
    assert_same_bits(again.state, whole.state)
    assert [event["nimg"] for event in again.run.events() if event["kind"] == "control"] == [40, 40]

    def step(state, task, knobs, **kwargs):
        signals = train_step(state, task, knobs, **kwargs)
        if state.nimg == 48 and state.noise_salt == 0:
            signals["loss_d"] = signals["loss_d"] * float("nan")
        return signals

    monkeypatch.setattr(loop, "train_step", step)
    back, rolled = begin(tmp_path / "rolled", store, ask=ask)
    rolled.train()
    assert back.state.rollbacks == 1 and [event["nimg"] for event in back.run.events() if event["kind"] == "control"] == [40, 40]
    rates = column(back.run, "lr_g")
    assert (rates[40], rates[48]) == pytest.approx((1e-4, 5e-4))  # both at half, the calm of one rollback


def test_a_rate_asked_for_after_a_rollback_is_used_as_it_is_also_when_a_kill_lets_it_be_met_again(store, tmp_path):
    begun, made = begin(tmp_path / "run", store)
    state, run = begun.state, begun.run
    state.steering.calm = 0.5
    run.request_control({"lr_g": 1e-3})
    assert made.supervisor.knobs().lr_g == 1e-3
    state.steering.by_hand, state.steering.requests = {}, []  # as a checkpoint from before it has it
    begun.run.unlock()
    again = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None).supervisor
    assert again.knobs().lr_g == 1e-3
    state.steering.by_hand, state.steering.requests, state.steering.calm = {}, [], 0.25  # and another rollback
    again = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None).supervisor
    assert again.knobs().lr_g == 5e-4


def met_again(begun, at_nimg, calm=1.0):
    """A supervisor of `begun` at `at_nimg`, as a checkpoint from before all requests leaves it; and what it says."""
    said = []
    state = begun.state
    state.nimg, state.steering.by_hand, state.steering.requests, state.steering.calm = at_nimg, {}, [], calm
    return Supervisor(begun.run, state, begun.task, said.append), said


def test_the_later_wish_stands_though_the_earlier_one_is_met_again_after_it(store, tmp_path):
    """Asked for at 40, killed at 48, given back while it was down, gone on from 32."""
    begun, made = begin(tmp_path / "run", store)
    supervisor, _ = met_again(begun, 40)
    begun.run.request_control({"lr_g": 1e-3, "clip_norm": 5.0})
    assert supervisor.knobs().lr_g == 1e-3
    begun.run.request_control({"lr_g": "recipe"})
    supervisor, said = met_again(begun, 32)
    assert supervisor.knobs().lr_g == 2e-4
    begun.state.nimg = 40
    assert (supervisor.knobs().lr_g, supervisor.knobs().clip_norm) == (2e-4, 5.0)
    assert said == ["Gave lr_g back to the recipe.", "Left lr_g as it is: a later change by hand has turned it.",
                    "By hand: clip_norm from 10.0 to 5.0."]  # fmt: skip
    supervisor, said = met_again(begun, 48)  # in the order they were asked for, where both come at once
    assert supervisor.knobs().lr_g == 2e-4 and "By hand: lr_g from 0.0002 to 0.001." in said


def test_a_knob_that_a_hand_could_turn_under_the_controller_is_turned_when_met_again_without_it(store, tmp_path):
    bare = ("regularizer.r1.gamma=0", "augment.ops=[]", "augment.p=0", "balance.probe_kimg=0")
    found = {}
    for first, then in (("on", "watch"), ("watch", "on")):
        begun, _ = begin(tmp_path / first, store, *bare, f"balance.mode={first}")
        begun.run.request_control({"r1_gamma": 0.4, "augment_p": 0.3, "r2_gamma": 1.0})
        before = met_again(begun, 0)[0].knobs()
        begun.run.unlock()
        again, _ = begin(tmp_path / first, store, *bare, f"balance.mode={then}")
        after = met_again(again, 0)[0].knobs()
        found[first] = [(knobs.r1_gamma, knobs.augment_p, knobs.r2_gamma) for knobs in (before, after)]
        again.run.unlock()
        assert then == "on" or "r1_penalty" in train_step(again.state, again.task, after)
    assert found == {"on": [(0.4, 0.3, 0), (0.4, 0.3, 0)], "watch": [(0, 0, 0), (0.4, 0.3, 0)]}


def test_the_other_processes_have_at_hand_what_the_first_one_turns(store):
    config = tiny_recipe("balance.mode=watch", "regularizer.r1.gamma=0", "balance.probe_kimg=0", "train.tick_kimg=1").config
    task = build.build_task(config, store, CPU)
    state = build.build_state(task.config, size=store.size, attributes=2, device=CPU)
    words, used = [loop.STEER, loop.LEAVE], []

    class Second:
        def agree(self, word):
            return words.pop(0), 0.0

        def tell(self):
            steering = Steering()
            steering.set_by_hand("r1_gamma", 0.4, now=knobs_at(config, 0), nimg=0)
            return steering.plain()

    def step(state, task, knobs):
        used.extend(name for name, _, _ in task.penalties)

    task.ranks = Second()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "train_step", step)
        following.Follower(state, task).train()
    assert used == ["r1"]


def test_a_softer_clipping_by_hand_after_a_rollback_says_what_is_used(store, tmp_path):
    begun, _ = begin(tmp_path / "run", store)
    supervisor, said = met_again(begun, 0)
    begun.state.steering.calm_clip_norm = 4.0
    for value in (9.0, None, 3.0):
        begun.run.request_control({"clip_norm": value})
        supervisor.knobs()
    assert said == ["By hand: clip_norm from 4.0 to 9.0; gradients stay clipped at 4, as since the rollback.",
                    "By hand: clip_norm from 4.0 to None; gradients stay clipped at 4, as since the rollback.",
                    "By hand: clip_norm from 4.0 to 3.0."]  # fmt: skip
    assert supervisor.knobs().clip_norm == 3.0


FLIGHT = ("augment.mode=adaptive", "augment.p=0.3", "augment.speed_kimg=0.2", "augment.target=0.1", "train.tick_kimg=0.024",
          "train.checkpoint_kimg=0.016", "balance.probe_kimg=0.024", "train.images=144", "balance.patience_kimg=0.02")  # fmt: skip
CHILD = """
import os, signal, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from mien.config import resolve
from mien.data.store import open_store
from mien.engine import loop, supervisor
from mien.engine.session import open_session
from engine.test_control import sick_early
supervisor.observe = sick_early
begun = open_session(Path(sys.argv[2]), resolve("seed0", sys.argv[4:]), open_store(sys.argv[1]), device=torch.device("cpu"))
made = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None)
own = made._advance
def advance(total):
    if begun.state.nimg == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    own(total)
made._advance = advance
made.train()
"""


def sick_early(history, nimg, signals, *, patience_nimg):
    """A diagnosis by hand, so that the controller has something to decide on: D too strong for the first 100 images."""
    alarm = Alarm("D too strong: accuracy_d", "", since_nimg=0, named_nimg=24, evidence=(("accuracy_d", 0.99, 0.93),))
    return History(alarms=(alarm,) if nimg < 100 else (), seen_nimg={"accuracy_d": nimg})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_exact_resume_with_controller_adaptive_augmentation_and_a_glide_in_flight(store, tmp_path, monkeypatch):
    """Killed between ticks, with the last checkpoint between ticks too: tensors and state.json end as those of one go, byte for byte."""
    monkeypatch.setattr("mien.engine.supervisor.observe", sick_early)
    wish = {"changes": {"lr_g": 1e-3}, "over_nimg": 80, "at_nimg": 40}
    paths = {name: tmp_path / name for name in ("whole", "killed")}
    for path in paths.values():
        (path / "control").mkdir(parents=True)
        (path / "control" / "lock").touch()
    whole, one_go = begin(paths["whole"], store, *FLIGHT)
    (paths["whole"] / "control" / "1.json").write_text(json.dumps(wish))
    one_go.train()
    child = [sys.executable, "-c", CHILD, str(store.path), str(paths["killed"]), "88", *TINY, *STEADY, *FLIGHT]
    begun, _ = begin(paths["killed"], store, *FLIGHT)
    begun.run.unlock()
    (paths["killed"] / "control" / "1.json").write_text(json.dumps(wish))
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ended = subprocess.run(child, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests})
    assert ended.returncode == -9, ended.stderr[-2000:]
    again, rest = begin(paths["killed"], store, *FLIGHT)
    assert again.resumed and again.state.nimg == 80 and again.state.tick_nimg == 72
    rest.train()
    assert_same_bits(again.state, whole.state)
    ours, theirs = (checkpoint.load_checkpoint(paths[name] / "checkpoints" / "0000000144")[1] for name in paths)
    assert ours == theirs and ours == json.loads(json.dumps({"nimg": 144, "healthy": True, **whole.state.plain()}))
    assert whole.state.controller.acted_nimg and whole.state.steering.by_hand["lr_g"]
    assert len(set(column(whole.run, "augment_p").values())) > 2
    decisions = [event for event in whole.run.events() if event["kind"] == "decision"]
    assert len(decisions) >= 2 and {"knob", "old", "new", "signal", "value", "threshold"} <= decisions[0].keys()
