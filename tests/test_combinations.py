"""Combinations of attributes in words: one spelling, and whoever reads one refuses an attribute that is named twice."""

import numpy as np
import pytest

from mien.apps.cli.directions import parse_sum
from mien.combinations import combination_name, parse_facts
from mien.data.subset import parse_group
from mien.errors import UserError
from mien.explore.sample import parse_where
from mien.fields import balance_law


def test_what_is_written_is_read():
    row = np.array([1, 0], np.uint8)
    assert combination_name(("Has Hat", "Male"), row) == "Has Hat=1,Male=0" and combination_name((), ()) == ""
    assert parse_facts(combination_name(("Has Hat", "Male"), row)) == {"Has Hat": "1", "Male": "0"}
    assert combination_name(("Male",), (0.25,)) == "Male=0.25"


@pytest.mark.parametrize("read", [
    parse_group, lambda text: parse_where(text, ["Male"]), lambda text: parse_sum(f"{text} - Young=1 + Young=0"),
    lambda text: balance_law({text: 2.0}),
])  # fmt: skip
def test_an_attribute_named_twice_is_refused(read):
    with pytest.raises((UserError, ValueError), match="'Male=1,Male=0' names Male twice: name it once") as caught:
        read("Male=1,Male=0")
    assert "\n" not in str(caught.value)
