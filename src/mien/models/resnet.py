"""Residual networks with a projection discriminator, self-attention and conditional batch norm, at any size, by options.

The blocks are those of Gulrajani et al. 2017 (arXiv:1704.00028, appendix F), which Miyato et al. 2018 (SNGAN, arXiv:1802.05957, tables 3
and 4), Miyato & Koyama 2018 (projection, arXiv:1802.05637) and Zhang et al. 2019 (SAGAN, arXiv:1805.08318) built on. Blocks are named by
the side of the map they give ("8x8", ...), which has `width * 4 / side` channels, never under `min_width`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import UserError
from mien.models.conditioning import check_attributes, concat_latent, concat_planes, signed
from mien.models.layers import (
    INITS,
    Project,
    Spectral,
    SpectralConv2d,
    SpectralLinear,
    channels_at,
    choose,
    initialize,
    resolutions,
    sequence,
)

# ------------------------------------------------------------------------------------------------------------------------------
# Convolutions that change the size


def folded(kernel: Tensor) -> Tensor:
    """A 3x3 kernel spread over 2x2 neighbours: [O, I, 3, 3] -> [O, I, 4, 4], the full convolution with a 2x2 box of ones."""
    return F.pad(kernel, (0, 1, 0, 1)) + F.pad(kernel, (1, 0, 0, 1)) + F.pad(kernel, (0, 1, 1, 0)) + F.pad(kernel, (1, 0, 1, 0))


class DownConv2d(nn.Conv2d):
    """A 3x3 convolution and then the mean of each 2x2 pixels: [N, I, H, W] -> [N, O, H/2, W/2].

    Done as one 4x4 convolution of stride 2, with 4 / 9 of the multiply-adds.
    """

    taps = 16  # a value of the result comes from so many values of each channel

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, folded(self.kernel()) / 4, self.bias, stride=2, padding=1)


class UpConv2d(nn.Conv2d):
    """Each pixel doubled, then a 3x3 convolution: [N, I, H, W] -> [N, O, 2H, 2W].

    Done as one 4x4 transposed convolution of stride 2, with 4 / 9 of the multiply-adds.
    """

    taps = 4

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, folded(self.kernel()).flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)


class SpectralDownConv2d(Spectral, DownConv2d):
    """DownConv2d with spectral norm of its 3x3 kernel."""

    kernel = Spectral.normalized

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.start()


class SpectralUpConv2d(Spectral, UpConv2d):
    """UpConv2d with spectral norm of its 3x3 kernel."""

    kernel = Spectral.normalized

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.start()


class SpectralProject(Spectral, Project):
    """The fully connected stem with spectral norm."""

    def __init__(self, inputs: int, channels: int, *, bias: bool):
        super().__init__(inputs, channels, bias=bias)
        self.start()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.normalized(), self.bias).unflatten(1, (-1, 4, 4))  # [N, C, 4, 4]


def conv(inputs: int, outputs: int, side: int, *, spectral: bool, bias: bool = True) -> nn.Conv2d:
    """A convolution with a kernel of `side` (1 or 3) that keeps the size."""
    kind = SpectralConv2d if spectral else nn.Conv2d
    return kind(inputs, outputs, side, padding=side // 2, bias=bias)


# ------------------------------------------------------------------------------------------------------------------------------
# Conditional batch norm and attention


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose gain and bias are linear functions of the signed attributes s (Dumoulin et al. 2017, de Vries et al. 2017,
    there one pair for each of several classes): (gain x + bias) * (1 + W s) + V s, x normalised.

    So each attribute adds its own part, any number of them at once, and at s = 0 (undecided) or without attributes it is plain batch norm.
    """

    def __init__(self, channels: int, attributes: int):
        super().__init__(channels)
        self.gain = nn.Linear(attributes, channels, bias=False) if attributes else None
        self.shift = nn.Linear(attributes, channels, bias=False) if attributes else None

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:  # type: ignore[override]
        """x [N, C, H, W] and attributes [N, A] -> [N, C, H, W]."""
        x = super().forward(x)
        if self.gain is None or self.shift is None:
            return x
        s = signed(attributes).to(self.gain.weight.dtype)
        gain, shift = self.gain(s).to(x.dtype), self.shift(s).to(x.dtype)  # [N, C]
        return torch.addcmul(shift[:, :, None, None], x, 1 + gain[:, :, None, None])


class SelfAttention(nn.Module):
    """Every place looks at every other: x + scale * o(x), scale 0 at the start (Zhang et al. 2019, section 3, equations 1 to 3).

    As the paper's networks have it: keys and queries of C / 8 channels, values of C / 2; keys and values on the map at half its side,
    by the largest of each 2x2, a quarter of the work. forward: [N, C, H, W] -> the same.
    """

    def __init__(self, channels: int, *, spectral: bool):
        super().__init__()
        thin, half = max(channels // 8, 1), max(channels // 2, 1)
        self.query = conv(channels, thin, 1, spectral=spectral, bias=False)
        self.key = conv(channels, thin, 1, spectral=spectral, bias=False)
        self.value = conv(channels, half, 1, spectral=spectral, bias=False)
        self.out = conv(half, channels, 1, spectral=spectral, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)  # [N, C/8, HW]
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # [N, C/8, HW/4]
        value = F.max_pool2d(self.value(x), 2).flatten(2)  # [N, C/2, HW/4]
        look = torch.softmax(query.transpose(1, 2) @ key, dim=2)  # [N, HW, HW/4]; not torch's fused attention: R1 wants second derivatives
        seen = (value @ look.transpose(1, 2)).unflatten(2, x.shape[2:])  # [N, C/2, H, W]
        return x + self.scale.to(x.dtype) * self.out(seen)


def check_attention(role: str, side: int, sides: list[int]) -> None:
    """Raises UserError unless `side` is 0 or the side of one of the maps."""
    if side and side not in sides:
        raise UserError(f"{role} attention = {side} is no map's side: choose one of {', '.join(map(str, sides))}, or 0 for none.")


# ------------------------------------------------------------------------------------------------------------------------------
# Generator


class UpBlock(nn.Module):
    """Norm, ReLU, double the side, 3x3; norm, ReLU, 3x3; beside it the shortcut, doubled and projected; then perhaps attention.

    attributes: how many the norms listen to; None leaves the norms out. [N, I, H, W] -> [N, O, 2H, 2W].
    """

    def __init__(self, inputs: int, outputs: int, attributes: int | None, *, spectral: bool, attention: bool):
        super().__init__()
        self.norm1 = None if attributes is None else ConditionalBatchNorm2d(inputs, attributes)
        self.conv1 = (SpectralUpConv2d if spectral else UpConv2d)(inputs, outputs)
        self.norm2 = None if attributes is None else ConditionalBatchNorm2d(outputs, attributes)
        self.conv2 = conv(outputs, outputs, 3, spectral=spectral)
        self.shortcut = conv(inputs, outputs, 1, spectral=spectral, bias=False)  # conv2 has a bias
        self.attention = SelfAttention(outputs, spectral=spectral) if attention else None

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        y = F.relu(x if self.norm1 is None else self.norm1(x, attributes))
        y = self.conv1(y)  # [N, O, 2H, 2W]
        y = F.relu(y if self.norm2 is None else self.norm2(y, attributes))
        x = F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")  # the 1x1 comes first: a quarter of the work
        y = x + self.conv2(y)
        return y if self.attention is None else self.attention(y)


class ResNetGenerator(nn.Module):
    """Latent and attributes to images, doubling the side from 4 px by residual blocks.

    size        side of the images, px: 32, 64, 128 or 256
    attributes  how many attributes there are; may be 0
    width       channels of the 4x4 map
    z_dim       length of the latent, drawn from N(0, 1)
    norm        "batch", or "none"
    spectral    spectral norm on every convolution and the stem (as in SAGAN)
    attention   side of the map that self-attention works on (SAGAN: 32); 0: none
    condition   "none"; "concat": signed attributes beside the latent; "norm": conditional batch norm
    init        "normal", "xavier", "he", "orthogonal"
    min_width   fewest channels of a hidden map

    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        z_dim: int = 128,
        norm: str = "batch",
        spectral: bool = False,
        attention: int = 0,
        condition: str = "norm",
        init: str = "xavier",
        min_width: int = 16,
    ):
        super().__init__()
        choose("model.generator.norm", norm, ("batch", "none"))
        choose("model.generator.condition", condition, ("none", "concat", "norm"))
        choose("model.generator.init", init, INITS)
        if condition == "norm" and norm == "none":
            raise UserError("generator condition = 'norm' needs generator norm = 'batch': without a norm, choose condition 'concat'.")
        sides = resolutions(size)
        check_attention("generator", attention, sides[1:])
        self.size, self.attributes, self.z_dim, self.condition = size, attributes, z_dim, condition
        listens = None if norm == "none" else attributes if condition == "norm" else 0
        inputs = z_dim + (attributes if condition == "concat" else 0)
        self.stem = (SpectralProject if spectral else Project)(inputs, width, bias=True)
        self.blocks, last = nn.ModuleDict(), width
        for side in sides[1:]:
            channels = channels_at(side, width=width, min_width=min_width)
            self.blocks[f"{side}x{side}"] = UpBlock(last, channels, listens, spectral=spectral, attention=side == attention)
            last = channels
        self.norm = nn.BatchNorm2d(last) if norm == "batch" else None
        self.image = conv(last, 3, 3, spectral=spectral)
        initialize(self, init)

    def feature_layers(self) -> dict[str, nn.Module]:
        """Side -> the module whose output is that map, [N, C, side, side], coarse to fine: "4x4", "8x8", ..."""
        return {"4x4": self.stem, **dict(self.blocks.items())}

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        """z [N, Z] and attributes [N, A] in 0..1 (beyond: exaggerated) -> images [N, 3, R, R] in [-1, 1]."""
        check_attributes(attributes, expected=self.attributes)
        x = self.stem(concat_latent(z, attributes) if self.condition == "concat" else z)  # [N, C, 4, 4]
        for block in self.blocks.values():
            x = block(x, attributes)  # [N, C, r, r]
        x = F.relu(x if self.norm is None else self.norm(x))
        return torch.tanh(self.image(x))  # [N, 3, R, R]


# ------------------------------------------------------------------------------------------------------------------------------
# Discriminator


class DownBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, and where `down`, the mean of each 2x2; beside it the shortcut; then perhaps attention.

    The `first` block, which sees pixels, has no ReLU before them. [N, I, H, W] -> [N, O, H/2, W/2], or [N, O, H, W].
    """

    def __init__(self, inputs: int, outputs: int, *, spectral: bool, first: bool = False, down: bool = True, attention: bool = False):
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = conv(inputs, outputs if first else inputs, 3, spectral=spectral)
        hidden = self.conv1.out_channels
        if down:
            self.conv2: nn.Conv2d = (SpectralDownConv2d if spectral else DownConv2d)(hidden, outputs)
        else:
            self.conv2 = conv(hidden, outputs, 3, spectral=spectral)
        projects = inputs != outputs or down
        self.shortcut = conv(inputs, outputs, 1, spectral=spectral, bias=False) if projects else None
        self.attention = SelfAttention(outputs, spectral=spectral) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(x))
        y = self.conv2(F.relu(y))
        if self.down:
            x = F.avg_pool2d(x, 2)  # before the 1x1 convolution: the same function at a quarter of the work
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.attention is None else self.attention(y)


class ResNetDiscriminator(nn.Module):
    """Images and attributes to logits, halving the side down to 4 px by residual blocks, and a last block there.

    size, attributes, init, min_width: as the generator's
    width       channels of the 4x4 map
    norm        "spectral" on every weight (SNGAN), or "none" (WGAN-GP: its penalty is for each image on its own)
    attention   side of the map that self-attention works on (SAGAN: 32); 0: none
    condition   "none"; "channels": signed attributes as constant planes beside the colours; "projection": the logit gains
                f(x) . e(c), e linear (Miyato & Koyama 2018)
    head        what the features f(x) are: "sum": each channel summed over the 4x4 map (SNGAN); "conv": the whole map (WGAN-GP)
    input_noise Gaussian noise's standard deviation on images in [-1, 1] while training; an attribute, free to change in a run

    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        norm: str = "spectral",
        attention: int = 0,
        condition: str = "projection",
        head: str = "sum",
        input_noise: float = 0.0,
        init: str = "xavier",
        min_width: int = 16,
    ):
        super().__init__()
        choose("model.discriminator.norm", norm, ("spectral", "none"))
        choose("model.discriminator.condition", condition, ("none", "channels", "projection"))
        choose("model.discriminator.head", head, ("sum", "conv"))
        choose("model.discriminator.init", init, INITS)
        sides = resolutions(size)[:-1][::-1]
        check_attention("discriminator", attention, sides)
        self.size, self.attributes, self.condition, self.pool = size, attributes, condition, head
        self.input_noise = input_noise
        spectral = norm == "spectral"
        last, blocks = 3 + (attributes if condition == "channels" else 0), dict[str, nn.Module | None]()
        for side in sides:
            channels = channels_at(side, width=width, min_width=min_width)
            looks = side == attention
            blocks[f"{side}x{side}"] = DownBlock(last, channels, spectral=spectral, first=not blocks, attention=looks)
            last = channels
        blocks["last"] = DownBlock(last, last, spectral=spectral, down=False)
        self.trunk = sequence(blocks)
        features, linear = last * 16 if head == "conv" else last, SpectralLinear if spectral else nn.Linear
        self.logit = linear(features, 1)
        project = condition == "projection" and attributes > 0  # without attributes there is no matrix to normalise
        self.embedding = linear(attributes, features, bias=False) if project else None
        initialize(self, init)

    def features(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] in [-1, 1] and attributes [N, A] -> what the head sees, f(x), [N, F]."""
        check_attributes(attributes, expected=self.attributes)
        if self.training and self.input_noise:
            images = images + self.input_noise * torch.randn(images.shape, dtype=images.dtype, device=images.device)
        x = concat_planes(images, attributes) if self.condition == "channels" else images
        x = F.relu(self.trunk(x))  # [N, C, 4, 4]
        return x.sum((2, 3)) if self.pool == "sum" else x.flatten(1)  # [N, F]

    def head(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Features [N, F] and attributes [N, A] -> logits [N]: h(f) + f . e(c)."""
        logits = self.logit(features).squeeze(1)  # [N]
        if self.embedding is not None:
            logits = logits + (features * self.embedding(signed(attributes).to(features.dtype))).sum(1)
        return logits

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] in [-1, 1] and attributes [N, A] -> logits [N], high for real."""
        return self.head(self.features(images, attributes), attributes)
