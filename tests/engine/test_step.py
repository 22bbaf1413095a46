"""What one step does, and what it must not do."""

import copy

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine import build
from mien.engine.schedules import knobs_at
from mien.engine.step import train_step

CPU = torch.device("cpu")


def make(store, *overrides, preset="seed0"):
    config = tiny_recipe(*overrides, preset=preset).config
    names = build.attribute_names(config, store)
    return build.build_state(config, size=store.size, attributes=len(names), device=CPU), build.build_task(config, store, CPU), config


def steps(state, task, config, count):
    for _ in range(count):
        signals = train_step(state, task, knobs_at(config, state.nimg), measure=True)
    return signals


def changed(before, net):
    return [name for name, tensor in net.named_parameters() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize("preset", ["seed0", "seed1", "seed2", "seed3", "seed4"])
def test_a_step_gives_every_parameter_a_gradient(store, preset):
    state, task, config = make(store, preset=preset)
    steps(state, task, config, 1)
    for net, optimizer in ((state.G, state.opt_g), (state.D, state.opt_d)):
        without = [name for name, p in net.named_parameters() if p not in optimizer.state]
        assert not without, f"{without} got no gradient"
        zero = [name for name, p in net.named_parameters() if not optimizer.state[p]["exp_avg_sq"].any()]
        # A hinge whose margins all hold pulls D's last bias up for reals exactly as much as down for fakes.
        assert set(zero) <= {"logit.bias"}


def test_each_optimiser_moves_its_own_network_only(store, monkeypatch):
    """With G's rate at zero D moves and G does not, and the other way round: no gradient of one update reaches the other network."""
    for frozen, moving in (("G", "D"), ("D", "G")):
        state, task, config = make(store)
        optimizer = state.opt_g if frozen == "G" else state.opt_d
        monkeypatch.setattr(optimizer, "step", lambda: None)
        before = {role: copy.deepcopy(dict(getattr(state, role).named_parameters())) for role in ("G", "D")}
        steps(state, task, config, 1)
        assert not changed(before[frozen], getattr(state, frozen))
        assert changed(before[moving], getattr(state, moving))


def test_d_update_leaves_g_without_gradients_and_g_update_leaves_d_without(store, monkeypatch):
    state, task, config = make(store)
    seen = {}

    def spy(role, other, optimizer):
        step = optimizer.step

        def wrapped():
            seen[role] = [name for name, p in other.named_parameters() if p.grad is not None]
            step()

        monkeypatch.setattr(optimizer, "step", wrapped)

    spy("d", state.G, state.opt_d)
    spy("g", state.D, state.opt_g)
    steps(state, task, config, 1)
    assert seen == {"d": [], "g": []}


def test_every_penalty_trains_and_is_told(store):
    names = ("r1", "r2", "gp", "dragan")
    state, task, config = make(store, *(f"regularizer.{name}.gamma=1" for name in names), "regularizer.r1.every=1")
    signals = steps(state, task, config, 2)
    assert all(torch.isfinite(signals[f"{name}_penalty"]) and signals[f"{name}_penalty"] > 0 for name in names)


@pytest.mark.parametrize("loss", ["bce", "nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic"])
def test_every_loss_trains(store, loss):
    state, task, config = make(store, f"loss.name={loss}")
    signals = steps(state, task, config, 3)
    assert all(torch.isfinite(value) for value in signals.values())


def test_same_seed_same_bits_other_seed_other_bits(store):
    def weights(*overrides):
        state, task, config = make(store, *overrides)
        steps(state, task, config, 3)
        return torch.cat([p.flatten() for p in state.G.parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("train.seed=1"))


def test_measuring_changes_nothing(store):
    results = []
    for measure in (False, True):
        state, task, config = make(store)
        for _ in range(3):
            train_step(state, task, knobs_at(config, state.nimg), measure=measure)
        results.append(state.tensors())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_micro_batches_give_the_same_gradient(store):
    """Without batch or spectral norm, augmentation and minibatch layers the pieces are independent, so the sum is the whole."""
    plain = ("model.generator.norm=none", "model.discriminator.norm=none", "augment.p=0", "regularizer.r1.every=1")
    names = ("grad_norm_d", "grad_norm_g", "loss_d", "loss_g", "r1_penalty")
    for d_steps in (1, 2):
        gradients = []
        for micro in ("none", "2"):
            own = (f"balance.d_steps={d_steps}", f"train.micro_batch={micro}", "optimizer.clip_norm=none")
            state, task, config = make(store, *plain, *own)
            signals = steps(state, task, config, 1)
            gradients.append({name: float(signals[name]) for name in names})
        assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_lazy_penalty_comes_every_kth_update_with_k_times_the_weight(store):
    state, task, config = make(store, "regularizer.r1.every=3")
    applied = ["r1_penalty" in train_step(state, task, knobs_at(config, state.nimg)) for _ in range(7)]
    assert applied == [True, False, False, True, False, False, True]


def test_nimg_counts_real_images_shown_to_d(store):
    for d_steps, g_steps in ((1, 1), (2, 1), (1, 2)):
        state, task, config = make(store, f"balance.d_steps={d_steps}", f"balance.g_steps={g_steps}")
        steps(state, task, config, 3)
        assert state.nimg == 3 * 8 * d_steps


def test_clipping_bounds_the_update(store):
    state, task, config = make(store, "optimizer.clip_norm=1e-6", "optimizer.name=adam", "optimizer.eps=1.0")
    before = {name: p.clone() for name, p in state.G.named_parameters()}
    signals = steps(state, task, config, 1)
    assert signals["grad_norm_g"] > 1e-4  # what was measured is the norm before clipping
    moved = torch.cat([(p - before[name]).flatten() for name, p in state.G.named_parameters()]).norm()
    assert moved < 1e-8  # Adam's step with eps 1 is about lr x gradient


def test_bf16_stays_near_fp32(store):
    losses = []
    for precision in ("fp32", "bf16"):
        state, task, config = make(store, f"train.precision={precision}")
        losses.append(float(steps(state, task, config, 1)["loss_d"]))
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_unconditional_and_single_attribute(store):
    for names in ("[]", '["Smiling"]'):
        state, task, config = make(store, f"data.attributes={names}")
        assert torch.isfinite(steps(state, task, config, 2)["loss_d"])
