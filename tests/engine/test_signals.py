"""The signals of a step: what each means on cases made by hand, and that reading them costs the step no wait."""

import copy
import math

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine import build
from mien.engine.diagnosis import History, observe
from mien.engine.distributed import ALONE
from mien.engine.schedules import knobs_at
from mien.engine.signals import (
    FREE_OFFSET,
    SignalMeter,
    centred_verdicts,
    discriminator_signals,
    generator_signals,
    mean_of,
    relative_change,
)
from mien.engine.step import train_step
from mien.losses.catalogue import ADVERSARIAL

CPU = torch.device("cpu")


def test_discriminator_signals_by_hand():
    found = discriminator_signals(loss=torch.tensor([1.0, 3.0]), real=torch.tensor([2.0, -1.0, 3.0, 4.0]),
                                  fake=torch.tensor([-2.0, 1.0, 0.0, -3.0]))  # fmt: skip
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"loss_d": 2.0, "accuracy_real": 0.75, "accuracy_fake": 0.75, "logit_gap": 3.0, "sign_real": 0.5})  # fmt: skip


def test_generator_signals_by_hand():
    found = generator_signals(loss=torch.tensor([0.5, 1.5]), fake=torch.tensor([1.0, -1.0, -2.0, -3.0]))
    assert float(found["loss_g"]) == 1.0 and float(found["fooling_rate"]) == 0.25


def test_the_losses_said_to_leave_ds_offset_free_are_those_that_do():
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    free = [name for name, loss in ADVERSARIAL.items()
            if torch.allclose(loss.d_loss(real=real + 7, fake=fake + 7), loss.d_loss(real=real, fake=fake))]  # fmt: skip
    assert sorted(free) == sorted(FREE_OFFSET)


@pytest.mark.parametrize("name", FREE_OFFSET)
def test_what_is_told_apart_is_so_at_any_offset_and_rings_no_alarm(name):
    told = []
    for offset in (0.0, 50.0, -50.0):
        real, fake = (torch.randn(4000, generator=torch.Generator().manual_seed(7)) + mean + offset for mean in (0.7, -0.7))
        apart, centre = centred_verdicts([(real[:1000], fake[:1000]), (real[1000:], fake[1000:])], ALONE)
        loss = ADVERSARIAL[name]
        signals = discriminator_signals(loss=loss.d_loss(real=real, fake=fake), real=real, fake=fake) | apart
        signals |= generator_signals(loss=loss.g_loss(real=real, fake=fake), fake=fake, centre=centre)
        told.append({key: float(signals[key]) for key in (*apart, "logit_gap", "fooling_rate")})
        history = History()
        for nimg in range(2000, 60_001, 2000):
            history = observe(history, nimg, told[-1], patience_nimg=10_000)
        assert history.alarms == ()
    assert told[0]["accuracy_real"] == pytest.approx(0.758, abs=0.02) and told[0]["fooling_rate"] == pytest.approx(0.242, abs=0.02)
    assert told[1] == pytest.approx(told[0], abs=1e-3) and told[2] == pytest.approx(told[0], abs=1e-3)


def test_what_is_not_told_apart_is_named_at_any_offset():
    history = History()
    for nimg in range(2000, 60_001, 2000):
        real, fake = torch.randn(2, 4000, generator=torch.Generator().manual_seed(nimg)) + 50
        apart, _ = centred_verdicts([(real, fake)], ALONE)
        history = observe(history, nimg, {key: float(value) for key, value in apart.items()}, patience_nimg=10_000)
    assert [alarm.name for alarm in history.named] == ["G too strong"]


VERDICTS = ("accuracy_real", "accuracy_fake", "sign_real", "fooling_rate")


@pytest.mark.parametrize("name", [*FREE_OFFSET, "hinge"])
@pytest.mark.parametrize("pieces", [(), ("train.micro_batch=4",)], ids=["whole", "in pieces"])
def test_in_a_step_an_offset_of_d_moves_the_verdicts_only_where_it_moves_the_loss(store, name, pieces):
    config = tiny_recipe(f"loss.name={name}", "regularizer.r1.every=1", "balance.probe_kimg=0", *pieces).config
    task = build.build_task(config, store, CPU)
    state = build.build_state(config, size=store.size, attributes=2, device=CPU)
    for _ in range(3):  # until reals and fakes are told apart
        train_step(state, task, knobs_at(config, state.nimg))
    moved = copy.deepcopy(state)
    with torch.no_grad():
        moved.D.logit.bias += 50
    plain, shifted = (train_step(each, task, knobs_at(config, each.nimg)) for each in (state, moved))
    same = [float(plain[key]) == float(shifted[key]) for key in VERDICTS]
    assert all(same) if name in FREE_OFFSET else not all(same)
    assert "logit_centre" not in plain and plain["accuracy_real"] + plain["accuracy_fake"] > 1


def test_relative_change_is_over_all_tensors_together():
    before = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]  # norm 5
    after = [torch.tensor([3.0, 0.3]), torch.tensor([[4.4]])]  # moved by 0.5
    assert float(relative_change(before, after)) == pytest.approx(0.1)


def test_the_pieces_of_a_batch_give_the_mean():
    whole = mean_of([{"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}])
    assert float(whole["a"]) == 2.0 and float(whole["b"]) == 0.5


def test_the_meter_means_each_signal_over_the_steps_that_had_it():
    meter = SignalMeter()
    meter.add({"loss": torch.tensor(1.0), "penalty": torch.tensor(8.0)})
    meter.add({"loss": torch.tensor(2.0)})
    assert meter.read(forget=False) == meter.read() == {"loss": 1.5, "penalty": 8.0}
    assert meter.read() == {}
    meter.add({"loss": torch.tensor(float("nan"))})
    meter.add({"loss": torch.tensor(1.0)})
    assert math.isnan(meter.read()["loss"])  # one NaN is seen, however many steps follow it


def test_half_precision_losses_add_up_in_full():
    meter = SignalMeter()
    for _ in range(1000):
        meter.add({"loss": torch.tensor(1.0, dtype=torch.bfloat16)})
    assert meter.read() == {"loss": 1.0}  # a sum in bf16 would have stopped at 256


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_host(store, monkeypatch, precision):
    """Signals, penalties, clipping and measuring are all on: no tensor's number is asked for until the meter is read."""
    config = tiny_recipe("regularizer.r1.every=1", "optimizer.clip_norm=1", f"train.precision={precision}").config
    task = build.build_task(config, store, CPU)
    state = build.build_state(config, size=store.size, attributes=2, device=CPU)
    train_step(state, task, knobs_at(config, 0), measure=True)  # the optimisers make their slots
    asked = []

    def spy_on(name):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *args: asked.append(name) or own(tensor, *args))

    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        spy_on(name)
    meter = SignalMeter()
    meter.add(train_step(state, task, knobs_at(config, state.nimg), measure=True))
    assert asked == []
    assert len(meter.read()) > 10 and asked == ["tolist"]  # the spy sees, and one transfer reads them all
