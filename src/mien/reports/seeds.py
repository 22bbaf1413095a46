"""What several seeds of one recipe say together.

A score's own interval is for the faces that were drawn from one trained model. Training again with another seed moves the score as
well, often by more. So runs that differ in nothing but `train.seed` are also told as one recipe: the mean, the standard deviation
between runs, and the interval in which another run of the recipe is expected, mean +- t s sqrt(1 + 1/n) (Student's t with n - 1
degrees of freedom, 95 %). With two or three runs it is wide, and says so rightly.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mien.reports.findings import Score, setting

# Two-sided 95 % points of Student's t by degrees of freedom; the last one serves for more, a little wide.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class OverSeeds:
    """One metric of one recipe. low, high: where a further run's score is expected, 95 %; own: the widest half-interval of a single run."""

    runs: tuple[str, ...]
    metric: str
    mean: float
    sd: float
    low: float
    high: float
    own: float | None


def same_recipe(names: list[str], differences: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The groups of two or more runs whose settings agree in all but `train.seed`, in the order of `names`.

    A key that some run lacks is of another version of mien, and tells nothing.
    """
    told = [row for key, row in differences.items() if key != "train.seed" and len(row) == len(names)]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        settings = tuple(setting(row[name]) for row in told)
        groups.setdefault(settings, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def over_seeds(group: tuple[str, ...], metric: str, scores: Mapping[str, Score | None]) -> OverSeeds | None:
    """None unless every run of the group has the score, all under one protocol."""
    found = [score for name in group if (score := scores.get(name))]
    if len(found) < len(group) or len({score.key for score in found}) > 1:
        return None
    values = [score.value for score in found]
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1] * sd * math.sqrt(1 + 1 / len(values))
    own = [(score.high - score.low) / 2 for score in found if score.low is not None and score.high is not None]
    return OverSeeds(group, metric, mean, sd, mean - half, mean + half, max(own) if own else None)
