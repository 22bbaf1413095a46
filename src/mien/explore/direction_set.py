"""Directions with what they were measured to do, as a file others read: format mien-directions/1."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from mien.errors import UserError, did_you_mean
from mien.explore.directions import Fit, Sample, orthogonal, principal_directions, probe, sefa_directions
from mien.explore.edit import DirectionStep, Edit, apply, read_vector
from mien.explore.edit_effects import Effect, Judge, Look, Measured, compare, look
from mien.explore.load import LoadedGenerator

FORMAT = "mien-directions/1"
JUDGED = ("probe", "svm", "arithmetic")  # methods that learn an attribute from a judged sample
UNSUPERVISED = ("pca", "sefa")
METHODS = (*JUDGED, *UNSUPERVISED)
STRENGTHS = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Direction:
    """A direction of z and what it does.

    vector: length 1. target: the attribute it is meant to move, or, of methods that mean none, the one it was measured to move most,
    upwards. against: attributes it was made orthogonal to. fit: what is known from fitting it. step: its effect per step of strength, from
    -1 to +1, {"target", "leaked", "identity", "pixels": {value, low, high}, "leaks": {name: {...}}}. effects: `Effect.plain()` at each
    strength. step and effects are empty when it was not measured.
    """

    name: str
    method: str
    vector: tuple[float, ...]
    target: str | None = None
    against: tuple[str, ...] = ()
    fit: dict[str, float] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    effects: tuple[dict[str, Any], ...] = ()

    def edit(self, strength: float = 1.0, *, model: str | None = None) -> Edit:
        """The edit that goes along it."""
        return Edit(f"{self.name} {strength:+g}", model, (DirectionStep(self.name, self.vector, strength),))


@dataclass(frozen=True)
class DirectionSet:
    """Directions made for one model. model: sha256 of its snapshot. made: how (count, seed, judge, faces measured)."""

    model: str
    directions: tuple[Direction, ...]
    made: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Direction:
        """The direction of that name. UserError with the nearest when there is none."""
        for each in self.directions:
            if each.name == name:
                return each
        names = [each.name for each in self.directions]
        raise UserError(f"No direction {name!r} is in this file.{did_you_mean(name, names)} It has {', '.join(names) or 'none'}.")

    def edit(self, along: Mapping[str, float]) -> Edit:
        """The edit that goes along the named directions, in order, by the given strengths."""
        steps = tuple(DirectionStep(name, self.find(name).vector, strength) for name, strength in along.items())
        return Edit(", ".join(f"{name} {strength:+g}" for name, strength in along.items()), self.model, steps)

    def to_json(self) -> str:
        """The set as text, format mien-directions/1."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)

    @staticmethod
    def from_json(text: str) -> DirectionSet:
        """Raises UserError, in one line, for what is no file of directions."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError("This is no file of directions: it is not valid JSON.") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            given = found.get("format") if isinstance(found, dict) else None
            raise UserError(f"This is no file of directions: its format is {str(given)[:40]!r}, not {FORMAT}.")
        model, directions, made = found.get("model"), found.get("directions"), found.get("made", {})
        if not isinstance(model, str) or not isinstance(directions, list) or not isinstance(made, dict):
            raise UserError('A file of directions has a "model" (the sha256 of a snapshot) and a list of "directions".')
        return DirectionSet(model, tuple(_direction(each, number) for number, each in enumerate(directions, start=1)), made)


def _direction(found: Any, number: int) -> Direction:
    names = Direction.__dataclass_fields__
    if not isinstance(found, dict) or not {"name", "method", "vector"} <= found.keys() or not found.keys() <= names.keys():
        raise UserError(f"Direction {number} of the file must have name, method and vector, and nothing but {', '.join(names)}.")
    against, target = found.get("against", []), found.get("target")
    texts = [found["name"], found["method"], *(against if isinstance(against, list) else [None]), *([] if target is None else [target])]
    fit, step, effects = found.get("fit", {}), found.get("step", {}), found.get("effects", [])
    if not all(isinstance(each, str) and each for each in texts) or not (isinstance(fit, dict) and isinstance(step, dict)
                                                                          and isinstance(effects, list)):  # fmt: skip
        raise UserError(f"Direction {number} of the file: a field has a value of the wrong kind.")
    try:
        vector = read_vector(found["vector"])
    except ValueError as error:
        raise UserError(f"Direction {number} of the file: {error}.") from None
    return Direction(found["name"], found["method"], vector, target, tuple(against), fit, step, tuple(effects))


# ------------------------------------------------------------------------------------------------------------------------------
# Making and measuring


def attribute_directions(sample: Sample, method: str, attributes: Sequence[str], *, against: Sequence[str] = ()) -> list[Direction]:
    """A direction for each attribute, each orthogonal to those of `against` (itself not counted), all by one of JUDGED.

    Raises UserError for an attribute that the judge does not know or too few of the sample's faces have.
    """
    fits = {name: probe(sample, name, kind=method) for name in dict.fromkeys([*attributes, *against])}
    made = []
    for name in dict.fromkeys(attributes):
        others = [each for each in dict.fromkeys(against) if each != name]
        vector = orthogonal(fits[name].vector, [fits[each].vector for each in others], name=name)
        kept = {"kept": float(vector @ fits[name].vector)} if others else {}  # cosine with the direction before
        made.append(Direction(name, method, _plain(vector), name, tuple(others), {**_numbers(fits[name]), **kept}))
    return made


def unsupervised_directions(generator: LoadedGenerator, method: str, count: int, *, faces: int = 4000, seed: int = 0) -> list[Direction]:
    """The first `count` by one of UNSUPERVISED, named pca-1, pca-2, ...; `faces` are what pca looks at."""
    fits = principal_directions(generator, count, faces=faces, seed=seed) if method == "pca" else sefa_directions(generator, count)
    return [Direction(f"{method}-{i}", method, _plain(fit.vector), fit=_numbers(fit)) for i, fit in enumerate(fits, start=1)]


def measured(generator: LoadedGenerator, judge: Judge, directions: Iterable[Direction], z: Tensor, attributes: Tensor, before: Look, *,
             strengths: Sequence[float] = STRENGTHS, progress: Callable[[int], None] | None = None) -> list[Direction]:
    """The directions with `step` and `effects`, over the faces of z [N, Z], attributes [N, A]; before: those faces, looked at.

    strengths go both ways alike and hold -1 and 1. A direction without a target gets the attribute it moves most from the lowest to the
    highest strength, and is turned round if it lowers it.
    """
    names, done = judge.attribute_names, []
    for direction in directions:
        looks: dict[float, Look] = {}
        for strength in strengths:
            looks[strength] = look(apply(generator, z, attributes, direction.edit(strength)), judge)
            if progress:
                progress(len(z))
        if direction.target is None:
            change = (looks[max(strengths)].probabilities - looks[min(strengths)].probabilities).mean(axis=0)
            most = int(np.abs(change).argmax())
            direction = replace(direction, target=names[most])
            if change[most] < 0:
                direction = replace(direction, vector=tuple(-value for value in direction.vector))
                looks = {-strength: seen for strength, seen in reversed(looks.items())}
        effects = {strength: compare(before, seen, names, strength=strength, target=direction.target, side=int(strength > 0))
                   for strength, seen in looks.items()}  # fmt: skip
        step = _per_step(compare(looks[-1.0], looks[1.0], names, target=direction.target), effects)
        done.append(replace(direction, step=step, effects=tuple(effect.plain() for effect in effects.values())))
    return done


def _per_step(both: Effect, effects: Mapping[float, Effect]) -> dict[str, Any]:
    """Half of what changes from strength -1 to +1; identity is the mean of the two steps'."""
    def half(each: Measured) -> dict[str, float | None]:
        return {key: None if value is None else round(value / 2, 4) for key, value in asdict(each).items()}

    back, forth = asdict(effects[-1.0].identity), asdict(effects[1.0].identity)
    identity = {key: None if value is None else round((value + forth[key]) / 2, 4) for key, value in back.items()}
    strangers = effects[1.0].strangers
    return {"target": half(both.moved[str(both.target)]), "leaked": half(both.leaked), "leak_floor": round(both.leak_floor / 2, 4),
            "identity": identity, "strangers": None if strangers is None else round(strangers, 4),
            "pixels": half(both.pixels), "leaks": {name: half(each) for name, each in both.leaks()}}  # fmt: skip


def _numbers(fit: Fit) -> dict[str, float]:
    return {key: round(value, 4) for key in ("auc", "agreement", "explained") if (value := getattr(fit, key)) is not None}


def _plain(vector: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 8) for value in vector)
