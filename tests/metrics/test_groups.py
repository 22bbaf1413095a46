"""Who is drawn less often than there is."""

import numpy as np
import pytest

from mien.metrics.groups import group_shares

NAMES = ("Male", "Young", "Bald")


def judged(shares, count, seed):
    return (np.random.default_rng(seed).random((count, len(shares))) < shares).astype(np.float32)


def test_the_same_population_is_as_far_apart_as_chance_makes_it():
    values = [group_shares(real=judged((0.4, 0.7, 0.1), 500, seed), fake=judged((0.4, 0.7, 0.1), 500, 99 + seed), names=NAMES, asked=())
              for seed in range(40)]  # fmt: skip
    assert np.mean([one.value for one in values]) == pytest.approx(np.mean([one.details["expected"] for one in values]), rel=0.15)
    inside = [low["low"] <= 0 <= low["high"] for one in values for low in one.details["groups"].values()]
    assert 0.88 < np.mean(inside) <= 1


def test_a_group_that_is_left_out_is_named_and_what_was_asked_for_does_not_count():
    found = group_shares(real=judged((0.4, 0.7, 0.1), 1000, 0), fake=judged((0.9, 0.7, 0.0), 1000, 1), names=NAMES, asked=["Male"])
    assert found.details["groups"]["Bald"]["high"] < 0 and found.details["groups"]["Bald"]["fake"] == 0
    assert found.details["groups"]["Male"]["low"] > 0.4 and 0.03 < found.value < 0.08  # Bald's tenth and Young's chance, not Male's half
