"""95 % intervals, for scores and for what an edit did alike."""

import math

Z95 = 1.959964  # half-width of a 95 % interval, in standard errors


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share seen in `count` images (Wilson 1927)."""
    z2 = Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
