"""`mien models`: the generators that came with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.apps.cli.console import print_json, print_table, say


def models(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the generators that came with mien.

    mien models --json

    Each name is a MODEL for sample, eval and the rest.
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
            "path": weights,
        })  # fmt: skip
    if json:
        print_json(rows)
    elif rows:
        columns = ["model", "px", "images seen", "preset", "MB", "attributes"]
        print_table(columns, [[r["name"], r["size"], r["nimg"], r["preset"], r["megabytes"], ", ".join(r["attributes"])] for r in rows])
    else:
        say("No generator came with this version: train one with 'mien train', or name a run, a snapshot file or hf:user/repo.")
