"""One training step."""

from __future__ import annotations

import torch
from torch import Tensor

from mien.engine.batch import Batch
from mien.engine.compiled import compile_networks
from mien.engine.ema import average
from mien.engine.penalties import compare_logits, move_anchors, path_length, penalties
from mien.engine.schedules import Knobs
from mien.engine.signals import FREE_OFFSET, centred_verdicts, discriminator_signals, generator_signals, mean_of
from mien.engine.state import TrainState, step_seed
from mien.engine.task import Task
from mien.engine.update import Signals, updating
from mien.losses.auxiliary import feature_matching

__all__ = ["Task", "train_step"]


def train_step(s: TrainState, task: Task, knobs: Knobs, *, measure: bool = False) -> Signals:
    """`d_steps` updates of D, `g_steps` of G, then the average. Returns the step's signals; `measure` adds the weight changes.

    Every random draw is a function of (seed, nimg): the default generator is seeded here. With one update of each, G learns from
    the fakes that D has just seen (as in Radford et al. 2015's code), which saves a forward pass of G. With several processes each does
    its part of every batch; gradients and signals are added up before an update, which is then the same in all.
    """
    compile_networks(s, task)
    torch.manual_seed(step_seed(task.config.train.seed, s.nimg, s.noise_salt))
    s.D.input_noise = knobs.input_noise
    begun_nimg, n = s.nimg, task.config.train.batch
    one_each = knobs.d_steps == knobs.g_steps == 1
    signals: Signals = {}
    for _ in range(knobs.d_steps):
        batch = Batch.load(s, task)
        signals |= update_d(s, task, knobs, batch, measure, keep_fakes=one_each and task.piece == len(batch.real))
        centre = signals.pop("logit_centre", None)
        s.nimg += n

    s.D.requires_grad_(False)  # its weights' gradients would be thrown away: a quarter of the step
    for _ in range(knobs.g_steps):
        if not one_each:
            latents = task.latents(s.G.z_dim)
            batch = Batch(batch.real, batch.attributes if task.compares else task.data.draw_attributes(n), latents)
        signals |= update_g(s, task, knobs, batch, measure, centre=centre)
    s.D.requires_grad_(True)

    average(s, images=s.nimg - begun_nimg, half_life_kimg=knobs.ema_half_life_kimg, ramp=task.config.ema.ramp)
    return signals


def update_d(s: TrainState, task: Task, knobs: Knobs, batch: Batch, measure: bool, *, keep_fakes: bool) -> Signals:
    """Discriminator: tell real from fake, stay smooth. `keep_fakes` leaves the fakes in `batch`, for G to learn from.

    Where the loss leaves D's offset free, `logit_centre` is among the signals: what counts as 0.
    """

    def critic(images: Tensor, attributes: Tensor) -> Tensor:  # what D sees is always augmented, real or fake
        return s.D(task.augment(images, knobs.augment_p), attributes)  # [N]

    signals, seen, judged = Signals(), [], []
    with updating(s.D, s.opt_d, "d", knobs.lr_d, knobs, signals, measure):
        for part in batch.pieces(s, task):
            with part:
                r, a = part.real, part.attributes
                with task.autocast(), torch.set_grad_enabled(keep_fakes):
                    fake = s.G(part.latents, a)
                batch.fake, f = fake if keep_fakes else None, fake.detach()
                with task.autocast(exact=compare_logits(knobs)):
                    if task.config.train.separate_batches:
                        real_logits, fake_logits = critic(r, a).float(), critic(f, a).float()
                    else:
                        real_logits, fake_logits = critic(torch.cat([r, f]), torch.cat([a, a])).float().split(len(r))
                loss = task.adversarial.d_loss(real=real_logits, fake=fake_logits)  # [N]
                total, told = loss.sum(), discriminator_signals(loss=loss, real=real_logits, fake=fake_logits)
                logits = {"real_logits": real_logits, "fake_logits": fake_logits}
                for name, weight, values in penalties(s, task, knobs, critic, part, fake=f, **logits):
                    total = total + weight * values.sum()
                    told[f"{name}_penalty"] = values.detach().mean()
                (total / len(batch.latents)).backward()
                seen.append(told)
                judged.append((real_logits.detach(), fake_logits.detach()))
        told = mean_of(seen)
        if task.config.loss.name in FREE_OFFSET:
            apart, told["logit_centre"] = centred_verdicts(judged, task.ranks)
            told |= apart
        told = task.ranks.pool(s.D, told)
    move_anchors(s, task, batch)
    return signals | told


def update_g(s: TrainState, task: Task, knobs: Knobs, batch: Batch, measure: bool, *, centre: Tensor | None = None) -> Signals:
    """Generator: make D call fakes real, which is above `centre` where there is one."""
    signals, seen, weigh, pooled = Signals(), [], task.config.loss, task.ranks.pooled
    with updating(s.G, s.opt_g, "g", knobs.lr_g, knobs, signals, measure):
        for part in batch.pieces(s, task):
            with part:
                r, a = part.real, part.attributes
                with task.autocast():
                    f = part.fakes()
                    features = s.D.features(task.augment(f, knobs.augment_p), a)  # [N, F]
                    fake_logits = s.D.head(features, a)
                    pair = s.D(task.augment(r, knobs.augment_p), a).float() if task.adversarial.pairs else None
                    loss = task.adversarial.g_loss(real=pair, fake=fake_logits.float())  # [N]
                    total, told = loss.sum() / len(batch.latents), generator_signals(loss=loss, fake=fake_logits, centre=centre)
                    if weigh.feature_matching > 0:
                        with torch.no_grad():
                            real_features = s.D.features(task.augment(r, knobs.augment_p), a)
                        apart = feature_matching(real=pooled(real_features), fake=pooled(features))
                        total = total + part.share * weigh.feature_matching * apart
                    if task.face is not None:
                        apart = feature_matching(real=pooled(task.face(r)), fake=pooled(task.face(f)))
                        total, told["perceptual"] = total + part.share * weigh.perceptual * apart, apart.detach()
                    if (paths := path_length(s, task, knobs, part)) is not None:
                        total, told["path_penalty"] = total + part.share * paths.mean(), paths.detach().mean()
                total.backward()
                seen.append(told)
        told = task.ranks.pool(s.G, mean_of(seen))
    return signals | told
