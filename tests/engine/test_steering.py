"""Knobs turned away from the recipe: by hand at once or in a glide, by the controller, by a rollback; and what is refused."""

import json

import pytest

from mien.config import resolve
from mien.engine.balance import Controller, Trial
from mien.engine.schedules import knobs_at
from mien.engine.steering import Glide, Steering, check_change, parse_changes
from mien.errors import UserError

CONFIG = resolve("seed0", ["optimizer.lr_g=1e-3", "optimizer.lr_d=1e-3", "optimizer.clip_norm=10", "schedule.lr=constant"]).config


def at(steering, nimg):
    return steering.apply(knobs_at(CONFIG, nimg), nimg)


def test_nothing_turned_is_the_recipe():
    assert at(Steering(), 5000) == knobs_at(CONFIG, 5000)


def test_a_glide_is_linear_and_then_stays():
    steering = Steering()
    steering.set_by_hand("lr_g", 3e-3, now=at(steering, 1000), nimg=1000, over_nimg=2000)
    assert [at(steering, nimg).lr_g for nimg in (1000, 2000, 2500, 3000, 9000)] == pytest.approx([1e-3, 2e-3, 2.5e-3, 3e-3, 3e-3])
    steering.set_by_hand("lr_g", 1e-3, now=at(steering, 2000), nimg=2000, over_nimg=1000)  # turned round on its way
    assert [at(steering, nimg).lr_g for nimg in (2000, 2500, 3000)] == pytest.approx([2e-3, 1.5e-3, 1e-3])
    steering.release("lr_g")
    assert at(steering, 2500) == knobs_at(CONFIG, 2500)


def test_given_back_to_the_recipe_the_controller_holds_it_no_more():
    steering, controller = Steering(), Controller(trial=Trial("lr_d", None, "G too strong", 0.5))
    for name, value in (("lr_d", 2.0), ("clip_norm", 5.0)):
        steering.hold(name, value, recipe=knobs_at(CONFIG, 0))
        steering.release(name)
    assert at(steering, 0) == knobs_at(CONFIG, 0) and steering == Steering()
    assert not controller.take_back(steering, recipe=knobs_at(CONFIG, 0)) and controller.harmful == {}


def test_what_cannot_glide_changes_at_once():
    assert Glide(None, 5.0, 0, 100).at(1) == 5.0 and Glide(5.0, None, 0, 100).at(1) is None
    steering = Steering()
    steering.set_by_hand("d_steps", 3.0, now=at(steering, 0), nimg=0, over_nimg=1000)
    steering.set_by_hand("clip_norm", None, now=at(steering, 0), nimg=0)
    assert at(steering, 0).d_steps == 3 and isinstance(at(steering, 0).d_steps, int) and at(steering, 0).clip_norm is None


def test_a_controllers_rate_is_a_factor_on_the_recipe_and_other_knobs_are_values():
    steering = Steering(controller={"lr_d": 0.25, "r1_gamma": 2.0}, augment_p=0.3)
    knobs = at(steering, 0)
    assert (knobs.lr_d, knobs.lr_g, knobs.r1_gamma, knobs.augment_p) == (2.5e-4, 1e-3, 2.0, 0.3)


def test_a_rollbacks_calm_holds_for_every_rate_and_clips_at_least_as_hard():
    steering = Steering(controller={"lr_d": 0.5}, calm=0.5, calm_clip_norm=4.0)
    assert (at(steering, 0).lr_g, at(steering, 0).lr_d, at(steering, 0).clip_norm) == (5e-4, 2.5e-4, 4.0)
    steering.set_by_hand("lr_g", 2e-3, now=at(steering, 0), nimg=0, over_nimg=100)
    assert [at(steering, nimg).lr_g for nimg in (0, 100)] == pytest.approx([5e-4, 2e-3])  # begins without a jump, ends as asked for
    steering.calm = 0.25  # a second rollback, after that was set
    assert at(steering, 100).lr_g == pytest.approx(1e-3)
    steering.calm = 0.5
    steering.set_by_hand("clip_norm", 1.0, now=at(steering, 0), nimg=0)
    assert at(steering, 0).clip_norm == 1.0
    steering.set_by_hand("clip_norm", None, now=at(steering, 0), nimg=0)
    assert at(steering, 0).clip_norm == 4.0


@pytest.mark.parametrize("held, used", [(0.3, [0.3, 0.3, 0.6]), (0.6, [0.6, 0.6, 0.6])])
def test_a_rising_schedule_does_not_turn_more_augmentation_into_less(held, used):
    config = resolve("seed0", ["augment.ops=diffaugment", "augment.p=0.6", "augment.mode=ramp", "augment.ramp_kimg=2"]).config
    steering = Steering()
    steering.hold("augment_p", held, recipe=knobs_at(config, 500))  # where the recipe has 0.15
    assert [steering.apply(knobs_at(config, nimg), nimg).augment_p for nimg in (500, 1000, 2000)] == pytest.approx(used)


def test_a_schedule_keeps_to_the_controllers_side_of_it():
    def gammas(final, held):
        config = resolve("seed0", ["regularizer.r1.gamma=1", f"schedule.gamma_final={final}"]).config
        steering = Steering()
        steering.hold("r1_gamma", held, recipe=knobs_at(config, 0))
        return [steering.apply(knobs_at(config, nimg), nimg).r1_gamma for nimg in (0, config.train.images)]

    assert gammas(4, 2.0) == pytest.approx([2, 4]) and gammas(0.1, 2.0) == pytest.approx([2, 2])
    assert gammas(4, 0.5) == pytest.approx([0.5, 0.5]) and gammas(0.1, 0.5) == pytest.approx([0.5, 0.1])


def test_a_checkpoint_from_before_sides_holds_its_values():
    old = {name: value for name, value in Steering(controller={"r1_gamma": 2.0}).plain().items() if name != "sides"}
    assert at(Steering.from_plain(old), 0).r1_gamma == 2.0


def test_it_survives_a_checkpoint():
    steering = Steering(controller={"lr_d": 0.5}, calm=0.25, calm_clip_norm=4.0, augment_p=0.1, requests=["1.json"])
    steering.hold("r1_gamma", 2.0, recipe=knobs_at(CONFIG, 0))
    steering.set_by_hand("lr_g", 2e-3, now=at(steering, 0), nimg=8, over_nimg=100)
    assert Steering.from_plain(json.loads(json.dumps(steering.plain()))) == steering


def test_changes_are_read():
    assert parse_changes(["lr_g=1e-4", " clip_norm = none", "lr_d=recipe", "d_steps=2"]) == {
        "lr_g": 1e-4, "clip_norm": None, "lr_d": "recipe", "d_steps": 2.0}  # fmt: skip


@pytest.mark.parametrize("texts, words", [
    (["lrg=1"], "No knob is called 'lrg': turn lr_g, lr_d"),
    (["lrg=1"], "Did you mean lr_g?"),
    (["lr_g"], "write lr_g=VALUE, or lr_g=recipe"),
    (["lr_g="], "write lr_g=VALUE"),
    (["lr_g=fast"], "lr_g=fast: write a number from 1e-08 to 1."),
    (["lr_g=nan"], "write a number"),
    (["lr_g=-1"], "write a number from 1e-08"),
    (["lr_g=none"], "write a number"),
    (["d_steps=1.5"], "d_steps=1.5: write a whole number from 1 to 16."),
    (["d_steps=0"], "from 1 to 16"),
    (["augment_p=1.1"], "from 0 to 1."),
    (["clip_norm=0"], "or none."),
    ([], "Nothing to change"),
])  # fmt: skip
def test_a_wrong_change_is_refused_in_one_line(texts, words):
    with pytest.raises(UserError) as error:
        parse_changes(texts)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_check_change_takes_what_a_request_file_says():
    assert check_change("clip_norm", "none") is None and check_change("lr_g", "0.001") == 1e-3
    assert check_change("lr_g", "Recipe") == "recipe"
