import numpy as np
import pytest

from mien.data.attributes import CELEBA_ATTRIBUTES, columns, combination_table, correlation, strongest_pairs
from mien.errors import UserError


def test_the_forty_are_in_the_official_order():
    assert len(set(CELEBA_ATTRIBUTES)) == 40
    assert (CELEBA_ATTRIBUTES[0], CELEBA_ATTRIBUTES[20], CELEBA_ATTRIBUTES[31], CELEBA_ATTRIBUTES[39]) == (
        "5_o_Clock_Shadow", "Male", "Smiling", "Young")


def test_columns_keep_the_order_asked_for():
    assert columns(["Smiling", "Male"], CELEBA_ATTRIBUTES) == [31, 20]


@pytest.mark.parametrize(("name", "offered"), [("male", "Male"), ("MALE", "Male"), ("Smilling", "Smiling"), ("eyeglasses", "Eyeglasses")])
def test_slips_get_the_nearest_name(name, offered):
    with pytest.raises(UserError, match=f"Did you mean {offered}\\?"):
        columns([name], CELEBA_ATTRIBUTES)


def test_a_name_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        columns(["Male", "Male"], CELEBA_ATTRIBUTES)


def test_combinations():
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 1]], np.uint8)
    assert combination_table(rows) == [((0, 1), 1), ((1, 0), 2), ((1, 1), 1)]
    assert combination_table(rows[:, :0]) == [((), 4)]
    wide = np.random.default_rng(0).integers(0, 2, (500, 20), dtype=np.uint8)
    table = combination_table(wide)
    assert sum(count for _, count in table) == 500
    assert [row for row, _ in table] == sorted({tuple(map(int, row)) for row in wide})


def test_correlation_is_pearsons_and_undefined_for_constants():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 2, (300, 4), dtype=np.uint8)
    rows[:, 3] = 1
    found = correlation(rows)
    assert np.allclose(found[:3, :3], np.corrcoef(rows[:, :3].T))
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()
    assert correlation(np.zeros((5, 0), np.uint8)).shape == (0, 0)


def test_strongest_pairs_come_first_whatever_the_sign():
    base = np.array([0, 1] * 50)
    noisy = base.copy()
    noisy[:20] ^= 1
    pairs = strongest_pairs(("a", "opposite", "noisy"), np.stack([base, 1 - base, noisy], axis=1).astype(np.uint8))
    assert pairs[0] == ("a", "opposite", pytest.approx(-1))
    assert pairs[1][2] == pytest.approx(0.6)
