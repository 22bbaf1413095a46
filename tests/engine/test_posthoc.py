"""Post-hoc averages: the rebuilt one is the one that would have been kept all along; runs with them resume exactly."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from engine.conftest import tiny_recipe
from engine.test_resume import RICH, assert_same_bits, train
from mien.apps.cli.main import app
from mien.engine import posthoc
from mien.engine.checkpoint import load_snapshot
from mien.engine.ema import ema_update
from mien.errors import UserError
from mien.explore.load import find_snapshot
from mien.runs import Run

KEPT = ("ema.posthoc=[0.05,0.1]",)


class Net(nn.Module):
    """A stand-in for a generator: one kernel."""

    def __init__(self, size: int = 64):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(size, size))


def test_the_exponent_has_the_width_asked_for():
    """The paper's own: .05 and .10 are gamma 16.97 and 6.94."""
    assert posthoc.exponent(0.05) == pytest.approx(16.97, abs=0.005) and posthoc.exponent(0.10) == pytest.approx(6.94, abs=0.005)


def test_the_average_kept_is_the_profile_that_is_claimed():
    """Steps of one image that are each 1 in turn: the average's value is that step's share."""
    shares = []
    for place in range(8):
        value = 0.0
        for step in range(8):
            beta = posthoc.decay(0.1, images=16, nimg=16 * (step + 1))
            value = beta * value + (1 - beta) * (step == place)
        shares.append(value)
    assert shares == pytest.approx(posthoc.power_profile(0.1, 128, np.arange(0, 129, 16)), rel=1e-9)


def kept_share(kind, value, images, step):
    """What the average keeps in this step; an exponential one without the weights before the first step (as Adam's, unbiased)."""
    if kind == "sigma_rel":
        return posthoc.decay(value, images=images, nimg=step * images)
    beta = 0.5 ** (images / value)
    return 1 - (1 - beta) / (1 - beta**step)


def walk(tmp_path, *, steps=1600, images=100, save_every=80, also=()):
    """A kernel on a random walk, which a run's averages follow; (run, the exact averages of other lengths)."""
    run = Run.create(tmp_path, config={"config": {"ema": {"posthoc": [0.05, 0.1]}}}, architecture={})
    torch.manual_seed(0)
    net = Net()
    kept, exact = {sigma: Net() for sigma in ("0.05", "0.1")}, {wanted: copy.deepcopy(net) for wanted in also}
    for step in range(1, steps + 1):
        with torch.no_grad():
            net.kernel += 0.02 * torch.randn_like(net.kernel)
        for sigma, average in kept.items():
            ema_update(average, net, posthoc.decay(float(sigma), images=images, nimg=step * images))
        for (kind, value), average in exact.items():
            ema_update(average, net, kept_share(kind, value, images, step))
        if step % save_every == 0:
            posthoc.save(run, kept, step * images)
    return run, net, exact


def test_other_lengths_are_rebuilt_to_within_a_few_percent(tmp_path):
    """160,000 images, saved every 8,000: half-lives of 4,000 to 40,000 and widths of .03 to .2, against the averages kept directly.

    The error is measured against how far the average lies from the last weights, which is what averaging does: under 2 % for all.
    """
    also = [*(("half_life_nimg", value) for value in (4_000.0, 16_000.0, 40_000.0)), ("sigma_rel", 0.03), ("sigma_rel", 0.2)]
    run, last, exact = walk(tmp_path / "run", also=also)
    for (kind, value), average in exact.items():
        mine = Net()
        left = posthoc.rebuild(mine, run, at_nimg=160_000, meta={}, **{kind: value})
        apart = float(((mine.kernel - average.kernel).norm() / (last.kernel - average.kernel).norm()).detach())
        assert apart < 0.02 and left < 0.1, (kind, value, apart, left)


def test_what_was_kept_itself_comes_back_and_what_is_too_short_is_told(tmp_path):
    run, last, exact = walk(tmp_path / "run", also=[("sigma_rel", 0.1)])
    mine = Net()
    assert posthoc.rebuild(mine, run, at_nimg=160_000, sigma_rel=0.1, meta={}) < 1e-6
    assert torch.allclose(mine.kernel, exact["sigma_rel", 0.1].kernel, atol=2e-3)  # what half the bits hold of numbers near 1
    assert posthoc.rebuild(Net(), run, at_nimg=160_000, half_life_nimg=100, meta={}) > 0.5
    with pytest.raises(UserError, match="kept no averages up to 1,000 images"):
        posthoc.rebuild(Net(), run, at_nimg=1_000, sigma_rel=0.1, meta={})


def test_a_long_run_keeps_a_few_dozen_evenly_spread(tmp_path):
    run, *_ = walk(tmp_path / "run", steps=400, save_every=2)
    counts = [nimg for nimg, _ in run.posthoc()]
    assert len(counts) == posthoc.MOST and counts[-1] == 40_000 and max(np.diff(counts)) <= 2_000


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("posthoc") / "run"
    train(path, store, *RICH, *KEPT, "train.snapshot_kimg=0.016")
    return Run.open(path)


def test_resume_is_exact_and_nothing_else_moves(store, run, tmp_path):
    settings = (*RICH, *KEPT, "train.snapshot_kimg=0.016")
    whole = train(tmp_path / "whole", store, *settings)
    train(tmp_path / "run", store, *settings, stop_at=56)
    again = train(tmp_path / "run", store, *settings)
    assert_same_bits(again, whole)
    assert any(name.startswith("posthoc-0.05.") for name in whole.tensors())
    plain = train(tmp_path / "plain", store, *RICH, "train.snapshot_kimg=0.016").tensors()
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in plain.items())
    assert [nimg for nimg, _ in Run(tmp_path / "run").posthoc()] == [16, 32, 48, 64, 80, 96]


def test_batch_norm_is_measured_anew(run):
    """The rebuilt generator's statistics are those of its own faces: in training mode it draws, on average, what it draws at rest."""
    net, meta = load_snapshot(run.snapshots()[-1][1])
    before = {name: value.clone() for name, value in net.named_buffers() if "running_var" in name}
    posthoc.rebuild(net, run, at_nimg=96, half_life_nimg=20, meta=meta)
    assert any(not torch.equal(value, before[name]) for name, value in net.named_buffers() if name in before)
    assert all(float(value.min()) > 0 for name, value in net.named_buffers() if "running_var" in name) and not net.training
    torch.manual_seed(0)
    z, rows = torch.randn(256, net.z_dim), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(128, 1)
    at_rest = net(z, rows)
    in_training = copy.deepcopy(net).train()(z, rows)
    assert float((at_rest - in_training).abs().mean()) < 0.1 * float(at_rest.std())


def test_the_command_writes_models_and_names_the_best(run, store):
    result = CliRunner().invoke(app, ["ema", str(run.path), "--half-life", "20,40", "--sigma", "0.1", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output[result.output.index("[") :])
    assert [row["path"].rpartition("/")[2] for row in rows] == [
        f"000000p096kimg-{name}.safetensors" for name in ("half-life-20", "half-life-40", "sigma-0.1")]  # fmt: skip
    assert load_snapshot(rows[2]["path"])[1]["averaging"]["sigma_rel"] == 0.1
    assert find_snapshot(run.path).parent.name == "snapshots"  # the run is still its own
    empty = CliRunner().invoke(app, ["ema", str(run.path)])
    assert empty.exit_code == 2 and "--half-life" in empty.output


def test_one_width_is_not_enough_and_growth_does_not_go_with_it():
    for wrong in (["ema.posthoc=[0.1]"], ["ema.posthoc=[0.05,0.05]"], ["ema.posthoc=[0.05,0.1]", "growth.at_kimg=30"]):
        with pytest.raises(UserError, match="ema.posthoc needs two different widths"):
            tiny_recipe(*wrong)
