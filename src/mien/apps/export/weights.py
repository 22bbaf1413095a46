"""A generator as a safetensors file with its .json, whole or with its weights in half the bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from mien.engine.checkpoint import save_snapshot
from mien.errors import UserError
from mien.explore.load import LoadedGenerator
from mien.explore.sample import combinations, render
from mien.models.latents import latents

LOOKED_AT = 64  # latents that rounding is measured on


def halved(generator: LoadedGenerator) -> LoadedGenerator:
    """A copy whose weights of two and more dimensions are fp16; biases, norms and statistics, which are few, stay as they are.

    Such a network is for storing: `rounded` is the one to compute with. Raises UserError when a weight is too large for fp16.
    """
    net = copy.deepcopy(generator.net)
    for name, parameter in net.named_parameters():
        if parameter.ndim < 2:
            continue
        parameter.data = parameter.data.half()
        if not torch.isfinite(parameter.data).all():
            raise UserError(f"{name} has weights beyond what fp16 holds (65,504): export {generator.path} without --half.")
    return _with(generator, net)


def rounded(generator: LoadedGenerator) -> LoadedGenerator:
    """A copy that computes in fp32 with the weights that `halved` stores."""
    net = halved(generator).net.float()
    return _with(generator, net)


def _with(generator: LoadedGenerator, net: torch.nn.Module) -> LoadedGenerator:
    meta = {**generator.meta, "precision": "fp16"}
    return LoadedGenerator(net, generator.attribute_names, generator.size, generator.z_dim, meta, generator.path)


def moved_levels(generator: LoadedGenerator, other: LoadedGenerator) -> tuple[int, float]:
    """(largest, mean) difference of the two's pictures, in levels of 0..255, over 64 latents x up to 8 combinations of attributes."""
    rows = combinations(generator, {}, limit=8)
    largest, total = 0, 0.0
    z = latents(range(LOOKED_AT), generator.z_dim)
    for row in rows:
        attributes = row.expand(len(z), -1)
        a, b = render(generator, z, attributes).int(), render(other, z, attributes).int()
        largest, total = max(largest, int((a - b).abs().max())), total + float((a - b).abs().float().mean())
    return largest, total / len(rows)


def write_weights(generator: LoadedGenerator, stem: Path, *, card: dict[str, Any], half: bool) -> Path:
    """`stem`.safetensors and `stem`.json, the card's facts inside: a MODEL wherever they lie. Returns the .safetensors."""
    stored = halved(generator) if half else generator
    meta = {key: value for key, value in stored.meta.items() if key not in ("format", "sha256", "card")}
    return save_snapshot(stem, stored.net, {**meta, "card": card})
