"""Failures planted in small real runs on drawn faces: the right name, soon; a controller that mends or goes back; and silence in health.

All runs are 32 px, narrow, and of a few thousand images, with the patience scaled to them: 500 images. What a NaN does is in
test_rollback.py. Each test folds the same recorded signals once more without its rule, and sees that the name is then not given.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.test_resume import assert_same_bits
from mien.config import resolve
from mien.data.store import FaceStore, open_store
from mien.data.synthetic import draw_faces
from mien.data.writer import write_store
from mien.engine import diagnosis, supervisor
from mien.engine.balance import REMEDIES
from mien.engine.diagnosis import History, observe
from mien.engine.loop import TrainingFailed
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session

CPU = torch.device("cpu")
PATIENCE_NIMG = 500
PLANTED_NIMG = 2000
SMALL = ("model.generator.width=32", "model.discriminator.width=32", "model.generator.z_dim=16", "train.batch=16", "train.tick_kimg=0.1",
         "train.checkpoint_kimg=0.5", "train.snapshot_kimg=50", "sample.every_kimg=0", "balance.patience_kimg=0.5",
         "balance.probe_kimg=0.25", "ema.half_life_kimg=0.2", "schedule.lr=constant", "optimizer.lr_g=5e-4",
         "optimizer.lr_d=1e-3")  # fmt: skip


@pytest.fixture(scope="module")
def faces():
    """480 drawn faces, [N, 32, 32, 3] and [N, 2]: Male and Blond_Hair, which show at this size."""
    images, attributes = draw_faces(480, size=32)
    return images, attributes[:, [0, 4]]


def write_faces(path: Path, faces, *, train=437, constant=False) -> FaceStore:
    images, attributes = faces
    if constant:
        attributes = np.stack([attributes[:, 0], np.ones_like(attributes[:, 1])], axis=1)
    kept = np.r_[0:train, 437:480]
    splits = np.r_[np.zeros(train, np.uint8), np.ones(43, np.uint8)]
    write_store(path, images=images[kept], attributes=attributes[kept], attribute_names=("Male", "Blond_Hair"), splits=splits,
                names=[f"{index:06d}.png" for index in kept], crop="whole", source=[])  # fmt: skip
    return open_store(path)


@pytest.fixture(scope="module")
def store(faces, tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("planted") / "faces", faces)


def run_small(path: Path, store: FaceStore, *overrides, plant=None):
    """(session after training, the error it ended with or None)."""
    recipe = resolve("seed0-cpu", [*SMALL, "train.images=4000", 'data.attributes=["Male","Blond_Hair"]', *overrides])
    begun = open_session(path, recipe, store, device=CPU, say=lambda message: None)
    if plant is not None:
        plant(begun.state)
    try:
        begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None).train()
    except TrainingFailed as error:
        return begun, error
    return begun, None


def told(begun, kind="diagnosis"):
    return [event for event in begun.run.events() if event["kind"] == kind]


def named_at(begun):
    """{title: image at which it was named first}."""
    times = {}
    for event in told(begun):
        times.setdefault(event["diagnosis"], event["nimg"])
    return times


def named_without(begun, name, monkeypatch):
    """The names that the same signals are given when the rules called `name` are switched off; None switches off nothing."""
    monkeypatch.setattr(diagnosis, "RULES", tuple(rule for rule in diagnosis.BY_KEY.values() if rule.name != name))
    history, names = History(), set()
    for record in begun.run.scalars():
        signals = {key: value for key, value in record.items() if key not in ("nimg", "time_s") and value is not None}
        history = observe(history, record["nimg"], signals, patience_nimg=PATIENCE_NIMG)
        names |= {alarm.name for alarm in history.named}
    return names


def multiply(monkeypatch, knob):
    """From PLANTED_NIMG images on the recipe says fifty times the rate it said before."""
    def planted(config, nimg):
        knobs = knobs_at(config, nimg)
        return dataclasses.replace(knobs, **{knob: 50 * getattr(knobs, knob)}) if nimg >= PLANTED_NIMG else knobs

    monkeypatch.setattr(supervisor, "knobs_at", planted)


def accuracy(begun, last=8):
    """D's accuracy over the last ticks: near 0.5 it has lost, above 0.56 the game goes on."""
    ticks = begun.run.scalars()[-last:]
    return sum(tick["accuracy_real"] + tick["accuracy_fake"] for tick in ticks) / 2 / len(ticks)


def test_health_is_silent_over_its_whole_length_and_untouched_by_the_controller(store, tmp_path):
    """Watched and steered, a healthy run ends with the same bits, no alarm, no decision and no rollback."""
    ends = {mode: run_small(tmp_path / mode, store, f"balance.mode={mode}")[0] for mode in ("watch", "on")}
    for begun in ends.values():
        assert told(begun) == told(begun, "decision") == told(begun, "advice") == told(begun, "rollback") == []
        varied = [tick["diversity_pixels"] for tick in begun.run.scalars() if "diversity_pixels" in tick]
        assert varied[-1] > 0.7 and 0.6 < accuracy(begun) < 0.9
    assert_same_bits(ends["watch"].state, ends["on"].state)


def test_the_rate_of_d_times_fifty(store, tmp_path, monkeypatch):
    """D dies of its own updates: it says the same of every image. Named 'G too strong' (D tells nothing apart) and
    'vanishing (D)' within three patiences; from there no knob helps, so the run goes back to before it and on at half the rates."""
    multiply(monkeypatch, "lr_d")
    watched, _ = run_small(tmp_path / "watch", store, "balance.mode=watch")
    names = named_at(watched)
    assert names["G too strong"] - PLANTED_NIMG <= 3 * PATIENCE_NIMG and names["vanishing (D)"] - PLANTED_NIMG <= 3 * PATIENCE_NIMG
    assert accuracy(watched) < 0.56 and told(watched, "decision") == [] and told(watched, "advice")
    off, _ = run_small(tmp_path / "off", store, "balance.mode=off")
    assert_same_bits(off.state, watched.state)  # watching and advising changes nothing
    steered, error = run_small(tmp_path / "on", store, "balance.mode=on", "train.images=5000")
    back = told(steered, "rollback")
    assert error is None and back[0]["nimg"] <= PLANTED_NIMG and len(back) <= 3
    assert accuracy(steered) > 0.6 > accuracy(watched)
    assert "vanishing" in named_without(watched, None, monkeypatch) and "vanishing" not in named_without(watched, "vanishing", monkeypatch)


def test_a_generator_that_ignores_its_latent(store, tmp_path, monkeypatch):
    """Mode collapse, in every combination, as soon as its grace and patience have passed. Once no knob is left to turn, the run goes
    back; that does not mend what the network cannot do: after so many rollbacks it stops and says why."""
    monkeypatch.setitem(REMEDIES, "mode collapse", ())

    def deaf(state):
        for net in (state.G, state.ema):
            net.register_forward_pre_hook(lambda net, args: (torch.zeros_like(args[0]), args[1]))

    begun, error = run_small(tmp_path / "on", store, "balance.mode=on", "balance.max_rollbacks=1", "train.images=6000", plant=deaf)
    places = ("none", "Male", "Blond_Hair", "Male+Blond_Hair")
    assert {f"mode collapse ({place})" for place in places} <= named_at(begun).keys()
    assert min(named_at(begun).values()) <= 5.5 * PATIENCE_NIMG and len(told(begun, "rollback")) == 1
    assert error is not None and "mode collapse" in str(error) and "after 1 rollback at" in str(error)
    assert "mode collapse" not in named_without(begun, "mode collapse", monkeypatch)


def test_a_generator_that_ignores_its_condition(store, tmp_path, monkeypatch):
    """Each attribute is named within three and a half patiences of the run's beginning. No knob teaches a condition: none is turned."""
    def deaf(state):
        for net in (state.G, state.ema):
            net.register_forward_pre_hook(lambda net, args: (args[0], torch.zeros_like(args[1])))

    begun, _ = run_small(tmp_path / "on", store, "balance.mode=on", "train.images=2000", plant=deaf)
    assert set(named_at(begun)) == {"condition ignored (Male)", "condition ignored (Blond_Hair)"}
    assert max(named_at(begun).values()) <= 3.5 * PATIENCE_NIMG and told(begun, "decision") == []
    assert "condition ignored" not in named_without(begun, "condition ignored", monkeypatch)


def test_an_attribute_that_is_the_same_on_every_image(faces, tmp_path):
    """It cannot be learnt, so nobody is blamed for it: no alarm, and no signal of it."""
    constant = write_faces(tmp_path / "constant", faces, constant=True)
    begun, _ = run_small(tmp_path / "run", constant, "balance.mode=on", "train.images=2000")
    assert told(begun) == [] and begun.state.rollbacks == 0
    seen = {name for record in begun.run.scalars() for name in record}
    assert "response/Male" in seen and "response/Blond_Hair" not in seen and "diversity/Male+Blond_Hair" in seen


def test_the_rate_of_g_times_fifty(store, tmp_path, monkeypatch):
    """G runs ahead of D, which cannot follow: 'G too strong' within three patiences; the controller halves G's rate until D
    tells reals from fakes again."""
    multiply(monkeypatch, "lr_g")
    watched, _ = run_small(tmp_path / "watch", store, "balance.mode=watch")
    assert named_at(watched)["G too strong"] - PLANTED_NIMG <= 3 * PATIENCE_NIMG and told(watched, "decision") == []
    steered, error = run_small(tmp_path / "on", store, "balance.mode=on", "train.images=9000")
    assert error is None and {event["knob"] for event in told(steered, "decision")} >= {"lr_g"}
    assert accuracy(steered) > 0.56 > accuracy(watched)
    assert "G too strong" not in named_without(watched, "G too strong", monkeypatch)


def perfect(state):
    """G paints new drawn faces of the asked combination: to tell them from the training images there is nothing but to know those."""
    images, attributes = draw_faces(400, size=32, start=1000)
    pictures, rows = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(attributes[:, [0, 4]]).float()

    def paint(net, args, out):
        z, asked = args
        fits = (asked[:, None] == rows[None]).all(dim=2)  # [N, 400]
        drawn = (torch.frac(z.sum(1, keepdim=True).abs() * 1000 * torch.linspace(0.5, 1, 400)) * fits).argmax(dim=1)
        return pictures[drawn] + 0 * out

    for net in (state.G, state.ema):
        net.register_forward_hook(paint)


def test_a_hundred_training_images(faces, tmp_path, monkeypatch):
    """D knows them by heart: named before it has seen each forty times, and the controller's answer is augmentation."""
    hundred = write_faces(tmp_path / "hundred", faces, train=100)
    eager = ("model.discriminator.norm=none", "regularizer.r1.gamma=0", "data.flip=false", "optimizer.clip_norm=none",
             "model.discriminator.width=64", "optimizer.beta1=0.5", "loss.name=nonsaturating")  # fmt: skip
    watched, _ = run_small(tmp_path / "watch", hundred, *eager, "balance.mode=watch", plant=perfect)
    assert named_at(watched)["D memorising"] <= 4000 and told(watched, "decision") == []
    steered, _ = run_small(tmp_path / "on", hundred, *eager, "balance.mode=on", plant=perfect)
    assert ("augment_p", "D memorising") in [(event["knob"], event["diagnosis"]) for event in told(steered, "decision")]
    assert "D memorising" not in named_without(watched, "D memorising", monkeypatch)
