"""What an edit did, measured over many faces: the target moved, other attributes moved with it, the face kept, pixels changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mien.explore.edit import ConditionStep, DirectionStep, Edit, apply
from mien.explore.latents import latents
from mien.explore.load import LoadedGenerator
from mien.explore.regions import Box, box_mask
from mien.explore.sample import attribute_rows, generate
from mien.intervals import Z95, wilson
from mien.models.pictures import to_uint8

RESAMPLES = 1000


class Judge(Protocol):
    """What grades faces: features and attribute probabilities of uint8 images [N, 3, R, R]. `metrics.judge.Judge` is one."""

    @property
    def attribute_names(self) -> tuple[str, ...]: ...

    def features_and_probabilities(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Look:
    """Faces as the judge saw them: images uint8 [N, 3, R, R], probabilities [N, J] in 0..1, features [N, F]."""

    images: Tensor
    probabilities: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval (bootstrap over faces, normal; of a share Wilson's); low and high are None for a single face."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Effect:
    """What an edit did to `count` faces. Probabilities are the judge's, 0..1; changes are after minus before.

    moved       mean change of every judged attribute's probability
    target      the attribute that was meant, None when none was
    side        the side of 0.5 it was meant for: 1 or 0
    was, now    mean probability of the target before and after
    toward      share of faces whose target moved the way it was meant, by whatever little
    before, after   share of faces on the meant side
    turned      of the faces not on the meant side before, the share that is after; None when all were
    to_turn     how many those were
    leaked      mean |mean change| over all attributes but the target (and others that were meant too)
    leak_floor  what `leaked` would be, from the noise of so few faces alone, had nothing leaked
    identity    mean cosine of the `face` features of a face before and after: 1 is the same. They are trained on attributes, so a change of
                any attribute lowers it, and it is no proof of a person
    strangers   the same between different faces, for comparison
    pixels      mean |change| of a colour value, as a share of its range; pixels_inside, pixels_outside: in and out of a region
    """

    strength: float
    count: int
    moved: dict[str, Measured]
    target: str | None
    side: int
    was: float | None
    now: float | None
    toward: Measured | None
    before: float | None
    after: Measured | None
    turned: Measured | None
    to_turn: int
    leaked: Measured
    leak_floor: float
    identity: Measured
    strangers: float | None
    pixels: Measured
    pixels_inside: Measured | None
    pixels_outside: Measured | None

    def leaks(self, limit: int = 5) -> list[tuple[str, Measured]]:
        """The attributes beside the target that surely moved, the most moved first."""
        others = [(name, each) for name, each in self.moved.items() if name != self.target and not _holds_0(each)]
        return sorted(others, key=lambda item: -abs(item[1].value))[:limit]

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON, numbers to four places."""
        return _rounded(asdict(self))


def _holds_0(each: Measured) -> bool:
    return each.low is not None and each.high is not None and each.low <= 0 <= each.high


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def look(images: Tensor, judge: Judge) -> Look:
    """Float images [N, 3, R, R] in -1..1 as the judge sees them: rounded to pixels, as a saved file holds them."""
    pixels = to_uint8(images)
    features, probabilities = judge.features_and_probabilities(pixels)
    return Look(pixels, probabilities.astype(np.float64), features.astype(np.float64))


def targets_of(edit: Edit, names: tuple[str, ...]) -> dict[str, int]:
    """The judged attributes that an edit at positive strength means to move, each with the side of 0.5 it is meant for: 1 or 0.

    Of a condition its attribute, of a direction the attribute whose name it bears.
    """
    meant = {}
    for step in edit.steps:
        if isinstance(step, ConditionStep) and step.attribute in names and step.to != 0.5:
            meant[step.attribute] = int((step.to > 0.5) == (step.strength >= 0))
        elif isinstance(step, DirectionStep) and step.name in names:
            meant[step.name] = int(step.strength >= 0)
    return meant


def measure_edit(
    generator: LoadedGenerator,
    judge: Judge,
    z: Tensor,
    attributes: Tensor,
    edit: Edit,
    *,
    strength: float = 1.0,
    target: str | None = None,
    region: Box | None = None,
    before: Look | None = None,
) -> Effect:
    """The effect of an edit on the faces of z [N, Z], attributes [N, A], N > 0.

    target: the attribute it means to move; None: the one that `targets_of` finds, if it is one alone. region: where it means to change
    pixels. before: the faces unedited, when they have been looked at already.
    """
    meant = targets_of(edit, judge.attribute_names)
    target = target or (next(iter(meant)) if len(meant) == 1 else None)
    side = meant.get(target, 1) if target else 1
    before = before or look(generate(generator, z, attributes), judge)
    after = look(apply(generator, z, attributes, edit, strength=strength), judge)
    side = side if strength >= 0 else 1 - side
    return compare(before, after, judge.attribute_names, strength=strength, target=target, side=side, region=region)


def compare(before: Look, after: Look, names: tuple[str, ...], *, strength: float = 1.0, target: str | None = None, side: int = 1,
            meant: Collection[str] = (), region: Box | None = None) -> Effect:
    """The effect that made `after` of `before`, face by face. names: of the J judged attributes; meant: those that are no leak."""
    count = len(before.images)
    weights = _bootstrap_weights(count)
    change = after.probabilities - before.probabilities  # [N, J]
    means = weights @ change  # [B, J]
    errors = means.std(axis=0)
    others = [i for i, name in enumerate(names) if name != target and name not in meant]
    leaked = _interval(float(np.abs(change.mean(axis=0))[others].mean()), np.abs(means[:, others]).mean(axis=1), count) if others else None
    pixel_change = (after.images.float() - before.images.float()).abs().mean(dim=1) / 255  # [N, R, R]
    inside = outside = None
    if region is not None:
        share = box_mask((region,), pixel_change.shape[-1])
        inside = _mean(((pixel_change * share).sum((1, 2)) / share.sum()).numpy(), weights)
        outside = _mean(((pixel_change * (1 - share)).sum((1, 2)) / (1 - share).sum().clamp(min=1e-9)).numpy(), weights)
    on_target = _on_target(before, after, names.index(target), side) if target is not None else {}
    return Effect(
        strength=strength, count=count, target=target, side=side, leaked=leaked or Measured(0.0),
        moved={name: _interval(float(change[:, i].mean()), means[:, i], count) for i, name in enumerate(names)},
        leak_floor=float(errors[others].mean() * (2 / np.pi) ** 0.5) if count > 1 and others else 0.0,
        identity=_mean(cosine(before.features, after.features), weights),
        strangers=float(cosine(before.features, np.roll(before.features, 1, axis=0)).mean()) if count > 1 else None,
        pixels=_mean(pixel_change.mean((1, 2)).numpy(), weights), pixels_inside=inside, pixels_outside=outside,
        **{"was": None, "now": None, "toward": None, "before": None, "after": None, "turned": None, "to_turn": 0, **on_target},
    )  # fmt: skip


def _on_target(before: Look, after: Look, column: int, side: int) -> dict[str, Any]:
    """The fields of Effect that tell how the target fared."""
    was, now = before.probabilities[:, column], after.probabilities[:, column]
    was_there, is_there = (was >= 0.5) == bool(side), (now >= 0.5) == bool(side)
    turned, to_turn = None, int((~was_there).sum())
    if to_turn:
        turned = _share(is_there[~was_there])
    toward = now > was if side else now < was
    return {"was": float(was.mean()), "now": float(now.mean()), "toward": _share(toward), "before": float(was_there.mean()),
            "after": _share(is_there), "turned": turned, "to_turn": to_turn}  # fmt: skip


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N]: the cosine between the rows of two [N, F]."""
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def _bootstrap_weights(count: int) -> np.ndarray:
    """float64 [RESAMPLES, count]: rows of resampled faces' shares."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _mean(values: np.ndarray, weights: np.ndarray) -> Measured:
    return _interval(float(values.mean()), weights @ values, len(values))


def _share(found: np.ndarray) -> Measured:
    """The share of True among bool [N], with Wilson's interval (1927): inside 0..1, and of some width when all N agree."""
    share, count = float(found.mean()), len(found)
    if count < 2:
        return Measured(share)
    return Measured(share, *wilson(share, count))


def _interval(value: float, resampled: np.ndarray, count: int) -> Measured:
    if count < 2:
        return Measured(value)
    half = Z95 * float(resampled.std())
    return Measured(value, value - half, value + half)


def population(generator: LoadedGenerator, count: int, *, seed: int, where: Mapping[str, float] | None = None) -> tuple[Tensor, Tensor]:
    """(z [N, Z], attributes [N, A]): faces seed, seed + 1, ..., with conditions as often as in the training data where `where` holds."""
    return latents(range(seed, seed + count), generator.z_dim), attribute_rows(generator, where or {}, count, seed)


def not_there_yet(edit: Edit) -> dict[str, float]:
    """The conditions of faces for which the edit's condition steps have something to do: {'Smiling': 0} when it sets Smiling to 1."""
    return {step.attribute: 1 - step.to for step in edit.steps if isinstance(step, ConditionStep) and step.to in (0, 1)}


def look_at(generator: LoadedGenerator, judge: Judge, z: Tensor, attributes: Tensor, *, chunk: int = 512) -> Look:
    """The unedited faces of z [N, Z], attributes [N, A], a chunk at a time."""
    parts = [look(generate(generator, *each), judge) for each in zip(z.split(chunk), attributes.split(chunk))]
    return Look(torch.cat([part.images for part in parts]), *(np.concatenate([getattr(part, name) for part in parts])
                for name in ("probabilities", "features")))  # fmt: skip
