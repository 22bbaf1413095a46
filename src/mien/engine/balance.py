"""The controller: turns knobs, within bounds and with pauses, by what the diagnosis names.

Each diagnosis has a ladder of remedies. The controller takes one step on the first rung that has room left, waits `COOL_DOWN`, and takes
the next if the diagnosis still stands. A rate or step count that was raised and made it worse is lowered again, and not raised for that
diagnosis any more. What helped stays: going back to settings that made a run sick made it sick again. The opposite diagnosis takes it
back. A run that is never diagnosed is never touched: its bits are those of a run without a controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mien.engine.diagnosis import Alarm, History
from mien.engine.schedules import Knobs
from mien.engine.steering import RATES, STEPS, Steering

COOL_DOWN = 2.0  # times the patience, between two changes
FIRST_GAMMA = 0.2
"""R1's gamma, x every, where the recipe has none: mild at 64 px, enough to smooth D."""
MOST_GAMMA = 2.0
AUGMENT_STEP, AUGMENT_MOST = 0.1, 0.6


@dataclass(frozen=True)
class Remedy:
    """One knob, one step: `turn(value) -> new value`, held between `low` and `high` (rates: as factors on the recipe's)."""

    knob: str
    turn: Callable[[float], float]
    low: float
    high: float


def _halve(knob: str, low: float = 0.25) -> Remedy:
    return Remedy(knob, lambda factor: factor / 2, low, math.inf)


def _double(knob: str, high: float = 1.0) -> Remedy:
    """By default only back to the recipe's."""
    return Remedy(knob, lambda factor: factor * 2, 0.0, high)


SMOOTHER_D = Remedy("r1_gamma", lambda gamma: max(2 * gamma, FIRST_GAMMA), 0.0, MOST_GAMMA)
ROUGHER_D = Remedy("r1_gamma", lambda gamma: gamma / 2, 0.01, 1e6)
MORE_AUGMENTATION = Remedy("augment_p", lambda p: p + AUGMENT_STEP, 0.0, AUGMENT_MOST)
FEWER_D_STEPS, FEWER_G_STEPS = (Remedy(knob, lambda steps: steps - 1, 1, 16) for knob in ("d_steps", "g_steps"))
MORE_D_STEPS, MORE_G_STEPS = (Remedy(knob, lambda steps: steps + 1, 1, 2) for knob in ("d_steps", "g_steps"))
REMEDIES: dict[str, tuple[Remedy, ...]] = {
    "D too strong": (FEWER_D_STEPS, _double("lr_g"), SMOOTHER_D, _halve("lr_d"), MORE_G_STEPS, MORE_AUGMENTATION),
    "G too strong": (_double("lr_d", 4.0), FEWER_G_STEPS, _halve("lr_g", 1 / 16), MORE_D_STEPS, ROUGHER_D),
    "D memorising": (MORE_AUGMENTATION, SMOOTHER_D, _halve("lr_d")),
    "mode collapse": (SMOOTHER_D, _halve("lr_g"), _halve("lr_d")),
    "condition ignored": (),
    "exploding (d)": (_halve("lr_d", 1 / 64), Remedy("clip_norm", lambda norm: norm / 2, 0.1, 1e6)),
    "exploding (g)": (_halve("lr_g", 1 / 64), Remedy("clip_norm", lambda norm: norm / 2, 0.1, 1e6)),
    "vanishing (g)": (_halve("lr_d"), SMOOTHER_D),
    "vanishing (d)": (_halve("lr_d", 1 / 64),),
    "stalled": (_double("lr_g", 2.0),),
}
URGENCY = ("exploding", "vanishing", "mode collapse", "D memorising", "D too strong", "G too strong", "stalled", "condition ignored")


@dataclass(frozen=True)
class Decision:
    """One knob turned, and why."""

    knob: str
    old: float | None
    new: float | None
    held: float | None
    """What `Steering.controller` keeps of it: a factor for a rate, the value for any other knob."""
    diagnosis: str
    signal: str
    value: float
    threshold: float
    value_then: float | None = None
    """Of the signal, when the change was made that this one takes back; None for a change of its own."""

    def sentence(self, *, advice: bool = False) -> str:
        because = f"{self.diagnosis}: {self.signal} {self.value:.3g}, limit {self.threshold:g}"
        if self.value_then is not None:
            return f"Took {self.knob} back from {_said(self.old)} to {_said(self.new)}, for it did harm ({because}, before it " \
                   f"{self.value_then:.3g})."  # fmt: skip
        verb = "Would turn" if advice else "Turned"
        return f"{verb} {self.knob} from {_said(self.old)} to {_said(self.new)} ({because})."


@dataclass(frozen=True)
class Trial:
    """The newest change, if it was to more force, as long as its diagnosis stands."""

    knob: str
    before: float | None
    """What the controller held of the knob until then; None: nothing."""
    diagnosis: str
    value: float
    """Of the signal that the diagnosis goes by, when the change was made."""


@dataclass
class Controller:
    """What the controller remembers. `decide` is called after each observation and changes `steering`; `advise` changes nothing."""

    acted_nimg: int | None = None
    advised: list[str] = field(default_factory=list)
    """What advice was given on and still stands."""
    trial: Trial | None = None
    harmful: dict[str, list[str]] = field(default_factory=dict)
    """{diagnosis: knobs that made it worse}."""

    def decide(
        self, history: History, steering: Steering, knobs: Knobs, *, recipe: Knobs, nimg: int, patience_nimg: int, can_augment: bool
    ) -> Decision | None:
        """At most one change. `knobs`: those of the step that was just made. `recipe`: what they are where nothing is turned."""
        alarms = [alarm for alarm in by_urgency(history) if alarm.recovering_nimg is None]
        since_nimg = math.inf if self.acted_nimg is None else nimg - self.acted_nimg
        if self.trial is not None and self.trial.diagnosis not in [alarm.title for alarm in history.named]:
            self.trial = None  # over: it helped
        trial = self.trial if since_nimg >= patience_nimg else None
        for alarm in alarms:
            if trial is not None and alarm.title == trial.diagnosis and alarm.worse_than(trial.value):
                reversal = self._reversal(trial, alarm, steering, knobs, recipe=recipe)
                if self.take_back(steering, recipe=recipe):
                    self.acted_nimg = nimg
                    return reversal
        if since_nimg < COOL_DOWN * patience_nimg:
            return None
        for alarm in alarms:
            decision = self.remedy_for(alarm, history, steering, knobs, can_augment=can_augment)
            if decision is not None:
                self.acted_nimg = nimg
                # Only more force does harm; calming a run whose ill still grows must not be undone for its growing.
                forced = decision.knob in RATES + STEPS and (decision.new or 0) > (decision.old or 0)
                self.trial = Trial(decision.knob, steering.controller.get(decision.knob), alarm.title, decision.value) if forced else None
                steering.hold(decision.knob, decision.held, recipe=recipe)
                return decision
        return None

    def take_back(self, steering: Steering, *, recipe: Knobs) -> bool:
        """Undo the change on trial; its diagnosis does not get it again. False when there is none, or a hand has the knob by now."""
        trial, self.trial = self.trial, None
        if trial is None or trial.knob not in steering.controller:
            return False
        self.harmful.setdefault(trial.diagnosis, []).append(trial.knob)
        steering.put_back(trial.knob, trial.before, recipe=recipe)
        return True

    def _reversal(self, trial: Trial, alarm: Alarm, steering: Steering, knobs: Knobs, *, recipe: Knobs) -> Decision:
        knob, now, plain = trial.knob, getattr(knobs, trial.knob), getattr(recipe, trial.knob)
        new = plain if trial.before is None else trial.before
        if knob in RATES:
            new = now * (trial.before or 1.0) / (steering.controller.get(knob) or 1.0)
        return Decision(knob, now, new, trial.before, alarm.title, *alarm.evidence[0], value_then=trial.value)

    def advise(self, history: History, steering: Steering, knobs: Knobs, *, can_augment: bool) -> Decision | None:
        """What `decide` would begin with, once for each diagnosis while it stands."""
        alarms = by_urgency(history)
        standing = [alarm.title for alarm in alarms]
        self.advised = [title for title in self.advised if title in standing]
        for alarm in alarms:
            if alarm.title not in self.advised:
                self.advised.append(alarm.title)
                return self.remedy_for(alarm, history, steering, knobs, can_augment=can_augment)
        return None

    def remedy_for(self, alarm: Alarm, history: History, steering: Steering, knobs: Knobs, *, can_augment: bool) -> Decision | None:
        """The first step with room left on the ladder of `alarm`; None when all are spent, did harm, or are set by hand."""
        signal, value, threshold = alarm.evidence[0]
        for remedy in REMEDIES[f"{alarm.name} ({alarm.network})" if alarm.network else alarm.name]:
            knob = remedy.knob
            if knob in steering.by_hand or knob in self.harmful.get(alarm.title, ()):
                continue
            if knob == "augment_p" and (not can_augment or steering.augment_p is not None):
                continue
            now = getattr(knobs, knob)
            held = (steering.controller.get(knob) or 1.0) if knob in RATES else now
            if held is None:  # no clipping so far: begin at twice its usual size
                held = 4 * history.usual.get(f"grad_norm_{alarm.network}", 5.0)
            turned = round(remedy.turn(held), 9)
            if knob in RATES and turned > held and steering.calm < 1:
                continue  # it was rolled back to go on calmer: too high a rate may be what failed it
            if remedy.low <= turned <= remedy.high and turned != held:
                new = now * turned / held if knob in RATES else turned
                return Decision(knob, now, new, turned, alarm.title, signal, value, threshold)
        return None

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Controller:
        trial = plain.get("trial")
        return cls(**{**plain, "trial": None if trial is None else Trial(**trial)})


def by_urgency(history: History) -> list[Alarm]:
    return sorted(history.named, key=lambda alarm: URGENCY.index(alarm.name))


def adapted_augment_p(p: float, sign_real: float, *, images: int, target: float, speed_kimg: float, most: float) -> float:
    """One tick of adaptive augmentation: towards more when D is surer of the reals than `target`, else towards less.

    p moves by images / (1000 speed_kimg), so that it takes `speed_kimg` thousand images from 0 to 1 (Karras et al. 2020, section 3.1, whose
    r_t = E[sign D(real)], target 0.6, speed 500 these are).
    """
    step = images / (1000 * speed_kimg)
    return min(most, max(0.0, p + (step if sign_real > target else -step)))


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
