"""The app put together: which question is answered by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mien import __version__
from mien.apps.web.comparing import Comparing
from mien.apps.web.editing import Editing
from mien.apps.web.faces import Faces
from mien.apps.web.morphing import Morphing
from mien.apps.web.places import Places
from mien.apps.web.server import Answer, Question, Server, Site
from mien.apps.web.sources import Sources, TheJudge
from mien.apps.web.studio import Studio
from mien.apps.web.training import Training
from mien.config import preset_names, read_preset


def make_server(model: str | None = None, *, runs: Path = Path("runs"), host: str = "127.0.0.1", port: int = 7860) -> Server:
    """A server that is bound but not yet serving; port 0 takes a free one. `model` begins to load by itself.

    Raises UserError for a model that is not there, and for a port that cannot be had.
    """
    places = Places(runs, model)
    studio = Studio(places)
    if model is not None:
        places.snapshot(model)
    server = Server(Site(answers(studio), frozenset({"photo"}), host=host), port)
    studio.warm_up(model)
    return server


def answers(studio: Studio) -> dict[str, Answer]:
    faces, training, comparing = Faces(studio), Training(studio.places), Comparing(studio.places)
    judge = TheJudge()
    morphing, sources = Morphing(studio, judge), Sources(studio, judge)
    editing = Editing(sources)

    def start(question: Question) -> dict[str, Any]:
        """What the page is made of: version, models, runs, stores, recipes."""
        places = studio.places
        models = [{"model": name, "kind": kind, "title": places.title(name)} for name, kind in places.models().items()]
        presets = [{"name": name, "description": read_preset(name).get("description", "")} for name in preset_names()]
        return {
            "version": __version__,
            "given": places.given,
            "models": models,
            "runs": list(places.runs()),
            "runs_folder": str(places.runs_folder),
            "stores": list(places.stores()),
            "presets": presets,
        }

    return {
        "start": start,
        "about": faces.about,
        "generate": faces.generate,
        "sheet": faces.sheet,
        "morph": morphing.morph,
        "film": morphing.film,
        "photo": sources.upload,
        "invert": sources.invert,
        "edit": editing.edit,
        "directions": editing.directions,
        "learn": editing.learn,
        "channels": editing.channels,
        "runs": training.runs,
        "watch": training.watch,
        "picture": training.picture,
        "train": training.train,
        "stop": training.stop,
        "control": training.control,
        "draw": training.draw,
        "compare": comparing.compare,
    }
