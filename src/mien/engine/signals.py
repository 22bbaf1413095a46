"""Named scalars of a step, summed on the device and read at a tick, so that no step waits for the host.

Logits are D's; a logit above 0 means that D calls the image real. To the losses of `FREE_OFFSET` a number added to all logits changes
nothing, so D's 0 drifts, and says nothing. There "above 0" is above the middle between the mean logits of reals and of fakes in D's update,
over the whole batch, and `sign_real` is taken about it.

- `loss_d`, `loss_g`: the adversarial losses, penalties left out.
- `accuracy_real`, `accuracy_fake`: share of reals called real and of fakes called fake, in D's step.
- `fooling_rate`: share of fakes called real in G's step.
- `logit_gap`: E[D(real)] - E[D(fake)]. `sign_real`: E[sign D(real)], which nears 1 as D memorises (Karras et al. 2020).
- `grad_norm_d`, `grad_norm_g`: L2 norm of the whole gradient, before clipping.
- `weight_change_d`, `weight_change_g`: |w' - w| / |w| of one update; measured at ticks.
- `r1_penalty` and the same of `r2`, `gp`, `dragan`, `lecam`, `consistency_real`, `consistency_fake`: the mean penalty before its weight,
  when it was computed. `path_penalty`: with its weight. `perceptual`: before it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import torch

from mien.engine.distributed import Ranks

FREE_OFFSET = ("wasserstein", "relativistic")
"""The adversarial losses that look at differences of logits alone."""


class SignalMeter:
    """Means of named 0-d tensors between two reads. `sums` and `counts` are all it holds."""

    def __init__(self, sums: dict[str, torch.Tensor] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums, self.counts = sums or {}, counts or {}

    def add(self, signals: Mapping[str, torch.Tensor]) -> None:
        for name, value in signals.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, *, forget: bool = True) -> dict[str, float]:
        """{name: mean since the last read}, in one transfer."""
        names = list(self.sums)
        values = torch.stack([self.sums[name] for name in names]).tolist() if names else []
        means = {name: value / self.counts[name] for name, value in zip(names, values)}
        if forget:
            self.sums, self.counts = {}, {}
        return means


@torch.no_grad()
def discriminator_signals(*, loss: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
    """Signals of D's step from its per-sample loss and its logits on reals and fakes, [N] each."""
    return {
        "loss_d": loss.mean(),
        "logit_gap": real.mean() - fake.mean(),
        **verdicts(real=real, fake=fake),
    }


def verdicts(*, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "accuracy_real": (real > 0).float().mean(),
        "accuracy_fake": (fake <= 0).float().mean(),
        "sign_real": real.sign().mean(),
    }


@torch.no_grad()
def centred_verdicts(
    logits: list[tuple[torch.Tensor, torch.Tensor]], ranks: Ranks
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(signals that take the place of `verdicts` where D's offset is free, the centre that they are taken about, 0-d).

    `logits`: (reals [N], fakes [N]) of each piece of this process's part of D's update. The centre is the whole batch's, whatever the cut.
    """
    real, fake = (torch.cat(kind) for kind in zip(*logits))
    centre = ranks.mean((real.mean() + fake.mean()) / 2)
    return verdicts(real=real - centre, fake=fake - centre), centre


@torch.no_grad()
def generator_signals(*, loss: torch.Tensor, fake: torch.Tensor, centre: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Signals of G's step from its per-sample loss and D's logits on its fakes, [N] each. `centre`: of D's update before it, if free."""
    above = fake if centre is None else fake.float() - centre
    return {"loss_g": loss.mean(), "fooling_rate": (above > 0).float().mean()}


def mean_of(pieces: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The signals of a batch from those of its equal pieces."""
    return pieces[0] if len(pieces) == 1 else {name: torch.stack([piece[name] for piece in pieces]).mean() for name in pieces[0]}


@torch.no_grad()
def relative_change(before: list[torch.Tensor], after: list[torch.Tensor]) -> torch.Tensor:
    """|after - before| / |before| over all tensors together."""
    changed = torch.nn.utils.get_total_norm(torch._foreach_sub(after, before))
    return changed / torch.nn.utils.get_total_norm(before).clamp_min(1e-12)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far: the allocator's on a GPU, this process's resident set elsewhere (NaN where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB
