"""Random draws and batch norm of a whole batch, for who computes only some of its rows.

A batch may be cut twice: into the processes' parts, and these into pieces that fit into memory. Inside `Rows` a draw of n rows, or
of k x n (reals and fakes, one after the other), is made for the whole batch, and the rows of this piece are kept. As each piece begins
from the same state of the generator, all pieces together use the numbers that the whole batch would have used, however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mien.engine.distributed import Ranks, Sum

BY_SIZE = {torch.rand, torch.randn}
LIKE = {torch.rand_like, torch.randn_like}
DROPOUT = {F.dropout, F.dropout2d}
REFUSED = {torch.normal, torch.bernoulli, torch.randperm, torch.multinomial, torch.poisson, torch.randint_like, torch.dropout, F.dropout1d,
           F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu, F.gumbel_softmax, Tensor.normal_, Tensor.uniform_,
           Tensor.bernoulli_, Tensor.bernoulli, Tensor.random_, Tensor.exponential_, Tensor.geometric_, Tensor.cauchy_,
           Tensor.log_normal_, Tensor.multinomial}  # fmt: skip


class Rows(TorchFunctionMode):
    """Inside: rows `first` to `first + count` of a batch of `total`."""

    def __init__(self, first: int, count: int, total: int, ranks: Ranks):
        super().__init__()
        self.first, self.count, self.total, self.ranks = first, count, total, ranks

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in BY_SIZE:
            size = args[0] if args and not isinstance(args[0], int) else args
            return self.mine(func(self.whole(size), **kwargs))
        if func is torch.randint:
            *bounds, size = args
            return self.mine(func(*bounds, self.whole(size), **kwargs))  # type: ignore[call-overload]
        if func in LIKE:
            return self.mine(func(self.whole_like(args[0]), **kwargs))
        if func in DROPOUT:
            return self.dropout(func, *args, **kwargs)
        if func is F.batch_norm and self.ranks.size > 1:
            return self.batch_norm(*args, **kwargs)
        if func in REFUSED:
            raise NotImplementedError(f"{func.__name__} inside a step cannot be cut into rows: draw with torch.rand, randn or randint")
        return func(*args, **kwargs)

    @contextmanager
    def over(self, first: int, count: int, total: int) -> Iterator[None]:
        """Inside: other rows, of another batch."""
        before = self.first, self.count, self.total
        self.first, self.count, self.total = first, count, total
        try:
            yield
        finally:
            self.first, self.count, self.total = before

    # --- draws ----------------------------------------------------------------------------------------------------------

    def whole(self, size: Any) -> tuple[int, ...]:
        """The size of a draw for the whole batch."""
        rows, *rest = size
        if rows % self.count:
            raise ValueError(f"a draw of {rows} rows does not fit pieces of {self.count}")
        return (rows // self.count * self.total, *rest)

    def whole_like(self, x: Tensor) -> Tensor:
        """Empty, of the whole batch, laid out in memory as x is: that is the order in which torch fills it."""
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(self.whole(x.shape), dtype=x.dtype, device=x.device, memory_format=layout)

    def mine(self, drawn: Tensor) -> Tensor:
        """The rows of this piece, of each of the k parts."""
        parts = drawn.unflatten(0, (-1, self.total))[:, self.first : self.first + self.count]
        return parts.flatten(0, 1)

    def dropout(self, func: Callable[..., Tensor], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * self.mine(func(self.whole_like(x).fill_(1), p, True)) if training and p else x

    # --- batch norm -------------------------------------------------------------------------------------------------------

    def batch_norm(self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
        """As F.batch_norm, with the mean and variance of the rows of all processes."""
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        y, mean, variance = SyncedNorm.apply(x, weight, bias, eps, self.ranks)
        if running_mean is not None and running_var is not None:
            n = x.numel() // x.shape[1] * self.ranks.size
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * (n / (n - 1)), momentum)
        return y


def moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(mean [C], biased variance [C]) of the rows [N, C, ...] of all processes, fp32."""
    told = ranks.gathered(torch.stack(own_moments(x.float())))  # [P, 2, C]
    mean = told[:, 1].mean(0)
    return mean, told[:, 0].mean(0) + (told[:, 1] - mean).square().mean(0)


def own_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(biased variance [C], mean [C]) of the rows x [N, C, ...] of this process."""
    if torch.is_grad_enabled():
        return torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    tiny = 1e-12  # torch's batch norm finds both ten times as fast, on a CPU, as var_mean does
    _, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, tiny)
    return (inverse.double().pow(-2) - tiny).clamp_min(0).float(), mean


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks) -> Tensor:
    """x [N, C, ...] normalised over the rows of all processes, from plain operations."""
    mean, variance = moments(x, ranks)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(_wide(shift, x), x.float(), _wide(scale, x)).to(x.dtype)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1], to go with x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class SyncedNorm(torch.autograd.Function):
    """`normalized` with its first derivative written out, in torch's own kernels: two sums of [C] are all that travels.

    With x^ the normalised x and means over all rows: dx = w / s (g - mean(g) - x^ mean(g x^)), dw = sum(g x^), db = sum(g). dw and db are
    this process's own share: gradients are added up later. Under create_graph the derivative is that of the plain operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = moments(x, ranks)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.settings = eps, ranks
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance = ctx.saved_tensors
        eps, ranks = ctx.settings
        if torch.is_grad_enabled():  # somebody will differentiate this
            inputs = [each for each in (x, weight, bias) if each is not None and each.requires_grad]
            y = normalized(x, weight, bias, eps, ranks)
            found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
            given = [next(found) if each is not None and each.requires_grad else None for each in (x, weight, bias)]
            return (*given, None, None)
        gx, dw, db = torch.ops.aten.native_batch_norm_backward(g, x, weight, mean, variance, None, None, False, eps, [True, True, True])
        n = x.numel() // x.shape[1] * ranks.size
        sums = Sum.apply(torch.stack([db, dw])) / n  # [2, C]: mean(g), mean(g x^)
        inverse = (variance + eps).rsqrt()
        slope = inverse if weight is None else inverse * weight
        per_x = -slope * sums[1] * inverse
        constant = -slope * sums[0] - per_x * mean
        dx = gx.add_(_wide(constant, x).to(gx.dtype)).addcmul_(x, _wide(per_x, x).to(gx.dtype))
        return dx, (dw if weight is not None else None), (db if bias is not None else None), None, None
