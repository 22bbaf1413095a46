"""What keeps D smooth and honest: every penalty that is due in an update, weighted by its knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mien.engine.schedules import Knobs
from mien.engine.state import TrainState
from mien.engine.task import Task
from mien.losses.auxiliary import consistency
from mien.losses.regularizers import lecam, path_lengths
from mien.models.convolution import TwiceDifferentiable
from mien.models.style import StyleGenerator

Critic = Callable[[Tensor, Tensor], Tensor]


def compare_logits(knobs: Knobs) -> bool:
    """Whether a penalty squares small differences of logits. In bf16, with its three digits, such a difference is mostly rounding."""
    return knobs.lecam_gamma > 0 or knobs.consistency_real > 0 or knobs.consistency_fake > 0


def penalties(
    s: TrainState, task: Task, knobs: Knobs, critic: Critic, *, real: Tensor, fake: Tensor, attributes: Tensor, real_logits: Tensor,
    fake_logits: Tensor,
) -> Iterator[tuple[str, float, Tensor]]:  # fmt: skip
    """(name, weight, values [N] in fp32) of each that is due. Moves `s.anchors` on, when LeCam is in use.

    Gradient penalties weigh gamma / 2, as in their papers; a lazy one comes at every k-th update with k times that. LeCam and
    consistency weigh their knob as it is (lambda of Tseng et al. 2021 and of Zhao et al. 2021).
    """
    update = s.nimg // task.config.train.batch
    for name, penalty, every in task.penalties:
        if update % every == 0 and (gamma := getattr(knobs, f"{name}_gamma")) > 0:
            with TwiceDifferentiable():
                values = penalty(critic, real=real, fake=fake, attributes=attributes)
            yield name, every * gamma / 2, values
    if knobs.lecam_gamma > 0:
        means = torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()])
        anchors = means if s.anchors is None else s.anchors
        yield "lecam", knobs.lecam_gamma, lecam(real=real_logits, fake=fake_logits, real_anchor=anchors[0], fake_anchor=anchors[1])
        s.anchors = means.lerp(anchors, 0.5 ** (len(real) / (1000 * task.config.regularizer.lecam.half_life_kimg)))
    for name, images, logits in (("consistency_real", real, real_logits), ("consistency_fake", fake, fake_logits)):
        if (weight := getattr(knobs, name)) > 0:
            with task.autocast(exact=True):
                moved = critic(task.jitter(images, 1.0), attributes)
            yield name, weight, consistency(plain=logits, augmented=moved)


def path_length(s: TrainState, task: Task, knobs: Knobs, *, latents: Tensor, attributes: Tensor) -> Tensor | None:
    """G's path-length penalty on half of these samples, weighted, [N / 2] in fp32; None where it is not due. Moves G's `path_mean` on.

    Of Karras et al. 2020: section 3.2 the penalty, appendix B half the batch, every k-th update and a mean that gains 1% of each.
    """
    every = task.config.regularizer.path_length.every
    if knobs.path_gamma == 0 or not isinstance(s.G, StyleGenerator) or s.nimg // task.config.train.batch % every:
        return None
    half = max(1, len(latents) // 2)
    with task.autocast(exact=True), TwiceDifferentiable():
        styles = s.G.styles(latents[:half], attributes[:half])
        lengths = path_lengths(s.G.synthesis(styles), styles)
    usual = lengths.detach().mean()
    mean = torch.where(s.G.path_mean > 0, s.G.path_mean.lerp(usual, 0.01), usual)
    s.G.path_mean.copy_(mean)
    return every * knobs.path_gamma * (lengths - mean).square()
