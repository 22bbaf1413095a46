"""The face that is edited or taken apart: one of the model's, by number, or a photo found again in its latents."""

from __future__ import annotations

import copy
import dataclasses
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mien.apps.web.faces import MAX_SEED, attributes, data_uri, number, png, said, text, whole
from mien.apps.web.server import Question
from mien.apps.web.studio import Studio
from mien.apps.web.turns import Turn
from mien.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

PHOTOS_KEPT = 8
STEPS = 150  # of optimisation: some seconds at 64 px on two cores


@dataclass(frozen=True)
class Source:
    """z [1, Z], attributes [1, A]. words: how 'mien edit' is told of it. file: the text of face.json, which the words name, or None."""

    z: Tensor
    attributes: Tensor
    words: tuple[str, ...]
    file: str | None = None
    photo: np.ndarray | None = None


@dataclass
class _Photo:
    """uint8 [R, R, 3], cropped for the snapshot `model` (its sha256); found: the source, once it was inverted."""

    image: np.ndarray
    model: str
    found: Source | None = None


class TheJudge:
    """The bundled classifier, loaded when it is first wanted."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._judge: Judge | None = None

    def get(self) -> Judge:
        with self._guard:
            if self._judge is None:
                from mien.metrics.judge import load_judge

                self._judge = load_judge()
            return self._judge


class Sources:
    """Generated faces and uploaded photos. Photos are kept in memory, the last few, and written nowhere."""

    def __init__(self, studio: Studio, judge: TheJudge):
        self.studio, self.judge = studio, judge
        self._photos: OrderedDict[str, _Photo] = OrderedDict()
        self._guard = threading.Lock()

    def source(self, generator: LoadedGenerator, body: Mapping[str, Any]) -> Source:
        """`face` of a question: {seed, attributes, truncation} or {photo: id}. UserError for anything else."""
        face = body.get("face")
        if not isinstance(face, dict):
            raise UserError("Choose a face first.")
        if "photo" in face:
            photo = self._photo(face["photo"])
            if photo.model != generator.meta.get("sha256"):
                raise UserError("That photo was read for another model: give it again.")
            if photo.found is None:
                raise UserError("That photo was not found in the model yet.")
            return photo.found
        return numbered(generator, face)

    def upload(self, question: Question) -> dict[str, Any]:
        """A picture's bytes, with ?model=&crop= -> {photo: id, png, how}: read safely, re-encoded, cropped as the training faces were."""
        from mien.apps.photos import align, read_photo, trained_crop

        picture = read_photo(question.upload)
        question.turn.check()
        with self.studio.using(text(question.body, "model"), question.turn) as generator:
            crop, size, model = trained_crop(generator), generator.size, str(generator.meta.get("sha256"))
        try:
            aligned = align(picture, crop=crop, size=size, method=str(question.body.get("crop") or "auto"))
        except UserError as error:
            raise UserError(str(error).replace("say --crop square", "choose the crop 'square'")) from None
        name = secrets.token_urlsafe(12)
        with self._guard:
            self._photos[name] = _Photo(aligned.image, model)
            while len(self._photos) > PHOTOS_KEPT:
                self._photos.popitem(last=False)
        return {"photo": name, "png": data_uri(png(aligned.image)), "how": aligned.how}

    def invert(self, question: Question) -> dict[str, Any]:
        """{model, photo} -> the photo as the model draws it; from then on it is a face like another. Takes some seconds."""
        photo = self._photo(question.body.get("photo"))
        generator = own_copy(self.studio, text(question.body, "model"), question.turn)
        if photo.model != generator.meta.get("sha256"):
            raise UserError("That photo was read for another model: give it again.")
        from mien.apps.photos import judged
        from mien.explore.invert import Settings, invert
        from mien.models.pictures import one_picture, to_uint8

        judge = self.judge.get()
        target = one_picture(photo.image)
        names = generator.attribute_names
        seen = judged(judge, target, names)
        known = None if seen is None else (seen >= 0.5).float()  # has it or has it not, as the sliders begin
        found = invert(generator, target, encoder=None, classifier=judge.net, attributes=known, condition="judge",
                       settings=Settings(steps=STEPS), on_step=question.turn.check)  # fmt: skip
        photo.found = Source(found.z, found.attributes, ("--image", "face.json"), found.to_json(), photo.image)
        error = found.errors["optimised"]
        return {"png": data_uri(png(to_uint8(found.image)[0].permute(1, 2, 0).numpy())), "rmse": error.pixel_rmse,
                "identity": error.identity, "attributes": dict(zip(names, found.attributes[0].tolist()))}  # fmt: skip

    def _photo(self, name: Any) -> _Photo:
        photo = self._photos.get(str(name))
        if photo is None:
            raise UserError("That photo is not kept any more: give it again.")
        return photo


def numbered(generator: LoadedGenerator, face: Mapping[str, Any]) -> Source:
    """Face number `seed` with all its attributes given, as the command line draws it."""
    import torch

    from mien.explore.latents import latents, truncated

    seed = whole(face, "seed", 0, MAX_SEED, of="A face's number")
    psi = number({"truncation": 1.0, **face}, "truncation", 0.0, 2.0, of="Truncation")
    given = attributes(face.get("attributes"))
    names = generator.attribute_names
    if set(given) != set(names):
        raise UserError("That face belongs to another model: choose one of this model's.")
    view, z = truncated(generator, latents([seed], generator.z_dim), psi)
    if view is not generator:
        raise UserError("This model truncates styles, which are not edited: set truncation to 1.")
    rows = torch.tensor([[given[name] for name in names]], dtype=torch.float32).reshape(1, len(names))
    if psi == 1:
        where = said({name: given[name] for name in names})
        return Source(z, rows, ("--seed", str(seed), *(("--where", where) if where else ())))
    file = {"format": "mien-inversion/1", "model": generator.meta.get("sha256"), "z": z[0].tolist(), "offsets": None, "condition": "given",
            "attributes": {name: given[name] for name in names}, "face": seed, "truncation": psi}  # fmt: skip
    return Source(z, rows, ("--image", "face.json"), json.dumps(file))


def own_copy(studio: Studio, model: str, turn: Turn) -> LoadedGenerator:
    """The generator with a network of its own: what takes seconds works on it, while the others draw with the common one."""
    with studio.using(model, turn) as generator:
        return dataclasses.replace(generator, net=copy.deepcopy(generator.net))
