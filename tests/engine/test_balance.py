"""The controller: one bounded change at a time, pauses between them, the hand wins, and back again in health."""

import json

import pytest

from engine.test_diagnosis import HEALTHY, SICK
from mien.config import resolve
from mien.engine.balance import COOL_DOWN, REMEDIES, URGENCY, Controller, adapted_augment_p, by_urgency
from mien.engine.diagnosis import RULES, History, observe
from mien.engine.schedules import KNOBS, knobs_at
from mien.engine.steering import RATES, Steering

PATIENCE = 1000
CONFIG = resolve("seed0", ["optimizer.clip_norm=none", "schedule.lr=constant", "balance.g_steps=2"]).config


class Pilot:
    """A run of signals alone: each tick is observed, decided on and steered."""

    def __init__(self, **steering):
        self.history, self.steering, self.controller, self.nimg = History(), Steering(**steering), Controller(), 0
        self.decisions = []

    @property
    def knobs(self):
        return self.steering.apply(knobs_at(CONFIG, self.nimg), self.nimg)

    def fly(self, images, signals, *, can_augment=True, advice=False):
        for _ in range(images // 100):
            self.nimg += 100
            self.history = observe(self.history, self.nimg, signals, patience_nimg=PATIENCE)
            if advice:
                decision = self.controller.advise(self.history, self.steering, self.knobs, can_augment=can_augment)
            else:
                decision = self.controller.decide(self.history, self.steering, self.knobs, recipe=knobs_at(CONFIG, self.nimg),
                                                  nimg=self.nimg, patience_nimg=PATIENCE, can_augment=can_augment)  # fmt: skip
            if decision is not None:
                self.decisions.append((self.nimg, decision))
        return self

    def turned(self):
        return [decision.knob for _, decision in self.decisions]


def sick(*titles):
    return {**HEALTHY, **{name: value for title in titles for name, value in SICK[title].items()}}


def test_health_is_left_alone():
    pilot = Pilot().fly(100_000, HEALTHY)
    assert pilot.decisions == [] and pilot.steering == Steering() and pilot.knobs == knobs_at(CONFIG, pilot.nimg)


@pytest.mark.parametrize("title", SICK)
def test_every_ladder_is_climbed_within_bounds_and_comes_to_an_end(title):
    """However long it stays sick: at most one change in a cool-down, no knob beyond its own bounds or its remedy's, and then rest."""
    pilot = Pilot().fly(5000, HEALTHY)
    recipe = pilot.knobs
    for _ in range(120):
        pilot.fly(500, sick(title))
        for name, (low, high, _) in KNOBS.items():
            value = getattr(pilot.knobs, name)
            assert value is None or low <= value <= high
        for name in RATES:
            assert 1 / 64 <= getattr(pilot.knobs, name) / getattr(recipe, name) <= 4
        assert pilot.knobs.augment_p <= 0.6 and pilot.knobs.r1_gamma <= 2
        assert 1 <= pilot.knobs.d_steps <= 2 and 1 <= pilot.knobs.g_steps <= 2
    times = [nimg for nimg, _ in pilot.decisions]
    assert all(later - earlier >= COOL_DOWN * PATIENCE for earlier, later in zip(times, times[1:]))
    assert bool(times) == (title != "condition ignored (Smiling)")
    for _, decision in pilot.decisions:
        assert decision.old != decision.new and decision.diagnosis == title and str(decision.signal) in decision.sentence()
    assert not times or times[-1] < 50_000  # spent: it does not hunt up and down


def test_the_right_knob_turns_the_right_way():
    first = {title: Pilot().fly(5000, HEALTHY).fly(9000, sick(title)).decisions for title in SICK}
    turned = {title: [(decision.knob, decision.new > decision.old) for _, decision in decisions[:1]] for title, decisions in first.items()}
    assert turned["D too strong"] == [("r1_gamma", True)]
    assert turned["G too strong"] == [("lr_d", True)]
    assert turned["D memorising"] == [("augment_p", True)]
    assert turned["exploding (D)"] == [("lr_d", False)] and turned["exploding (G)"] == [("lr_g", False)]
    assert turned["vanishing (G)"] == turned["vanishing (D)"] == [("lr_d", False)] and turned["stalled"] == [("lr_g", True)]


def test_of_two_ills_the_more_urgent_is_treated_first():
    pilot = Pilot().fly(5000, HEALTHY).fly(2000, sick("exploding (D)", "G too strong"))
    assert [alarm.name for alarm in by_urgency(pilot.history)] == ["exploding", "G too strong"]
    assert pilot.turned() == ["lr_d"]
    assert {rule.name for rule in RULES} == set(URGENCY) and {key.split(" (")[0] for key in REMEDIES} == set(URGENCY)


def test_the_hand_wins():
    """A knob set by hand is passed over for the next rung; with all of a ladder's knobs in hand nothing is done."""
    pilot = Pilot()
    pilot.steering.set_by_hand("r1_gamma", 3.0, now=pilot.knobs, nimg=0)
    pilot.fly(5000, HEALTHY).fly(4000, sick("D too strong"))
    assert pilot.turned() == ["lr_d"] and pilot.knobs.r1_gamma == 3.0
    pilot = Pilot().fly(5000, HEALTHY)
    for knob in {remedy.knob for remedy in REMEDIES["G too strong"]}:
        pilot.steering.set_by_hand(knob, getattr(pilot.knobs, knob), now=pilot.knobs, nimg=pilot.nimg)
    assert pilot.fly(50_000, sick("G too strong")).decisions == []


def test_taking_a_knob_in_hand_takes_it_from_the_controller():
    pilot = Pilot().fly(5000, HEALTHY).fly(3000, sick("vanishing (G)"))
    assert pilot.steering.controller == {"lr_d": 0.5}
    pilot.steering.set_by_hand("lr_d", 1e-5, now=pilot.knobs, nimg=pilot.nimg)
    assert pilot.steering.controller == {} and pilot.knobs.lr_d == 1e-5


def test_without_augmentations_their_rung_is_passed_over():
    pilot = Pilot().fly(5000, HEALTHY).fly(4000, sick("D memorising"), can_augment=False)
    assert pilot.turned()[0] == "r1_gamma"
    pilot = Pilot(augment_p=0.1).fly(5000, HEALTHY).fly(4000, sick("D memorising"))  # adaptive: it has a pilot of its own
    assert pilot.turned()[0] == "r1_gamma"


def test_what_helped_stays_and_the_opposite_takes_it_back():
    pilot = Pilot().fly(5000, HEALTHY).fly(7000, sick("vanishing (G)")).fly(100_000, HEALTHY)
    assert pilot.steering.controller["lr_d"] == 0.25
    pilot.fly(9000, sick("G too strong"))  # D, held back, has fallen behind
    assert pilot.steering.controller["lr_d"] > 0.25


def test_a_step_that_does_harm_is_taken_back_and_not_made_again():
    """A wide D learnt less, not more, at a doubled rate: it was doubled again, and died."""
    pilot = Pilot().fly(5000, HEALTHY).fly(3500, {**HEALTHY, "accuracy_real": 0.57, "accuracy_fake": 0.57})
    assert pilot.turned() == ["lr_d"] and pilot.steering.controller == {"lr_d": 2.0}
    pilot.fly(2000, {**HEALTHY, "accuracy_real": 0.52, "accuracy_fake": 0.52})
    reversal = pilot.decisions[-1][1]
    assert pilot.turned() == ["lr_d", "lr_d"] and pilot.steering == Steering() and reversal.new == pytest.approx(reversal.old / 2)
    assert reversal.sentence().startswith("Took lr_d back from 0.0008 to 0.0004, for it did harm (G too strong: accuracy_d 0.5")
    pilot.fly(30_000, {**HEALTHY, "accuracy_real": 0.52, "accuracy_fake": 0.52})
    assert pilot.turned()[2:] and "lr_d" not in pilot.turned()[2:]  # the ladder's other rungs


def test_a_step_that_helped_or_did_nothing_stays():
    for after in (0.57, 0.6):
        pilot = Pilot().fly(5000, HEALTHY).fly(3500, {**HEALTHY, "accuracy_real": 0.57, "accuracy_fake": 0.57})
        pilot.fly(30_000, {**HEALTHY, "accuracy_real": after, "accuracy_fake": after})
        assert pilot.steering.controller["lr_d"] >= 2 and pilot.controller.harmful == {}


def test_what_a_hand_did_meanwhile_is_not_taken_back():
    pilot = Pilot().fly(5000, HEALTHY).fly(3500, {**HEALTHY, "accuracy_real": 0.57, "accuracy_fake": 0.57})
    pilot.steering.set_by_hand("lr_d", 3e-4, now=pilot.knobs, nimg=pilot.nimg)
    pilot.fly(1500, {**HEALTHY, "accuracy_real": 0.52, "accuracy_fake": 0.52})
    assert pilot.knobs.lr_d == pytest.approx(3e-4) and all(decision.value_then is None for _, decision in pilot.decisions)


def test_a_second_step_that_does_harm_leaves_the_first():
    pilot = Pilot().fly(5000, HEALTHY).fly(5500, {**HEALTHY, "accuracy_real": 0.57, "accuracy_fake": 0.57})
    assert pilot.steering.controller == {"lr_d": 4.0}
    pilot.fly(1500, {**HEALTHY, "accuracy_real": 0.5, "accuracy_fake": 0.5})
    assert pilot.steering.controller == {"lr_d": 2.0}


def test_what_calms_is_not_taken_back_while_the_ill_still_grows():
    pilot = Pilot().fly(5000, HEALTHY)
    for factor in range(30, 400, 5):
        pilot.fly(200, {**HEALTHY, "grad_norm_d": factor * HEALTHY["grad_norm_d"]})
    assert len(pilot.decisions) > 2 and all(decision.value_then is None for _, decision in pilot.decisions)


def test_advice_is_given_once_for_each_diagnosis_and_changes_nothing():
    pilot = Pilot().fly(5000, HEALTHY, advice=True).fly(30_000, sick("G too strong"), advice=True)
    assert pilot.turned() == ["lr_d"] and pilot.steering == Steering()
    assert pilot.decisions[0][1].sentence(advice=True).startswith("Would turn lr_d from 0.0004 to 0.0008 (G too strong: accuracy_d 0.")
    pilot.fly(20_000, HEALTHY, advice=True).fly(5000, sick("G too strong"), advice=True)
    assert pilot.turned() == ["lr_d", "lr_d"]  # a second illness is told anew


def test_a_checkpoint_keeps_what_the_controller_remembers():
    one = Pilot().fly(5000, HEALTHY).fly(4300, sick("G too strong"))
    other = Pilot()
    other.nimg, other.decisions = one.nimg, list(one.decisions)
    other.history = History.from_plain(json.loads(json.dumps(one.history.plain())))
    other.steering = Steering.from_plain(json.loads(json.dumps(one.steering.plain())))
    other.controller = Controller.from_plain(json.loads(json.dumps(one.controller.plain())))
    for signals in (sick("G too strong"), HEALTHY):
        one.fly(20_000, signals)
        other.fly(20_000, signals)
    assert one.decisions == other.decisions and one.steering == other.steering and len(one.decisions) > 4


def test_adaptive_augmentation_by_hand():
    settings = {"target": 0.6, "speed_kimg": 500.0, "most": 0.8}
    assert adapted_augment_p(0.1, 0.9, images=5000, **settings) == pytest.approx(0.11)
    assert adapted_augment_p(0.1, 0.3, images=5000, **settings) == pytest.approx(0.09)
    assert adapted_augment_p(0.0, 0.3, images=5000, **settings) == 0.0
    assert adapted_augment_p(0.8, 0.9, images=5000, **settings) == 0.8
