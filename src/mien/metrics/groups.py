"""Who is drawn less often than there is: what the judge sees in a model's faces, group by group, beside what it sees in real ones.

The model was asked for exactly the reals' attributes, so what it was asked for explains no difference. The same judge looks at both
sides: its own errors move both alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mien.intervals import Z95
from mien.metrics.protocol import Estimate


def group_shares(*, real: np.ndarray, fake: np.ndarray, names: Sequence[str], asked: Sequence[str]) -> Estimate:
    """The mean distance between the two shares, over those of `names` that are not `asked` for. real [N, J], fake [M, J]: probabilities.

    details: `groups` {name: {real, fake, low, high}}: shares, and the 95 % interval of fake - real (normal, two proportions); `expected`:
    the mean distance that drawing alone would give. No interval is given for the mean: it is a mean of distances, biased upwards.
    """
    groups, distances, chance = {}, [], []
    for column, name in enumerate(names):
        r, f = float((real[:, column] > 0.5).mean()), float((fake[:, column] > 0.5).mean())
        half = Z95 * math.sqrt(r * (1 - r) / len(real) + f * (1 - f) / len(fake))
        groups[name] = {"real": r, "fake": f, "low": f - r - half, "high": f - r + half}
        if name not in asked:
            distances.append(abs(f - r))
            chance.append(math.sqrt(2 / math.pi * r * (1 - r) * (1 / len(real) + 1 / len(fake))))
    value, expected = (float(np.mean(some)) if some else 0.0 for some in (distances, chance))
    return Estimate(value=value, details={"groups": groups, "expected": expected})
