"""Sets of faces, and the choice of the best of K candidates for each: fewer failures, and another distribution than the generator's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mien.errors import UserError
from mien.explore.latents import latents, truncated
from mien.explore.load import LoadedGenerator
from mien.explore.sample import attribute_rows, balanced_rows, render

Score = Callable[[Tensor, Tensor], np.ndarray]  # (images uint8 [N, 3, R, R], attributes [N, A]) -> float [N]: more is better
NEIGHBOURS = 3  # of the realism score, as in the paper
CERTAIN = 1e-6  # probabilities are kept this far from 0 and 1, so that one sure attribute does not decide alone
WARNING = "The best of {of} candidates was kept for each face, {by}: the set is no sample of the generator's own distribution."


@dataclass(frozen=True)
class Faces:
    """images uint8 [N, 3, R, R], their attributes float32 [N, A] and their numbers, by which they can be drawn again."""

    images: Tensor
    attributes: Tensor
    numbers: list[int]


def draw_set(generator: LoadedGenerator, places: range, *, seed: int, where: Mapping[str, float], balance: str = "none",
             truncation: float = 1.0, best_of: int = 1, score: Score | None = None) -> Faces:
    """The faces at `places` (0 is the first) of the set that begins with face number `seed`.

    balance: 'none' draws conditions at random, as often as in the training data; 'data' and 'uniform' as `sample.balanced_rows` says.
    best_of K with a `score`: place i has the candidates seed + i K ... seed + i K + K - 1, all with place i's condition, and keeps the one
    with the highest score. A face is a function of its place and these arguments, whatever is drawn beside it.
    """
    if balance == "none":
        rows = attribute_rows(generator, where, len(places), seed + places.start)
    else:
        rows = balanced_rows(generator, where, places, balance=balance)
    numbers = [range(seed + place * best_of, seed + (place + 1) * best_of) for place in places]  # of any size: no array holds them
    generator, z = truncated(generator, latents(chain.from_iterable(numbers), generator.z_dim), truncation)
    candidates = rows.repeat_interleave(best_of, dim=0)
    images = render(generator, z, candidates)
    if best_of == 1 or score is None:
        return Faces(images, rows, [each[0] for each in numbers])
    best = score(images, candidates).reshape(-1, best_of).argmax(axis=1)
    one_each = torch.arange(len(numbers)) * best_of + torch.from_numpy(best)
    return Faces(images[one_each], rows, [each[i] for each, i in zip(numbers, best.tolist())])


# ------------------------------------------------------------------------------------------------------------------------------
# Scores


def by_condition(probabilities: Callable[[Tensor], np.ndarray], *, judged: Sequence[str], asked: Sequence[str]) -> Score:
    """How surely a judge sees what the condition asked for: the mean over attributes of log p(asked), 0 at best.

    probabilities: uint8 [N, 3, R, R] -> [N, J] in 0..1 of the attributes `judged`; `asked` are the generator's. An attribute the judge does
    not know counts nothing; one between 0 and 1 asks for that probability, one beyond for its end. UserError when none is left.
    """
    shared = [(list(judged).index(name), column) for column, name in enumerate(asked) if name in judged]
    if not shared:
        has = f"attributes ({', '.join(asked)}) that the judge does not know" if asked else "no attributes to be judged"
        raise UserError(f"--by judge: this model has {has}; use --by realism with --data.")

    def score(images: Tensor, attributes: Tensor) -> np.ndarray:
        seen = probabilities(images)[:, [place for place, _ in shared]].astype(np.float64).clip(CERTAIN, 1 - CERTAIN)
        wanted = attributes[:, [column for _, column in shared]].double().clamp(0, 1).numpy()
        return (wanted * np.log(seen) + (1 - wanted) * np.log(1 - seen)).mean(axis=1)

    return score


def by_realism(features: Callable[[Tensor], np.ndarray], *, real: np.ndarray, neighbours: int = NEIGHBOURS) -> Score:
    """The realism score of Kynkaanniemi et al. 2019 (arXiv:1904.06991, section 5): the largest, over real images, of the radius of the
    real's neighbourhood (its k-th nearest other real) over the distance to it. 1 and more lies where k-NN balls see reals.

    features: uint8 [N, 3, R, R] -> [N, F]; real: the reals' features [M, F], M > 2 k. The half of the balls that are largest is left out,
    as in the paper: around outliers they hold too much.
    """
    if len(real) <= 2 * neighbours:
        raise UserError(f"--by realism needs more than {2 * neighbours} real images; there are {len(real)}.")
    x = torch.from_numpy(np.asarray(real, dtype=np.float32))
    radii = torch.cat([torch.cdist(part, x).topk(neighbours + 1, largest=False).values[:, -1] for part in x.split(1024)])
    kept = radii <= radii.median()
    centres, radii = x[kept], radii[kept]

    def score(images: Tensor, attributes: Tensor) -> np.ndarray:
        distances = torch.cdist(torch.from_numpy(np.asarray(features(images), dtype=np.float32)), centres)
        return (radii / distances.clamp(min=1e-12)).amax(dim=1).double().numpy()

    return score
