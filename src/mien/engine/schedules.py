"""What changes over a run, as a pure function of the images seen. `knobs_at` gives every value that one step needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mien.config import Config
from mien.sections import number


@dataclass(frozen=True)
class Knobs:
    """The settings of one step; every number a run may change while it goes."""

    lr_g: float
    lr_d: float
    d_steps: int
    g_steps: int
    augment_p: float
    r1_gamma: float
    r2_gamma: float
    gp_gamma: float
    dragan_gamma: float
    lecam_gamma: float
    consistency_real: float
    consistency_fake: float
    path_gamma: float
    input_noise: float
    beta2: float
    clip_norm: float | None
    clip_value: float | None
    ema_half_life_kimg: float


KNOBS: dict[str, tuple[float, float, bool]] = {
    "lr_g": (1e-8, 1.0, False),
    "lr_d": (1e-8, 1.0, False),
    "d_steps": (1, 16, False),
    "g_steps": (1, 16, False),
    "augment_p": (0.0, 1.0, False),
    "r1_gamma": (0.0, 1e6, False),
    "r2_gamma": (0.0, 1e6, False),
    "gp_gamma": (0.0, 1e6, False),
    "dragan_gamma": (0.0, 1e6, False),
    "lecam_gamma": (0.0, 1e6, False),
    "consistency_real": (0.0, 1e6, False),
    "consistency_fake": (0.0, 1e6, False),
    "path_gamma": (0.0, 1e6, False),
    "input_noise": (0.0, 10.0, False),
    "beta2": (0.0, 0.99999, False),
    "clip_norm": (1e-6, 1e9, True),
    "clip_value": (1e-6, 1e9, True),
    "ema_half_life_kimg": (0.0, 1e6, False),
}
"""Every knob: its least and greatest value, and whether it may be None (absent)."""


def due(every_kimg: float, before: int, after: int) -> bool:
    """Whether a multiple of `every_kimg` thousand images lies in (before, after]; never when it is 0."""
    every = round(1000 * every_kimg)
    return every > 0 and after // every > before // every


def cosine(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1 along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def lr_factor(config: Config, nimg: int) -> float:
    """What both learning rates are multiplied by after `nimg` images."""
    schedule = config.schedule
    # The warm-up ends on the first step past it; counting this step's own images keeps the very first rate above 0.
    seen = nimg + config.train.batch
    warmup = min(1.0, seen / (1000 * schedule.warmup_kimg)) if schedule.warmup_kimg > 0 else 1.0
    if schedule.lr == "cosine":
        return warmup * cosine(1.0, schedule.final, nimg / config.train.images)
    if schedule.lr == "step":
        return warmup * schedule.step_factor ** (nimg // round(1000 * schedule.step_kimg))
    return warmup


def augment_factor(config: Config, nimg: int) -> float:
    """What the probability of augmentation is multiplied by after `nimg` images, where the recipe alone moves it."""
    if config.augment.mode == "ramp":
        return min(1.0, nimg / (1000 * config.augment.ramp_kimg))
    return cosine(0.0, 1.0, nimg / config.train.images) if config.augment.mode == "cosine" else 1.0


def knobs_at(config: Config, nimg: int) -> Knobs:
    factor, share, regularizer = lr_factor(config, nimg), nimg / config.train.images, config.regularizer
    gamma, beta2 = cosine(1.0, config.schedule.gamma_final, share), config.optimizer.beta2
    return Knobs(
        lr_g=config.optimizer.lr_g * factor,
        lr_d=config.optimizer.lr_d * factor,
        d_steps=config.balance.d_steps,
        g_steps=config.balance.g_steps,
        augment_p=config.augment.p * augment_factor(config, nimg),
        r1_gamma=number(regularizer.r1.gamma) * gamma,
        r2_gamma=number(regularizer.r2.gamma) * gamma,
        gp_gamma=regularizer.gp.gamma * gamma,
        dragan_gamma=regularizer.dragan.gamma * gamma,
        lecam_gamma=regularizer.lecam.gamma * gamma,
        consistency_real=regularizer.consistency.real * gamma,
        consistency_fake=regularizer.consistency.fake * gamma,
        path_gamma=regularizer.path_length.gamma * gamma,
        input_noise=config.model.discriminator.input_noise * cosine(1.0, config.schedule.noise_final, share),
        beta2=cosine(beta2, beta2 if config.schedule.beta2_final is None else config.schedule.beta2_final, share),
        clip_norm=config.optimizer.clip_norm,
        clip_value=config.optimizer.clip_value,
        ema_half_life_kimg=number(config.ema.half_life_kimg) * cosine(config.schedule.ema_start, 1.0, share),
    )
