"""The Edit and Ablate tabs: attributes, directions and channels changed in one face, live, with what the judge sees of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

from mien.apps.web.faces import attributes, command, data_uri, number, png, said, text
from mien.apps.web.server import Question
from mien.apps.web.sources import Sources, own_copy
from mien.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mien.explore.edit import ChannelsStep, Edit
    from mien.explore.load import LoadedGenerator

UNNAMED = 6  # directions that a model shows before any was learnt
LEARNT_FROM = 3000  # faces drawn and judged for a direction
CHANNELS_SHOWN = 12
RADIUS = 0.08  # of the place that a click means, as a share of the picture's side
NOTICED = 6  # attributes that the table of what changed has room for
MOST_STEPS = 64


class Editing:
    """Answers of the Edit and Ablate tabs."""

    def __init__(self, sources: Sources):
        self.sources, self.studio, self.judge = sources, sources.studio, sources.judge
        self._directions: dict[str, dict[str, tuple[float, ...]]] = {}  # snapshot's sha256 -> name -> vector
        self._guard = threading.Lock()

    # --- edits --------------------------------------------------------------------------------------------------------

    def edit(self, question: Question) -> dict[str, Any]:
        """{model, face, to, along, channels, edits, strength, judge} -> before and after, the edit as JSON, the command line.

        to: {attribute: value}; along: {direction: steps}; channels: [{layer, channels, value, region}], each channel times value;
        edits: texts of mien-edit/1; judge: whether to say what the judge sees.
        """
        body = question.body
        strength = number({"strength": 1.0, **body}, "strength", -10.0, 10.0, of="Strength")
        with self.studio.using(text(body, "model"), question.turn) as generator:
            from mien.explore.edit import apply
            from mien.explore.sample import render
            from mien.models.pictures import to_uint8

            source = self.sources.source(generator, body)
            made, words = self._edit(generator, body)
            before = render(generator, source.z, source.attributes)
            after = to_uint8(apply(generator, source.z, source.attributes, made, strength=strength))
        question.turn.check()
        told = command("edit", text(body, "model"), *source.words, *words, out="edit.png",
                       strength=f"{strength:g}" if strength != 1 else None)  # fmt: skip
        pictures = {name: data_uri(png(image[0].permute(1, 2, 0).numpy())) for name, image in (("before", before), ("after", after))}
        seen = self._seen(before, after, list(attributes(body.get("to") or {}))) if body.get("judge") else {}
        photo = None if source.photo is None else data_uri(png(source.photo))
        return {**pictures, **seen, "photo": photo, "edit": made.to_json(), "face": source.file,
                "command": told if made.steps else None, "steps": len(made.steps)}  # fmt: skip

    def _edit(self, generator: LoadedGenerator, body: Mapping[str, Any]) -> tuple[Edit, list[str]]:
        """The edit, and the words that tell 'mien edit' of it: conditions can be typed, anything else is in edit.json."""
        from mien.explore.edit import DirectionStep, Edit, compose, condition_edit

        to, along = attributes(body.get("to") or {}), _numbers(body.get("along") or {})
        model = generator.meta.get("sha256")
        known = self._known(generator)
        for name in along:
            if name not in known:
                raise UserError(f"There is no direction named {name[:40]!r} here.")
        parts = [Edit.from_json(each) for each in body.get("edits") or [] if isinstance(each, str)]
        typed = not parts
        if to:
            parts.append(condition_edit(to))
        if along:
            name = ", ".join(f"{name} {steps:+g}" for name, steps in along.items())
            parts.append(Edit(name, model, tuple(DirectionStep(name, known[name], steps) for name, steps in along.items())))
        channels = _channel_steps(body.get("channels") or [])
        if channels:
            parts.append(Edit(f"channels of {', '.join(dict.fromkeys(step.layer for step in channels))}", model, tuple(channels)))
        made = reduce(compose, parts) if parts else Edit("nothing", model, ())
        words = ["--to", said(to) or ""] if typed and len(parts) == 1 and to else ["--edit", "edit.json"]
        return made, words

    def _seen(self, before: Tensor, after: Tensor, meant: list[str]) -> dict[str, Any]:
        """What the judge sees: probabilities before and after, those meant first, then the most moved; the cosine of face features."""
        import numpy as np
        import torch

        from mien.explore.edit_effects import cosine

        judge = self.judge.get()
        features, probabilities = judge.features_and_probabilities(torch.cat([before, after]))
        moved = np.abs(probabilities[1] - probabilities[0])
        order = [name for name in meant if name in judge.attribute_names]
        order += [judge.attribute_names[i] for i in moved.argsort()[::-1] if judge.attribute_names[i] not in order and moved[i] >= 0.01]
        rows = [{"name": name, "before": float(probabilities[0, judge.column(name)]), "after": float(probabilities[1, judge.column(name)])}
                for name in order[: max(NOTICED, len(meant))]]  # fmt: skip
        return {"seen": rows, "identity": float(cosine(features[:1], features[1:])[0])}

    # --- directions ---------------------------------------------------------------------------------------------------

    def directions(self, question: Question) -> dict[str, Any]:
        """{model} -> names of its directions, and of the attributes that a direction can be learnt for."""
        with self.studio.using(text(question.body, "model"), question.turn) as generator:
            names = list(self._known(generator))
            own = generator.attribute_names
        return {"directions": names, "learnable": [name for name in self.judge.get().attribute_names if name not in own]}

    def learn(self, question: Question) -> dict[str, Any]:
        """{model, attribute} -> a direction for it, from faces drawn and judged; takes some seconds. Same answer as `directions`."""
        attribute = text(question.body, "attribute")
        generator = own_copy(self.studio, text(question.body, "model"), question.turn)
        judge = self.judge.get()
        if attribute not in judge.attribute_names:
            raise UserError(f"The judge does not know {attribute[:40]!r}.")
        from mien.explore.direction_set import attribute_directions
        from mien.explore.directions import judged_sample

        sample = judged_sample(generator, judge, LEARNT_FROM, progress=lambda _: question.turn.check())
        (made,) = attribute_directions(sample, "probe", [attribute])
        self._known(generator)
        with self._guard:
            self._directions[str(generator.meta.get("sha256"))][attribute] = made.vector
        return {"learnt": attribute, **self.directions(question)}

    def _known(self, generator: LoadedGenerator) -> dict[str, tuple[float, ...]]:
        """The model's directions: those found without words (SeFa) at once, those learnt as they come."""
        model = str(generator.meta.get("sha256"))
        with self._guard:
            if model not in self._directions:
                from mien.explore.direction_set import unsupervised_directions

                try:
                    found = unsupervised_directions(generator, "sefa", UNNAMED)
                except UserError:  # a network whose latent meets no such weight has none
                    found = []
                self._directions[model] = {each.name: each.vector for each in found}
            return dict(self._directions[model])

    # --- channels -----------------------------------------------------------------------------------------------------

    def channels(self, question: Question) -> dict[str, Any]:
        """{model, face, x, y, layer} -> the channels that draw that place of the face, strongest first; layer null: a middle one."""
        body = question.body
        x, y = (number(body, name, 0.0, 1.0, of="The place") for name in ("x", "y"))
        with self.studio.using(text(body, "model"), question.turn) as generator:
            from mien.explore.ablate import channels_at
            from mien.explore.activations import find_layer, layer_names

            source = self.sources.source(generator, body)
            layers = layer_names(generator.net)
            layer = str(body.get("layer") or layers[min(2, len(layers) - 1)])
            find_layer(generator.net, layer)
            found = channels_at(generator, source.z, source.attributes, layer, x, y, radius=RADIUS)
        shown = [{"channel": channel, "inside": inside, "outside": outside} for channel, inside, outside in found[:CHANNELS_SHOWN]]
        region = [max(x - RADIUS, 0.0), max(y - RADIUS, 0.0), min(x + RADIUS, 1.0), min(y + RADIUS, 1.0)]
        return {"layers": list(layers), "layer": layer, "channels": shown, "of": len(found), "region": region, "parts": _parts(generator)}


def _parts(generator: LoadedGenerator) -> list[dict[str, Any]]:
    """The parts of the face with the middle of each, as shares of the picture; none where a crop does not say."""
    from mien.explore.regions import PARTS, boxes

    found = []
    for part in PARTS:
        try:
            places = boxes(part, generator.crop)
        except UserError:
            return []
        if places:
            x0, y0, x1, y1 = places[0]
            found.append({"name": part, "x": (x0 + x1) / 2, "y": (y0 + y1) / 2})
    return found


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise UserError("Directions are given as names with numbers.")
    return {str(name): number(value, name, -10.0, 10.0, of=str(name)[:40]) for name in value}


def _channel_steps(value: Any) -> list[ChannelsStep]:
    """Each channel times a number, in a region or everywhere; read as the file format reads it."""
    import json

    from mien.explore.edit import FORMAT, ChannelsStep, Edit

    if not isinstance(value, list) or len(value) > MOST_STEPS or not all(isinstance(each, dict) for each in value):
        raise UserError(f"Channels are given as a list of at most {MOST_STEPS} steps.")
    steps = [{**each, "kind": "channels", "action": "scale"} for each in value]
    read = Edit.from_json(json.dumps({"format": FORMAT, "name": "channels", "model": None, "steps": steps}))
    return [step for step in read.steps if isinstance(step, ChannelsStep)]
