"""What ails a run, by name, from the history of its signals. Pure: `observe(history, nimg, signals, patience_nimg) -> history`.

A rule is a set of limits that must all be crossed, in smoothed signals. It is *suspected* when they are, *named* when they have been for
`patience`, and *over* when one of them has been back behind its second, easier limit for half as long: so a signal that trembles about
one value neither rings twice nor falls silent. Early in a run every GAN looks sick, so each rule has a grace.

Thresholds were set on healthy and on spoilt runs of this project's recipes (docs/experiments.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A signal (`x/*` is any signal that begins with x/) against a threshold; `against_usual`: its ratio to its own slow average."""

    signal: str
    above: float | None = None
    below: float | None = None
    back: float = 0.0
    """Where the alarm ends: between the threshold and health."""
    against_usual: bool = False
    """Both averages are geometric: gradients vary by powers of ten, and one spike must not outshout a hundred steps."""

    @property
    def threshold(self) -> float:
        return self.above if self.above is not None else self.below if self.below is not None else 0.0

    def crossed(self, value: float) -> bool:
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)

    def recovered(self, value: float) -> bool:
        return self.distance(value) < 0

    def distance(self, value: float) -> float:
        """How far `value` is from where the alarm ends; negative when it is past it."""
        return value - self.back if self.above is not None else self.back - value


@dataclass(frozen=True)
class Rule:
    name: str
    limits: tuple[Limit, ...]
    means: str
    """One sentence for a person."""
    patience: float = 1.0
    """Times balance.patience_kimg."""
    grace: float = 2.0
    """How old a run must be, times balance.patience_kimg."""

    @property
    def key(self) -> str:
        """What a checkpoint calls it: a later version may put its rules in another order."""
        return f"{self.name}: {self.limits[0].signal}"


RULES = (
    Rule("D too strong", (Limit("accuracy_d", above=0.93, back=0.88), Limit("fooling_rate", below=0.02, back=0.05)),
         "D tells reals from fakes without effort, so G learns little from it."),
    Rule("G too strong", (Limit("accuracy_d", below=0.58, back=0.61),), "D cannot tell reals from fakes, so it teaches G nothing."),
    Rule("D memorising", (Limit("holdout_gap_smooth", above=0.5, back=0.35), Limit("accuracy_d", above=0.65, back=0.62)),
         "D takes held-out reals for fakes: it knows the training images by heart."),
    Rule("mode collapse", (Limit("diversity_pixels", below=0.35, back=0.5),), "All faces of G look alike.", grace=4.0),
    Rule("mode collapse", (Limit("diversity/*", below=0.35, back=0.5),), "The faces of one attribute combination look alike.",
         grace=4.0),
    Rule("mode collapse", (Limit("nearest", below=0.25, back=0.4),), "G repeats a few faces.", grace=4.0),
    Rule("condition ignored", (Limit("response/*", below=0.02, back=0.04),), "Flipping this attribute leaves G's faces as they are."),
    Rule("exploding", (Limit("grad_norm_d", above=20.0, back=8.0, against_usual=True),), "D's gradients are far beyond their usual size.",
         patience=0.25, grace=0.5),
    Rule("exploding", (Limit("grad_norm_g", above=20.0, back=8.0, against_usual=True),), "G's gradients are far beyond their usual size.",
         patience=0.25, grace=0.5),
    Rule("exploding", (Limit("weight_change_d", above=0.2, back=0.1),), "Each update rewrites D.", patience=0.25, grace=0.25),
    Rule("exploding", (Limit("weight_change_g", above=0.2, back=0.1),), "Each update rewrites G.", patience=0.25, grace=0.25),
    Rule("vanishing", (Limit("grad_norm_g", below=0.02, back=0.05, against_usual=True),), "Hardly any gradient reaches G."),
    Rule("vanishing", (Limit("grad_norm_d", below=0.12, back=0.25, against_usual=True), Limit("accuracy_d", below=0.635, back=0.66)),
         "Hardly any gradient is left in D: it says the same of every image, as after updates far too large."),
    Rule("stalled", (Limit("movement", below=0.002, back=0.004), Limit("progress", below=0.9, back=0.9)), "G's faces no longer change."),
)  # fmt: skip
BY_KEY = {rule.key: rule for rule in RULES}
GEOMETRIC = frozenset(limit.signal for rule in RULES for limit in rule.limits if limit.against_usual)
VARIED = 0.5
WORSE = 1.25
NOISY = ("logit_train", "logit_val", "logit_fake")  # few images, and their difference is what counts
WATCHED = frozenset(limit.signal for rule in RULES for limit in rule.limits).union(NOISY)


@dataclass(frozen=True)
class Alarm:
    """One rule at one place (a combination, an attribute, or '')."""

    rule: str
    """Its key in BY_KEY."""
    where: str
    since_nimg: int
    """When the limits were crossed."""
    named_nimg: int | None = None
    recovering_nimg: int | None = None
    evidence: tuple[tuple[str, float, float], ...] = ()
    """(signal, smoothed value, threshold) at the last look."""

    @property
    def name(self) -> str:
        return BY_KEY[self.rule].name

    @property
    def network(self) -> str:
        """'g' or 'd' when the rule is about one network's signal, else ''."""
        signal = BY_KEY[self.rule].limits[0].signal
        return signal[-1] if signal[-2:] in ("_g", "_d") and self.name in ("exploding", "vanishing") else ""

    @property
    def title(self) -> str:
        place = self.where or {"g": "G", "d": "D"}.get(self.network, "")
        return f"{self.name} ({place})" if place else self.name

    def worse_than(self, value: float) -> bool:
        """Whether the first signal is clearly farther from health than `value` of it was, or than its threshold."""
        limit, now = BY_KEY[self.rule].limits[0], self.evidence[0][1]
        return limit.distance(now) > WORSE * max(limit.distance(value), limit.distance(limit.threshold))

    def sentence(self) -> str:
        facts = ", ".join(f"{signal} {value:.3g} (limit {threshold:g})" for signal, value, threshold in self.evidence)
        return f"{self.title}: {BY_KEY[self.rule].means} {facts}, for {(self.named_nimg or self.since_nimg) - self.since_nimg:,} images."


@dataclass(frozen=True)
class History:
    """All that the diagnosis remembers. Grows with the number of signals, not with the length of the run."""

    begun_nimg: int = 0
    smooth: Mapping[str, float] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    """A slow average of the signals that have no absolute scale."""
    seen_nimg: Mapping[str, int] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    varied: bool = False
    """Whether G's faces have ever differed as they should: a collapse is a fall, and a slow start is none."""

    @property
    def named(self) -> tuple[Alarm, ...]:
        return tuple(alarm for alarm in self.alarms if alarm.named_nimg is not None)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> History:
        known = [alarm for alarm in plain.get("alarms", ()) if alarm["rule"] in BY_KEY]
        alarms = [Alarm(**{**alarm, "evidence": tuple(tuple(fact) for fact in alarm["evidence"])}) for alarm in known]
        return cls(**{**plain, "alarms": tuple(alarms)})


def observe(history: History, nimg: int, signals: Mapping[str, float], *, patience_nimg: int) -> History:
    """The history with one more tick: `signals` are means since the last, or what a probe saw.

    Values that are not finite are left out, and so are signals that no rule asks for: a checkpoint must not hold what a clock says.
    """
    smooth, usual, seen = dict(history.smooth), dict(history.usual), dict(history.seen_nimg)
    for name, value in _with_derived(signals).items():
        if _is_watched(name) and math.isfinite(value):
            passed = nimg - seen.get(name, nimg)
            half_life_nimg = patience_nimg / (1 if name in NOISY else 2)
            if name in GEOMETRIC:
                smooth[name] = _toward_by_factors(smooth.get(name, value), value, passed, half_life_nimg=half_life_nimg)
                usual[name] = _toward_by_factors(usual.get(name, value), value, passed, half_life_nimg=patience_nimg * 5, most=10.0)
            else:
                smooth[name] = _toward(smooth.get(name, value), value, passed, half_life_nimg=half_life_nimg)
            seen[name] = nimg
    if {"logit_train", "logit_val", "logit_fake"} <= smooth.keys():  # the average of ratios would be ruled by small divisors
        gap = smooth["logit_train"] - smooth["logit_fake"]
        smooth["holdout_gap_smooth"] = (smooth["logit_train"] - smooth["logit_val"]) / gap if gap > 1e-3 else 0.0
    varied = history.varied or smooth.get("diversity_pixels", 0.0) > VARIED
    told = replace(history, smooth=smooth, usual=usual, seen_nimg=seen, varied=varied)
    return replace(told, alarms=_judge(told, nimg, patience_nimg))


def _with_derived(signals: Mapping[str, float]) -> dict[str, float]:
    values = dict(signals)
    if "accuracy_real" in values and "accuracy_fake" in values:
        values["accuracy_d"] = (values["accuracy_real"] + values["accuracy_fake"]) / 2
    return values


def _is_watched(name: str) -> bool:
    return name in WATCHED or f"{name.partition('/')[0]}/*" in WATCHED


def _toward(average: float, value: float, passed_nimg: int, *, half_life_nimg: float) -> float:
    return average + (value - average) * (1 - 0.5 ** (passed_nimg / half_life_nimg))


def _toward_by_factors(average: float, value: float, passed_nimg: int, *, half_life_nimg: float, most: float = math.inf) -> float:
    """`_toward` for logarithms. `most`: the value counts as at most so many times the average, or so small a part: what is usual keeps
    its ground against what is not."""
    average = max(average, 1e-12)
    value = min(max(value, 1e-12, average / most), average * most)
    return math.exp(_toward(math.log(average), math.log(value), passed_nimg, half_life_nimg=half_life_nimg))


def _judge(history: History, nimg: int, patience_nimg: int) -> tuple[Alarm, ...]:
    before = {(alarm.rule, alarm.where): alarm for alarm in history.alarms}
    alarms = []
    for rule in RULES:
        if nimg - history.begun_nimg < rule.grace * patience_nimg:
            continue
        for where in _places(rule, history.smooth):
            alarm = _next(before.get((rule.key, where)), rule, where, history, nimg, patience_nimg)
            if alarm is not None:
                alarms.append(alarm)
    return tuple(alarms)


def _places(rule: Rule, smooth: Mapping[str, float]) -> list[str]:
    family = rule.limits[0].signal
    if not family.endswith("/*"):
        return [""]
    return [name.removeprefix(family[:-1]) for name in smooth if name.startswith(family[:-1])]


def _next(alarm: Alarm | None, rule: Rule, where: str, history: History, nimg: int, patience_nimg: int) -> Alarm | None:
    """What becomes of one rule at one place: none -> suspected -> named -> recovering -> none."""
    facts = [(limit, _value(limit, where, history)) for limit in rule.limits]
    known = [(limit, value) for limit, value in facts if value is not None]
    if len(known) < len(facts):
        return alarm
    crossed = all(limit.crossed(value) for limit, value in known)
    evidence = tuple((_shown(limit, where), value, limit.threshold) for limit, value in known)
    if alarm is None:
        return Alarm(rule.key, where, since_nimg=nimg, evidence=evidence) if crossed else None
    if alarm.named_nimg is None:
        if not crossed:
            return None
        due = nimg - alarm.since_nimg >= rule.patience * patience_nimg
        return replace(alarm, named_nimg=nimg if due else None, evidence=evidence)
    if not any(limit.recovered(value) for limit, value in known):
        return replace(alarm, recovering_nimg=None, evidence=evidence)
    recovering = alarm.recovering_nimg if alarm.recovering_nimg is not None else nimg
    return None if nimg - recovering >= patience_nimg / 2 else replace(alarm, recovering_nimg=recovering)


def _value(limit: Limit, where: str, history: History) -> float | None:
    name = limit.signal.replace("*", where)
    value = history.smooth.get(name)
    if value is None or not limit.against_usual:
        return value
    return value / max(history.usual[name], 1e-12)


def _shown(limit: Limit, where: str) -> str:
    name = limit.signal.replace("*", where)
    return f"{name} / its usual" if limit.against_usual else name
