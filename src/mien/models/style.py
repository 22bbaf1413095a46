"""StyleGAN2 (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"), with attributes as conditions.

A mapping network turns latent and attributes into a style w; a synthesis network draws, each convolution modulated by w, noise added to
each map, the picture summed over sizes ("output skips"). The discriminator is residual, with minibatch standard deviation.

Weights are N(0, 1) and scaled when used (Karras et al. 2018, section 4.1: equalised rate), so rates are ten times those of other families.
Mapping, modulation and the maps below 8x8 of D run in fp32 under autocast too.

Modulation comes as scales: x s through the shared weights, then times the demodulation, which equals weights of their own for each sample
(equation 3) and is what a batch of small maps wants: measured forward and backward, 64 channels at 32 x 32, batch 32, on one CPU core, it
took 0.7 of the time of the form with N groups.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.conditioning import check_attributes, signed
from mien.models.latents import latents
from mien.models.layers import MinibatchStddev, choose, plateau_channels, resolutions, sequence
from mien.models.resample import Blur, Halve

LEAK, ROOT2 = 0.2, math.sqrt(2)
MAPPING_RATE = 0.01  # of the mapping network's rate in the others' (Karras et al. 2019, appendix C)
CENTRE_LATENTS = 1024


def rooted(x: Tensor) -> Tensor:
    """Leaky ReLU times the square root of 2, which keeps the second moment of a N(0, 1) input within 4%."""
    return F.leaky_relu(x, LEAK) * ROOT2


def normalized(x: Tensor) -> Tensor:
    """x [N, Z] divided by the root of its mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Linear(nn.Linear):
    """A linear layer whose weights N(0, 1) count times rate / sqrt(inputs): `rate` slows its learning and changes nothing at first."""

    def __init__(self, inputs: int, outputs: int, *, bias: float | None = 0.0, rate: float = 1.0):
        super().__init__(inputs, outputs, bias=bias is not None)
        self.rate, self.scale = rate, rate / math.sqrt(inputs)
        nn.init.normal_(self.weight, 0.0, 1 / rate)
        if bias is not None:
            nn.init.constant_(self.bias, bias / rate)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, None if self.bias is None else self.bias * self.rate)


class Conv(nn.Conv2d):
    """A convolution whose weights N(0, 1) count times 1 / sqrt(fan-in)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.scale, self.bias)


# ------------------------------------------------------------------------------------------------------------------------------
# Generator


class Mapping(nn.Module):
    """z [N, Z] and attributes [N, A] -> w [N, W] in fp32: z normalised, beside a normalised linear embedding of the signed attributes
    (Karras et al. 2020, "Limited Data", for classes), through `layers` layers."""

    def __init__(self, z_dim: int, attributes: int, w_dim: int, *, layers: int):
        super().__init__()
        self.embedding = Linear(attributes, z_dim) if attributes else None
        widths = [z_dim * (2 if attributes else 1)] + [w_dim] * layers
        self.layers = nn.ModuleList(Linear(a, b, rate=MAPPING_RATE) for a, b in zip(widths, widths[1:]))

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            x = normalized(z.float())
            if self.embedding is not None:
                x = torch.cat([x, normalized(self.embedding(signed(attributes.float())))], dim=1)  # [N, 2 Z]
            for layer in self.layers:
                x = rooted(layer(x))
            return x  # [N, W]


class Styled(nn.Module):
    """What modulated layers share: a style [N, W] gives a scale for each input channel, 1 at first on average."""

    weight: Tensor

    def start(self, inputs: int, w_dim: int, *, fan_in: int) -> None:
        self.scale = 1 / math.sqrt(fan_in)
        nn.init.normal_(self.weight)
        self.affine = Linear(w_dim, inputs, bias=1.0)

    def scales(self, w: Tensor) -> Tensor:
        """[N, inputs], fp32."""
        with torch.autocast(w.device.type, enabled=False):
            return self.affine(w)

    def demodulation(self, s: Tensor, *, inputs_at: int) -> Tensor:
        """[N, outputs], fp32: 1 / sqrt(sum over inputs and taps of (s weight)^2), so that outputs have the variance 1 (equation 3)."""
        with torch.autocast(s.device.type, enabled=False):
            power = (self.weight * self.scale).square().sum((2, 3))  # [outputs, inputs], or the other way round
            return torch.rsqrt(F.linear(s.square(), power.T if inputs_at == 0 else power) + 1e-8)


class StyledConv(Styled, nn.Conv2d):
    """3x3, modulated and demodulated: [N, C, H, W] and w [N, W] -> [N, D, H, W]."""

    def __init__(self, inputs: int, outputs: int, w_dim: int):
        nn.Conv2d.__init__(self, inputs, outputs, 3, padding=1, bias=False)
        self.start(inputs, w_dim, fan_in=9 * inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        s = self.scales(w)
        y = self._conv_forward(x * s[:, :, None, None].to(x.dtype), self.weight * self.scale, None)
        return y * self.demodulation(s, inputs_at=1)[:, :, None, None].to(y.dtype)


class StyledUpConv(Styled, nn.ConvTranspose2d):
    """As StyledConv, with zeros put between the pixels before it and (1 3 3 1) after it: -> [N, D, 2 H, 2 W]."""

    def __init__(self, inputs: int, outputs: int, w_dim: int):
        nn.ConvTranspose2d.__init__(self, inputs, outputs, 3, stride=2, bias=False)
        self.start(inputs, w_dim, fan_in=9 * inputs)
        self.blur = Blur(pad=1, gain=4.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        s = self.scales(w)
        y = F.conv_transpose2d(x * s[:, :, None, None].to(x.dtype), self.weight * self.scale, stride=2)  # [N, D, 2 H + 1, 2 W + 1]
        return self.blur(y) * self.demodulation(s, inputs_at=0)[:, :, None, None].to(y.dtype)


class Colours(Styled, nn.Conv2d):
    """1x1 to the three colours, modulated but not demodulated."""

    def __init__(self, inputs: int, w_dim: int):
        nn.Conv2d.__init__(self, inputs, 3, 1)
        self.start(inputs, w_dim, fan_in=inputs)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        s = self.scales(w)
        return self._conv_forward(x * s[:, :, None, None].to(x.dtype), self.weight * self.scale, self.bias)


class Noise(nn.Module):
    """Adds one picture of noise to every channel, times a learnt strength that begins at 0, and a bias; then the leaky ReLU.

    In training the noise is new for each sample; otherwise it is `constant`, the same for all faces: a face is a function of z and the
    attributes. (Noise made from z would give each face its own; it also would flicker as z moves.)
    """

    constant: Tensor

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("constant", torch.randn(1, 1, side, side))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 1, *x.shape[2:], device=x.device) if self.training else self.constant
        return rooted(x + (self.strength * noise).to(x.dtype) + self.bias[:, None, None].to(x.dtype))


class First(nn.Module):
    """The learnt constant and one layer: w [N, 1, W] -> [N, C, 4, 4]."""

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.conv, self.act = StyledConv(channels, channels, w_dim), Noise(channels, 4)

    def forward(self, w: Tensor) -> Tensor:
        return self.act(self.conv(self.constant.expand(len(w), -1, -1, -1), w[:, 0]))


class Twice(nn.Module):
    """Twice the side, two layers: [N, C, r, r] and w [N, 2, W] -> [N, D, 2 r, 2 r]."""

    def __init__(self, inputs: int, channels: int, side: int, w_dim: int):
        super().__init__()
        self.up, self.up_act = StyledUpConv(inputs, channels, w_dim), Noise(channels, side)
        self.conv, self.act = StyledConv(channels, channels, w_dim), Noise(channels, side)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.up_act(self.up(x, w[:, 0]))  # [N, D, 2 r, 2 r]
        return self.act(self.conv(x, w[:, 1]))


class StyleGenerator(nn.Module):
    """Latent and attributes to images through styles.

    size, attributes   as of every family: side in px (32, 64, 128 or 256) and number of attributes, perhaps 0
    width              channels of the maps up to `wide_px`, halved at each doubling beyond, never under `min_width`
    z_dim, w_dim       lengths of the latent, N(0, 1), and of a style
    mapping            layers of the mapping network: 8 in the paper, 2 in its authors' later settings for small images
    mixing             share of training samples whose style changes to another latent's at a random layer (Karras et al. 2019, 3.1)
    condition          "none", or "concat": an embedding of the attributes beside z, into the mapping

    `blocks` holds the layers by the side of their map. The last layer has no tanh. Raises UserError for a value that is none of these.
    """

    path_mean: Tensor  # the usual path length, that regularisation holds lengths to; 0 until there was one

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping: int = 8,
        mixing: float = 0.9,
        wide_px: int = 32,
        min_width: int = 16,
        condition: str = "concat",
    ):
        super().__init__()
        choose("model.generator.condition", condition, ("none", "concat"))
        self.size, self.attributes, self.z_dim, self.condition, self.mixing = size, attributes, z_dim, condition, mixing
        self.psi = 1.0
        self.mapping = Mapping(z_dim, attributes if condition == "concat" else 0, w_dim, layers=mapping)
        self.blocks, self.colours = nn.ModuleDict(), nn.ModuleDict()
        last, sides = 0, resolutions(size)
        for side in sides:
            channels = plateau_channels(side, width=width, wide_px=wide_px, min_width=min_width)
            self.blocks[f"{side}x{side}"] = Twice(last, channels, side, w_dim) if last else First(channels, w_dim)
            self.colours[f"{side}x{side}"] = Colours(channels, w_dim)
            last = channels
        self.layers = 2 * len(sides) - 1
        self.register_buffer("path_mean", torch.zeros(()))

    def styles(self, z: Tensor, attributes: Tensor) -> Tensor:
        """z [N, Z], attributes [N, A] -> a style for each layer, fp32 [N, L, W]: mixed in training, truncated by `psi` otherwise."""
        check_attributes(attributes, expected=self.attributes)
        w = self.mapping(z, attributes)[:, None].expand(-1, self.layers, -1)  # [N, L, W]
        if not self.training:
            return w if self.psi == 1 else torch.lerp(self.centre(attributes)[:, None].expand_as(w), w, self.psi)
        if not self.mixing:
            return w
        other = self.mapping(torch.randn_like(z), attributes)[:, None]  # [N, 1, W]
        start = torch.randint(1, self.layers, (len(z), 1), device=z.device)
        start = torch.where(torch.rand(len(z), 1, device=z.device) < self.mixing, start, self.layers)
        return torch.where((torch.arange(self.layers, device=z.device) >= start)[:, :, None], other, w)

    def synthesis(self, w: Tensor) -> Tensor:
        """Styles [N, L, W] -> images [N, 3, R, R], near [-1, 1]."""
        x = image = None
        at = 0  # the layer that comes next
        for name, block in self.blocks.items():
            mine = w[:, at : at + (1 if x is None else 2)]
            x = block(mine) if x is None else block(x, mine)  # [N, C, r, r]
            at += mine.shape[1]
            part = self.colours[name](x, w[:, min(at, self.layers - 1)])  # [N, 3, r, r], in the style of the layer that comes next
            image = part if image is None else part + F.interpolate(image, scale_factor=2.0, mode="bilinear")
        return image  # type: ignore[return-value]

    def forward(self, z: Tensor, attributes: Tensor) -> Tensor:
        """z [N, Z] and attributes [N, A] in 0..1 (beyond: exaggerated) -> images [N, 3, R, R], near [-1, 1]."""
        return self.synthesis(self.styles(z, attributes))

    @torch.no_grad()
    def centre(self, attributes: Tensor) -> Tensor:
        """[N, W]: the mean style of faces with these attributes [N, A], over the first 1024 faces by number.

        So truncation keeps what was asked for. Pulled to the mean over all conditions, as StyleGAN does, faces lose it with psi.
        """
        rows, where = F.pad(attributes, (0, 1)).unique(dim=0, return_inverse=True)  # a row of no attributes is a row too
        z = latents(range(CENTRE_LATENTS), self.z_dim).to(attributes.device)
        means = [self.mapping(z, row[:-1].expand(len(z), -1)).mean(0) for row in rows]
        return torch.stack(means)[where]

    def truncated(self, psi: float) -> StyleGenerator:
        """This generator, sharing its weights, with styles w' = centre + psi (w - centre) (Karras et al. 2019, appendix B)."""
        view = copy.copy(self)
        view.psi = psi
        return view


# ------------------------------------------------------------------------------------------------------------------------------
# Discriminator


class Down(nn.Module):
    """Half the side: (two 3x3 convolutions + a 1x1 shortcut) / sqrt 2, [N, C, r, r] -> [N, D, r/2, r/2]."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv = Conv(inputs, inputs, 3, padding=1)
        self.blur, self.down = Blur(pad=2), Conv(inputs, channels, 3, stride=2)
        self.halve, self.shortcut = Halve(4), Conv(inputs, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = rooted(self.conv(x))  # [N, C, r, r]
        y = rooted(self.down(self.blur(y)))  # [N, D, r/2, r/2]
        return (y + self.shortcut(self.halve(x))) / ROOT2


class FromColours(nn.Module):
    """[N, 3, r, r] -> [N, C, r, r]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return rooted(self.conv(x))


class StyleDiscriminator(nn.Module):
    """Images and attributes to logits, halving the side down to 4 px.

    size, attributes, width, wide_px, min_width   as the generator's
    condition          "none"; "projection": the logit gains f(x) . e(c) / sqrt C, e linear in the signed attributes (Miyato & Koyama 2018;
                       scaled as in Karras et al. 2020, "Limited Data")
    minibatch_stddev   group size; 0: off
    input_noise        Gaussian noise's standard deviation on images in [-1, 1] while training; an attribute, free to change in a run

    Raises UserError for a value that is none of these.
    """

    def __init__(
        self,
        size: int,
        attributes: int,
        *,
        width: int = 512,
        wide_px: int = 32,
        min_width: int = 16,
        condition: str = "projection",
        minibatch_stddev: int = 4,
        input_noise: float = 0.0,
    ):
        super().__init__()
        choose("model.discriminator.condition", condition, ("none", "projection"))
        self.size, self.attributes, self.condition, self.input_noise = size, attributes, condition, input_noise
        blocks: dict[str, nn.Module | None] = {}
        last = 0
        for side in reversed(resolutions(size)):
            channels = plateau_channels(side, width=width, wide_px=wide_px, min_width=min_width)
            blocks[f"{side}x{side}"] = Down(last, channels) if last else FromColours(channels)
            last = channels
        self.trunk = sequence(blocks)
        self.crowd = MinibatchStddev(minibatch_stddev) if minibatch_stddev else None
        self.conv = Conv(last + bool(minibatch_stddev), last, 3, padding=1)
        self.dense = Linear(last * 16, last)
        self.logit = Linear(last, 1)
        self.embedding = Linear(attributes, last, bias=None) if condition == "projection" and attributes else None

    def features(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] near [-1, 1] and attributes [N, A] -> what the head sees, f(x), fp32 [N, C]."""
        check_attributes(attributes, expected=self.attributes)
        if self.training and self.input_noise:
            images = images + self.input_noise * torch.randn(images.shape, dtype=images.dtype, device=images.device)
        x = self.trunk(images)  # [N, C, 4, 4]
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            x = rooted(self.conv(x if self.crowd is None else self.crowd(x)))  # [N, C, 4, 4]
            return rooted(self.dense(x.flatten(1)))  # [N, C]

    def head(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Features [N, C] and attributes [N, A] -> logits, fp32 [N]: h(f) + f . e(c) / sqrt C."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.logit(features).squeeze(1)  # [N]
            if self.embedding is not None:
                told = self.embedding(signed(attributes).to(features.dtype))  # [N, C]
                logits = logits + (features * told).sum(1) / math.sqrt(features.shape[1])
            return logits

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Images [N, 3, R, R] and attributes [N, A] -> logits [N], high for real."""
        return self.head(self.features(images, attributes), attributes)
