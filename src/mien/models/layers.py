"""Building blocks of the networks, bottom-up: initial weights, normalised layers, statistics over a batch."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, normalize, pad

from mien.errors import UserError, did_you_mean

INITS = ("normal", "xavier", "he", "orthogonal")


class ForeignChoice(UserError):
    """A choice that this family of networks does not have, though another may."""


def choose(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among `choices`; raises UserError that names the recipe's key, the choices and the nearest one.

    With none near it is no slip: ForeignChoice.
    """
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise (UserError if near else ForeignChoice)(f"{option} = {value!r} is not one of {', '.join(choices)}.{near}")
    return value


def resolutions(size: int) -> list[int]:
    """Sides of the maps from 4 up to `size`, e.g. 64 -> [4, 8, 16, 32, 64]. Raises UserError unless size is 2^k, 32..256."""
    if size not in (32, 64, 128, 256):
        raise UserError(f"the networks make images of 32, 64, 128 or 256 px, not {size}: prepare the data at one of these sizes.")
    return [2**k for k in range(2, size.bit_length())]


def channels_at(resolution: int, *, width: int, min_width: int) -> int:
    """Channels of the map of side `resolution`: `width` at 4, halved at each doubling, never under `min_width`."""
    return max(width * 4 // resolution, min_width)


def plateau_channels(resolution: int, *, width: int, wide_px: int, min_width: int) -> int:
    """Channels of the map of side `resolution`: `width` up to the side `wide_px`, halved at each doubling beyond, never under `min_width`.

    With wide_px 32 the rule of StyleGAN2 (512 up to 32x32, 256 at 64x64) and of R3GAN (768 up to 32x32, 384 at 64x64).
    """
    return max(min(width, width * wide_px // resolution), min_width)


def sequence(layers: dict[str, nn.Module | None]) -> nn.Sequential:
    """A Sequential with named children; None is left out."""
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


# ------------------------------------------------------------------------------------------------------------------------------
# Initial weights


def fans(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> tuple[float, float]:
    """(inputs that one output sums, outputs that one input reaches), away from the border.

    torch's own count takes a transposed convolution's weight [in, out, k, k] for a convolution's [out, in, k, k] and ignores
    the stride, so that He's variance is off by 4 out/in there. A stride-1 transposed convolution without padding is read as a
    stem on a 1 x 1 map, where each output sees each input once.
    """
    weight = layer.weight
    taps = weight[0, 0].numel() if weight.ndim == 4 else 1
    if isinstance(layer, nn.ConvTranspose2d):
        stride_taps = math.prod(layer.stride)
        reach = 1 if stride_taps == 1 and layer.padding == (0, 0) else taps / stride_taps
        return weight.shape[0] * reach, weight.shape[1] * taps
    stride_taps = math.prod(layer.stride) if isinstance(layer, nn.Conv2d) else 1
    return weight.shape[1] * taps, weight.shape[0] * taps / stride_taps


def initialize(net: nn.Module, init: str) -> None:
    """Sets the initial weights of every convolution, transposed convolution and linear layer of `net`; biases are 0.

    normal       N(0, .02); batch norm's scale N(1, .02)                       Radford et al. 2016
    xavier       N(0, 2 / (fan_in + fan_out))                                  Glorot & Bengio 2010
    he           N(0, 2 / fan_in)                                              He et al. 2015
    orthogonal   orthonormal rows or columns of the weight as a matrix         Saxe et al. 2014
    """
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in, fan_out = fans(layer)
            if init == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            else:
                std = {"normal": 0.02, "xavier": math.sqrt(2 / (fan_in + fan_out)), "he": math.sqrt(2 / fan_in)}[init]
                nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if isinstance(layer, Spectral):
                layer.iterate(15)
        elif isinstance(layer, nn.BatchNorm2d):
            if init == "normal":
                nn.init.normal_(layer.weight, 1.0, 0.02)
            else:
                nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


# ------------------------------------------------------------------------------------------------------------------------------
# Layers of few channels. A CPU's kernels fill 16 lanes with channels: with the 3 of a picture they run at an eighth of their speed, in
# whichever direction gives the picture. The layers below are torch's, weights, names and results (to rounding), by another route there.

FEW = 16


def takes_detour(x: Tensor, channels: int) -> bool:
    """Whether the other route is worth it. An exported graph has the layer itself: other runtimes have other kernels."""
    return channels < FEW and x.device.type == "cpu" and not torch.compiler.is_exporting()


def quarter(kernel: Tensor) -> Tensor:
    """[O, I, 4, 4] -> [O, 4 I, 2, 2]: the kernel for an image whose every 2 x 2 pixels became one of 4 I channels (row, column, I)."""
    o, i = kernel.shape[:2]
    return kernel.view(o, i, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(o, 4 * i, 2, 2)


class Conv2d(nn.Conv2d):
    """torch's, but for the gradient by an image of few channels, kernel 4, stride 2: there 2 x 2 pixels become one, the kernel 2x2.

    10.2 -> 5.7 ms for the gradient by 64 images of 64 px and 32 channels out of them, one core.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        halves = (self.kernel_size, self.stride, self.padding) == ((4, 4), (2, 2), (1, 1))
        if not (halves and x.requires_grad and takes_detour(x, self.in_channels)):
            return super()._conv_forward(x, weight, bias)
        n, c, h, w = x.shape
        rows = pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # [N, H + 2, W + 2, C]
        pixels = rows.reshape(n, h // 2 + 1, 2, w // 2 + 1, 2 * c).transpose(2, 3).reshape(n, h // 2 + 1, w // 2 + 1, 4 * c)
        return conv2d(pixels.permute(0, 3, 1, 2), quarter(weight), bias)  # [N, O, H / 2, W / 2]


class ToImage(nn.ConvTranspose2d):
    """[N, C, H, W] -> [N, O, 2H, 2W], O few: the transposed convolution of kernel 4, stride 2, padding 1.

    By a 2x2 convolution that gives each 2 x 2 pixels as one of 4 O channels (as in sub-pixel convolution, Shi et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not takes_detour(x, self.out_channels):
            return super().forward(x, output_size)
        n, _, h, w = x.shape
        o = self.out_channels
        kernel = quarter_transposed(self.weight)  # [4 O, C, 2, 2]
        bias = None if self.bias is None else self.bias.repeat(4)
        pixels = conv2d(x, kernel, bias, padding=1).permute(0, 2, 3, 1)  # [N, H + 1, W + 1, 4 O]
        rows = pixels.reshape(n, h + 1, w + 1, 2, 2 * o).transpose(2, 3).reshape(n, 2 * h + 2, 2 * w + 2, o)
        return rows[:, 1:-1, 1:-1].permute(0, 3, 1, 2)  # what stands over at the border is the padding


def quarter_transposed(kernel: Tensor) -> Tensor:
    """[C, O, 4, 4] -> [4 O, C, 2, 2]. Tap k of a pixel at row i reaches row 2 i - 1 + k; of the rows 2 u - 1 + a that position u gives,
    a = 0 or 1, the pixels u - 1 and u reach tap a + 2 and tap a: each phase has every other tap, in reverse."""
    c, o = kernel.shape[:2]
    return kernel.view(c, o, 2, 2, 2, 2).permute(3, 5, 1, 0, 2, 4).flip(4, 5).reshape(4 * o, c, 2, 2)


class Stem(nn.ConvTranspose2d):
    """[N, Z, 1, 1] -> [N, C, 4, 4]: the 4x4 transposed convolution of a 1x1 map, which is a matrix product, at half the time."""

    def __init__(self, inputs: int, channels: int, *, bias: bool):
        super().__init__(inputs, channels, 4, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x, output_size)
        y = (x.flatten(1) @ self.weight.permute(0, 2, 3, 1).flatten(1)).view(-1, 4, 4, self.out_channels)  # the weight lies so in memory
        return (y if self.bias is None else y + self.bias).permute(0, 3, 1, 2)  # [N, C, 4, 4], channels last


# ------------------------------------------------------------------------------------------------------------------------------
# Spectral norm


class Sigma(torch.autograd.Function):
    """u . W v as a function of W alone: u and v count as constants (Miyato et al. 2018, section 2.1), so its gradient is u v^T."""

    @staticmethod
    def forward(ctx, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(u, v)
        return sigma

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        u, v = ctx.saved_tensors
        return gradient * u.view(-1, *[1] * (v.ndim - 1)) * v, None, None, None


class Spectral(nn.Module):
    """Mixed into a layer: divides its weight, as a matrix [outputs, the rest], by an estimate of its largest singular value.

    The estimate is one power iteration per forward pass in training (Miyato et al. 2018, algorithm 1); none in evaluation.
    As torch.nn.utils.parametrizations.spectral_norm, at the same cost (6% of D's step on a CPU at width 256), but the iteration stays
    in fp32 under autocast and the state dict keeps the name `weight`, so that weights move to a network without the norm and back.
    """

    weight: Tensor
    u: Tensor  # [outputs], left singular vector
    v: Tensor  # [1, ...] shaped as one output's weights, right singular vector

    def start(self) -> None:
        """Adds the vectors, drawn at random; `iterate` brings them to the weight."""
        self.register_buffer("u", normalize(torch.randn(len(self.weight)), dim=0))
        self.register_buffer("v", normalize(torch.randn(self.weight[0].numel()), dim=0).view_as(self.weight[:1]))

    def iterate(self, times: int) -> Tensor:
        """`times` power iterations; returns the estimate, a 0-d tensor without gradient."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            last = self.weight.ndim == 4 and self.weight.is_contiguous(memory_format=torch.channels_last)
            weight = self.weight.permute(0, 2, 3, 1) if last else self.weight
            matrix = weight.flatten(1)
            product = matrix @ (self.v.permute(0, 2, 3, 1) if last else self.v).flatten()
            for _ in range(times):
                v = normalize(matrix.T @ self.u, dim=0)
                product = matrix @ v
                self.u = normalize(product, dim=0)  # a new tensor: an earlier forward pass may hold the old one
                v = v.view_as(weight[:1])
                self.v = v.permute(0, 3, 1, 2) if last else v
            sigma = self.u @ product
            return sigma if times else sigma / (self.u.norm() * self.v.norm())  # an averaged network's vectors are averages, a little short

    def normalized(self) -> Tensor:
        """The weight divided by the estimate."""
        sigma = self.iterate(1 if self.training else 0)
        return self.weight / Sigma.apply(self.weight, sigma, self.u, self.v)


class SpectralConv2d(Spectral, Conv2d):
    """A convolution with spectral norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, *, bias: bool = True):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.start()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized(), self.bias)


class SpectralLinear(Spectral, nn.Linear):
    """A linear layer with spectral norm."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__(inputs, outputs, bias=bias)
        self.start()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.normalized(), self.bias)


# ------------------------------------------------------------------------------------------------------------------------------
# Layers


class Project(nn.Linear):
    """Fully connected stem: [N, Z, 1, 1] -> [N, C, 4, 4]. The same function as a 4x4 transposed convolution of a 1x1 map."""

    def __init__(self, inputs: int, channels: int, *, bias: bool):
        super().__init__(inputs, channels * 16, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)).unflatten(1, (-1, 4, 4))  # [N, C, 4, 4]


class PixelNorm(nn.Module):
    """x / sqrt(mean of x^2 over the channels + 1e-8), pixel by pixel (Karras et al. 2018, section 4.2). [N, C, H, W] -> [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class MinibatchStddev(nn.Module):
    """Appends one channel that tells how much a group of samples varies (Karras et al. 2018, section 3).

    The batch is cut into groups of `group` neighbours; the standard deviation over a group of each channel and pixel, averaged
    over channels and pixels, is that group's constant plane. A batch that is not a multiple of `group` is cut into the fewest
    groups of at most `group` samples, as even as can be, so that no sample is left alone beside full groups.

    forward: [N, C, H, W] -> [N, C + 1, H, W].
    """

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        parts = x.tensor_split(-(-len(x) // self.group))
        planes = [self.spread(part).to(x.dtype).expand(len(part), 1, *x.shape[2:]) for part in parts]
        return torch.cat([x, torch.cat(planes)], dim=1)

    @staticmethod
    def spread(part: Tensor) -> Tensor:
        """[n, C, H, W] -> a number: the standard deviation over n (biased, in fp32), averaged over C, H, W."""
        part = part.float()
        variance = (part - part.mean(0)).square().mean(0)  # [C, H, W]
        return (variance + 1e-8).sqrt().mean()  # the small constant keeps the root's slope finite for equal samples

    def extra_repr(self) -> str:
        return f"group={self.group}"


class MinibatchDiscrimination(nn.Module):
    """Appends `kernels` numbers that tell how close a sample's features are to the others' in the batch (Salimans et al. 2016).

    M = f T, [N, kernels, dims]; o[i, b] = sum over j != i of exp(-||M[i, b] - M[j, b]||_1); forward: [N, F] -> [N, F + kernels].
    """

    def __init__(self, features: int, kernels: int, *, spectral: bool = False, dims: int = 5):
        super().__init__()
        self.kernels = kernels
        self.tensor = (SpectralLinear if spectral else nn.Linear)(features, kernels * dims, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        m = self.tensor(f).float().unflatten(1, (self.kernels, -1))  # [N, B, C]
        gap = m[:, None] - m[None]  # [N, N, B, C]
        distance = (gap * gap.detach().sign()).sum(3)  # [N, N, B]; abs()'s second derivative would load all of torch's compiler, 16 s
        closeness = torch.exp(-distance).sum(1) - 1  # [N, B]; the 1 is the sample beside itself
        return torch.cat([f, closeness.to(f.dtype)], dim=1)
