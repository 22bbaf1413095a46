"""`mien presets`: the bundled recipes, and where each value of one comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mien.apps.cli.console import print_json, print_table, say


def presets(
    name: Annotated[str | None, typer.Argument(help="A preset, or the path of a .toml file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value, as 'mien train' would.")] = None,
    size: Annotated[int, typer.Option(help="Side of the images in px, for values that depend on it.")] = 64,
    all_: Annotated[bool, typer.Option("--all", help="Show the values that are left at their default too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the bundled recipes, or show one with where each value comes from.

    mien presets demo --all

    A value that a recipe leaves to a rule ("auto") is shown for images of --size, with the rule.
    """
    from mien.config import flatten, preset_names, read_preset, resolve
    from mien.rules import settle

    if name is None:
        tables = {each: read_preset(each) for each in preset_names()}
        rows = [{"name": each, "base": table.get("base"), "description": table.get("description")} for each, table in tables.items()]
        if json:
            print_json(rows)
        else:
            print_table(["preset", "base", "what it is"], [list(row.values()) for row in rows])
        return
    recipe = resolve(name, set_ or [])
    settled, rules = settle(recipe.config, size)
    recipe.provenance.update({key: f"{recipe.provenance[key]}, auto: {rule}" for key, rule in rules.items()})
    values = flatten(settled.model_dump())
    if json:
        sources = {key: {"value": value, "from": recipe.provenance[key]} for key, value in values.items()}
        print_json({"name": name, "description": read_preset(name).get("description"), "values": sources})
        return
    say(f"{name}: {read_preset(name).get('description', 'no description')}\n")
    shown = [key for key in values if all_ or recipe.provenance[key] != "default"]
    print_table(["key", "value", "from"], [[key, _written(values[key]), recipe.provenance[key]] for key in shown])
    if len(shown) < len(values):
        say(f"\n{len(values) - len(shown)} more values are left at their defaults: --all shows them.")


def _written(value: Any) -> str:
    """As it would be written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "[]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
