"""Adaptive augmentation in a real run: p follows E[sign D(real)] at the stated speed, within its bounds, and yields to a hand."""

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine.balance import adapted_augment_p
from mien.engine.session import open_session

# A step and a tick are 8 images, and p takes 160 from 0 to 1: 0.05 a tick. D hardly learns, so that it stays what was planted.
ADAPTIVE = ("augment.mode=adaptive", "augment.p=0.2", "augment.speed_kimg=0.16", "augment.most=0.8", "balance.mode=off",
            "schedule.lr=constant", "optimizer.lr_d=1e-9", "train.checkpoint_kimg=1", "train.snapshot_kimg=1")  # fmt: skip


def strengths(store, path, *overrides, sure, wish=None):
    """{nimg: p of the step that ended there} of a run whose D is sure of every real while `sure(nimg)`, and of none while not.

    `wish`: {nimg: changes asked for by hand at the tick there}.
    """
    begun = open_session(path, tiny_recipe(*ADAPTIVE, *overrides), store, device=torch.device("cpu"), say=lambda message: None)

    def plant(nimg, values=None):
        with torch.no_grad():
            begun.state.D.logit.bias.fill_(50.0 if sure(nimg) else -50.0)
        if nimg in (wish or {}):
            begun.run.request_control(wish[nimg])

    plant(0)
    begun.loop(on_tick=plant, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None).train()
    records = list(begun.run.scalars())
    for record in records:
        assert record["sign_real"] == (1 if sure(record["nimg"] - 8) else -1)  # the plant holds
    return {record["nimg"]: record["augment_p"] for record in records}


def test_p_rises_while_d_is_sure_and_falls_when_it_is_not(store, tmp_path):
    p = strengths(store, tmp_path / "run", sure=lambda nimg: nimg < 48)
    risen = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]  # of the steps that ended at 8 to 56: six ticks of sure ones came before the last
    fallen = [0.45, 0.4, 0.35, 0.3, 0.25]
    assert [p[nimg] for nimg in range(8, 104, 8)] == pytest.approx([*risen, *fallen])


def test_p_stays_within_its_bounds(store, tmp_path):
    high = strengths(store, tmp_path / "high", "augment.p=0.7", "augment.most=0.78", sure=lambda nimg: True)
    assert [high[nimg] for nimg in (8, 16, 24, 96)] == pytest.approx([0.7, 0.75, 0.78, 0.78])
    low = strengths(store, tmp_path / "low", "augment.p=0.08", sure=lambda nimg: False)
    assert [low[nimg] for nimg in (8, 16, 24, 96)] == pytest.approx([0.08, 0.03, 0.0, 0.0])


def test_a_hand_set_p_is_left_alone_until_it_is_given_back(store, tmp_path):
    wish = {32: {"augment_p": 0.1}, 64: {"augment_p": "recipe"}}
    p = strengths(store, tmp_path / "run", sure=lambda nimg: True, wish=wish)
    assert [p[nimg] for nimg in (8, 16, 24, 32)] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert [p[nimg] for nimg in (40, 48, 56, 64)] == [0.1] * 4
    assert [p[nimg] for nimg in (72, 80, 88, 96)] == pytest.approx([0.4, 0.45, 0.5, 0.55])  # goes on from where it was left


def test_fixed_p_does_not_move(store, tmp_path):
    p = strengths(store, tmp_path / "run", "augment.mode=fixed", sure=lambda nimg: True)
    assert set(p.values()) == {0.2}


def test_with_a_loss_that_leaves_ds_offset_free_p_follows_what_is_told_apart(store, tmp_path):
    """Nothing but D's offset differs between the two runs, and Wasserstein's loss knows nothing of it: neither may p."""
    followed = []
    for offset in (50.0, -50.0):
        recipe = tiny_recipe(*ADAPTIVE, "loss.name=wasserstein")
        begun = open_session(tmp_path / str(offset), recipe, store, device=torch.device("cpu"), say=lambda message: None)
        with torch.no_grad():
            begun.state.D.logit.bias.fill_(offset)
        begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None).train()
        followed.append([(record["sign_real"], record["augment_p"]) for record in begun.run.scalars()])
    assert followed[0] == followed[1] and len(set(followed[0])) > 2


def test_the_published_speed():
    """Karras et al. 2020: 500 thousand images from 0 to 1, target 0.6; a sign of exactly the target is not above it."""
    p = 0.0
    for _ in range(125):
        p = adapted_augment_p(p, 0.61, images=4000, target=0.6, speed_kimg=500.0, most=1.0)
    assert p == pytest.approx(1.0)
    assert adapted_augment_p(0.5, 0.6, images=4000, target=0.6, speed_kimg=500.0, most=1.0) == pytest.approx(0.492)
