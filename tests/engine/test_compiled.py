"""train.compile: what is compiled and when not, the way back to the plain networks, and equal losses where there is a compiler."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.conftest import tiny_recipe
from engine.test_resume import assert_same_bits
from engine.test_resume import train as run
from mien.engine import build
from mien.engine.compiled import Compiled, chosen, compile_networks
from mien.engine.schedules import knobs_at
from mien.engine.step import train_step
from mien.models.convolution import TwiceDifferentiable
from mien.runs import Run

CPU = torch.device("cpu")
TESTS = Path(__file__).parents[1]
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


@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_a_trial_leaves_whole_what_an_earlier_pass_needs_to_go_back(store, monkeypatch, norm):
    def but_not_six(function, **settings):
        def call(images, *others):
            if len(images) == 6:
                raise RuntimeError("six")
            return function(images, *others)

        return call

    monkeypatch.setattr(torch, "compile", but_not_six)
    images, gradients = torch.randn(6, 3, 32, 32), {}
    for mode in ("off", "networks"):  # the trial of six comes before four goes back
        state, task, _ = make(store, f"train.compile={mode}", f"model.discriminator.norm={norm}")
        compile_networks(state, task)
        four, six = state.D(images[:4], torch.zeros(4, 0)), state.D(images, torch.zeros(6, 0))
        gradients[mode] = torch.autograd.grad((four.sum() + six.square().sum()), list(state.D.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(gradients["off"], gradients["networks"]))


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


LAZY = ("regularizer.r1.gamma=1", "regularizer.r1.every=4", "augment.ops=translation", "augment.p=0.5")  # at higher rates rounding grows

FAILS = f"""
import sys, torch
from pathlib import Path
sys.path[:0] = {[str(TESTS), str(TESTS.parent / "src")]}
torch.set_num_threads(1)
from engine import test_compiled
from mien.data.store import open_store
losses, _ = test_compiled.train(open_store(Path(sys.argv[1])), 4, *sys.argv[3:], "train.compile=networks")
torch.save(losses, sys.argv[2])
"""


def agree(store, mode, device, tolerance, *overrides):
    """Losses of 50 steps, with a lazy gradient penalty and augmentation, compiled against eager."""
    eager, _ = train(store, 50, *LAZY, *overrides, "train.compile=off", device=device)
    compiled, state = train(store, 50, *LAZY, *overrides, f"train.compile={mode}", device=device)
    moved = (eager[:, :2].amax(0) - eager[:, :2].amin(0)).min()
    assert moved > max(0.01, 2 * tolerance), "nothing was learnt"
    for network in (state.G.forward, state.D.features):
        assert network._tried and not network.failed
    torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.environ.get("MIEN_TEST_COMPILE") or not shutil.which("c++"), reason="MIEN_TEST_COMPILE is unset: takes minutes")
class TestOnACPU:
    """With a real compiler."""

    @pytest.mark.parametrize("norm", ["none", "spectral"])
    def test_losses_agree_with_eager_ones(self, store, norm):
        agree(store, "networks", CPU, 1e-3, f"model.discriminator.norm={norm}")

    def test_a_compiler_that_fails_leaves_the_eager_numbers(self, store, tmp_path):
        eager, _ = train(store, 4, *LAZY, "train.compile=off")
        settings = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", FAILS, str(store.path), str(tmp_path / "losses"), *LAZY]
        told = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stderr
        assert torch.equal(eager, torch.load(tmp_path / "losses"))
        assert told.count("runs as written, not compiled (InvalidCxxCompiler") == 2, told

    def test_a_run_is_resumed_bit_for_bit(self, store, tmp_path):
        """With probes, which look at both networks between steps, and checkpoints that an eager run can read."""
        settings = (*LAZY, "train.compile=networks", "balance.mode=watch", "balance.probe_kimg=0.016", "train.images=80", *PLAIN)
        whole = run(tmp_path / "whole", store, *settings)
        assert whole.G.forward._tried and whole.D.features._tried
        run(tmp_path / "two", store, *settings, stop_at=40)
        assert_same_bits(run(tmp_path / "two", store, *settings), whole)
        eager = run(tmp_path / "eager", store, *settings, "train.compile=off")
        assert eager.tensors().keys() == whole.tensors().keys()
        runs = [Run(tmp_path / name).scalars() for name in ("whole", "two", "eager")]
        seen = [[line["nimg"] for line in lines if "diversity_pixels" in line] for lines in runs]
        assert seen[0] == seen[1] == seen[2] and len(seen[0]) > 3


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("norm", ["none", "spectral", "batch"])
@pytest.mark.parametrize("mode", ["networks", "graphs"])
def test_compiled_losses_agree_with_eager_ones_on_a_gpu(store, mode, norm):
    agree(store, mode, torch.device("cuda"), 5e-3, f"model.discriminator.norm={norm}")
