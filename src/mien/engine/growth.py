"""Progressive growth: which size a run trains at after so many images, and how its networks and data get there and follow.

The structure of a run's networks is a function of the images seen: a step that reaches a boundary is followed at once by the change. So a
checkpoint is loaded into the structure that its image count names, and a resume or a rollback meets each growth where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mien.config import Config
from mien.engine.state import TrainState, step_seed
from mien.engine.warmup import regroup, set_shares
from mien.errors import UserError
from mien.models.growth import (
    FadingDiscriminator,
    FadingGenerator,
    grown_discriminator,
    grown_generator,
    settled_discriminator,
    settled_generator,
)

if TYPE_CHECKING:
    from mien.engine.task import Task


@dataclass(frozen=True)
class Phase:
    """The size in px, and how far it is faded in: 1.0 is a plain network."""

    size: int
    alpha: float = 1.0

    @property
    def fading(self) -> bool:
        return self.alpha < 1

    def same_structure(self, other: Phase) -> bool:
        return (self.size, self.fading) == (other.size, other.fading)


@dataclass(frozen=True)
class Plan:
    """The sizes of a run, first to last, and at how many images each but the first begins."""

    sizes: tuple[int, ...]
    at_nimg: tuple[int, ...] = ()
    fade_nimg: int = 0

    def at(self, nimg: int) -> Phase:
        """The phase of the step that begins after `nimg` images."""
        begun = [at for at in self.at_nimg if at <= nimg]
        if not begun:
            return self.first
        alpha = (nimg - begun[-1]) / self.fade_nimg if self.fade_nimg else 1.0
        return Phase(self.sizes[len(begun)], min(1.0, alpha))

    @property
    def first(self) -> Phase:
        """What a new run is built as. With a growth at image 0 that is not the phase of its first step."""
        return Phase(self.sizes[0])


def plan_of(config: Config, size: int) -> Plan:
    """The plan of a recipe for data of `size` px. Raises UserError when so many doublings lead to no size of the family."""
    growth = config.growth
    sizes = [size >> k for k in range(len(growth.at_kimg), -1, -1)]
    if len(sizes) > 1 and (sizes[0] < 32 or sizes[0] << len(growth.at_kimg) != size):
        raise UserError(f"growth.at_kimg has {len(growth.at_kimg)} doublings, so a run to {size} px would begin at {sizes[0]} px: "
                        "name fewer, or prepare larger images; 32 px is the least.")  # fmt: skip
    return Plan(tuple(sizes), tuple(round(1000 * at) for at in growth.at_kimg), round(1000 * growth.fade_kimg))


def describe(net: torch.nn.Module) -> dict[str, int | float]:
    """What a snapshot says of a generator's size: {"size": px}, and "alpha" while it grows from half of that."""
    fade: dict[str, int | float] = {"alpha": net.alpha} if isinstance(net, FadingGenerator) else {}
    return {"size": net.size, **fade}  # type: ignore[dict-item]


def phase_of(state: TrainState) -> Phase:
    """What the networks of `state` are now."""
    return Phase(state.G.size, state.G.alpha if isinstance(state.G, FadingGenerator) else 1.0)


def follow(state: TrainState, task: Task) -> str | None:
    """Bring networks, data, alpha and rates to where `state.nimg` wants them; a sentence when the structure changed.

    Weights, optimiser moments and the average stay with what grows. New blocks are drawn from (seed, nimg) and learn at the full rate:
    the fade keeps what they draw small at first, and blocks held back as well would still draw nothing when the old ones are gone.
    """
    told = None
    phase = task.plan.at(state.nimg)
    while not (now := phase_of(state)).same_structure(phase):
        if now.fading:
            settle(state, task.config)
            told = f"{now.size} px: the new blocks are faded in, the old ones gone."
        else:
            grow(state, task.config)
            told = f"Growing from {now.size} to {2 * now.size} px: new blocks fade in over {task.plan.fade_nimg:,} images."
    task.faces.size = phase.size
    for net in (state.G, state.D, state.ema):
        if isinstance(net, (FadingGenerator, FadingDiscriminator)):
            net.alpha = phase.alpha
    set_shares(state, task.config)
    return told


def grow(state: TrainState, config: Config) -> None:
    """Twice the size, at alpha 0."""
    family, g, d = config.model.family, config.model.generator_options(), config.model.discriminator_options()
    torch.manual_seed(step_seed(config.train.seed, state.nimg, -2))
    generator = grown_generator(state.G, family=family, options=g)
    average = grown_generator(state.ema, family=family, options=g).requires_grad_(False)
    average.new_blocks.load_state_dict(generator.new_blocks.state_dict())
    state.G, state.ema, state.D = generator, average, grown_discriminator(state.D, family=family, options=d)
    state.grown_nimg = state.nimg
    regroup(state, config)


def settle(state: TrainState, config: Config) -> None:
    """From alpha 1 to the plain networks."""
    family, g, d = config.model.family, config.model.generator_options(), config.model.discriminator_options()
    assert isinstance(state.G, FadingGenerator) and isinstance(state.D, FadingDiscriminator) and isinstance(state.ema, FadingGenerator)
    state.G, state.ema = (settled_generator(net, family=family, options=g) for net in (state.G, state.ema))
    state.D = settled_discriminator(state.D, family=family, options=d)
    regroup(state, config)
