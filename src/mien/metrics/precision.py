"""The arithmetic in which features are extracted: fp32, or bf16 for the convolutions. What comes after them is fp32 and more in both."""

from __future__ import annotations

import contextlib

import torch

from mien.errors import UserError, did_you_mean

PRECISIONS = ("fp32", "bf16")


def check_precision(name: str) -> None:
    """Raises UserError for a name that is not one of PRECISIONS."""
    if name not in PRECISIONS:
        raise UserError(f"No precision is named {name}.{did_you_mean(name, PRECISIONS)} There are: {', '.join(PRECISIONS)}.")


def arithmetic(precision: str, device: str | torch.device) -> contextlib.AbstractContextManager[object]:
    """Around the convolutions of a network. fp32 leaves things as they are: every bit is what it was before there was a choice."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
