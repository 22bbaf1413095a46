"""LeCam, consistency, the perceptual term, D's noise and weight decay inside a step, and what goes into checkpoints."""

import pytest
import torch

from engine.conftest import tiny_recipe
from engine.test_step import CPU, make, steps
from mien.engine.batch import Batch
from mien.engine.build import face_features
from mien.engine.penalties import move_anchors, penalties
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session
from mien.engine.step import train_step
from mien.losses.regularizers import pixel_gradient, r1

LECAM = ("regularizer.lecam.gamma=0.3", "regularizer.lecam.half_life_kimg=0.008")
BCR = ("regularizer.consistency.real=10", "regularizer.consistency.fake=10")


def test_lecams_anchors_are_moving_averages_of_the_logits(store):
    state, task, config = make(store, *LECAM)
    knobs, seen = knobs_at(config, 0), []
    for real, fake in ((1.0, -1.0), (3.0, -2.0)):
        batch = Batch.load(state, task)
        (part,) = batch.pieces(state, task)
        logits = {"real_logits": torch.full((8,), real), "fake_logits": torch.full((8,), fake)}
        told = penalties(state, task, knobs, state.D, part, fake=part.real, **logits)
        seen += [(weight, float(values.mean())) for name, weight, values in told if name == "lecam"]
        move_anchors(state, task, batch)
    assert seen[0] == (0.3, pytest.approx((1 + 1) ** 2 + (-1 - 1) ** 2))  # the first batch is its own anchor
    assert seen[1] == (0.3, pytest.approx((3 + 1) ** 2 + (-2 - 1) ** 2))
    assert state.anchors.tolist() == pytest.approx([2.0, -1.5])  # one half-life later


def test_lecam_holds_the_logits_together(store):
    gaps = []
    for extra in ((), LECAM):
        state, task, config = make(store, "loss.name=wasserstein", "regularizer.r1.gamma=0", "optimizer.lr_d=2e-3", *extra)
        gaps.append(float(steps(state, task, config, 25)["logit_gap"]))
    assert gaps[1] < 0.7 * gaps[0]


def test_consistency_makes_d_overlook_the_transformation(store):
    """The penalty with a weight that counts, against the same penalty that is measured but weighs nothing."""
    left = []
    for weight in ("1e-9", "10"):
        weights = (f"regularizer.consistency.{kind}={weight}" for kind in ("real", "fake"))
        state, task, config = make(store, *weights, "optimizer.lr_d=2e-3")
        told = [train_step(state, task, knobs_at(config, state.nimg)) for _ in range(20)]
        left.append(sum(float(signals[f"consistency_{kind}_penalty"]) for signals in told[10:] for kind in ("real", "fake")))
    assert task.jitter.names == ("flip", "translation")
    assert left[1] < 0.5 * left[0]


def test_the_perceptual_term_teaches_g_alone_and_the_snapshot_says_so(store, tmp_path):
    recipe = tiny_recipe("loss.perceptual=0.05", "train.images=16")
    begun = open_session(tmp_path / "run", recipe, store, device=CPU, say=lambda message: None)
    frozen = face_features(CPU)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    frozen(images).sum().backward()
    assert images.grad.abs().sum() > 0
    signals = train_step(begun.state, begun.task, knobs_at(recipe.config, 0))
    assert torch.isfinite(signals["perceptual"]) and not signals["perceptual"].requires_grad
    assert begun.meta["trained_on"] == ["face"]
    begun.run.unlock()


def test_the_perceptual_term_brings_features_together(store):
    """G alone, D's opinion switched off by a rate of nearly nothing and a large weight: the distance must fall."""
    state, task, config = make(store, "loss.perceptual=1", "optimizer.lr_g=5e-3", "optimizer.lr_d=1e-8", "optimizer.clip_norm=none")
    told = [float(train_step(state, task, knobs_at(config, state.nimg))["perceptual"]) for _ in range(12)]
    assert min(told[-3:]) < 0.8 * told[0]


@pytest.mark.parametrize("d_steps", [1, 2, 3])
def test_path_lengths_come_at_every_kth_update_of_g_however_many_d_makes(store, d_steps):
    style = ("model.generator.w_dim=8", "regularizer.path_length.gamma=2", "regularizer.path_length.every=4", "balance.probe_kimg=0")
    state, task, _ = make(store, *style, f"balance.d_steps={d_steps}", preset="style64-cpu")
    hits = ["path_penalty" in train_step(state, task, knobs_at(task.config, state.nimg)) for _ in range(8)]
    assert [step for step, hit in enumerate(hits, start=1) if hit] == [4, 8]


def test_ds_noise_follows_its_schedule_and_its_knob(store):
    state, task, config = make(store, "model.discriminator.input_noise=0.2", "schedule.noise_final=0.5")
    assert knobs_at(config, 0).input_noise == pytest.approx(0.2)
    assert knobs_at(config, config.train.images).input_noise == pytest.approx(0.1)
    train_step(state, task, knobs_at(config, config.train.images // 2))
    assert state.D.input_noise == pytest.approx(0.15)


def test_weight_decay_shrinks_kernels_and_nothing_else(store):
    """AdamW with a gradient of zero: only the decay moves, by 1 - rate x decay."""
    state, _, _ = make(store, "optimizer.name=adamw", "optimizer.weight_decay=0.5", "optimizer.lr_g=0.1", "optimizer.lr_d=0.1")
    for net, optimizer in ((state.G, state.opt_g), (state.D, state.opt_d)):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim > 1 else 1.0))
        assert any(p.ndim == 1 for p in net.parameters())


def test_penalties_of_a_bf16_run_are_those_of_an_fp32_run(store):
    """R1 and consistency look at the same D and the same reals in both; bf16 anywhere on the way would show in the third digit."""
    told = []
    for precision in ("fp32", "bf16"):
        state, task, config = make(store, f"train.precision={precision}", "regularizer.r1.every=1", "regularizer.consistency.real=10")
        told.append(train_step(state, task, knobs_at(config, 0)))
    for name in ("r1_penalty", "consistency_real_penalty"):
        assert float(told[0][name]) == pytest.approx(float(told[1][name]), rel=1e-5)


def test_a_penalty_that_bf16_would_lose():
    """Planted: the slope is 1 + 2^-10 everywhere, which bf16 rounds to 1. A critic that ran in bf16 shows that the plant would be seen."""
    layer = torch.nn.Linear(3 * 4 * 4, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1 + 2**-10)

    def critic(images, attributes):
        return layer(images.flatten(1)).squeeze(1)

    def sloppy(images, attributes):
        with torch.autocast("cpu", torch.bfloat16):
            return critic(images, attributes)

    real, none = torch.rand(2, 3, 4, 4), torch.zeros(2, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert r1(critic, real=real, attributes=none).tolist() == pytest.approx([48 * (1 + 2**-10) ** 2] * 2, rel=1e-6)
    assert pixel_gradient(sloppy, real, none).square().sum((1, 2, 3)).tolist() == pytest.approx([48.0] * 2, rel=1e-6)


@pytest.mark.parametrize("extra", [(*LECAM, *BCR, "model.discriminator.input_noise=0.1", "schedule.noise_final=0", "train.micro_batch=4"),
                                   ('data.balance={"Male=1,Smiling=0" = 4.0}', "loss.perceptual=0.05", "balance.g_steps=2")])
def test_resume_is_exact_with(store, tmp_path, extra):
    recipe = tiny_recipe(*extra, "train.images=48", "sample.every_kimg=0")

    def go(path, stop_at=None):
        begun = open_session(path, recipe, store, device=CPU, say=lambda message: None)
        loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None)
        if stop_at:
            loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
        loop.train()
        return begun.state.tensors()

    go(tmp_path / "parts", stop_at=24)
    parts, whole = go(tmp_path / "parts"), go(tmp_path / "whole")
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in parts)
    assert ("anchors" in whole) == (LECAM[0] in extra)


def test_the_condition_drawn_for_g_follows_the_balance_of_the_data(store):
    """Two generator updates a step draw conditions of their own; both streams must show the law, not the data's shares."""
    factor = 9.0
    _, task, _ = make(store, 'data.balance={"Male=1,Smiling=0" = 9.0}')
    natural = dict(task.data.combinations())[(1, 0)]
    wanted = natural * factor / (1 - natural + natural * factor)
    torch.manual_seed(0)
    row = torch.tensor([1.0, 0.0])
    for attributes in (task.data.batch(0, 36 * 40)[1], task.data.draw_attributes(4000)):
        assert float((attributes == row).all(1).float().mean()) == pytest.approx(wanted, abs=0.03)
    assert wanted > natural + 0.2
