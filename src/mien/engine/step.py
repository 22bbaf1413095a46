"""One training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from mien.augment.policy import Augment
from mien.config import Config
from mien.data.loader import FaceLoader
from mien.engine.ema import ema_decay, ema_update
from mien.engine.probe import Probe
from mien.engine.schedules import Knobs
from mien.engine.signals import discriminator_signals, generator_signals, mean_of, relative_change
from mien.engine.state import TrainState, step_seed
from mien.losses.auxiliary import feature_matching
from mien.losses.catalogue import Adversarial

Penalty = Callable[..., torch.Tensor]
Signals = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What a step needs and never changes: the recipe, the data, the objective."""

    config: Config
    data: FaceLoader
    adversarial: Adversarial
    penalties: tuple[tuple[str, Penalty, int], ...]
    """(name, penalty, every): `name`_gamma is a knob."""
    augment: Augment
    device: torch.device
    probe: Probe | None = None

    def autocast(self):
        bf16 = self.config.train.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def train_step(s: TrainState, task: Task, knobs: Knobs, *, measure: bool = False) -> Signals:
    """`d_steps` updates of D, `g_steps` of G, then the average. Returns the step's signals; `measure` adds the weight changes.

    Every random draw is a function of (seed, nimg): the default generator is seeded here. With one update of each, G learns from
    the fakes that D has just seen (as in Radford et al. 2015's code), which saves a forward pass of G.
    """
    torch.manual_seed(step_seed(task.config.train.seed, s.nimg, s.noise_salt))
    batch, micro = task.config.train.batch, task.config.train.micro_batch or task.config.train.batch
    nimg_before = s.nimg
    signals: Signals = {}

    def noise() -> torch.Tensor:
        return torch.randn(batch, s.G.z_dim, device=task.device)  # [N, Z]

    def critic(images: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:  # what D sees is always augmented, real or fake
        return s.D(task.augment(images, knobs.augment_p), attributes)  # [N]

    def judge(real: torch.Tensor, fake: torch.Tensor, attributes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if task.config.train.separate_batches:
            return critic(real, attributes), critic(fake, attributes)
        both = critic(torch.cat([real, fake]), torch.cat([attributes, attributes]))
        return both[: len(real)], both[len(real) :]

    # Discriminator: tell real from fake, stay smooth.
    one_each = knobs.d_steps == knobs.g_steps == 1
    share_fakes = one_each and micro == batch
    for _ in range(knobs.d_steps):
        real, attributes = task.data.batch(s.nimg, batch)  # [N, 3, R, R] in -1..1, [N, A]
        update, latents, seen = s.nimg // batch, noise(), []
        with updating(s.D, s.opt_d, "d", knobs.lr_d, knobs, signals, measure):
            for i in range(0, batch, micro):
                r, z, a = (part[i : i + micro] for part in (real, latents, attributes))
                with task.autocast():
                    with torch.set_grad_enabled(share_fakes):
                        fake = s.G(z, a)
                    f = fake.detach()
                    real_logits, fake_logits = judge(r, f, a)
                    loss = task.adversarial.d_loss(real=real_logits.float(), fake=fake_logits.float())  # [N]
                total, seen_here = loss.sum(), discriminator_signals(loss=loss, real=real_logits, fake=fake_logits)
                for name, penalty, every in task.penalties:
                    if update % every == 0 and (gamma := getattr(knobs, f"{name}_gamma")) > 0:
                        values = penalty(critic, real=r, fake=f, attributes=a)  # [N], fp32
                        total = total + every * gamma / 2 * values.sum()
                        seen_here[f"{name}_penalty"] = values.detach().mean()
                (total / batch).backward()
                seen.append(seen_here)
        signals |= mean_of(seen)
        s.nimg += batch

    # Generator: make D call fakes real.
    s.D.requires_grad_(False)  # its weights' gradients would be thrown away: a quarter of the step
    for _ in range(knobs.g_steps):
        if not one_each:
            latents = noise()
            if not (task.adversarial.pairs or task.config.loss.feature_matching):  # what is compared with reals has their attributes
                attributes = task.data.draw_attributes(batch)
        seen = []
        with updating(s.G, s.opt_g, "g", knobs.lr_g, knobs, signals, measure):
            for i in range(0, batch, micro):
                r, a = real[i : i + micro], attributes[i : i + micro]
                with task.autocast():
                    f = fake if share_fakes else s.G(latents[i : i + micro], a)
                    features = s.D.features(task.augment(f, knobs.augment_p), a)  # [N, F]
                    fake_logits = s.D.head(features, a)
                    pair = critic(r, a).float() if task.adversarial.pairs else None
                    loss = task.adversarial.g_loss(real=pair, fake=fake_logits.float())  # [N]
                    total = loss.sum() / batch
                    if (weight := task.config.loss.feature_matching) > 0:
                        with torch.no_grad():
                            real_features = s.D.features(task.augment(r, knobs.augment_p), a)
                        total = total + weight * feature_matching(real=real_features, fake=features) * (len(f) / batch)
                total.backward()
                seen.append(generator_signals(loss=loss, fake=fake_logits))
        signals |= mean_of(seen)
    s.D.requires_grad_(True)

    ema = task.config.ema
    beta = ema_decay(images=s.nimg - nimg_before, nimg=s.nimg, half_life_kimg=knobs.ema_half_life_kimg, ramp=ema.ramp)
    ema_update(s.ema, s.G, beta)
    return signals


@contextmanager
def updating(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, role: str, lr: float, knobs: Knobs, signals: Signals, measure: bool
) -> Iterator[None]:
    """The body computes gradients of `net`; around it: clear them, clip, update, and note the signals of `role`."""
    optimizer.zero_grad(set_to_none=True)
    yield
    parameters = [p for p in net.parameters() if p.grad is not None]
    signals[f"grad_norm_{role}"] = norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if knobs.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, knobs.clip_norm, norm)
    if knobs.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, knobs.clip_value)
    before = [p.detach().clone() for p in parameters] if measure else None
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if before is not None:
        signals[f"weight_change_{role}"] = relative_change(before, [p.detach() for p in parameters])
