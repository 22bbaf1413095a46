"""One update of one network: around a body that computes gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mien.engine.schedules import Knobs
from mien.engine.signals import relative_change

Signals = dict[str, torch.Tensor]


@contextmanager
def updating(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, role: str, lr: float, knobs: Knobs, signals: Signals, measure: bool
) -> Iterator[None]:
    """The body computes gradients of `net`; around it: clear them, clip, update, and note the signals of `role`.

    Clipping by norm comes before clipping by value. `measure` adds the weight change, which needs a copy of the weights.
    """
    optimizer.zero_grad(set_to_none=True)
    yield
    parameters = [p for p in net.parameters() if p.grad is not None]
    signals[f"grad_norm_{role}"] = norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if knobs.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, knobs.clip_norm, norm)
    if knobs.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, knobs.clip_value)
    before = [p.detach().clone() for p in parameters] if measure else None
    for group in optimizer.param_groups:
        group["betas"] = (group["betas"][0], knobs.beta2)
        group["lr"] = lr * group.get("share", 1.0)  # new parts beside trained ones learn slowly at first (engine.warmup)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if before is not None:
        signals[f"weight_change_{role}"] = relative_change(before, [p.detach() for p in parameters])
