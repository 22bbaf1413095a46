"""Does asking for an attribute give it, and only it? Each attribute is asked for at 0 and at 1 with the same latents, and a judge looks.

The effect of A on B is how much the judged probability of B moves when A goes from 0 to 1 and all other conditions stay. What the data
explain of it is how much B differs between real faces with and without A, under the same law of the other conditions, by the same judge (so
the judge's own confusions are in it too). Leakage is what the effect goes beyond, signed: 0 wherever the effect lies between none, as in a
model that moves A alone, and what the data explain, as in one that draws faces like theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mien.combinations import combination_name
from mien.errors import UserError
from mien.intervals import Z95, wilson
from mien.metrics.face_sets import SEED_STRIDE, combinations_of
from mien.metrics.protocol import Estimate

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

Look = Callable[["LoadedGenerator", "Judge", torch.Tensor, np.ndarray], tuple[np.ndarray, np.ndarray]]
NOTABLE = 0.05  # a leak is named when it is surely not 0 and at least this large
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP_FACES = 128
RENDERS = 20_000  # about so many images are made in all, whatever the number of attributes
RARE_SHARE = 0.01
MOST_RARE = 16


@dataclass(frozen=True)
class Answers:
    """What the judge saw. n latents, A asked attributes, J judged ones.

    which: columns of conditions that were asked for (A of them). off, on: probabilities [A, n, J] with each at 0 and at 1. base: [n, J]
    under the conditions [n, C] as they are, the law asked under. moved: [A, n] feature distance between the two faces of a latent.
    apart: mean feature distance between faces of different latents.
    """

    which: tuple[int, ...]
    base: np.ndarray
    off: np.ndarray
    on: np.ndarray
    moved: np.ndarray
    apart: float
    conditions: np.ndarray


def ask(generator: LoadedGenerator, judge: Judge, conditions: np.ndarray, which: Sequence[int], *, seed: int = 0,
        truncation: float = 1.0, see: Look | None = None) -> Answers:
    """Render every latent with each of the columns `which` of conditions [n, C] set to 0 and to 1, and judge: (A + 1) x n images.

    see: in the place of `look`, here and below. Raises UserError for fewer than 2 latents: the spread over them makes the intervals.
    """
    if len(conditions) < 2:
        raise UserError(f"Control needs at least 2 faces to ask with; there is {len(conditions)}. Raise --count.")
    see = see or look
    generator, z = asked_latents(generator, len(conditions), seed, truncation)
    base, base_features = see(generator, judge, z, conditions)
    off, on, moved = [], [], []
    for column in which:
        turned = conditions.copy()
        turned[:, column] = 1 - turned[:, column]
        other, other_features = see(generator, judge, z, turned)
        was_on = conditions[:, column, None] == 1
        off.append(np.where(was_on, other, base))
        on.append(np.where(was_on, base, other))
        moved.append(np.linalg.norm(other_features - base_features, axis=1))
    apart = np.linalg.norm(base_features - np.roll(base_features, 1, axis=0), axis=1).mean()
    return Answers(tuple(which), base, np.stack(off), np.stack(on), np.stack(moved), float(apart), conditions)


def asked_latents(generator: LoadedGenerator, count: int, seed: int, truncation: float) -> tuple[LoadedGenerator, torch.Tensor]:
    """The first `count` latents of `seed`, and the generator, truncated."""
    from mien.explore.latents import latents, truncated

    return truncated(generator, latents(range(seed * SEED_STRIDE, seed * SEED_STRIDE + count), generator.z_dim), truncation)


def look(generator: LoadedGenerator, judge: Judge, z: torch.Tensor, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [n, J], features [n, F]) of the faces of z under conditions."""
    from mien.explore.sample import render

    images = render(generator, z, torch.from_numpy(conditions.astype(np.float32)))
    features, probabilities = judge.features_and_probabilities(images)
    return probabilities.astype(np.float64), features.astype(np.float64)


def data_effect(*, probabilities: np.ndarray, attributes: np.ndarray, column: int, law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How judged probabilities [M, J] of reals differ with attribute `column` of attributes [M, A], the others following law [n, A].

    (effect [J], standard error [J]). Regression with all interactions with A, the others centred at the law's mean (Lin 2013,
    arXiv:1208.2301, section 3): with one other binary attribute this is exactly the difference within its strata, averaged over the law.
    Errors are heteroscedasticity-robust. Zeros when no real, or every real, has the attribute.
    """
    a = attributes[:, column].astype(np.float64)
    others = np.delete(attributes, column, axis=1) - np.delete(law, column, axis=1).mean(axis=0)
    if a.min() == a.max():
        return np.zeros(probabilities.shape[1]), np.zeros(probabilities.shape[1])
    design = np.column_stack([a, np.ones_like(a), others, a[:, None] * others])
    inverse = np.linalg.pinv(design)                                            # [D, M]
    residuals = probabilities - design @ (inverse @ probabilities)              # [M, J]
    return inverse[0] @ probabilities, np.sqrt((inverse[0] ** 2) @ residuals**2)


def control_scores(answers: Answers, *, asked: Sequence[str], judged: Sequence[str], real_probabilities: np.ndarray,
                   real_attributes: np.ndarray) -> dict[str, tuple[Estimate, float | None]]:
    """{'control', 'leakage', 'identity': (Estimate, what real images get)}.

    asked: names of the A conditions asked for, all among `judged`, the judge's J names. real_*: [M, J] and [M, C] of held-out reals.
    control: mean over attributes of the share judged as asked, 0 and 1 alike; reals get the judge's own balanced accuracy.
    leakage: mean |leakage| over all pairs; a model without any gets the second number, from the noise of both samples alone. The matrix in
    details['leakage'], asked by judged, holds the whole effect where an attribute meets itself (1 is perfect control).
    identity: distance between the two faces of a latent over that between two latents: 0 is the same face, 1 another person.
    """
    columns = [list(judged).index(name) for name in asked]
    return {"control": _accuracy(answers, asked, columns, real_probabilities, real_attributes),
            "leakage": _leakage(answers, asked, judged, columns, real_probabilities, real_attributes),
            "identity": (_identity(answers, asked), None)}


def _accuracy(answers: Answers, asked: Sequence[str], columns: list[int], real_probabilities: np.ndarray,
              real_attributes: np.ndarray) -> tuple[Estimate, float]:
    per_latent = np.stack([((answers.on[i, :, c] >= 0.5).astype(float) + (answers.off[i, :, c] < 0.5)) / 2
                           for i, c in enumerate(columns)])                     # [A, n]
    ceilings = [balanced_accuracy(real_probabilities[:, c], real_attributes[:, i]) for i, c in zip(answers.which, columns)]
    attributes: dict[str, Any] = {}
    for i, (name, c) in enumerate(zip(asked, columns)):
        mean, low, high = _mean_and_interval(per_latent[i])
        given_1, given_0 = int((answers.on[i, :, c] >= 0.5).sum()), int((answers.off[i, :, c] >= 0.5).sum())
        n = answers.on.shape[1]
        attributes[name] = {"accuracy": mean, "low": low, "high": high, "asked_1": given_1 / n,
                            "asked_0": 1 - given_0 / n, "reals": ceilings[i],
                            "confusion": {"asked 0": [n - given_0, given_0], "asked 1": [n - given_1, given_1]}}
    mean, low, high = _mean_and_interval(per_latent.mean(axis=0))
    reals = [ceiling for ceiling in ceilings if ceiling is not None]
    estimate = Estimate(value=mean, low=low, high=high, interval="95 %, over latents",
                        details={"attributes": list(asked), "accuracy": {name: row["accuracy"] for name, row in attributes.items()},
                                 "ceiling": dict(zip(asked, ceilings)), "per_attribute": attributes, "latents": answers.on.shape[1]})
    return estimate, float(np.mean(reals)) if reals else 0.5


def balanced_accuracy(probability: np.ndarray, truth: np.ndarray) -> float | None:
    """Mean of the shares judged right among those with the attribute and among those without; None when one kind is missing."""
    said, has = probability >= 0.5, truth == 1
    if has.all() or not has.any():
        return None
    return float((said[has].mean() + (~said[~has]).mean()) / 2)


def _leakage(answers: Answers, asked: Sequence[str], judged: Sequence[str], columns: list[int], real_probabilities: np.ndarray,
             real_attributes: np.ndarray) -> tuple[Estimate, float]:
    change = answers.on - answers.off                                           # [A, n, J]
    count = change.shape[1]
    effect, error = change.mean(axis=1), change.std(axis=1, ddof=1) / count**0.5
    pairs = [data_effect(probabilities=real_probabilities, attributes=real_attributes, column=i, law=answers.conditions)
             for i in answers.which]
    explained, explained_error = np.stack([e for e, _ in pairs]), np.stack([s for _, s in pairs])
    leakage, leakage_error = beyond(effect, explained), np.hypot(error, explained_error)    # [A, J]
    off_diagonal = np.ones_like(leakage, dtype=bool)
    off_diagonal[np.arange(len(asked)), columns] = False
    value = float(np.abs(leakage[off_diagonal]).mean())
    half = Z95 * _jackknife_error(change, explained, off_diagonal)
    noise = _noise(explained[off_diagonal], error[off_diagonal], explained_error[off_diagonal])
    matrix = np.where(off_diagonal, leakage, effect)
    details = {"attributes": list(asked), "judged": list(judged), "leakage": _rounded(matrix), "standard_error": _rounded(leakage_error),
               "effect": _rounded(effect), "explained_by_data": _rounded(explained),
               "leaks": _named_leaks(asked, judged, leakage, leakage_error, effect, explained, off_diagonal)}
    interval = "95 %, jackknife over latents"
    return Estimate(value=value, low=max(0.0, value - half), high=value + half, interval=interval, details=details), noise


def beyond(effect: np.ndarray, explained: np.ndarray) -> np.ndarray:
    """The signed distance from each effect to the span between 0 and what is explained: 0 inside it."""
    return effect - np.clip(effect, np.minimum(explained, 0), np.maximum(explained, 0))


def _noise(explained: np.ndarray, error: np.ndarray, explained_error: np.ndarray, draws: int = 200) -> float:
    """The mean |leakage| that a model whose effects are exactly the data's would get at these standard errors."""
    draw = np.random.default_rng(0)
    effects = explained + error * draw.standard_normal((draws, len(explained)))
    return float(np.abs(beyond(effects, explained + explained_error * draw.standard_normal((draws, len(explained))))).mean())


def _named_leaks(asked: Sequence[str], judged: Sequence[str], leakage: np.ndarray, error: np.ndarray, effect: np.ndarray,
                 explained: np.ndarray, off_diagonal: np.ndarray) -> list[dict[str, Any]]:
    """Pairs whose leakage is notable and surely not 0 (5 % over all pairs, Bonferroni), the largest first."""
    sure = NormalDist().inv_cdf(1 - 0.025 / max(1, int(off_diagonal.sum())))
    found = [(i, j) for i, j in zip(*np.nonzero(off_diagonal)) if abs(leakage[i, j]) >= max(NOTABLE, sure * error[i, j])]
    found.sort(key=lambda pair: -abs(leakage[pair]))
    return [{"asked": asked[i], "judged": judged[j], "leakage": float(leakage[i, j]), "low": float(leakage[i, j] - Z95 * error[i, j]),
             "high": float(leakage[i, j] + Z95 * error[i, j]), "effect": float(effect[i, j]), "explained": float(explained[i, j])}
            for i, j in found]


def _jackknife_error(change: np.ndarray, explained: np.ndarray, off_diagonal: np.ndarray, groups: int = 10) -> float:
    """Standard error of the mean |leakage| from the latents, by leaving out each tenth of them."""
    group = np.arange(change.shape[1]) % groups
    left = np.array([np.abs(beyond(change[:, group != g].mean(axis=1), explained)[off_diagonal]).mean() for g in range(groups)])
    return float(np.sqrt((groups - 1) / groups * ((left - left.mean()) ** 2).sum()))


def _identity(answers: Answers, asked: Sequence[str]) -> Estimate:
    relative = answers.moved / max(answers.apart, 1e-12)                        # [A, n]
    mean, half = _mean_and_half(relative.mean(axis=0))
    details = {"per_attribute": {name: float(row.mean()) for name, row in zip(asked, relative)}}
    return Estimate(value=mean, low=max(0.0, mean - half), high=mean + half, interval="95 %, over latents", details=details)


def label_accuracy(*, probabilities: np.ndarray, attributes: np.ndarray, asked: Sequence[str], judged: Sequence[str]) -> Estimate:
    """For pictures that came with labels [N, A] and cannot be asked again: the judge's balanced accuracy on them, mean over attributes.

    Interval: by the linearised jackknife over pictures, whose attributes vary together. For its variance, and only there, one judged
    right and one judged wrong are added to those with an attribute and to those without, or few of a kind would seem all alike
    (Agresti & Caffo 2000, The American Statistician 54:280).
    """
    rows: dict[str, float] = {}
    moves, added = np.zeros(len(probabilities)), 0.0  # what each picture adds to the sum; variance of those added
    for i, name in enumerate(asked):
        probability, has = probabilities[:, list(judged).index(name)], attributes[:, i] == 1
        accuracy = balanced_accuracy(probability, attributes[:, i])
        if accuracy is None:
            continue
        rows[name] = accuracy
        right = (probability >= 0.5) == has
        for kind in (has, ~has):
            count = int(kind.sum()) + 2
            share = (int(right[kind].sum()) + 1) / count
            moves[kind] += (right[kind] - share) / (2 * count)
            added += (share**2 + (1 - share) ** 2) / (2 * count) ** 2
    if not rows:
        raise UserError("The pictures' labels name no attribute that the judge knows and that some have and some have not.")
    value = float(np.mean(list(rows.values())))
    half = Z95 * float(np.sqrt((moves**2).sum() + added)) / len(rows)
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), interval="95 %, jackknife",
                    details={"attributes": list(rows), "accuracy": rows})


def combination_confusion(probabilities: np.ndarray, conditions: np.ndarray, columns: Sequence[int],
                          asked: Sequence[str]) -> dict[str, Any]:
    """{asked combination: {judged combination: share}} of faces judged [n, J] when asked for conditions [n, A]; columns: those of J."""
    said = (probabilities[:, list(columns)] >= 0.5).astype(np.uint8)
    table: dict[str, Any] = {}
    for row, which in combinations_of(conditions.astype(np.uint8)):
        judged = combinations_of(said[which])
        table[combination_name(asked, row)] = {combination_name(asked, r): len(w) / len(which) for r, w in judged}
    return table


def sweep(generator: LoadedGenerator, judge: Judge, conditions: np.ndarray, which: Sequence[int], columns: Sequence[int],
          asked: Sequence[str], *, seed: int = 0, truncation: float = 1.0, see: Look | None = None) -> dict[str, list[list[float]]]:
    """{attribute: [[asked value, mean judged probability], ...]} for values from 0 to 1, the same SWEEP_FACES latents at each."""
    see = see or look
    rows = conditions[:SWEEP_FACES].astype(np.float32)
    generator, z = asked_latents(generator, len(rows), seed, truncation)
    curves: dict[str, list[list[float]]] = {}
    for i, name, column in zip(which, asked, columns):
        curves[name] = []
        for value in SWEEP:
            rows_at = rows.copy()
            rows_at[:, i] = value
            probabilities, _ = see(generator, judge, z, rows_at)
            curves[name].append([value, float(probabilities[:, column].mean())])
    return curves


def rare_combinations(generator: LoadedGenerator, judge: Judge, real_attributes: np.ndarray, which: Sequence[int],
                      columns: Sequence[int], asked: Sequence[str], *, seed: int = 0, truncation: float = 1.0,
                      see: Look | None = None) -> list[dict[str, Any]]:
    """How well combinations are made that under 1 % of the reals have, or none: [{combination, share_of_reals, all_right, each}].

    With up to 6 attributes all such combinations are tried, the rarest first, else random ones; at most MOST_RARE, SWEEP_FACES faces each.
    """
    see, count = see or look, real_attributes.shape[1]
    if count <= 6:
        rows = (np.arange(2**count)[:, None] >> np.arange(count)[::-1]) & 1
    else:
        rows = np.unique(np.random.default_rng(seed).integers(0, 2, (4 * MOST_RARE, count)), axis=0)
    shares = np.array([(real_attributes == row).all(axis=1).mean() for row in rows])
    rare = [i for i in np.argsort(shares, kind="stable") if shares[i] < RARE_SHARE][:MOST_RARE]
    generator, z = asked_latents(generator, SWEEP_FACES, seed, truncation)
    found = []
    for i in rare:
        probabilities, _ = see(generator, judge, z, np.tile(rows[i], (SWEEP_FACES, 1)))
        right = (probabilities[:, list(columns)] >= 0.5) == (rows[i][list(which)] == 1)
        found.append({"combination": combination_name(generator.attribute_names, rows[i]), "share_of_reals": float(shares[i]),
                      "all_right": float(right.all(axis=1).mean()), "each": {n: float(v) for n, v in zip(asked, right.mean(axis=0))}})
    return found


def latents_for(attributes: int, wanted: int) -> int:
    """How many latents to ask with, so that many attributes do not make hours of it."""
    return min(wanted, max(SWEEP_FACES, RENDERS // (attributes + 1)))


def _mean_and_half(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), Z95 * float(values.std(ddof=1)) / len(values) ** 0.5


def _mean_and_interval(shares: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of shares in 0..1. Where all are alike, others are as rare as Wilson's interval of none in so many."""
    mean, half = _mean_and_half(shares)
    if shares.min() == shares.max():
        _, rare = wilson(0, len(shares))
        return mean, mean * (1 - rare), mean + rare * (1 - mean)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _rounded(matrix: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in matrix]
