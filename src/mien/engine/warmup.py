"""Rates of new parts beside trained ones: each parameter's share of its network's rate, as a function of the images seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mien.config import Config
    from mien.engine.state import TrainState

FIRST_SHARE = 0.05


def warmth(since_nimg: int, warmup_nimg: int) -> float:
    """The share of the rate that a part `since_nimg` images old learns at: from FIRST_SHARE to 1 in a straight line."""
    return min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * since_nimg / warmup_nimg) if warmup_nimg else 1.0


def frozen(D: nn.Module, blocks: int) -> set[str]:
    """Names of the parameters in the `blocks` blocks of D nearest the image (FreezeD, Mo et al. 2020)."""
    if not blocks:
        return set()
    first = list(D.trunk.named_children())[:blocks]  # type: ignore[operator,union-attr]
    return {f"trunk.{block}.{name}" for block, module in first for name, _ in module.named_parameters()}


def regroup(state: TrainState, config: Config) -> None:
    """Sort each optimiser's parameters into groups by when they were born (`state.warming`) and whether they are frozen.

    Moments stay with their parameters; those of parameters that are gone are dropped.
    """
    still = {name for name in frozen(state.D, config.surgery.freeze_d) if f"D.{name}" not in state.warming}  # else it would stay random
    state.warming = {name: at for name, at in state.warming.items() if name in _names(state)}
    _sort(state.opt_g, state.G, {name.removeprefix("G."): at for name, at in state.warming.items() if name.startswith("G.")}, set())
    _sort(state.opt_d, state.D, {name.removeprefix("D."): at for name, at in state.warming.items() if name.startswith("D.")}, still)


def _names(state: TrainState) -> set[str]:
    return {f"{role}.{name}" for role, net in (("G", state.G), ("D", state.D)) for name, _ in net.named_parameters()}


def _sort(optimizer: torch.optim.Optimizer, net: nn.Module, born_nimg: Mapping[str, int], still: set[str]) -> None:
    groups: dict[tuple[int | None, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        groups.setdefault((born_nimg.get(name), name in still, parameter.ndim > 1), []).append(parameter)
    own = ("params", "born_nimg", "frozen", "share", "weight_decay")
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key not in own}
    decay = optimizer.defaults["weight_decay"]  # of kernels; `build.build_optimizer` says why
    kept: dict[torch.Tensor, dict] = {p: optimizer.state[p] for p in net.parameters() if p in optimizer.state}
    optimizer.param_groups.clear()
    for (born, is_frozen, kernels), parameters in groups.items():
        group = {"params": parameters, "born_nimg": born, "frozen": is_frozen, "weight_decay": decay if kernels else 0.0}
        optimizer.add_param_group({**settings, **group})
    optimizer.state.clear()
    optimizer.state.update(kept)


def set_shares(state: TrainState, config: Config) -> None:
    """Each group's `share` of its network's rate at `state.nimg`; the step multiplies by it."""
    warmup_nimg = round(1000 * config.surgery.warmup_kimg)
    for group in (*state.opt_g.param_groups, *state.opt_d.param_groups):
        born = group.get("born_nimg")
        group["share"] = 0.0 if group.get("frozen") else 1.0 if born is None else warmth(state.nimg - born, warmup_nimg)
