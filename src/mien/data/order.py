"""Order out of numbers: random bits and permutations as pure functions.

Our own 64-bit hash, not numpy's or torch's generators: those promise no stable stream from one version to the next, and a run must be
able to go on after an upgrade.
"""

import numpy as np


def hash64(seed: int, stream: int, counter: np.ndarray) -> np.ndarray:
    """uint64 [n], evenly spread bits for each uint64 counter: two rounds of SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):    # the arithmetic is meant modulo 2^64
        key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        key = _mix(key + np.array([stream & 0xFFFFFFFFFFFFFFFF], np.uint64) * np.uint64(0xD1342543DE82EF95))
        return _mix(_mix(counter.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key) ^ key)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """int64 [count], every number from 0 to count - 1 once, in an order that (seed, epoch) fix."""
    return np.argsort(hash64(seed, 2 * epoch, np.arange(count)), kind="stable")
