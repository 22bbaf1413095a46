"""A reusable edit of a face: conditions set, directions added to the latent, channels changed, in order, as a small JSON text.

`strength` scales an edit: 0 leaves the face as it is bit for bit, 1 is the edit, more exaggerates, less than 0 goes the other way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mien.errors import UserError, did_you_mean
from mien.explore.activations import changed, layer_names
from mien.explore.load import LoadedGenerator
from mien.explore.regions import Box, mask_of
from mien.explore.sample import HIGHEST, LOWEST, generate

FORMAT = "mien-edit/1"
ACTIONS = ("silence", "scale", "insert")
MAX_STRENGTH = 100.0
MAX_STEPS = 1000


# ------------------------------------------------------------------------------------------------------------------------------
# Steps


@dataclass(frozen=True)
class ConditionStep:
    """Sets an attribute the generator was trained with to `to`, in -2..3.

    Strength 0 to 1 goes from the face's own value to `to`. Outside, one of strength is one of the attribute, on `to`'s side of 0.5:
    to = 1 at strength 2 asks for 2, to = 0 at strength 2 for -1, and at strength -1 a face goes as far the other way. So a face that smiles
    already is made to smile more at 2. The generator saw only 0 and 1: what it draws beyond them is not promised.
    """

    attribute: str
    to: float
    strength: float = 1.0
    kind: ClassVar[str] = "condition"

    def value(self, own: Tensor, strength: float) -> Tensor:
        """The attribute's values [N] in place of the faces' own [N]."""
        inside = min(max(strength, 0.0), 1.0)
        return torch.lerp(own, torch.full_like(own, self.to), inside) + (strength - inside) * min(max(2 * self.to - 1, -1.0), 1.0)


@dataclass(frozen=True)
class DirectionStep:
    """Adds strength * vector to the latent. A vector of length 1 at strength 1 is one standard deviation of the latents along it."""

    name: str
    vector: tuple[float, ...]
    strength: float = 1.0
    kind: ClassVar[str] = "direction"


@dataclass(frozen=True)
class ChannelsStep:
    """Changes channels of a layer's output inside a region (None: everywhere), as Bau et al. 2019 (GAN dissection) ablate and insert units.

    silence: to 0. scale: times `value`. insert: to `value`. A cell of the map that the region covers in part is changed in part; an edit's
    strength goes evenly from what was there to what is put there.
    """

    layer: str
    channels: tuple[int, ...]
    action: str = "silence"
    value: float = 0.0
    region: Box | None = None  # as shares of the picture
    kind: ClassVar[str] = "channels"


Step = ConditionStep | DirectionStep | ChannelsStep
KINDS: dict[str, type[Step]] = {"condition": ConditionStep, "direction": DirectionStep, "channels": ChannelsStep}


@dataclass(frozen=True)
class Edit:
    """Steps applied in order. model: sha256 of the snapshot it was made for; None: for any."""

    name: str
    model: str | None
    steps: tuple[Step, ...]

    def plain(self) -> dict[str, Any]:
        """The edit as plain data, format mien-edit/1."""
        steps = [{"kind": step.kind, **asdict(step)} for step in self.steps]
        return {"format": FORMAT, "name": self.name, "model": self.model, "steps": steps}

    def to_json(self) -> str:
        """The edit as text, format mien-edit/1."""
        return json.dumps(self.plain(), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Edit:
        """Raises UserError, in one line, for what is no edit."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError("This is not an edit: it is not valid JSON.") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            given = found.get("format") if isinstance(found, dict) else None
            raise UserError(f"This is not an edit: its format is {str(given)[:40]!r}, not {FORMAT}.")
        name, model, steps = found.get("name"), found.get("model"), found.get("steps")
        if not isinstance(name, str) or not (model is None or isinstance(model, str)) or not isinstance(steps, list):
            raise UserError('An edit has a "name", a "model" (the sha256 of a snapshot, or null) and a list of "steps".')
        if len(steps) > MAX_STEPS:
            raise UserError(f"This edit has {len(steps):,} steps; at most {MAX_STEPS:,} are read.")
        return Edit(name=name, model=model, steps=tuple(_step(each, number) for number, each in enumerate(steps, start=1)))


def compose(first: Edit, second: Edit) -> Edit:
    """One edit that does `first`, then `second`. Raises UserError when they were made for different models."""
    if None not in (first.model, second.model) and first.model != second.model:
        raise UserError(f"The edits {first.name!r} and {second.name!r} were made for different models and do not compose.")
    return Edit(name=f"{first.name} + {second.name}", model=first.model or second.model, steps=first.steps + second.steps)


def _step(found: Any, number: int) -> Step:
    """A step of an edit's JSON, every field checked."""
    def wrong(what: str) -> UserError:
        return UserError(f"Step {number} of the edit: {what}.")

    if not isinstance(found, dict) or not isinstance(found.get("kind"), str) or found["kind"] not in KINDS:
        raise wrong(f'"kind" must be one of {", ".join(KINDS)}')
    made = KINDS[found["kind"]]
    given = {key: value for key, value in found.items() if key != "kind"}
    known = {field.name: field.default is MISSING for field in fields(made)}
    unknown, missing = [key for key in given if key not in known], [key for key, needed in known.items() if needed and key not in given]
    if unknown:
        raise wrong(f'"{made.kind}" has no field {unknown[0][:40]!r}; it has {", ".join(known)}')
    if missing:
        raise wrong(f'"{made.kind}" needs "{missing[0]}"')
    try:
        return made(**{key: CHECKS[key](value) for key, value in given.items()})
    except ValueError as error:
        raise wrong(str(error)) from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 200:
        raise ValueError("names are texts of 1 to 200 characters")
    return value


def _number(value: Any, *, most: float = 1e6) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
        raise ValueError(f"{str(value)[:40]} is not a number from {-most:g} to {most:g}")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"{value:g} is outside 0..1")
    return float(value)


def _attribute_value(value: Any) -> float:
    if not LOWEST <= _number(value) <= HIGHEST:
        raise ValueError(f"{value:g} is outside {LOWEST:g}..{HIGHEST:g}")
    return float(value)


def _action(value: Any) -> str:
    if value not in ACTIONS:
        raise ValueError(f'"action" must be one of {", ".join(ACTIONS)}')
    return str(value)


def read_vector(value: Any) -> tuple[float, ...]:
    """A list of numbers as read from JSON. Raises ValueError for anything else."""
    if not isinstance(value, list) or not value or len(value) > 65_536:
        raise ValueError('"vector" must be a list of numbers')
    return tuple(map(_number, value))


def _channels(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 65_536 or any(type(each) is not int or each < 0 for each in value):
        raise ValueError('"channels" must be a list of channel numbers, from 0')
    return tuple(value)


def _region(value: Any) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError('"region" must be null or [x0, y0, x1, y1], shares of the picture')
    x0, y0, x1, y1 = map(_share, value)
    if not (x0 < x1 and y0 < y1):
        raise ValueError('"region" [x0, y0, x1, y1] must have x0 < x1 and y0 < y1')
    return x0, y0, x1, y1


CHECKS: dict[str, Callable[[Any], Any]] = {
    "attribute": _text, "name": _text, "layer": _text, "to": _attribute_value, "strength": partial(_number, most=MAX_STRENGTH),
    "vector": read_vector, "channels": _channels, "action": _action, "value": _number, "region": _region,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------------------
# Applying


def check_fits(generator: LoadedGenerator, edit: Edit) -> None:
    """Raises UserError for an edit that this generator cannot follow.

    Directions and channels mean nothing in another model's latent space: an edit that has any is refused unless it was made for this
    snapshot, or says "model": null. Conditions go by name and fit every model that knows the attribute.
    """
    own = generator.meta.get("sha256")
    if edit.model not in (None, own) and any(step.kind != "condition" for step in edit.steps):
        raise UserError(f"The edit {edit.name!r} was made for another model ({str(edit.model)[:12]}, not {str(own)[:12]}): its directions "
                        'and channels mean nothing here. Make it anew, or set its "model" to null to try all the same.')  # fmt: skip
    names, layers = generator.attribute_names, None
    for step in edit.steps:
        if isinstance(step, ConditionStep) and step.attribute not in names:
            known = f"this model knows {', '.join(names)}" if names else "this model was trained without attributes"
            raise UserError(f"No attribute {step.attribute!r}: {known}.{did_you_mean(step.attribute, names)}")
        if isinstance(step, DirectionStep) and len(step.vector) != generator.z_dim:
            raise UserError(f"Direction {step.name!r} has {len(step.vector)} numbers; this model's latents have {generator.z_dim}.")
        if isinstance(step, ChannelsStep):
            layers = layers or layer_names(generator.net)
            if step.layer not in layers:
                raise UserError(f"No layer {step.layer!r}: this model has {', '.join(layers)}.{did_you_mean(step.layer, layers)}")


def edited_inputs(z: Tensor, attributes: Tensor, edit: Edit, names: tuple[str, ...], *, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """(z [N, Z], attributes [N, A]) after the edit's condition and direction steps; `names` are the A attributes'."""
    for step in edit.steps:
        if isinstance(step, DirectionStep) and strength * step.strength:
            z = z + strength * step.strength * torch.tensor(step.vector, dtype=z.dtype, device=z.device)
        elif isinstance(step, ConditionStep) and strength * step.strength:
            column = names.index(step.attribute)
            attributes = attributes.clone()
            attributes[:, column] = step.value(attributes[:, column], strength * step.strength)
    return z, attributes


def apply(generator: LoadedGenerator, z: Tensor, attributes: Tensor, edit: Edit, *, strength: float = 1.0, batch: int = 64) -> Tensor:
    """z [N, Z], attributes [N, A] -> the edited faces, float32 [N, 3, R, R] in -1..1, on the CPU.

    Condition and direction steps change what goes in, channel steps what passes through; in each the order is the edit's. Raises UserError
    for an edit that does not fit the generator, or a strength that is no number up to MAX_STRENGTH either way.
    """
    check_strength(strength)
    check_fits(generator, edit)
    z, attributes = edited_inputs(z, attributes, edit, generator.attribute_names, strength=strength)
    changes = _layer_changes(edit, strength)
    if not changes:
        return generate(generator, z, attributes, batch=batch)
    with changed(generator.net, changes):
        return generate(generator, z, attributes, batch=batch)


def check_strength(strength: float) -> None:
    """Raises UserError unless strength is a number from -MAX_STRENGTH to MAX_STRENGTH."""
    if not abs(strength) <= MAX_STRENGTH:
        raise UserError(f"Strength {strength:g} is outside {-MAX_STRENGTH:g}..{MAX_STRENGTH:g}: 0 changes nothing, 1 is the edit as made.")


def _layer_changes(edit: Edit, strength: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layer -> function of its output that does all the edit's channel steps there, in order."""
    by_layer: dict[str, list[ChannelsStep]] = {}
    for step in edit.steps:
        if isinstance(step, ChannelsStep) and strength and step.channels:
            by_layer.setdefault(step.layer, []).append(step)

    def change(steps: list[ChannelsStep], activation: Tensor) -> Tensor:
        for step in steps:
            activation = change_channels(activation, step, strength=strength)
        return activation

    return {layer: partial(change, steps) for layer, steps in by_layer.items()}


def change_channels(activation: Tensor, step: ChannelsStep, *, strength: float = 1.0) -> Tensor:
    """A copy of activation [N, C, H, W] with the step done. Raises UserError for a channel the layer has not."""
    if max(step.channels) >= activation.shape[1]:
        raise UserError(f"Layer {step.layer} has channels 0 to {activation.shape[1] - 1}, not {max(step.channels)}.")
    channels = torch.tensor(step.channels, device=activation.device)
    before = activation[:, channels]
    after = before * step.value if step.action == "scale" else torch.full_like(before, step.value if step.action == "insert" else 0.0)
    weights = strength * mask_of((step.region,) if step.region else (), activation.shape[-1]).to(activation)
    result = activation.clone()
    result[:, channels] = torch.lerp(before, after, weights)
    return result


def condition_edit(to: Mapping[str, float], *, model: str | None = None) -> Edit:
    """The edit that sets attributes, for example {'Smiling': 1.0}."""
    return Edit(", ".join(f"{name}={value:g}" for name, value in to.items()), model,
                tuple(ConditionStep(name, float(value)) for name, value in to.items()))  # fmt: skip
