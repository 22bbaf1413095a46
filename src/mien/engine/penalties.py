"""What keeps D smooth and honest: every penalty that is due in an update, weighted by its knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mien.engine.batch import Batch, Piece
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
    s: TrainState, task: Task, knobs: Knobs, critic: Critic, part: Piece, *, fake: Tensor, real_logits: Tensor, fake_logits: Tensor
) -> Iterator[tuple[str, float, Tensor]]:
    """(name, weight, values [N] in fp32) of each that is due. `move_anchors` after the update keeps what LeCam has seen.

    Gradient penalties weigh gamma / 2, as in their papers; a lazy one comes at every k-th update with k times that. LeCam and
    consistency weigh their knob as it is (lambda of Tseng et al. 2021 and of Zhao et al. 2021).
    """
    update, real, attributes = s.nimg // task.config.train.batch, part.real, part.attributes
    for name, penalty, every in task.penalties:
        if update % every == 0 and (gamma := getattr(knobs, f"{name}_gamma")) > 0:
            of_batch = {"std": deviation(part.whole.real, task)} if name == "dragan" else {}
            with TwiceDifferentiable():
                values = penalty(critic, real=real, fake=fake, attributes=attributes, **of_batch)
            yield name, every * gamma / 2, values
    if knobs.lecam_gamma > 0:
        means = task.ranks.mean(torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()]))
        anchors = means if s.anchors is None else s.anchors
        yield "lecam", knobs.lecam_gamma, lecam(real=real_logits, fake=fake_logits, real_anchor=anchors[0], fake_anchor=anchors[1])
        part.whole.logit_means.append(means)
    for name, images, logits in (("consistency_real", real, real_logits), ("consistency_fake", fake, fake_logits)):
        if (weight := getattr(knobs, name)) > 0:
            with task.autocast(exact=True):
                moved = critic(task.jitter(images, 1.0), attributes)
            yield name, weight, consistency(plain=logits, augmented=moved)


def move_anchors(s: TrainState, task: Task, batch: Batch) -> None:
    """LeCam's anchors, after an update that it took part in."""
    if batch.logit_means:
        means = torch.stack(batch.logit_means).mean(0)
        keep = 0.5 ** (len(batch.latents) / (1000 * task.config.regularizer.lecam.half_life_kimg))
        s.anchors = means.lerp(means if s.anchors is None else s.anchors, keep)


def deviation(real: Tensor, task: Task) -> Tensor:
    """Standard deviation of all values of the whole batch, 0-d, of which `real` is this process's part."""
    if task.ranks.size == 1:
        return real.float().std()
    values, n = real.double(), real.numel() * task.ranks.size
    mean = task.ranks.mean(values.mean())
    return (task.ranks.mean((values - mean).square().mean()) * (n / (n - 1))).sqrt().float()


def path_length(s: TrainState, task: Task, knobs: Knobs, part: Piece) -> Tensor | None:
    """G's path-length penalty on half of these samples, weighted, [N / 2] in fp32; None where it is not due. Moves G's `path_mean` on.

    Of Karras et al. 2020: section 3.2 the penalty, appendix B half the batch, every k-th update and a mean that gains 1% of each.
    """
    every, step = task.config.regularizer.path_length.every, s.nimg // (task.config.train.batch * knobs.d_steps)
    if knobs.path_gamma == 0 or not isinstance(s.G, StyleGenerator) or step % every:
        return None
    with task.autocast(exact=True), TwiceDifferentiable(), part.of_first_half() as (latents, attributes):
        styles = s.G.styles(latents, attributes)
        lengths = path_lengths(s.G.synthesis(styles), styles)
    usual = task.ranks.mean(lengths.detach().mean())
    mean = torch.where(s.G.path_mean > 0, s.G.path_mean.lerp(usual, 0.01), usual)
    s.G.path_mean.copy_(mean)
    return every * knobs.path_gamma * (lengths - mean).square()
