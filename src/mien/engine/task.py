"""What a step needs and never changes; only `build.put_at_hand` adds to it, when a checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mien.augment.policy import Augment
from mien.config import Config
from mien.data.loader import FaceLoader
from mien.data.pyramid import Pyramid, PyramidLoader
from mien.engine.distributed import ALONE, Ranks
from mien.engine.growth import Plan
from mien.engine.probe import Probe
from mien.losses.catalogue import Adversarial

Penalty = Callable[..., Tensor]
Features = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Task:
    """The recipe, the data, the objective."""

    config: Config
    faces: Pyramid
    """The stores, and the size that `data` serves now."""
    plan: Plan
    """The sizes of the run."""
    data: FaceLoader | PyramidLoader
    adversarial: Adversarial
    penalties: tuple[tuple[str, Penalty, int], ...]
    """(name, penalty, every): `name`_gamma is a knob."""
    augment: Augment
    device: torch.device
    probe: Probe | None = None
    jitter: Augment = field(default_factory=lambda: Augment([]))
    """The transformation that consistency regularisation asks D to overlook; always applied."""
    face: Features | None = None
    """Images [N, 3, R, R] in -1..1 -> [N, F], a fixed network's: the space of the perceptual term."""
    ranks: Ranks = ALONE
    """The processes among which each batch is divided."""

    @property
    def piece(self) -> int:
        """How many images go through the networks at once, in each process."""
        mine = self.config.train.batch // self.ranks.size
        return min(self.config.train.micro_batch or mine, mine)

    @property
    def compares(self) -> bool:
        """Whether G's fakes are compared with reals, and so must have their attributes."""
        return self.adversarial.pairs or self.config.loss.feature_matching > 0 or self.face is not None

    def autocast(self, *, exact: bool = False) -> torch.autocast:
        """Mixed precision where the recipe asks for it. `exact`: not here."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.train.precision == "bf16" and not exact)

    def latents(self, z_dim: int) -> Tensor:
        """A whole batch of N(0, 1), [B, Z], from the default generator: the same in every process."""
        return torch.randn(self.config.train.batch, z_dim, device=self.device)
