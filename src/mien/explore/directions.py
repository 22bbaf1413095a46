"""Directions of the latent space that change one thing: probes by a judge, principal components, the first layer's weight, mean latents.

All have length 1 and are for z ~ N(0, I): strength 1 is one standard deviation of the latents along them. Every sample is drawn with
conditions as in training, and what the condition explains is taken out first, so that a direction says what z does *given* the condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mien.errors import UserError, did_you_mean
from mien.explore.activations import layer_names, record
from mien.explore.edit_effects import Judge, look, population
from mien.explore.load import LoadedGenerator
from mien.explore.sample import generate

LEAST = 20  # faces that must have an attribute, and as many that must not, before a probe is fitted
SAME = 0.1  # of a direction's length: less than this left after orthogonalising, and the directions are the same
LOGISTIC_C = 0.3  # probabilities say enough: on 4,000 faces of 100 numbers, less than 0.03 ranks new faces worse, more changes nothing
SVM_C = 0.003  # answers say less: above it rare attributes are ranked worse
CHUNK = 512


@dataclass(frozen=True)
class Sample:
    """N faces drawn as in training and how they are judged: z [N, Z], attributes [N, A], probabilities [N, J]; names: of the J."""

    z: np.ndarray
    attributes: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """A direction as fitted. vector: float64 [Z], length 1.

    auc         how well it ranks, on faces it was not fitted on, those with the attribute above those of the same condition without; 0.5 is
                chance. None for methods that look at no attribute
    agreement   cosine between the directions from either half of the sample: near 1, a larger sample would give the same
    explained   share of the variance along it, of methods that have one
    """

    vector: np.ndarray
    auc: float | None = None
    agreement: float | None = None
    explained: float | None = None


def judged_sample(generator: LoadedGenerator, judge: Judge, count: int, *, seed: int = 0,
                  progress: Callable[[int], None] | None = None) -> Sample:
    """Draws and judges faces seed, seed + 1, ...; `progress` is told how many more are done."""
    z, attributes = population(generator, count, seed=seed)
    parts = []
    for some in zip(z.split(CHUNK), attributes.split(CHUNK)):
        parts.append(look(generate(generator, *some), judge).probabilities)
        if progress:
            progress(len(parts[-1]))
    return Sample(z.numpy().astype(np.float64), attributes.numpy().astype(np.float64), np.concatenate(parts), judge.attribute_names)


# ------------------------------------------------------------------------------------------------------------------------------
# By the judge


def probe(sample: Sample, attribute: str, *, kind: str = "probe") -> Fit:
    """The direction in which a linear classifier finds an attribute in z, given the condition. Raises UserError when it is too rare.

    kind "probe": logistic regression on the judge's probabilities; "svm": a linear support vector machine on its answers (InterFaceGAN,
    Shen et al. 2020, arXiv:2005.09635, section 3); "arithmetic": the mean latent of faces with the attribute minus that of faces without,
    under each condition (the vector arithmetic of Radford et al. 2016, section 6.3.2). Conditions are covariates of the classifiers: they
    explain what they can.
    """
    labels = sample.probabilities[:, _column(sample, attribute)]
    fewest = int(min((labels >= 0.5).sum(), (labels < 0.5).sum()))
    if fewest < LEAST:
        raise UserError(f"Only {fewest} of {len(labels):,} faces are judged {'without' if labels.mean() > 0.5 else 'with'} {attribute}: "
                        "no direction can be learned from so few. Raise --count, or leave it out.")  # fmt: skip
    fit = FITS[kind]
    halves = [slice(0, None, 2), slice(1, None, 2)]
    first, second = (fit(sample.z[half], sample.attributes[half], labels[half]) for half in halves)
    aucs = [_auc_within(sample.z[half] @ vector, sample.attributes[half], labels[half])
            for vector, half in zip((first, second), reversed(halves))]  # fmt: skip
    known = [auc for auc in aucs if auc is not None]
    return Fit(fit(sample.z, sample.attributes, labels), auc=float(np.mean(known)) if known else None, agreement=float(first @ second))


def _column(sample: Sample, attribute: str) -> int:
    if attribute not in sample.names:
        raise UserError(f"The judge knows no attribute {attribute!r}.{did_you_mean(attribute, sample.names)}")
    return sample.names.index(attribute)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _logistic(z: np.ndarray, attributes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Every face counts as having the attribute by its probability p, and as not having it by 1 - p: cross-entropy to the judge."""
    from sklearn.linear_model import LogisticRegression

    design = np.concatenate([z, 2 * attributes - 1], axis=1)
    labels = np.repeat([1, 0], len(z))
    weights = np.concatenate([probabilities, 1 - probabilities])
    model = LogisticRegression(C=LOGISTIC_C, max_iter=1000).fit(np.concatenate([design, design]), labels, weights)
    return _unit(model.coef_[0, : z.shape[1]])


def _svm(z: np.ndarray, attributes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Both answers weigh the same, however rare."""
    from sklearn.svm import LinearSVC

    design = np.concatenate([z, 2 * attributes - 1], axis=1)
    model = LinearSVC(C=SVM_C, class_weight="balanced", random_state=0).fit(design, probabilities >= 0.5)
    return _unit(model.coef_[0, : z.shape[1]])


def _mean_difference(z: np.ndarray, attributes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Differences within each condition, weighted by what they tell (with a and b faces: a b / (a + b))."""
    total = np.zeros(z.shape[1])
    for rows in _cells(attributes):
        has = probabilities[rows] >= 0.5
        if has.any() and not has.all():
            total += len(rows) * has.mean() * (1 - has.mean()) * (z[rows][has].mean(axis=0) - z[rows][~has].mean(axis=0))
    return _unit(total)


Fitting = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # z, attributes, probabilities of one attribute -> vector
FITS: dict[str, Fitting] = {"probe": _logistic, "svm": _svm, "arithmetic": _mean_difference}


def _cells(attributes: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each combination of conditions."""
    _, cell = np.unique(attributes, axis=0, return_inverse=True)
    return [np.flatnonzero(cell.ravel() == i) for i in range(cell.max() + 1)]


def _auc_within(scores: np.ndarray, attributes: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Share of pairs of the same condition, one judged with the attribute and one without, that the scores put in order."""
    from sklearn.metrics import roc_auc_score

    right = pairs = 0.0
    for rows in _cells(attributes):
        has = probabilities[rows] >= 0.5
        weight = float(has.sum()) * float((~has).sum())
        if weight:
            right, pairs = right + weight * roc_auc_score(has, scores[rows]), pairs + weight
    return right / pairs if pairs else None


def orthogonal(vector: np.ndarray, others: Sequence[np.ndarray], *, name: str = "The direction") -> np.ndarray:
    """`vector` [Z] less its part in the span of `others`, length 1 (conditional manipulation: Shen et al. 2020, section 3.3).

    Raises UserError when less than a tenth of its length is left: then it is a mixture of the others.
    """
    if not others:
        return _unit(vector)
    basis, _ = np.linalg.qr(np.stack(others, axis=1))  # [Z, K]
    left = _unit(vector) - basis @ (basis.T @ _unit(vector))
    if np.linalg.norm(left) < SAME:
        raise UserError(f"{name} is the same direction as what it should be independent of: nothing would be left.")
    return _unit(left)


def mean_inputs(sample: Sample, where: dict[str, int]) -> tuple[np.ndarray, np.ndarray, int]:
    """(mean z [Z], mean attributes [A], how many) of the faces judged as `where` says, e.g. {'Smiling': 1, 'Male': 0}.

    Raises UserError when fewer than LEAST are.
    """
    chosen = np.ones(len(sample.z), dtype=bool)
    for name, value in where.items():
        chosen &= (sample.probabilities[:, _column(sample, name)] >= 0.5) == bool(value)
    if chosen.sum() < LEAST:
        told = ", ".join(f"{name}={value}" for name, value in where.items())
        raise UserError(f"Only {chosen.sum()} of {len(chosen):,} faces are judged {told}: raise --count, or ask for less.")
    return sample.z[chosen].mean(axis=0), sample.attributes[chosen].mean(axis=0), int(chosen.sum())


# ------------------------------------------------------------------------------------------------------------------------------
# By the generator alone


def principal_directions(generator: LoadedGenerator, count: int, *, faces: int = 4000, seed: int = 0) -> list[Fit]:
    """GANSpace (Härkönen et al. 2020, arXiv:2004.02546, section 2.2), first `count`: principal components of the first layer's
    activations, carried back to z by least squares of z on their coordinates, the condition regressed out before.
    """
    from sklearn.decomposition import PCA

    layer = layer_names(generator.net)[0]
    z, attributes = population(generator, faces, seed=seed)
    parts = []
    for some in zip(z.split(CHUNK), attributes.split(CHUNK)):
        with record(generator.net, [layer]) as seen:
            generate(generator, *some, batch=len(some[0]))
        parts.append(seen[layer].flatten(1).float().cpu())
    activations = _without_condition(torch.cat(parts).numpy(), attributes.numpy())
    most = min(*activations.shape, generator.z_dim)
    pca = PCA(min(count, most), svd_solver="randomized", random_state=0)
    coordinates = pca.fit_transform(activations)  # [N, K], uncorrelated
    carried = z.numpy().astype(np.float64).T @ (coordinates / (coordinates**2).sum(axis=0))  # [Z, K]
    return [Fit(_unit(vector), explained=float(share)) for vector, share in zip(carried.T, pca.explained_variance_ratio_)]


def _without_condition(values: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """values [N, D] less their mean under each condition."""
    values = values.copy()
    for rows in _cells(attributes):
        values[rows] -= values[rows].mean(axis=0)
    return values


def sefa_directions(generator: LoadedGenerator, count: int) -> list[Fit]:
    """SeFa (Shen & Zhou 2021, arXiv:2007.06600, equation 4), the first `count`: eigenvectors of A'A, A the weight that z first meets.

    The columns that the condition meets are no part of A. A batch norm that follows is folded in: it is what passes through it that moves
    the face. Signs are chosen so that the largest number is positive. Raises UserError for a network whose latent meets no such weight.
    """
    weight = latent_weight(generator)
    _, singular, rows = np.linalg.svd(weight, full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return [Fit(_unit(row * sign), explained=float(share)) for row, sign, share in zip(rows[:count], signs, shares)]


def latent_weight(generator: LoadedGenerator) -> np.ndarray:
    """float64 [outputs, Z]: the linear map that z goes through first, the batch norm right after it folded in.

    Of a conditional batch norm the part that every condition shares is folded in: the condition's own gain is left out.
    """
    z, attributes = population(generator, 2, seed=0)
    calls: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((module, inputs[0]))

    norms = [module for module in generator.net.modules() if isinstance(module, nn.BatchNorm2d)]
    inside = {child for norm in norms for child in norm.modules() if child is not norm}  # a conditional norm's gain and shift
    steps = [module for module in generator.net.modules() if module not in inside and (module in norms or not list(module.children()))]
    hooks = [module.register_forward_hook(keep) for module in steps]
    try:
        generate(generator, z, attributes, batch=2)
    finally:
        for hook in hooks:
            hook.remove()
    first, seen = calls[0]
    seen = seen.flatten(1).cpu()
    if not isinstance(first, nn.Linear | nn.ConvTranspose2d) or not torch.equal(seen[:, : generator.z_dim], z):
        raise UserError("SeFa needs a generator whose latent goes straight into a weight; this one's does not. Use --method pca.")
    weight = first.weight.detach() if isinstance(first, nn.Linear) else first.weight.detach().flatten(1).T  # [outputs, Z + A]
    after = calls[1][0] if len(calls) > 1 else None
    if isinstance(after, nn.BatchNorm2d) and after.running_var is not None:
        scale = (after.running_var + after.eps).rsqrt() * (after.weight if after.affine else 1)
        weight = weight * scale.detach().repeat_interleave(len(weight) // len(scale))[:, None]
    return weight[:, : generator.z_dim].double().cpu().numpy()
