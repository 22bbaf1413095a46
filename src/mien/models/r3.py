"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN! A modern GAN baseline"), with attributes as conditions.

Residual blocks with grouped convolutions and an inverted bottleneck, (1 2 1) resampling, no normalisation of any kind, no tanh: what holds
the networks is the objective (relativistic pairs, R1 and R2 at every step) and where they begin: each block is the identity at first.

Both networks are sequences of stages named by the side of their maps, two blocks each. The map of side r has `width` channels up to
`wide_px`, and half as many at each doubling beyond. The paper's network for 64 px is width 768, wide_px 32: 22.4 million parameters.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from mien.models.conditioning import check_attributes, signed
from mien.models.layers import choose, plateau_channels, resolutions, sequence
from mien.models.resample import Double, Halve

LEAK = 0.2
GAIN = math.sqrt(2 / (1 + LEAK**2))  # He et al. 2015: keeps the variance through a leaky ReLU
EXPANSION = 2
CONDITION = 0.5  # standard deviation of the condition's embedding, beside a latent of 1


def begin(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Weights N(0, gain^2 / fan_in), biases 0."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def groups_for(channels: int, group: int) -> int:
    """How many groups a grouped convolution of `channels` has: the most that divide them and hold at least `group` channels each."""
    most = max(1, channels // group)
    return next(count for count in range(most, 0, -1) if channels % count == 0)


class Block(nn.Module):
    """x + contract(act(spatial(act(expand(x))))): 1x1 to twice the channels, grouped 3x3, 1x1 back (section 3.2 of the paper).

    `depth` blocks in the network: fix-up initialisation (Zhang et al. 2019) scales a branch's m = 3 layers but the last by
    depth^(-1 / (2 m - 2)) and begins the last at 0, so that the network is the identity plus nothing, at any depth.
    """

    def __init__(self, channels: int, *, group: int, depth: int):
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Conv2d(channels, inner, 1)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, groups=groups_for(inner, group))
        self.contract = nn.Conv2d(inner, channels, 1, bias=False)
        self.act = nn.LeakyReLU(LEAK, inplace=True)
        begin(self.expand, GAIN * depth**-0.25)
        begin(self.spatial, GAIN * depth**-0.25)
        nn.init.zeros_(self.contract.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.expand(x))  # [N, 2 C, H, W]
        y = self.act(self.spatial(y))
        return x + self.contract(y)  # [N, C, H, W]


class Stage(nn.Sequential):
    """A transition, named layers or None, and `blocks` residual blocks behind it.

    `exact`: in fp32 also under autocast, as the paper runs its 4x4 maps.
    """

    def __init__(self, transition: dict[str, nn.Module | None], channels: int, *, blocks: int, group: int, depth: int, exact: bool):
        layers = transition | {f"block{i}": Block(channels, group=group, depth=depth) for i in range(blocks)}
        super().__init__(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        if not self.exact:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def mix(inputs: int, outputs: int) -> nn.Conv2d | None:
    """A 1x1 convolution where the number of channels changes; None where it does not."""
    if inputs == outputs:
        return None
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    begin(layer, 1.0)
    return layer


class Basis(nn.Module):
    """Latent [N, Z] -> [N, C, 4, 4]: each channel is a learnt 4x4 picture times a number, linear in the latent."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.pictures = nn.Parameter(torch.randn(channels, 4, 4))
        self.amounts = nn.Linear(inputs, channels, bias=False)
        begin(self.amounts, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.amounts(x)[:, :, None, None] * self.pictures  # [N, C, 4, 4]


class R3Generator(nn.Module):
    """Latent and attributes to images, doubling the side from 4 px.

    size, attributes   as of every family: side in px (32, 64, 128 or 256) and number of attributes, perhaps 0
    width              channels of the maps up to `wide_px`
    z_dim              length of the latent, N(0, 1); 64 in the paper
    blocks             residual blocks a stage
    group              channels a group of the 3x3 convolutions; fewer groups where the channels do not divide
    wide_px            side of the largest map that has the full width
    min_width          fewest channels of a map
    condition          "none", or "concat": an affine embedding of the signed attributes, as long as z and half as large, beside z

    The last layer has no tanh, so pixels may lie a little outside -1..1. Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 768,
        z_dim: int = 64,
        blocks: int = 2,
        group: int = 16,
        wide_px: int = 32,
        min_width: int = 16,
        condition: str = "concat",
    ):
        super().__init__()
        choose("model.generator.condition", condition, ("none", "concat"))
        self.size, self.attributes, self.z_dim, self.condition = size, attributes, z_dim, condition
        self.embedding = None
        if condition == "concat" and attributes:
            self.embedding = nn.Linear(attributes, z_dim)
            # With the bias as one more input. Without it opposite attributes would begin as negatives of one another (nothing else here has
            # a bias before the first activation), and what all faces share could only be learnt as a difference between conditions.
            nn.init.normal_(self.embedding.weight, 0.0, CONDITION / math.sqrt(attributes + 1))
            nn.init.normal_(self.embedding.bias, 0.0, CONDITION / math.sqrt(attributes + 1))
        sides = resolutions(size)
        stages: dict[str, nn.Module | None] = {}
        last, depth = 0, blocks * len(sides)
        for side in sides:
            channels = plateau_channels(side, width=width, wide_px=wide_px, min_width=min_width)
            if last:
                transition: dict[str, nn.Module | None] = {"mix": mix(last, channels), "up": Double()}
            else:
                transition = {"basis": Basis(z_dim * (1 if self.embedding is None else 2), channels)}
            stages[f"{side}x{side}"] = Stage(transition, channels, blocks=blocks, group=group, depth=depth, exact=side == 4)
            last = channels
        stages["image"] = mix(last, 3)
        self.blocks = sequence(stages)

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        """z [N, Z] and attributes [N, A] in 0..1 (beyond: exaggerated) -> images [N, 3, R, R], near [-1, 1]."""
        check_attributes(attributes, expected=self.attributes)
        x = z
        if self.embedding is not None:
            x = torch.cat([z, self.embedding(signed(attributes).to(z.dtype)).to(z.dtype)], dim=1)  # [N, 2 Z]
        return self.blocks(x)


class R3Discriminator(nn.Module):
    """Images and attributes to logits, the generator's mirror: halving the side down to 4 px.

    size, attributes, width, blocks, group, wide_px, min_width   as the generator's
    condition     "none"; "projection": the logit gains f(x) . e(c), e linear in the signed attributes (Miyato & Koyama 2018)
    input_noise   Gaussian noise's standard deviation on images in [-1, 1] while training; an attribute, free to change in a run

    The features f(x) [N, C] are one learnt weighted sum of each channel of the 4x4 map. The logit has no bias: paired, it would cancel.
    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 768,
        blocks: int = 2,
        group: int = 16,
        wide_px: int = 32,
        min_width: int = 16,
        condition: str = "projection",
        input_noise: float = 0.0,
    ):
        super().__init__()
        choose("model.discriminator.condition", condition, ("none", "projection"))
        self.size, self.attributes, self.condition, self.input_noise = size, attributes, condition, input_noise
        sides = resolutions(size)
        stages: dict[str, nn.Module | None] = {}
        last, depth = 0, blocks * len(sides)
        for side in reversed(sides):
            channels = plateau_channels(side, width=width, wide_px=wide_px, min_width=min_width)
            transition: dict[str, nn.Module | None] = {"down": Halve() if last else None, "mix": mix(last or 3, channels)}
            stages[f"{side}x{side}"] = Stage(transition, channels, blocks=blocks, group=group, depth=depth, exact=side == 4)
            last = channels
        self.trunk = sequence(stages)
        self.basis = nn.Conv2d(last, last, 4, groups=last, bias=False)
        self.logit = nn.Linear(last, 1, bias=False)
        self.embedding = nn.Linear(attributes, last, bias=False) if condition == "projection" and attributes else None
        begin(self.basis, 1.0)
        begin(self.logit, 1.0)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0.0, 1 / math.sqrt(attributes * last))  # f . e(c) is as large as the logit without it

    def features(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] near [-1, 1] and attributes [N, A] -> what the head sees, f(x), fp32 [N, C]."""
        check_attributes(attributes, expected=self.attributes)
        if self.training and self.input_noise:
            images = images + self.input_noise * torch.randn(images.shape, dtype=images.dtype, device=images.device)
        x = self.trunk(images)  # [N, C, 4, 4]
        with torch.autocast(x.device.type, enabled=False):
            return self.basis(x).flatten(1)  # [N, C]

    def head(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Features [N, C] and attributes [N, A] -> logits, fp32 [N]: h(f) + f . e(c)."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.logit(features).squeeze(1)  # [N]
            if self.embedding is not None:
                logits = logits + (features * self.embedding(signed(attributes).to(features.dtype))).sum(1)
            return logits

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] and attributes [N, A] -> logits [N], high for real."""
        return self.head(self.features(images, attributes), attributes)
