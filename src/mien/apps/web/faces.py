"""The Generate tab: faces by number and attribute, a sheet of them to keep, and the command line that makes it again."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.apps.web.server import Question
from mien.apps.web.studio import Studio
from mien.combinations import combination_name
from mien.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAX_FACES = 64
PREVIEWED = 16
MOSAIC_SIDE, GAP_PX = 10, 2  # of samples/mosaic.png
MAX_SEED = 2**53 - 1  # the largest whole number that a page can hold


class Faces:
    """Answers of the Generate tab."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def about(self, question: Question) -> dict[str, Any]:
        """{model} -> what its controls are, and the first faces if they were drawn before; it begins to load."""
        told = self.studio.about(text(question.body, "model"))
        told["preview"] = preview(self.studio.places.snapshot(told["model"]), told["size"])
        self.studio.begin(told["model"])  # only now: torch, while it is imported, takes the time that the preview needs
        return told

    def generate(self, question: Question) -> dict[str, Any]:
        """{model, seed, count, where: {attribute: value}, truncation} -> faces: [{seed, attributes, png}], command."""
        asked = _Asked(question.body)
        rows, images = self._draw(question, asked)
        faces = [
            {"seed": asked.seed + i, "attributes": row, "png": data_uri(png(image))}
            for i, (row, image) in enumerate(zip(rows, images.permute(0, 2, 3, 1).numpy()))
        ]
        return {"faces": faces, "command": asked.command("faces.png")}

    def sheet(self, question: Question) -> dict[str, Any]:
        """The same question -> one PNG of all the faces, pixel for pixel what the command line writes."""
        from mien.models.pictures import grid

        asked = _Asked(question.body)
        _, images = self._draw(question, asked)
        return {"png": data_uri(png(grid(images, columns=round(asked.count**0.5 + 0.4999)))), "name": f"faces-{asked.seed}.png"}

    def _draw(self, question: Question, asked: _Asked) -> tuple[list[dict[str, float]], Tensor]:
        """(attributes of each face, uint8 [N, 3, R, R])."""
        with self.studio.using(asked.model, question.turn) as generator:
            from mien.explore.latents import latents, truncated
            from mien.explore.sample import attribute_rows, render

            for name in asked.where:
                if name not in generator.attribute_names:
                    raise UserError(f"This model has no attribute {name[:40]!r}.")
            rows = attribute_rows(generator, asked.where, asked.count, asked.seed)
            generator, z = truncated(generator, latents(range(asked.seed, asked.seed + asked.count), generator.z_dim), asked.truncation)
            images = render(generator, z, rows)
            return [dict(zip(generator.attribute_names, row)) for row in rows.tolist()], images


def preview(snapshot: Path, size: Any) -> list[str]:
    """Faces 0 to 15 of a run's newest snapshot, cut from the mosaic that training drew with it: there before torch is. Else none."""
    from PIL import Image

    mosaic, newer = snapshot.parent.parent / "samples" / "mosaic.png", sorted(snapshot.parent.glob("*.safetensors"))[-1:] != [snapshot]
    if newer or mosaic.is_symlink() or not isinstance(size, int) or not mosaic.is_file():
        return []
    step = size + GAP_PX
    try:
        with Image.open(mosaic) as picture:
            if picture.size != (MOSAIC_SIDE * step + GAP_PX,) * 2:
                return []
            corners = [(GAP_PX + i % MOSAIC_SIDE * step, GAP_PX + i // MOSAIC_SIDE * step) for i in range(PREVIEWED)]
            whole = picture.convert("RGB")
    except OSError:  # being written, or damaged: the faces come a little later
        return []
    return [data_uri(png(whole.crop((x, y, x + size, y + size)))) for x, y in corners]


class _Asked:
    """A Generate question, checked."""

    def __init__(self, body: Mapping[str, Any]):
        self.model = text(body, "model")
        self.seed = whole(body, "seed", 0, MAX_SEED - MAX_FACES, of="A face's number")
        self.count = whole(body, "count", 1, MAX_FACES, of="The number of faces")
        self.truncation = number(body, "truncation", 0.0, 2.0, of="Truncation")
        self.where = attributes(body.get("where"))

    def command(self, out: str) -> str:
        return command("sample", self.model, out=out, count=self.count, where=said(self.where), seed=self.seed,
                       truncation=None if self.truncation == 1 else f"{self.truncation:g}")  # fmt: skip


# --- what a page said, checked ----------------------------------------------------------------------------------------


def text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise UserError("Choose a model first." if name == "model" else f"Give a {name}.")
    return value


def number(body: Mapping[str, Any], name: str, least: float, most: float, *, of: str) -> float:
    """A finite number in [least, most]. Raises UserError with the words of the control, `of`."""
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not least <= value <= most:
        raise UserError(f"{of} is a number from {least:g} to {most:g}.")
    return float(value)


def whole(body: Mapping[str, Any], name: str, least: int, most: int, *, of: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{of} is a whole number from {least:,} to {most:,}.")
    return value


def attributes(value: Any, *, least: float = -1.0, most: float = 2.0) -> dict[str, float]:
    """{attribute: value}; whether the model has them is for who knows the model."""
    if not isinstance(value, dict):
        raise UserError("Attributes are given as names with values.")
    return {str(name): number(value, name, least, most, of=str(name)[:40]) for name in value}


# --- what goes back ---------------------------------------------------------------------------------------------------


def png(image: Any) -> bytes:
    """PNG bytes of a PIL image or of uint8 [H, W, 3]."""
    from PIL import Image

    picture: Image.Image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def said(where: Mapping[str, float]) -> str | None:
    """{'Male': 1.0} -> 'Male=1', as --where takes it; None for nothing."""
    return combination_name(where, where.values()) or None


def command(verb: str, *words: str, **options: Any) -> str:
    """The line to type: `mien VERB WORDS --option value ...`, quoted for a shell; None leaves an option out, True makes it a flag."""
    line = ["mien", verb, *words]
    for name, value in options.items():
        if value is not None and value is not False:
            line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(line)
