"""What one value of a recipe may be: counts, shares, rates, periods; and the base of its sections. No torch."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mien.combinations import combination_name, parse_facts
from mien.errors import UserError

SUFFIXES = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_count(text: str | int | float) -> int:
    """'300k' -> 300000, '2M' -> 2000000, '1.5M' -> 1500000, 64 -> 64. Raises UserError for anything else."""
    word = str(text).strip().lower().replace("_", "").replace(",", "")
    scale = SUFFIXES.get(word[-1:], 1)
    try:
        value = Decimal(word[:-1] if scale > 1 else word) * scale  # exact: as floats, 4.1 times a million is no whole number
        if value != int(value) or abs(value) >= 2**53:
            raise ValueError
        return int(value)
    except (ValueError, OverflowError, InvalidOperation):
        raise UserError(f"{text!r} is not a count: write 64, 300k or 2M.") from None


def _count(value: Any) -> Any:
    try:
        return parse_count(value)
    except UserError as error:
        raise ValueError(str(error)) from None


Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Period = Annotated[float, Field(ge=0.001)]  # in kimg: one image at least
NonNegative = Annotated[float, Field(ge=0)]


def _number_or_auto(value: Any) -> Any:
    if value == "auto" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")):
        return value
    raise ValueError("write a number of 0 or more, or auto")


NumberOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_number_or_auto)]


def balance_law(value: Any) -> Any:
    """Refuses anything but a law's name or a table {'Male=1,Smiling=0': factor}; a table's keys in one spelling."""
    if not isinstance(value, dict):
        if value not in ("none", "uniform"):
            raise ValueError("say none, uniform, or give a table of factors such as {\"Male=1,Smiling=0\" = 2.0}")
        return value
    table = {}
    for key, factor in value.items():
        try:
            facts = parse_facts(str(key))
        except UserError as error:
            raise ValueError(str(error)) from None
        if not facts or any(not name or word not in ("0", "1") for name, word in facts.items()):
            raise ValueError(f"{key!r} is not a combination of attributes: write NAME=1, or several as Male=1,Smiling=0")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
            raise ValueError(f"the factor of {key!r} is {factor!r}: write a number of 0 or more")
        table[combination_name(facts, map(int, facts.values()))] = float(factor)
    if not table:
        raise ValueError("the table of factors is empty: say none, or give it a line such as {\"Male=1,Smiling=0\" = 2.0}")
    return table


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
