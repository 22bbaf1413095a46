"""The Morph tab: a film from face to face, to scrub through in the page and to keep as MP4, GIF or strip."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.apps.web.faces import MAX_SEED, attributes, command, data_uri, number, png, said, text, whole
from mien.apps.web.server import Question
from mien.apps.web.sources import TheJudge, own_copy
from mien.apps.web.studio import Studio
from mien.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mien.explore.interpolate import Morph
    from mien.explore.load import LoadedGenerator

MAX_FACES = 12
MAX_FRAMES = 240
SHOWN_PX = 256
FPS = 30.0
KINDS = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png"}


class Morphing:
    """Answers of the Morph tab."""

    def __init__(self, studio: Studio, judge: TheJudge):
        self.studio, self.judge = studio, judge

    def morph(self, question: Question) -> dict[str, Any]:
        """{model, seeds, frames, where, first, last, mode, loop, even, truncation} -> frames as PNGs, and the command line."""
        asked = _Asked(question.body)
        generator, morph, u = self._film(question, asked)
        from mien.explore.interpolate import frames

        drawn = []
        for frame in frames(generator, morph, u):
            question.turn.check()
            drawn.append(data_uri(png(frame)))
        return {"frames": drawn, "fps": FPS, "command": asked.command("mp4")}

    def film(self, question: Question) -> dict[str, Any]:
        """The same question with `kind` mp4, gif or png -> the file, as `mien interpolate` writes it."""
        asked, kind = _Asked(question.body), question.body.get("kind")
        if kind not in KINDS:
            raise UserError("A film is kept as mp4, gif or png.")
        generator, morph, u = self._film(question, asked)
        from mien.apps.video import write_video
        from mien.explore.interpolate import frames

        with tempfile.TemporaryDirectory(prefix="mien-app-") as folder:
            path = write_video(frames(generator, morph, u), Path(folder) / f"morph.{kind}", fps=FPS, scale=_scale(generator))
            content = path.read_bytes()
        return {"file": data_uri(content, KINDS[str(kind)]), "name": f"morph.{kind}", "command": asked.command(str(kind))}

    def _film(self, question: Question, asked: _Asked) -> tuple[LoadedGenerator, Morph, Tensor]:
        """A generator of its own (a film takes a second or more), the way, and the moments of its frames."""
        generator = own_copy(self.studio, text(question.body, "model"), question.turn)
        from mien.apps.cli.interpolate import build_morph
        from mien.explore.interpolate import even_moments, moments
        from mien.explore.latents import truncating

        for name in (*asked.where, *asked.first, *asked.last):
            if name not in generator.attribute_names:
                raise UserError(f"This model has no attribute {name[:40]!r}.")
        morph = build_morph(generator, asked.seeds, held=asked.where, first=asked.first, last=asked.last, mode=asked.mode,
                            loop=asked.loop, truncation=asked.truncation)  # fmt: skip
        generator = truncating(generator, asked.truncation)
        if len(asked.seeds) == 1 and not morph.glides:
            raise UserError("One face alone does not move: add another, or let an attribute glide.")
        if not asked.even:
            return generator, morph, moments(asked.frames, closed=asked.loop)
        judge = self.judge.get()

        def features(images: Tensor) -> Any:
            question.turn.check()
            return judge.features(images)

        return generator, morph, even_moments(generator, morph, asked.frames, features=features).u


class _Asked:
    """A Morph question, checked."""

    def __init__(self, body: dict[str, Any]):
        seeds = body.get("seeds")
        if not isinstance(seeds, list) or not 1 <= len(seeds) <= MAX_FACES:
            raise UserError(f"A morph goes through 1 to {MAX_FACES} faces.")
        self.model = text(body, "model")
        self.seeds = [whole({"seed": seed}, "seed", 0, MAX_SEED, of="A face's number") for seed in seeds]
        self.frames = whole(body, "frames", 2, MAX_FRAMES, of="The number of frames")
        self.truncation = number({"truncation": 1.0, **body}, "truncation", 0.0, 2.0, of="Truncation")
        self.where, self.first, self.last = (attributes(body.get(name) or {}) for name in ("where", "first", "last"))
        self.mode, self.loop, self.even = str(body.get("mode") or "slerp"), bool(body.get("loop")), bool(body.get("even"))

    def command(self, kind: str) -> str:
        return command("interpolate", self.model, out=f"morph.{kind}", seeds=",".join(map(str, self.seeds)), frames=self.frames,
                       from_attributes=said(self.first), to_attributes=said(self.last), where=said(self.where), loop=self.loop,
                       mode=self.mode if self.mode != "slerp" else None, even=self.even,
                       truncation=None if self.truncation == 1 else f"{self.truncation:g}")  # fmt: skip


def _scale(generator: LoadedGenerator) -> int:
    return max(1, round(SHOWN_PX / generator.size))
