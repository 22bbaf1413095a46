"""Feature spaces: uint8 images [N, 3, R, R] in, float32 [N, F] out, each with a name and the hash of its weights.

`face`, our own classifier, is the default and always there. The others are told apart in every score by name and hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.data.store import file_sha256
from mien.errors import UserError, did_you_mean
from mien.metrics import backbones
from mien.metrics.precision import arithmetic, check_precision
from mien.models.pictures import to_float

BATCH = 64
IN_BF16 = ("face", "pixels", "random")  # the first was shown to give the same scores (docs/benchmarks.md), the others are for tests


@dataclass(frozen=True)
class Extractor:
    """A feature space. Called with uint8 [N, 3, R, R] on any device, it returns float32 [N, F] on the CPU.

    weights_sha256: of the weights file (None: there are no weights). precision: of the convolutions.
    """

    name: str
    weights_sha256: str | None
    device: str
    net: Callable[[Tensor], Tensor | np.ndarray]
    float_net: nn.Module | None = None  # torchvision-inception only: the network torcheval is given, float [N, 3, R, R] in 0..1
    precision: str = "fp32"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"features are made from uint8 images [N, 3, R, R], not {images.dtype} {list(images.shape)}")
        with arithmetic(self.precision, self.device):
            features = self.net(images.to(self.device))
        return torch.as_tensor(features).float().cpu()


def build_extractor(name: str, *, device: str = "cpu", weights: str | Path | None = None, precision: str = "fp32") -> Extractor:
    """The feature space `name`, one of EXTRACTORS. weights: a file in place of the usual one. precision: one of PRECISIONS.

    Raises UserError for what is missing, and for features whose scores bf16 may move.
    """
    check_precision(precision)
    if name not in EXTRACTORS:
        raise UserError(f"No features are named {name}.{did_you_mean(name, EXTRACTORS)} There are: {', '.join(EXTRACTORS)}.")
    if precision != "fp32" and name not in IN_BF16:
        raise UserError(f"The features {name} are extracted in fp32 alone: only for face is it shown that {precision} moves no score. "
                        "Leave out --precision.")
    return replace(EXTRACTORS[name](device, None if weights is None else Path(weights)), precision=precision)


def extract(extractor: Callable[[Tensor], Tensor | np.ndarray], images: Tensor | np.ndarray | Iterable[Tensor], *, batch: int = BATCH,
            progress: Callable[[int], None] | None = None) -> np.ndarray:
    """Features [N, F] float32 of uint8 images [N, 3, R, R], given whole or as an iterable of batches.

    progress is called with the count of images after each batch. Raises UserError when there are none, or the features are not finite.
    """
    parts = []
    for piece in _batches(images, batch):
        parts.append(np.asarray(extractor(piece), dtype=np.float32))
        if progress:
            progress(len(piece))
    if not parts:
        raise UserError("There are no images to measure.")
    features = np.concatenate(parts)
    check_features(features, least=1)
    return features


def _batches(images: Tensor | np.ndarray | Iterable[Tensor], batch: int) -> Iterator[Tensor]:
    if isinstance(images, (Tensor, np.ndarray)):
        for start in range(0, len(images), batch):
            piece = images[start:start + batch]
            yield piece if isinstance(piece, Tensor) else torch.from_numpy(np.ascontiguousarray(piece))
    else:
        yield from images


def check_features(features: np.ndarray, *, least: int = 2) -> np.ndarray:
    """features as float64 [N, F]. Raises UserError when some are NaN or infinite, or there are fewer than `least` rows."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be [N, F], not {list(x.shape)}")
    if len(x) < least:
        raise UserError(f"A score needs at least {least} images on each side; there are {len(x)}.")
    wrong = int((~np.isfinite(x)).any(axis=1).sum())
    if wrong:
        raise UserError(f"The features of {wrong:,} of {len(x):,} images are NaN or infinite: the model that made them has diverged.")
    return x


def _face(device: str, weights: Path | None) -> Extractor:
    from mien.metrics.judge import load_judge

    judge = load_judge(weights, device=device)
    return Extractor("face", judge.weights_sha256, device, judge.features)


def _inception(device: str, weights: Path | None) -> Extractor:
    path = backbones.find_inception(weights)
    net = backbones.inception(path).to(device)
    return Extractor("inception", file_sha256(path), device, lambda images: net(images)[0])


def _inception_768(device: str, weights: Path | None) -> Extractor:
    path = backbones.find_partial_inception(weights)
    net = backbones.InceptionToMixed6e(path).to(device)
    return Extractor("inception-768", file_sha256(path), device, net)


def _torchvision_inception(device: str, weights: Path | None) -> Extractor:
    path = backbones.find_torchvision_inception(weights)
    net = backbones.torchvision_inception(path).to(device)
    return Extractor("torchvision-inception", file_sha256(path), device, lambda images: net(images.float() / 255), net)


def _imagenet(device: str, weights: Path | None) -> Extractor:
    net, path = backbones.efficientnet_lite0(weights)
    return Extractor("imagenet", file_sha256(path), device, net.to(device))


def _pixels(device: str, weights: Path | None) -> Extractor:
    def net(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)  # [N, 3 * 8 * 8]

    return Extractor("pixels", None, device, net)


class RandomNet(nn.Module):
    """Three strided convolutions with weights drawn from a fixed seed; mean and deviation of each last channel. For tests."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(20151205)
        widths = (3, 16, 32, 32)
        self.kernels = nn.ParameterList(
            [nn.Parameter(torch.randn(out, into, 3, 3, generator=draw) * (2 / (9 * into)) ** 0.5, requires_grad=False)
             for into, out in zip(widths, widths[1:])])

    def forward(self, images: Tensor) -> Tensor:
        x = to_float(images)
        for kernel in self.kernels:
            x = F.leaky_relu(F.conv2d(x, kernel, stride=2, padding=1), 0.2)
        x = x.float()
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)  # [N, 64]


def _random(device: str, weights: Path | None) -> Extractor:
    return Extractor("random", None, device, RandomNet().to(device))


EXTRACTORS: dict[str, Callable[[str, Path | None], Extractor]] = {
    "face": _face,
    "inception": _inception,
    "inception-768": _inception_768,
    "torchvision-inception": _torchvision_inception,
    "imagenet": _imagenet,
    "pixels": _pixels,
    "random": _random,
}
