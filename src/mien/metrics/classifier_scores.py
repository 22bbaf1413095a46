"""What the classifier is worth on images it was not trained on: by attribute, by group, and how far its probabilities can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mien.intervals import wilson
from mien.metrics.calibration import calibration_error, calibration_floor, cross_fitted, reliability, sigmoid

GROUPS = (("Male", "Young"), ("women, young", (0, 1)), ("women, not young", (0, 0)), ("men, young", (1, 1)), ("men, not young", (1, 0)))


def ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [A] (Mann-Whitney U, ties counted half); NaN for an attribute with one value only."""
    from scipy.stats import rankdata

    ones = labels.sum(axis=0)
    zeros = len(labels) - ones
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((rankdata(logits, axis=0) * labels).sum(axis=0) - ones * (ones + 1) / 2) / (ones * zeros)


def validation_scores(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Scores of raw logits [N, A] against labels [N, A], as plain data.

    `accuracy` answers 1 where the logit is above 0: no threshold was fitted. `majority` is the accuracy of always giving the commoner
    answer, `balanced` the mean of the accuracies on ones and on zeros. `ece_raw`: of sigmoid(logit). `ece`, `accuracy_calibrated`: of
    five-fold cross-fitted probabilities. `ece_floor`: what perfectly calibrated probabilities would show on as many images.
    """
    labels = labels.astype(np.float64)
    share = labels.mean(axis=0)
    right = (logits > 0) == (labels > 0.5)
    ones = labels.sum(axis=0)
    calibrated = cross_fitted(logits, labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        balanced = ((right * labels).sum(axis=0) / ones + (right * (1 - labels)).sum(axis=0) / (len(labels) - ones)) / 2
    columns = {
        "share": share, "majority": np.maximum(share, 1 - share), "accuracy": right.mean(axis=0), "balanced": balanced,
        "auc": ranking(logits, labels), "accuracy_calibrated": ((calibrated > 0.5) == (labels > 0.5)).mean(axis=0),
        "ece_raw": calibration_error(sigmoid(logits), labels), "ece": calibration_error(calibrated, labels),
        "ece_floor": calibration_floor(calibrated),
    }
    mean = {column: plain(np.nanmean(values)) for column, values in columns.items()}
    attributes = {name: {column: plain(values[i]) for column, values in columns.items()} for i, name in enumerate(names)}
    return {"count": len(labels), "mean": mean, "attributes": attributes, "groups": group_scores(right, calibrated, labels, names)}


def plain(value: float) -> float | None:
    """Four decimals; None for what cannot be told (JSON has no NaN)."""
    return None if np.isnan(value) else round(float(value), 4)


def group_scores(right: np.ndarray, calibrated: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy and calibration error, and accuracy of the watched attributes, in each group of Male x Young (by their labels)."""
    (first, second), *groups = GROUPS
    if first not in names or second not in names:
        return {}
    place = {name: i for i, name in enumerate(names)}
    scores: dict[str, Any] = {}
    for name, (male, young) in groups:
        inside = (labels[:, place[first]] == male) & (labels[:, place[second]] == young)
        if not inside.any():
            continue
        scores[name] = {"count": int(inside.sum()), "accuracy": plain(right[inside].mean()),
                        "ece": plain(calibration_error(calibrated[inside], labels[inside]).mean()),
                        "ece_floor": plain(calibration_floor(calibrated[inside]).mean()),
                        **{watched: plain(right[inside, place[watched]].mean())
                           for watched in ("Male", "Young", "Smiling", "Eyeglasses", "Attractive", "Heavy_Makeup") if watched in place}}
    return scores


def reliability_figure(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A PNG of reliability: all attributes pooled, before and after cross-fitted calibration, and eight attributes on their own.

    Bins with under five images are left out; bars are 95% intervals.
    """
    from matplotlib.figure import Figure

    before, after = sigmoid(logits), cross_fitted(logits, labels)
    shown = [name for name in ("Male", "Smiling", "Eyeglasses", "Young", "Attractive", "Big_Nose", "Wavy_Hair", "Blurry") if name in names]
    panels = [("all attributes", list(range(len(names)))), *((name, [list(names).index(name)]) for name in shown)]
    figure = Figure(figsize=(11, 2.6 * -(-len(panels) // 3)), layout="constrained")
    for number, (title, columns) in enumerate(panels, start=1):
        axes = figure.add_subplot(-(-len(panels) // 3), 3, number)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, probabilities, colour, marker in (("before", before, "C1", "x"), ("after", after, "C0", "o")):
            count, mean, share = reliability(probabilities[:, columns].reshape(-1, 1), labels[:, columns].reshape(-1, 1), bins=10)
            filled = count[0] >= 5
            ends = np.transpose([wilson(*bin_) for bin_ in zip(share[0, filled], count[0, filled])])
            spread = np.abs(ends - share[0, filled])
            axes.errorbar(mean[0, filled], share[0, filled], yerr=spread, label=name, color=colour, marker=marker, linewidth=1,
                          markersize=4, capsize=2)
        axes.set(title=title, xlim=(0, 1), ylim=(0, 1))
        axes.set_xlabel("probability given")
        axes.set_ylabel("share of ones")
        if number == 1:
            axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=90)
