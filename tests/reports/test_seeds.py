"""Several seeds of one recipe are told as one."""

import random
import statistics

import pytest

from mien.reports.findings import Score
from mien.reports.seeds import over_seeds, same_recipe


def score(value: float, **protocol) -> Score:
    known = {"store": "a", **protocol}
    return Score(nimg=1000, metric="fd-face", value=value, low=value - 1, high=value + 1, floor=0.5, protocol=known, details={})


def test_runs_that_differ_in_their_seed_alone_are_one_recipe():
    differences = {
        "train.seed": {"a": 0, "b": 1, "c": 2, "d": 0},
        "model.generator.width": {"a": 96, "b": 96, "c": 96, "d": 128},
        "train.keep_snapshots": {"c": 20, "d": 20},  # a and b are of a version that had no such key
    }
    assert same_recipe(["a", "b", "c", "d"], differences) == [("a", "b", "c")]


def test_the_numbers_by_hand():
    told = over_seeds(("a", "b", "c"), "fd-face", {"a": score(10), "b": score(12), "c": score(14)})
    assert told is not None and (told.mean, told.sd, told.own) == (12, 2, 1)
    assert told.high - told.mean == pytest.approx(4.303 * 2 * (4 / 3) ** 0.5)


def test_no_number_without_every_score_under_one_protocol():
    assert over_seeds(("a", "b"), "fd-face", {"a": score(10), "b": None}) is None
    assert over_seeds(("a", "b"), "fd-face", {"a": score(10), "b": score(11, split="train")}) is None
    assert over_seeds(("a", "b"), "fd-face", {"a": score(10, conditions="none"), "b": score(11, conditions="the reals' own")}) is not None


def test_another_run_falls_into_the_interval_as_often_as_it_says():
    draw, inside = random.Random(0), 0
    for _ in range(2000):
        first, second, third, another = (draw.gauss(50, 4) for _ in range(4))
        told = over_seeds(("a", "b", "c"), "fd-face", {"a": score(first), "b": score(second), "c": score(third)})
        assert told is not None and told.sd == pytest.approx(statistics.stdev([first, second, third]))
        inside += told.low <= another <= told.high
    assert 0.935 < inside / 2000 < 0.965
