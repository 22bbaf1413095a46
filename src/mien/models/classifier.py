"""The face-attribute classifier: a small residual net for 64 px faces. It judges attributes and gives the `face` features.

Blocks are those of He et al. 2016 (arXiv:1512.03385, figure 2 left) with the average-pooled shortcut of He et al. 2019 (arXiv:1812.01187,
ResNet-D). The last map is summed with one learned 4x4 window a channel (the global depthwise convolution of MobileFaceNet,
arXiv:1804.07573): faces are aligned, so where a thing is seen says what it is. At the start every window is the plain mean.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import UserError
from mien.models.pictures import to_float

FORMAT = "mien-classifier/1"
INPUT_PX = 64
POOL_PX = 4                                                         # side of the last map at 64 px


def prepare_images(images: Tensor, size_px: int = INPUT_PX) -> Tensor:
    """uint8 [N, 3, R, R], 0..255, any square size -> float32 [N, 3, size_px, size_px], -1..1: what the classifier sees.

    Images of another size are resized in float32 by antialiased bicubic interpolation (`torch.nn.functional.interpolate`,
    align_corners=False) and clamped to 0..255, not rounded; images of that size are passed as they are. Then x / 127.5 - 1.
    """
    return to_float(resized(images.float(), size_px, 0, 255))


def resized(images: Tensor, size_px: int, low: float, high: float) -> Tensor:
    """float [N, 3, R, R] at size_px by antialiased bicubic interpolation, clamped to low..high, for it overshoots; itself at that size."""
    if images.shape[-1] == size_px and images.shape[-2] == size_px:
        return images
    return F.interpolate(images, size=(size_px, size_px), mode="bicubic", antialias=True, align_corners=False).clamp(low, high)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut that is averaged and projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)                           # a block starts as its shortcut (Goyal et al. 2017, section 5.1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                                          nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))                       # [N, C, H/stride, W/stride]
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FaceClassifier(nn.Module):
    """Logits of `attributes` binary attributes from aligned faces.

    Built for 64 px; any multiple of 8 from 32 up is accepted (training starts with smaller faces, which are cheaper).
    widths: channels at 32, 16, 8 and 4 px. depths: blocks at each. The feature has `widths[-1]` numbers.
    """

    def __init__(self, attributes: int = 40, *, widths: Sequence[int] = (32, 64, 128, 256), depths: Sequence[int] = (1, 2, 2, 1),
                 dropout: float = 0.2):
        super().__init__()
        self.options = {"attributes": attributes, "widths": list(widths), "depths": list(depths), "dropout": dropout}
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                blocks.append(ResidualBlock(channels, width, stride=2 if stage > 0 and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.window = nn.Parameter(torch.full((channels, POOL_PX, POOL_PX), 1 / POOL_PX**2))
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, attributes)

    @property
    def feature_size(self) -> int:
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        """float [N, 3, R, R] in -1..1 -> float32 [N, F]: the windowed, normalised last map, what the linear head sees."""
        return self.windowed(self.maps(images)[-1])

    def maps(self, images: Tensor) -> list[Tensor]:
        """float [N, 3, R, R] in -1..1 -> the last map of each size that the network works at, [N, C, R/2, R/2] to [N, C, R/16, R/16]."""
        maps = [self.stem(images)]
        for block in self.blocks:
            x = block(maps[-1])
            if x.shape == maps[-1].shape:
                maps.pop()
            maps.append(x)
        return maps

    def windowed(self, x: Tensor) -> Tensor:
        """The features of a last map [N, C, R/16, R/16]."""
        x = F.adaptive_avg_pool2d(x, POOL_PX).float()               # [N, C, 4, 4]; itself at 64 px, repeated below
        return self.norm((x * self.window).sum(dim=(2, 3)))         # [N, C]

    def forward(self, images: Tensor) -> Tensor:
        """float [N, 3, R, R] in -1..1 -> logits [N, attributes]."""
        return self.head(self.dropout(self.features(images)))


def save_classifier(net: FaceClassifier, meta: dict[str, Any], path: Path) -> None:
    """`path` (.safetensors; kernels and the head in fp16, the few other numbers in fp32) and a .json of `meta` beside it.

    The .json gains `format`, `options` and `sha256` (of the .safetensors).
    """
    tensors = {name: (value.half() if value.ndim in (2, 4) else value).detach().cpu().contiguous()
               for name, value in net.state_dict().items() if value.is_floating_point()}
    content = save(tensors)
    path.write_bytes(content)
    record = {"format": FORMAT, "options": net.options, "sha256": hashlib.sha256(content).hexdigest(), **meta}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_classifier(path: Path | None = None) -> tuple[FaceClassifier, dict[str, Any]]:
    """The network in eval mode, fp32, on the CPU, and what its .json says. None: the bundled one.

    Raises UserError when a file is missing, of another format, or the weights are not those the .json was written for.
    """
    weights = resources.files("mien").joinpath("weights", "face.safetensors") if path is None else path
    about = resources.files("mien").joinpath("weights", "face.json") if path is None else path.with_suffix(".json")
    try:
        content, meta = weights.read_bytes(), json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the classifier {weights} cannot be read ({error}); it needs its .safetensors and .json side by side") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{about} is not of the format {FORMAT}: give weights made by mien train-classifier")
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise UserError(f"{weights} is damaged: its sha256 is not the one in {about.name}; copy or install it again")
    net = FaceClassifier(**meta["options"])
    try:
        missing, unexpected = net.load_state_dict({name: value.float() for name, value in load(content).items()}, strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} does not fit the network its .json describes: {str(error).splitlines()[0]}") from None
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise UserError(f"{weights} does not fit the network its .json describes: {[*missing, *unexpected][0]}")
    return net.eval().requires_grad_(False), meta
