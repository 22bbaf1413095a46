"""A combination of attributes in words, 'Male=1,Smiling=0': how it is written and read wherever one is named. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from mien.errors import UserError


def combination_name(names: Iterable[str], values: Iterable[float], *, between: str = ",") -> str:
    """'Male=1,Smiling=0'; '' when there are no attributes."""
    return between.join(f"{name}={value:g}" for name, value in zip(names, values, strict=True))


def parse_facts(text: str | None) -> dict[str, str]:
    """'Male=1, Smiling=0' -> {'Male': '1', 'Smiling': '0'}; '' for a name without a value. What may be named and said the caller checks.

    UserError for a name that comes twice.
    """
    facts: dict[str, str] = {}
    for part in filter(None, map(str.strip, (text or "").split(","))):
        name, _, value = map(str.strip, part.partition("="))
        if name in facts:
            raise UserError(f"{text!r} names {name} twice: name it once.")
        facts[name] = value
    return facts
