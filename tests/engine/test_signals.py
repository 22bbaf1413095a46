"""The signals of a step: what each means on cases made by hand, and that reading them costs the step no wait."""

import math

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine import build
from mien.engine.schedules import knobs_at
from mien.engine.signals import SignalMeter, discriminator_signals, generator_signals, mean_of, relative_change
from mien.engine.step import train_step

CPU = torch.device("cpu")


def test_discriminator_signals_by_hand():
    found = discriminator_signals(loss=torch.tensor([1.0, 3.0]), real=torch.tensor([2.0, -1.0, 3.0, 4.0]),
                                  fake=torch.tensor([-2.0, 1.0, 0.0, -3.0]))  # fmt: skip
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"loss_d": 2.0, "accuracy_real": 0.75, "accuracy_fake": 0.75, "logit_gap": 3.0, "sign_real": 0.5})  # fmt: skip


def test_generator_signals_by_hand():
    found = generator_signals(loss=torch.tensor([0.5, 1.5]), fake=torch.tensor([1.0, -1.0, -2.0, -3.0]))
    assert float(found["loss_g"]) == 1.0 and float(found["fooling_rate"]) == 0.25


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
