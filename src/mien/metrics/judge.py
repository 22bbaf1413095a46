"""The judge: the attribute classifier with calibrated probabilities. It grades generated faces and gives the `face` features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mien.metrics.calibration import sigmoid
from mien.metrics.precision import arithmetic, check_precision
from mien.models.classifier import FaceClassifier, load_classifier, prepare_images


@dataclass(frozen=True)
class Judge:
    """A classifier in eval mode and what is known of it.

    Images are uint8 [N, 3, R, R], 0..255, R from 32 to 1024, cropped as the training data were (center178 of an aligned CelebA image: the
    whole width); other sizes than 64 px are resized as `models.classifier.prepare_images` says. Quantise generated images first.
    meta: the .json of the weights; `meta["validation"]["attributes"][NAME]["accuracy"]` is what to expect on real images.
    precision: of the convolutions; features, logits and probabilities are fp32 always.
    """

    net: FaceClassifier
    attribute_names: tuple[str, ...]
    weights_sha256: str
    meta: dict[str, Any]
    name: str = "face"
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        return self.net.head.weight.device

    @property
    def feature_size(self) -> int:
        return self.net.feature_size

    def column(self, attribute: str) -> int:
        """Where an attribute stands. ValueError for one it was not trained on."""
        return self.attribute_names.index(attribute)

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 256) -> np.ndarray:
        """float32 [N, F]: what the linear head sees, one number a channel of the last map."""
        check_images(images)
        return torch.cat([self._features(part).cpu() for part in images.split(batch)]).numpy()

    @torch.no_grad()
    def logits(self, images: Tensor, batch: int = 256) -> np.ndarray:
        """float32 [N, A], not calibrated."""
        check_images(images)
        return torch.cat([self.net.head(self._features(part)).cpu() for part in images.split(batch)]).numpy()

    def probabilities(self, images: Tensor, batch: int = 256) -> np.ndarray:
        """float32 [N, A] in 0..1, calibrated: of images given 0.8, eight in ten real ones have the attribute."""
        return self.calibrate(self.logits(images, batch))

    @torch.no_grad()
    def features_and_probabilities(self, images: Tensor, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Both, for the price of one."""
        features = self.features(images, batch)
        logits = self.net.head(torch.from_numpy(features).to(self.device)).cpu().numpy()
        return features, self.calibrate(logits)

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, A] -> probabilities, float32 [N, A]; plain sigmoid when the weights came without a calibration."""
        fitted = self.meta.get("calibration")
        if fitted is not None:
            logits = logits * np.array(fitted["scale"]) + np.array(fitted["bias"])
        return sigmoid(logits).astype(np.float32)

    def _features(self, images: Tensor) -> Tensor:
        prepared = prepare_images(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        with arithmetic(self.precision, self.device):
            return self.net.features(prepared)


def check_images(images: Tensor) -> None:
    """ValueError unless uint8 [N, 3, R, R], N > 0, R from 32 to 1024."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"the judge takes uint8 [N, 3, R, R] with N > 0, got {images.dtype} {list(images.shape)}")
    if images.shape[2] != images.shape[3] or not 32 <= images.shape[2] <= 1024:
        raise ValueError(f"the judge takes square images of 32 to 1024 px, got {images.shape[2]}x{images.shape[3]}")


def load_judge(path: str | Path | None = None, *, device: str | torch.device = "cpu", precision: str = "fp32") -> Judge:
    """The bundled judge, or the one at `path` (.safetensors, its .json beside it). UserError when missing, damaged or no classifier."""
    check_precision(precision)
    net, meta = load_classifier(None if path is None else Path(path))
    net = net.to(device, memory_format=torch.channels_last)     # type: ignore[call-overload]
    return Judge(net=net, attribute_names=tuple(meta["attributes"]), weights_sha256=meta["sha256"], meta=meta, precision=precision)
