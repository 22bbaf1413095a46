"""`mien models`: the generators that came with the package."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mien.apps.cli.console import print_json, print_table, say
from mien.runs import is_frechet

SCORE_KEYS = ("metric", "value", "low", "high", "floor")


def models(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the generators that came with mien.

    mien models --json

    Each name is a MODEL for sample, eval and the rest. The score is a Frechet distance on validation images, lower is better; in brackets,
    what real images score. Their cards: docs/model_cards.
    """
    from mien.explore.load import bundled_models
    from mien.runs import read_json

    rows = []
    for name, note in bundled_models().items():
        meta = read_json(note) or {}
        weights = note.with_suffix(".safetensors")
        rows.append({
            "name": name,
            "size": meta.get("size"),
            "attributes": meta.get("attributes", []),
            "nimg": meta.get("nimg"),
            "preset": meta.get("preset"),
            "megabytes": round(weights.stat().st_size / 1e6, 1) if weights.is_file() else None,
            "data": (meta.get("card") or {}).get("data", {}).get("kind"),
            "score": distance(meta),
            "path": weights,
        })  # fmt: skip
    if json:
        print_json(rows)
    elif rows:
        columns = ["model", "px", "MB", "images seen", "preset", "score", "attributes"]
        print_table(columns, [[r["name"], r["size"], r["megabytes"], r["nimg"], r["preset"], said(r["score"]), ", ".join(r["attributes"])]
                              for r in rows])  # fmt: skip
    else:
        say("No generator came with this version: train one with 'mien train', or name a run, a snapshot file or hf:user/repo.")


def distance(meta: dict[str, Any]) -> dict[str, Any] | None:
    """The Frechet distance that a snapshot's .json tells of itself, in the judge's features when it has that; None when there is none."""
    scores = [score for score in (meta.get("card") or {}).get("scores", []) if is_frechet(str(score["metric"]))]
    scores.sort(key=lambda score: score["metric"] != "fd-face")
    return {key: scores[0].get(key) for key in SCORE_KEYS} if scores else None


def said(score: dict[str, Any] | None) -> str | None:
    if score is None:
        return None
    return f"{score['metric']} {score['value']:.3g}" + (f" ({score['floor']:.2g})" if score["floor"] is not None else "")
