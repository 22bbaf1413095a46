"""How unlike a face a picture is: what a generator of faces cannot redraw, and what a judge of faces finds strange.

AnoGAN (Schlegl et al. 2017, arXiv:1703.05921) searches the latent that redraws a picture and adds up the residual of pixels and
the distance in features; f-AnoGAN (Schlegl et al. 2019) starts from an encoder. Here an encoder starts, a few steps for all pictures
together follow, and five measures are each set against held-out faces:

    residual     pixels of the picture against the redrawn one, over three scales
    worst place  the largest residual of a cell of the picture, as a multiple of what held-out faces have in that cell
    feature gap  cosine distance in face features between the picture and the redrawn one
    strangeness  how far its face features lie from those of faces (Mahalanobis, as in Lee et al. 2018, arXiv:1807.03888)
    layout       how far the judge's 16x16 map is from those of faces, place by place (as Defard et al. 2020, arXiv:2011.08785, with a
                 diagonal covariance): aligned faces have their parts in known places

A measure's logarithm becomes a z value of held-out faces; the score joins them (see `Calibration.scores`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mien.explore.encoder import Encoder
from mien.explore.invert import FaceFeatures, Objective, draw, optimise
from mien.explore.load import LoadedGenerator
from mien.models.classifier import INPUT_PX, FaceClassifier, resized
from mien.models.pictures import to_float, to_uint8

MEASURES = ("residual", "worst_place", "feature_gap", "strangeness", "layout")
STEPS = 20
CELLS = 16  # the picture's side in cells, and that of the map whose layout is looked at
SMALLEST = 64  # faces a calibration needs: half of them for the features' spread, half for the z values


@dataclass(frozen=True)
class Redrawn:
    """Pictures beside what the generator makes of them.

    images: uint8 [N, 3, R, R], as redrawn. cells: squared residual [N, CELLS, CELLS], -1..1 units. residual, feature_gap: [N].
    features: of the pictures, [N, F]. maps: of the pictures, half precision [N, C, CELLS, CELLS].
    """

    images: Tensor
    cells: Tensor
    residual: Tensor
    feature_gap: Tensor
    features: Tensor
    maps: Tensor


def redraw(
    generator: LoadedGenerator,
    encoder: Encoder,
    classifier: FaceClassifier,
    images: Tensor,
    *,
    steps: int = STEPS,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> Redrawn:
    """images uint8 [N, 3, R, R] of the generator's size, cropped as its training faces. on_batch(n): after each n pictures.

    A picture's numbers do not depend on its neighbours (but for the last bits: kernels are chosen by the batch's size).
    """
    eye = FaceFeatures(classifier)
    parts: list[tuple[Tensor, ...]] = []
    for part in images.split(batch):
        pixels = to_float(part.to(generator.device))
        objective = Objective(pixels, None)  # pixels only: cheap, and the features stay an independent witness
        z, attributes = encoder.encode(pixels)
        z, attributes, _ = optimise(generator.net, objective, z, attributes, steps=steps, lr=0.1, free_condition=True)
        drawn = to_uint8(draw(generator, z, attributes))
        again = to_float(drawn)
        cells = F.adaptive_avg_pool2d((again - pixels).square().mean(1), CELLS)
        seen, redrawn = eye.final(pixels), eye.final(again)
        gap = 1 - F.cosine_similarity(seen, redrawn)
        maps = middle_map(classifier, pixels).half()
        parts.append(tuple(each.cpu() for each in (drawn, cells, objective(again), gap, seen, maps)))
        if on_batch is not None:
            on_batch(len(part))
    return Redrawn(*(torch.cat(each) for each in zip(*parts)))


@torch.no_grad()
def middle_map(classifier: FaceClassifier, images: Tensor) -> Tensor:
    """images float [N, 3, R, R] in -1..1 -> the last map of the classifier that is CELLS wide, [N, C, CELLS, CELLS]."""
    maps = classifier.maps(resized(images, INPUT_PX, -1, 1))
    return next(each for each in reversed(maps) if each.shape[-1] >= CELLS)


@dataclass(frozen=True)
class Calibration:
    """What held-out faces give.

    cells [CELLS, CELLS]: mean residual; mean [F], whiten [F, F]: of their features; map_mean, map_spread [C, CELLS, CELLS]: of their maps;
    centre, spread [5]: of the measures' logarithms; sorted_scores [M]: of faces, rising.
    """

    cells: Tensor
    mean: Tensor
    whiten: Tensor
    map_mean: Tensor
    map_spread: Tensor
    centre: Tensor
    spread: Tensor
    sorted_scores: Tensor

    def measures(self, redrawn: Redrawn) -> Tensor:
        """[N, 5] in the order of MEASURES, above 0."""
        strange = ((redrawn.features - self.mean) @ self.whiten).norm(dim=1) / self.mean.numel() ** 0.5
        worst = (redrawn.cells / self.cells).flatten(1).amax(1)
        layout = ((redrawn.maps.float() - self.map_mean) / self.map_spread).square().mean((1, 2, 3))
        return torch.stack([redrawn.residual, worst, redrawn.feature_gap, strange, layout], dim=1).clamp(min=1e-6)

    def z_values(self, redrawn: Redrawn) -> Tensor:
        """[N, 5]: by how many standard deviations of held-out faces the logarithm of each measure is above their mean."""
        return (self.measures(redrawn).log() - self.centre) / self.spread

    def scores(self, redrawn: Redrawn) -> Tensor:
        """[N]: the mean of a picture's two highest z values; under 2 for nearly all faces. Two loud measures are enough, and a quiet one
        (a plain surface is easily redrawn) hides nothing."""
        return self.z_values(redrawn).topk(2, dim=1).values.mean(1)

    def percentiles(self, scores: Tensor) -> Tensor:
        """[N] in 0..100: the share of held-out faces that score lower."""
        return 100 * torch.searchsorted(self.sorted_scores, scores.contiguous()).float() / len(self.sorted_scores)

    def tensors(self) -> dict[str, Tensor]:
        """All there is, to be saved; `Calibration(**tensors)` has it back."""
        return dict(vars(self))


def calibrate(redrawn: Redrawn) -> Calibration:
    """From held-out faces, redrawn as the pictures to score will be. ValueError for fewer than SMALLEST.

    Every second face gives the features' mean and spread and the mean residual, the others the z values and the percentiles: on faces that
    took part in the first, the second would be too small. The features' covariance is shrunk towards a multiple of the identity
    (Ledoit & Wolf 2004), without which a few hundred faces would not do for 256 features.
    """
    if len(redrawn.residual) < SMALLEST:
        raise ValueError(f"a calibration needs {SMALLEST} faces, there are {len(redrawn.residual)}")
    from sklearn.covariance import ledoit_wolf

    first = Redrawn(*(each[::2] for each in vars(redrawn).values()))
    second = Redrawn(*(each[1::2] for each in vars(redrawn).values()))
    mean = first.features.mean(0)
    covariance = torch.from_numpy(ledoit_wolf(first.features.double().numpy())[0])
    values, vectors = torch.linalg.eigh(covariance)
    whiten = (vectors / values.clamp(min=1e-8).sqrt()).float()
    one = torch.ones(len(MEASURES))
    maps = first.maps.float()
    spread = maps.std(0)
    rough = Calibration(first.cells.mean(0).clamp(min=1e-6), mean, whiten, maps.mean(0), spread + 0.1 * spread.mean() + 1e-6,
                        0 * one, one, torch.zeros(1))  # fmt: skip
    logs = rough.measures(second).log()
    fitted = replace(rough, centre=logs.mean(0), spread=logs.std(0).clamp(min=1e-3))
    return replace(fitted, sorted_scores=fitted.scores(second).sort().values)
