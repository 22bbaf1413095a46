"""Convolutions whose gradients can be differentiated at the price of convolutions.

A gradient penalty differentiates D's gradient once more. torch's own second derivative of a convolution asks for the gradient by the kernel
as a convolution with a kernel as large as the image, which costs many times what the same gradient costs in an ordinary backward pass.
Here the three faces of a convolution y = w * x (y from x and w, the gradient by x, the gradient by w) are each written by the other two:
all are linear in each argument, so derivatives of any order stay among the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


class Shape(NamedTuple):
    """How a kernel is laid on an image."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _gradients(y: Tensor, x: Tensor, w: Tensor, how: Shape, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """torch's backward of y = w * x: by x, by w and by the bias, those that are wanted."""
    return torch.ops.aten.convolution_backward(y, x, w, None, how.stride, how.padding, how.dilation, False, (0, 0), how.groups, wanted)


class Convolve(Function):
    """x [N, C, H, W], w [O, C / groups, h, w] -> y [N, O, H', W']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, how: Shape) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return torch.conv2d(x, w, None, how.stride, how.padding, how.dilation, how.groups)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        by_x, by_w, _ = ctx.needs_input_grad
        return ByImage.apply(gy, w, x, ctx.how) if by_x else None, ByKernel.apply(gy, x, w, ctx.how) if by_w else None, None


class ByImage(Function):
    """The gradient by x where that by y is `gy`; `x` gives the shape."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, w: Tensor, x: Tensor, how: Shape) -> Tensor:
        ctx.save_for_backward(gy, w)
        ctx.how = how
        return _gradients(gy, x, w, how, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, ggx: Tensor) -> tuple[Tensor | None, ...]:
        gy, w = ctx.saved_tensors
        by_gy, by_w, _, _ = ctx.needs_input_grad
        return Convolve.apply(ggx, w, ctx.how) if by_gy else None, ByKernel.apply(gy, ggx, w, ctx.how) if by_w else None, None, None


class ByKernel(Function):
    """The gradient by w where that by y is `gy`; `w` gives the shape."""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, x: Tensor, w: Tensor, how: Shape) -> Tensor:
        ctx.save_for_backward(gy, x)
        ctx.how = how
        return _gradients(gy, x, w, how, [False, True, False])[1]

    @staticmethod
    def backward(ctx: Any, ggw: Tensor) -> tuple[Tensor | None, ...]:
        gy, x = ctx.saved_tensors
        by_gy, by_x, _, _ = ctx.needs_input_grad
        return Convolve.apply(x, ggw, ctx.how) if by_gy else None, ByImage.apply(gy, ggw, x, ctx.how) if by_x else None, None, None


class TwiceDifferentiable(TorchFunctionMode):
    """Within it, 2-d convolutions are the ones above: for a forward pass whose gradient is differentiated; else it saves nothing."""

    active = 0
    """How many of these are entered: what cannot be differentiated twice must stand back."""

    def __enter__(self) -> TwiceDifferentiable:
        TwiceDifferentiable.active += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        TwiceDifferentiable.active -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return OURS.get(func, func)(*args, **(kwargs or {}))


def convolve(
    x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:  # fmt: skip
    """`torch.conv2d`. Padding in words ("same", "valid") is not taken."""
    y = Convolve.apply(x, w, Shape(_pair(stride), _pair(padding), _pair(dilation), groups))
    return y if bias is None else y + bias[:, None, None]


def convolve_transposed(
    x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """`torch.conv_transpose2d`: the gradient by the image of a convolution whose gradient by its result is `x`."""
    how, more = Shape(_pair(stride), _pair(padding), _pair(dilation), groups), _pair(output_padding)
    sides = [
        (n - 1) * how.stride[i] - 2 * how.padding[i] + how.dilation[i] * (w.shape[2 + i] - 1) + more[i] + 1
        for i, n in enumerate(x.shape[2:])
    ]
    y = ByImage.apply(x, w, x.new_empty(len(x), w.shape[1] * groups, *sides), how)
    return y if bias is None else y + bias[:, None, None]


OURS = {
    torch.conv2d: convolve,
    torch.nn.functional.conv2d: convolve,
    torch.conv_transpose2d: convolve_transposed,
    torch.nn.functional.conv_transpose2d: convolve_transposed,
}


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
