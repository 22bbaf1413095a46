"""Recipes: TOML presets that state only differences, and `--set section.key=value`, resolved to a Config. No torch.

Layers, later ones win: defaults, the preset's bases, the preset, the command line. `resolve` remembers which layer each value came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mien.errors import UserError, did_you_mean
from mien.fields import parse_count
from mien.sections import Config

__all__ = ["Config", "Recipe", "parse_count", "resolve"]


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: the config, its preset's name and where each value came from."""

    config: Config
    preset: str | None
    provenance: dict[str, str]


# --- flat keys --------------------------------------------------------------------------------------------------------


TABLES = ("data.balance",)  # keys whose value may itself be a table


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; a value that is a table stays whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and name not in TABLES else {name: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


DEFAULTS = flatten(Config().model_dump())


def _known(key: str, where: str) -> str:
    if key in DEFAULTS:
        return key
    tail = key.rsplit(".", 1)[-1]
    same_tail = [known for known in DEFAULTS if known.rsplit(".", 1)[-1] == tail]  # the right key in the wrong section
    hint = f" Did you mean {same_tail[0]}?" if same_tail else did_you_mean(key, DEFAULTS)
    raise UserError(f"{where}: unknown key {key}.{hint}")


def parse_override(text: str) -> tuple[str, Any]:
    """'optimizer.lr_g=1e-4' -> ('optimizer.lr_g', 0.0001). Values are TOML; a word that is no TOML is a string."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals:
        raise UserError(f"--set {text}: write section.key=value.")
    _known(key, "--set")
    if key == "data.attributes" and value.lower() in ("all", "none"):
        return key, None if value.lower() == "all" else []
    if value.lower() == "none" and DEFAULTS[key] is None:  # elsewhere "none" is a choice by that name
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if isinstance(DEFAULTS[key], list) or key == "data.attributes":
        return key, [part.strip() for part in value.strip("[]").split(",") if part.strip()]
    return key, value


# --- presets ----------------------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """The bundled recipes, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in resources.files("mien.presets").iterdir() if path.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's own table: what it states, with `description` and perhaps `base`. `name` is a bundled name or a .toml file."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"No such preset file: {name}.")
        text = path.read_text(encoding="utf-8", errors="replace")  # TOML refuses what the replacement leaves outside of strings
    elif name in preset_names():
        text = (resources.files("mien.presets") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UserError(f"No preset is named {name}.{did_you_mean(name, preset_names())} 'mien presets' lists them.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Preset {name} is not valid TOML: {error}.") from None


def preset_layers(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(preset, its flat values) from the first base to the preset itself."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen: list[str] = []
    step: str | None = name
    while step is not None:
        if step in seen:
            raise UserError(f"Preset {name} names itself as its base ({' -> '.join([*seen, step])}).")
        seen.append(step)
        table = read_preset(step)
        base = table.pop("base", None)
        if not isinstance(base, str | None):
            raise UserError(f"preset {step}: base names one preset, in quotes (got {base!r}).")
        table.pop("description", None)
        flat = flatten(table)
        for key in flat:
            _known(key, f"preset {step}")
        layers.insert(0, (step, flat))
        beside = Path(step).parent / base if base and base.endswith(".toml") and step.endswith(".toml") else None
        step = str(beside) if beside and beside.is_file() else base  # one file names another from where it lies itself
    return layers


def resolve(preset: str | None = None, overrides: Iterable[str | tuple[str, Any]] = ()) -> Recipe:
    """The recipe of a preset and `--set` overrides. Raises UserError for unknown keys, wrong values and wrong combinations."""
    values, provenance = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default")
    for layer, flat in [] if preset is None else preset_layers(preset):
        values |= flat
        provenance |= dict.fromkeys(flat, f"preset {layer}")
    for override in overrides:
        key, value = parse_override(override) if isinstance(override, str) else override
        values[key] = value
        provenance[key] = "command line"
    return Recipe(config=validate(unflatten(values)), preset=preset, provenance=provenance)


def validate(tree: Mapping[str, Any]) -> Config:
    """A Config from a nested table; pydantic's errors become one line."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        got = "" if repr(first["input"]) in message or not key else f" (got {first['input']!r})"
        raise UserError(f"{key}: {message}{got}." if key else f"{message}.") from None


MAY_CHANGE_ON_RESUME = ("train.images", "train.tick_kimg", "train.checkpoint_kimg", "train.keep", "train.snapshot_kimg", "train.memory_gb",
                        "train.micro_batch", "train.compile", "sample.every_kimg", "eval.", "balance.mode", "balance.patience_kimg",
                        "balance.probe_kimg", "balance.max_rollbacks")  # fmt: skip


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'optimizer.lr_g: 0.0002 -> 0.0001' for each key that differs between two nested tables; a key that one lacks has its default."""
    before, after = DEFAULTS | flatten(old), DEFAULTS | flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
