"""train.compile: what is compiled and when not, the way back to the plain networks, and equal losses where there is a compiler."""

import logging
import os
import shutil

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine import build
from mien.engine.compiled import Compiled, chosen, compile_networks
from mien.engine.schedules import knobs_at
from mien.engine.step import train_step
from mien.models.convolution import TwiceDifferentiable

CPU = torch.device("cpu")
PLAIN = ("model.discriminator.norm=none", "model.discriminator.input_noise=0", "schedule.noise_final=1", "data.attributes=none")


def make(store, *overrides, device=CPU):
    config = tiny_recipe(*PLAIN, *overrides, preset="seed3").config
    task = build.build_task(config, store, device)
    return build.build_state(config, size=store.size, attributes=0, device=device), task, config


def train(store, steps, *overrides, device=CPU):
    """[(loss_d, loss_g, r1 penalty or 0)] of each step, and the state."""
    state, task, config = make(store, *overrides, device=device)
    told = []
    for _ in range(steps):
        signals = train_step(state, task, knobs_at(config, state.nimg))
        told.append([float(signals.get(name, 0.0)) for name in ("loss_d", "loss_g", "r1_penalty")])
    return torch.tensor(told), state


def failing(function, **settings):
    """torch.compile on a machine without a compiler: it notices at the first call, and may have drawn random numbers by then."""

    def call(*inputs):
        torch.rand(7)
        failing.calls += 1
        raise RuntimeError("No C++ compiler found\nmore of it")

    failing.calls = 0
    return call


def test_auto_is_off_on_a_cpu_and_networks_on_a_gpu():
    config = tiny_recipe().config
    assert chosen(config, CPU) == "off" and chosen(config, torch.device("cuda")) == "networks"
    graphs = tiny_recipe("train.compile=graphs").config
    assert chosen(graphs, CPU) == "networks" and chosen(graphs, torch.device("cuda")) == "graphs"


def test_without_a_compiler_the_same_numbers_and_one_line_for_each_network(store, monkeypatch, caplog):
    lazy = ("regularizer.r1.gamma=1", "regularizer.r1.every=2", "augment.ops=translation", "augment.p=0.5")
    eager, _ = train(store, 4, *lazy, "train.compile=off")
    monkeypatch.setattr(torch, "compile", failing)
    with caplog.at_level(logging.WARNING):
        fallen, state = train(store, 4, *lazy, "train.compile=networks")
    assert torch.equal(eager, fallen)
    assert [record.getMessage() for record in caplog.records] == [
        "DCGANGenerator.forward runs as written, not compiled (No C++ compiler found).",
        "DCGANDiscriminator.features runs as written, not compiled (No C++ compiler found).",
    ]
    assert state.G.forward.failed and state.D.features.failed


def test_compiled_in_training_only_and_never_where_gradients_are_differentiated(store, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: lambda *inputs: (seen.append(1), function(*inputs))[1])
    state, task, config = make(store, "train.compile=networks")
    compile_networks(state, task)
    images, none = torch.randn(4, 3, 32, 32), torch.zeros(4, 0)
    state.D(images, none)
    assert len(seen) == 2  # the trial and the control
    with TwiceDifferentiable():
        state.D(images, none)
    with torch.no_grad():
        state.D.eval()(images, none)
    assert len(seen) == 2
    state.D.train()
    for _ in range(2):
        seen.clear()
        train_step(state, task, knobs_at(config, 0))
    assert len(seen) == 4  # G; D on reals, on fakes, and on fakes in G's update


class BreaksGoingBack(torch.autograd.Function):
    """A compiled function whose gradient fails to compile when it is first asked for."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("the way back did not compile")


def test_a_way_back_that_fails_leaves_no_trace(store, monkeypatch):
    eager, reference = train(store, 3, "train.compile=off")
    monkeypatch.setattr(torch, "compile", lambda function, **settings: lambda *inputs: BreaksGoingBack.apply(function(*inputs)))
    fallen, state = train(store, 3, "train.compile=networks")
    assert state.G.forward.failed and state.D.features.failed and torch.equal(eager, fallen)
    ours, theirs = state.tensors(), reference.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # batch norm's statistics among them


def test_a_network_is_compiled_once_and_its_names_stay(store, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    state, task, _ = make(store, "train.compile=networks")
    names = [*state.tensors()]
    compile_networks(state, task)
    first = state.G.forward
    compile_networks(state, task)
    assert isinstance(first, Compiled) and state.G.forward is first
    assert [*state.tensors()] == names
    state.G = build.build_state(task.config, size=store.size, attributes=0, device=CPU).G  # as a rollback or a growth brings one
    compile_networks(state, task)
    assert isinstance(state.G.forward, Compiled) and state.G.forward is not first


def test_a_noisy_discriminator_stays_plain(store, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    state, task, _ = make(store, "train.compile=networks", "model.discriminator.input_noise=0.1")
    compile_networks(state, task)
    assert isinstance(state.G.forward, Compiled) and not isinstance(state.D.features, Compiled)


def agree(store, mode, device, tolerance):
    """Losses of 50 steps, with a lazy gradient penalty and augmentation, compiled against eager."""
    lazy = ("regularizer.r1.gamma=1", "regularizer.r1.every=4", "augment.ops=translation", "augment.p=0.5")
    eager, _ = train(store, 50, *lazy, "train.compile=off", device=device)
    compiled, state = train(store, 50, *lazy, f"train.compile={mode}", device=device)
    assert not state.G.forward.failed and not state.D.features.failed
    torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.environ.get("MIEN_TEST_COMPILE") or not shutil.which("c++"), reason="MIEN_TEST_COMPILE is unset: takes minutes")
def test_compiled_losses_agree_with_eager_ones_on_a_cpu(store):
    agree(store, "networks", CPU, 1e-3)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("mode", ["networks", "graphs"])
def test_compiled_losses_agree_with_eager_ones_on_a_gpu(store, mode):
    agree(store, mode, torch.device("cuda"), 5e-3)
