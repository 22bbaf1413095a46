"""The averaged generator: an exponential moving average of weights, counted in images."""

from __future__ import annotations

import torch

from mien.engine.posthoc import decay
from mien.engine.state import TrainState
from mien.models.growth import FadingGenerator


def ema_decay(*, images: int, nimg: int, half_life_kimg: float, ramp: float) -> float:
    """The factor that the average keeps when `images` more have been shown, `nimg` of them in all.

    beta = 0.5 ** (images / half-life), the half-life being at most `ramp` x nimg, so that a young average forgets the
    initial weights (Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix D). 0 = no averaging.
    """
    half_life_nimg = half_life_kimg * 1000
    if ramp > 0:
        half_life_nimg = min(half_life_nimg, ramp * nimg)
    return 0.5 ** (images / half_life_nimg) if half_life_nimg > 0 else 0.0


def average(s: TrainState, *, images: int, half_life_kimg: float, ramp: float) -> None:
    """Bring `s.ema` up to `s.G` after a step of `images`. Blocks that are being faded in have an average as young as they are.

    Were it as old as the rest of the network, it would still hold their first random weights when they have faded in.
    """
    beta = ema_decay(images=images, nimg=s.origin_nimg + s.nimg, half_life_kimg=half_life_kimg, ramp=ramp)
    ema_update(s.ema, s.G, beta)
    for sigma, net in s.posthoc.items():
        ema_update(net, s.G, decay(float(sigma), images=images, nimg=s.nimg))
    if isinstance(s.G, FadingGenerator) and isinstance(s.ema, FadingGenerator):
        young = ema_decay(images=images, nimg=s.nimg - s.grown_nimg, half_life_kimg=half_life_kimg, ramp=ramp)
        if young < beta:
            ema_update(s.ema.new_blocks, s.G.new_blocks, young / beta)  # after the first update, this makes beta into young


@torch.no_grad()
def ema_update(average: torch.nn.Module, net: torch.nn.Module, beta: float) -> None:
    """average <- beta x average + (1 - beta) x net, for parameters and floating-point buffers; other buffers are copied.

    Batch norm's running statistics are averaged too: those of the trained generator do not belong to the averaged weights.
    """
    mine, theirs = [], []
    for target, source in zip(_tensors(average), _tensors(net)):
        if target.is_floating_point():
            mine.append(target)
            theirs.append(source)
        else:
            target.copy_(source)
    if mine:
        torch._foreach_lerp_(mine, theirs, 1.0 - beta)


def _tensors(net: torch.nn.Module) -> list[torch.Tensor]:
    return [*net.parameters(), *net.buffers()]
