"""Probabilities that mean what they say: fitting, cross-fitting and checking, one attribute a column.

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines"): p = sigmoid(scale * logit + bias), two numbers each.
Expected calibration error as in Guo et al. 2017 (arXiv:1706.04599, equation 3), of the probability of 1 rather than of the likelier answer.
"""

import numpy as np

PRIOR_PRECISION = np.array([1.0, 0.01])     # Gaussian prior around scale 1, bias 0: keeps an attribute that hardly occurs from running away
BINS = 15
DRAWS = 20


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def fit_platt(logits: np.ndarray, labels: np.ndarray, *, steps: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias (float64 [A] each) of greatest posterior probability, by damped Newton steps.

    logits: [N, A]. labels: [N, A] in {0, 1}. Raises ValueError when shapes differ or nothing is there.
    """
    if logits.shape != labels.shape or logits.ndim != 2 or not len(logits):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be the same [N, A], N > 0")
    z, y = logits.astype(np.float64), labels.astype(np.float64)
    rows = np.stack([z, np.ones_like(z)], axis=-1)                              # [N, A, 2]
    start = np.array([1.0, 0.0])
    found = np.tile(start, (z.shape[1], 1))                                     # [A, 2]
    for _ in range(steps):
        p = sigmoid(np.einsum("nak,ak->na", rows, found))
        gradient = np.einsum("na,nak->ak", p - y, rows) + PRIOR_PRECISION * (found - start)
        curvature = np.einsum("na,nak,nal->akl", p * (1 - p), rows, rows) + np.diag(PRIOR_PRECISION)
        move = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        found = found - move / np.maximum(1, np.abs(move).max(axis=1, keepdims=True))    # far from the optimum Newton's step overshoots
        if np.abs(move).max() < 1e-9:
            break
    return found[:, 0], found[:, 1]


def cross_fitted(logits: np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Calibrated probabilities [N, A], each from a fit that never saw its image: what calibration is worth on new images."""
    fold = np.random.default_rng(seed).permutation(len(logits)) % folds
    probabilities = np.empty(logits.shape)
    for number in range(folds):
        scale, bias = fit_platt(logits[fold != number], labels[fold != number])
        probabilities[fold == number] = sigmoid(scale * logits[fold == number] + bias)
    return probabilities


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per attribute and equal-width bin of probability: images, mean probability, share of ones ([A, bins] each; NaN in an empty bin)."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    inside = place[:, :, None] == np.arange(bins)                               # [N, A, bins]
    count = inside.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = (inside * probabilities[:, :, None]).sum(axis=0) / count
        share = (inside * labels[:, :, None]).sum(axis=0) / count
    return count, mean, share


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Expected calibration error [A]: the mean distance of a bin's share of ones from its mean probability, weighted by its images."""
    count, mean, share = reliability(probabilities, labels, bins)
    return np.nansum(count * np.abs(mean - share), axis=1) / len(probabilities)


def calibration_floor(probabilities: np.ndarray) -> np.ndarray:
    """The error [A] that perfectly calibrated probabilities would show with this many images, by drawing the labels from them."""
    generator = np.random.default_rng(0)
    drawn = (generator.random(probabilities.shape) < probabilities for _ in range(DRAWS))
    return np.mean([calibration_error(probabilities, labels) for labels in drawn], axis=0)
