"""What "auto" in a recipe stands for: numbers as functions of the resolution, the batch and the length of the run. No torch.

A rule holds for a family of networks, because its source does. None of the sources makes gamma a function of the number of images in the
data; to small data answers the adaptive augmentation (`augment.mode = "adaptive"`), which needs no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mien.sections import Config

Found = tuple[float, str]  # the number, and the rule in words with its source


def r1_gamma(config: Config, size_px: int) -> Found:
    """The weight of a zero-centred gradient penalty.

    style: .0002 x side^2 / batch, the heuristic of Karras et al. 2020 ("Limited Data"): the penalty sums over pixels, and a smaller batch
    wants more of it. r3: the power law through the two face settings of Huang et al. 2024, 2 at 64 px and 150 at 256 px (FFHQ, batches of
    256; at 32 px it gives .23, where CIFAR-10 took .05). dcgan, resnet: .2 at 64 px, which was tried here in batches of 32 (1 in batches
    of 64 was slower), scaled by the number of pixels as style's; other sizes were not tried.
    """
    family, batch = config.model.family, config.train.batch
    if family == "style":
        return rounded(0.0002 * size_px**2 / batch), f"0.0002 x {size_px}^2 / {batch} (Karras 2020)"
    if family == "r3":
        return rounded(2.0 * (size_px / 64) ** 3.114), f"2 x ({size_px} / 64)^3.114 (through R3GAN's FFHQ settings)"
    return rounded(0.2 * (size_px / 64) ** 2), f"0.2 x ({size_px} / 64)^2 (tried at 64 px)"


def ema_half_life_kimg(config: Config, size_px: int) -> Found:
    """Half-life of the averaged generator.

    r3: a fortieth of the run (Huang et al. 2024: 500 kimg of a cosine of 20M). Others: batch x 10 / 32 (Karras et al. 2020, "auto"), at
    most a twentieth of the run.
    """
    images, batch = config.train.images, config.train.batch
    if config.model.family == "r3":
        return rounded(images / 40_000), f"{images:,} images / 40 (R3GAN)"
    return rounded(min(batch * 10 / 32, images / 20_000)), f"{batch} x 10 / 32 (Karras 2020), at most 1/20 of the run"


def rounded(value: float) -> float:
    """Four digits: the same number on every machine, and one that a person can repeat."""
    return float(f"{value:.4g}")


RULES: dict[str, Callable[[Config, int], Found]] = {
    "regularizer.r1.gamma": r1_gamma,
    "regularizer.r2.gamma": r1_gamma,
    "ema.half_life_kimg": ema_half_life_kimg,
}
"""The keys that may say "auto"."""


def settle(config: Config, size_px: int, *, kept: Mapping[str, Any] | None = None) -> tuple[Config, dict[str, str]]:
    """`config` with numbers in place of each "auto", for images of `size_px` (the last, where a run grows); {key: the rule in words}.

    `kept`: {key: number} that a run began with: it keeps them, though it be made longer. A config without "auto" comes back as it is.
    """
    plain, words = config.model_dump(), {}
    for key, rule in RULES.items():
        *path, last = key.split(".")
        node = plain
        for part in path:
            node = node[part]
        if node[last] == "auto":
            value, words[key] = rule(config, size_px)
            node[last] = (kept or {}).get(key, value)
    return (Config.model_validate(plain), words) if words else (config, {})
