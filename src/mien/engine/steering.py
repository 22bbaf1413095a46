"""What turns a run's knobs away from its recipe: a hand (`mien control`), the controller, a rollback. Plain numbers, in checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mien.engine.schedules import KNOBS, Knobs
from mien.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Glide:
    """A knob on its way from one value to another, where it then stays."""

    start: float | None
    end: float | None
    start_nimg: int
    over_nimg: int = 0

    def at(self, nimg: int) -> float | None:
        """Linear in images. A step count, and a value that is or was None (no clipping), changes at once."""
        if self.start is None or self.end is None or nimg >= self.start_nimg + self.over_nimg:
            return self.end
        share = max(0, nimg - self.start_nimg) / self.over_nimg
        return self.start + (self.end - self.start) * share


@dataclass
class Steering:
    """`apply` turns the recipe's knobs into those of the step. What a hand has set, the controller leaves alone."""

    by_hand: dict[str, Glide] = field(default_factory=dict)
    controller: dict[str, float | None] = field(default_factory=dict)
    """Rates: factors on the recipe's. All other knobs: values."""
    sides: dict[str, int] = field(default_factory=dict)
    """Of those values, 1: the knob is at least the recipe's, -1: at most. A schedule must not overtake what was to be more, or less."""
    calm: float = 1.0
    """Factor on both rates, halved by each rollback."""
    calm_clip_norm: float | None = None
    """Clip at least this hard, after a rollback."""
    augment_p: float | None = None
    """Adaptive augmentation's strength; None leaves it to the recipe."""
    requests: list[str] = field(default_factory=list)
    """Names of the requests by hand that are in here already."""

    def apply(self, knobs: Knobs, nimg: int) -> Knobs:
        values: dict[str, Any] = {}
        if self.augment_p is not None:
            values["augment_p"] = self.augment_p
        for name, value in self.controller.items():
            values[name] = self._held(name, value, getattr(knobs, name))
        for name, glide in self.by_hand.items():
            values[name] = glide.at(nimg)
        for name in RATES if self.calm != 1.0 else ():
            values[name] = values.get(name, getattr(knobs, name)) * self.calm
        if self.calm_clip_norm is not None:
            asked = values.get("clip_norm", knobs.clip_norm)
            values["clip_norm"] = self.calm_clip_norm if asked is None else min(asked, self.calm_clip_norm)
        values |= {name: round(values[name]) for name in STEPS if name in values}
        return dataclasses.replace(knobs, **values) if values else knobs

    def _held(self, name: str, value: float | None, recipe: float | None) -> float | None:
        if value is None or recipe is None:
            return value
        if name in RATES:
            return recipe * value
        return {1: max(value, recipe), -1: min(value, recipe)}.get(self.sides.get(name, 0), value)

    def hold(self, name: str, value: float | None, *, recipe: Knobs) -> None:
        """The controller's: from this step on `name` is `value` (rates: times the recipe's), on that side of what the recipe says now."""
        self.controller[name], plain = value, getattr(recipe, name)
        if name not in RATES and value is not None and plain is not None:
            self.sides[name] = 1 if value >= plain else -1

    def put_back(self, name: str, before: float | None, *, recipe: Knobs) -> None:
        """As if the controller had held `before` of `name`, or nothing (None), all along."""
        self.controller.pop(name, None)
        self.sides.pop(name, None)
        if before is not None:
            self.hold(name, before, recipe=recipe)

    def set_by_hand(
        self, name: str, value: float | None, *, now: Knobs, nimg: int, over_nimg: int = 0, asked_calm: float | None = None
    ) -> None:
        """From this step on `name` is `value`, or glides to it over `over_nimg` images from what it is `now`.

        Only a rollback that comes later calms a rate set by hand. `asked_calm`: the calm that it was first set under, if not today's.
        """
        start, end = getattr(now, name), value
        if name in RATES and value is not None:  # exact: calm is a power of two
            start, end = start / self.calm, value / (self.calm if asked_calm is None else asked_calm)
        self.release(name)
        self.by_hand[name] = Glide(start=start, end=end, start_nimg=nimg, over_nimg=0 if name in STEPS else over_nimg)

    def release(self, name: str) -> None:
        """Give `name` back to the recipe's schedule: neither a hand nor the controller holds it, until one of them turns it again."""
        for held in (self.by_hand, self.controller, self.sides):
            held.pop(name, None)  # type: ignore[attr-defined]

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Steering:
        by_hand = {name: Glide(**glide) for name, glide in plain.get("by_hand", {}).items()}
        return cls(**{**plain, "by_hand": by_hand})


RATES = ("lr_g", "lr_d")
STEPS = ("d_steps", "g_steps")


def parse_changes(texts: list[str]) -> dict[str, float | str | None]:
    """['lr_g=1e-4', 'clip_norm=none', 'lr_d=recipe'] -> {knob: value}; 'recipe' gives a knob back. Raises UserError out of bounds."""
    changes: dict[str, float | str | None] = {}
    for text in texts:
        name, equals, word = (part.strip() for part in text.partition("="))
        if name in KNOBS and not (equals and word):
            raise UserError(f"--set {text}: write {name}=VALUE, or {name}=recipe to give it back to the recipe.")
        changes[name] = check_change(name, word)
    if not changes:
        raise UserError("Nothing to change: give --set KNOB=VALUE, for example --set lr_g=1e-4.")
    return changes


def check_change(name: str, word: str) -> float | str | None:
    """One knob's new value from what a person wrote. Raises UserError for a value it cannot have."""
    if name not in KNOBS:
        raise UserError(f"No knob is called {name!r}: turn {', '.join(KNOBS)}.{did_you_mean(name, KNOBS)}")
    low, high, optional = KNOBS[name]
    if word.lower() == "recipe":
        return "recipe"
    if word.lower() == "none" and optional:
        return None
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (name in STEPS and value != int(value)):
        kind = "a whole number" if name in STEPS else "a number"
        raise UserError(f"{name}={word}: write {kind} from {low:g} to {high:g}{', or none' if optional else ''}.")
    return value
