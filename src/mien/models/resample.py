"""Doubling and halving the side of a map through binomial filters, so that no frequency folds into another (Zhang 2019).

Each is a depthwise convolution with a fixed kernel, which is the quickest form on a CPU and whose gradients have gradients.
Beyond the border there is 0, as beneath a convolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def binomial(taps: int) -> Tensor:
    """[1, 1, taps, taps]: the outer product of a row of Pascal's triangle with itself, summing to 1: (1 2 1), (1 3 3 1), ..."""
    row = torch.ones(1)
    for _ in range(taps - 1):
        row = F.pad(row, (1, 0)) + F.pad(row, (0, 1))
    kernel = row[:, None] * row[None]
    return (kernel / kernel.sum())[None, None]


class Filter(nn.Module):
    """A fixed depthwise kernel; a buffer that no file needs to hold."""

    kernel: Tensor

    def __init__(self, kernel: Tensor):
        super().__init__()
        self.register_buffer("kernel", kernel, persistent=False)

    def over(self, x: Tensor) -> Tensor:
        """The kernel for each channel of x, in its precision, [C, 1, k, k]."""
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


class Double(Filter):
    """[N, C, H, W] -> [N, C, 2 H, 2 W]: zeros between the pixels, then (1 2 1): every other value is kept, the rest are means."""

    def __init__(self) -> None:
        super().__init__(4 * binomial(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.over(x), stride=2, padding=1, output_padding=1, groups=x.shape[1])


class Halve(Filter):
    """[N, C, H, W] -> [N, C, H/2, W/2]: (1 2 1), or with 4 taps (1 3 3 1), then every other value."""

    def __init__(self, taps: int = 3):
        super().__init__(binomial(taps))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.over(x), stride=2, padding=1, groups=x.shape[1])


class Blur(Filter):
    """(1 3 3 1) with the side changed by 2 pad - 3, times `gain`."""

    def __init__(self, *, pad: int, gain: float = 1.0):
        super().__init__(gain * binomial(4))
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.over(x), padding=self.pad, groups=x.shape[1])
