"""Building blocks of the networks, bottom-up: initial weights, normalised layers, statistics over a batch."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mien.errors import UserError, did_you_mean

INITS = ("normal", "xavier", "he", "orthogonal")


def choose(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among `choices`; raises UserError that names the option, the choices and the nearest one."""
    if value not in choices:
        raise UserError(f"{option} = {value!r} is not one of {', '.join(choices)}.{did_you_mean(str(value), choices)}")
    return value


def resolutions(size: int) -> list[int]:
    """Sides of the maps from 4 up to `size`, e.g. 64 -> [4, 8, 16, 32, 64]. Raises UserError unless size is 2^k, 32..256."""
    if size not in (32, 64, 128, 256):
        raise UserError(f"the dcgan family makes images of 32, 64, 128 or 256 px, not {size}: prepare the data at one of these sizes.")
    return [2**k for k in range(2, size.bit_length())]


def channels_at(resolution: int, *, width: int, min_width: int) -> int:
    """Channels of the map of side `resolution`: `width` at 4, halved at each doubling, never under `min_width`."""
    return max(width * 4 // resolution, min_width)


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
    choose("init", init, INITS)
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
        elif isinstance(layer, nn.BatchNorm2d):
            if init == "normal":
                nn.init.normal_(layer.weight, 1.0, 0.02)
            else:
                nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def normalize_spectrally(net: nn.Module) -> None:
    """Puts spectral norm on every convolution and linear layer of `net`, after its initial weights are set (Miyato et al. 2018)."""
    for layer in list(net.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            spectral_norm(layer)


# ------------------------------------------------------------------------------------------------------------------------------
# Layers


class Project(nn.Linear):
    """Fully connected stem: [N, Z, 1, 1] -> [N, C, 4, 4]. The same function as a 4x4 transposed convolution of a 1x1 map."""

    def __init__(self, inputs: int, channels: int, *, bias: bool):
        super().__init__(inputs, channels * 16, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)).unflatten(1, (-1, 4, 4))  # [N, C, 4, 4]


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

    def __init__(self, features: int, kernels: int, dims: int = 5):
        super().__init__()
        self.kernels = kernels
        self.tensor = nn.Linear(features, kernels * dims, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        m = self.tensor(f).float().unflatten(1, (self.kernels, -1))  # [N, B, C]
        distance = (m[:, None] - m[None]).abs().sum(3)  # [N, N, B]
        closeness = torch.exp(-distance).sum(1) - 1  # [N, B]; the 1 is the sample beside itself
        return torch.cat([f, closeness.to(f.dtype)], dim=1)
