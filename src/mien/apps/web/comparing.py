"""The Compare tab: runs side by side, from the same pieces as `mien compare`."""

from __future__ import annotations

import shlex
from typing import Any

from mien.apps.web.places import Places
from mien.apps.web.server import Question
from mien.errors import UserError

MOST = 8  # runs in one comparison: as many as there are colours


class Comparing:
    """Answers of the Compare tab."""

    def __init__(self, places: Places):
        self.places = places

    def compare(self, question: Question) -> dict[str, Any]:
        """{runs: [name, ...]} -> the whole comparison as a page, its Markdown and JSON, and the command line."""
        from mien.reports.compare import as_json, compare, markdown, render  # needs numpy, which the first page does not wait for

        names = question.body.get("runs")
        if not isinstance(names, list) or len(names) < 2:
            raise UserError("Choose at least two runs.")
        if len(names) > MOST:
            raise UserError(f"Choose at most {MOST} runs.")
        runs = [self.places.run(name) for name in names]
        question.turn.check()
        found = compare(runs)
        return {
            "html": render(found),
            "markdown": markdown(found),
            "json": as_json(found),
            "command": shlex.join(["mien", "compare", *(str(run.path) for run in runs)]),
        }
