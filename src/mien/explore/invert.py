"""The latent of a given face: an encoder's guess, then gradient descent in latent space, then offsets for what the latent cannot draw.

Optimising a latent until the generator draws a picture is Zhu et al. 2016 (arXiv:1609.03552, section 4: encoder start, then descent); the
distance in a network's features beside pixels is that of Abdal et al. 2019 (arXiv:1904.03189, equation 1). Offsets scale and shift whole
channels of the generator's layers: a small part of retraining it for the one picture (Roich et al. 2021, arXiv:2106.05744, retrain it all).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.errors import UserError
from mien.explore.activations import changed, layers, record
from mien.explore.encoder import Encoder, pixel_loss
from mien.explore.latents import latents
from mien.explore.load import LoadedGenerator
from mien.explore.sample import attribute_rows
from mien.models.classifier import INPUT_PX, FaceClassifier, resized
from mien.models.pictures import to_float, to_uint8

FORMAT = "mien-inversion/1"
PIXEL_WEIGHT = 10.0  # brings the pixels' part of the loss (squared, -1..1) to the size of the features' part, near 0.5 at the start
PRIOR_WEIGHT = 0.05
OFFSET_WEIGHT = 0.1
REFERENCE_FACES = 3_000_000  # number of the first face that an inversion's errors are set beside

Offsets = dict[str, Tensor]  # layer -> [2, C]: what is added to each channel's factor 1, and to the channel


@dataclass(frozen=True)
class Settings:
    """How long and from where. starts: the encoder's guess (without an encoder the mean latent), then this many less one drawn latents; all
    are tried for a quarter of the steps, the best goes on. free_condition: the condition is optimised with the latent, within 0..1."""

    steps: int = 200
    starts: int = 3
    lr: float = 0.15
    offset_steps: int = 0
    offset_lr: float = 0.02
    free_condition: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Errors:
    """How far a drawn face is from the photo.

    pixel_rmse: root mean squared difference of pixels, in levels of 0..255. multi_scale: the same of `pixel_loss` (full, half and quarter
    size). identity: cosine distance in face features, 0 (the same) to 2; None without a classifier.
    """

    pixel_rmse: float
    multi_scale: float
    identity: float | None


@dataclass(frozen=True)
class Inversion:
    """A face and the latent that draws it best.

    z [1, Z], attributes [1, A], offsets (None, or layer -> [2, C]), image float32 [1, 3, R, R] in -1..1: what they draw together.
    errors: by stage: "encoder" (absent without one), "optimised", "offsets" (absent without them). pictures: the same, images [1, 3, R, R].
    condition: where `attributes` came from: "judge", "encoder", "given", "optimised" or "none". model: the snapshot's sha256.
    """

    z: Tensor
    attributes: Tensor
    offsets: Offsets | None
    image: Tensor
    errors: dict[str, Errors]
    condition: str
    model: str | None
    attribute_names: tuple[str, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self, extra: Mapping[str, Any] | None = None) -> str:
        """The latent as text, format mien-inversion/1; `extra`: further keys for the reader."""
        offsets = None if self.offsets is None else {name: value.tolist() for name, value in self.offsets.items()}
        return json.dumps({
            "format": FORMAT, "model": self.model, "z": self.z[0].tolist(), "offsets": offsets, "condition": self.condition,
            "attributes": dict(zip(self.attribute_names, self.attributes[0].tolist())), "steps": self.steps, "seconds": self.seconds,
            "errors": {stage: vars(each) for stage, each in self.errors.items()}, **(extra or {}),
        }, ensure_ascii=False, allow_nan=False)  # fmt: skip


@dataclass(frozen=True)
class Latent:
    """What a mien-inversion/1 file holds that draws a face: z [1, Z], attributes [1, A], offsets or None."""

    z: Tensor
    attributes: Tensor
    offsets: Offsets | None


def read_inversion(text: str, generator: LoadedGenerator) -> Latent:
    """The latent of a mien-inversion/1 text. UserError, in one line, when it is none or was made for another model."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("This is not an inversion: it is not valid JSON.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"This is not an inversion: its format is not {FORMAT}. 'mien invert' writes one.")
    if found.get("model") != generator.meta.get("sha256"):
        raise UserError("This inversion was made with another model: its latent means nothing here. Run mien invert with this model.")
    try:
        z = torch.tensor([found["z"]], dtype=torch.float32)
        attributes = torch.tensor([[found["attributes"][name] for name in generator.attribute_names]], dtype=torch.float32)
        offsets = {name: torch.tensor(value, dtype=torch.float32) for name, value in (found.get("offsets") or {}).items()} or None
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RuntimeError):
        raise UserError("This inversion is damaged: run mien invert again.") from None
    fits = z.shape == (1, generator.z_dim) and bool(z.isfinite().all()) and bool(attributes.isfinite().all())
    known = {name: each.shape for name, each in zero_offsets(generator, z, attributes).items()} if fits and offsets else {}
    if not fits or any(known.get(name) != each.shape or not each.isfinite().all() for name, each in (offsets or {}).items()):
        raise UserError("This inversion does not fit the model it names: run mien invert again.")
    return Latent(z, attributes, offsets)


# ------------------------------------------------------------------------------------------------------------------------------
# The loss


class FaceFeatures:
    """The judge's network as a differentiable eye: maps(images) for the loss, final features for identity.

    images: float [N, 3, R, R] in -1..1, any R; other sizes than 64 px are resized as the judge does.
    """

    def __init__(self, classifier: FaceClassifier):
        self.net = classifier.eval()

    def __call__(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """([N, C, H, W] of each size the network works at, channels scaled to length 1 at each place; final features [N, F])."""
        maps = self.net.maps(resized(images, INPUT_PX, -1, 1))
        final = self.net.windowed(maps[-1])
        return [F.normalize(each, dim=1) for each in maps], final

    @torch.no_grad()
    def final(self, images: Tensor, *, batch: int = 256) -> Tensor:
        """Final features [N, F], in batches."""
        return torch.cat([self(part)[1] for part in images.split(batch)])


class Objective:
    """What is minimised: PIXEL_WEIGHT * pixels + features, [N], against `target` float [N, 3, R, R] in -1..1."""

    def __init__(self, target: Tensor, eye: FaceFeatures | None):
        self.target, self.eye = target, eye
        with torch.no_grad():
            self.maps, self.final = eye(target) if eye else ([], target)

    def __call__(self, images: Tensor, repeats: int = 1) -> Tensor:
        """images [repeats * N, 3, R, R]: `repeats` tries at each target, whole sets one after the other -> [repeats * N]."""
        loss = PIXEL_WEIGHT * pixel_loss(images, self.target.repeat(repeats, 1, 1, 1))
        if self.eye is None:
            return loss
        maps, final = self.eye(images)
        apart = [(mine - its.repeat(repeats, 1, 1, 1)).square().sum(1).mean((1, 2)) for mine, its in zip(maps, self.maps)]
        return loss + torch.stack(apart).mean(0) + 1 - F.cosine_similarity(final, self.final.repeat(repeats, 1))

    def row(self, rows: Tensor) -> Objective:
        """The objective of some of the targets."""
        return Objective(self.target[rows], self.eye)


def errors(images: Tensor, target: Tensor, eye: FaceFeatures | None) -> list[Errors]:
    """Errors of each of images [N, 3, R, R] (float, -1..1; rounded to pixels first) against target, of the same shape."""
    images = to_float(to_uint8(images))
    rmse = 127.5 * (images - target).square().mean((1, 2, 3)).sqrt()
    scales = 127.5 * pixel_loss(images, target).sqrt()
    apart = (1 - F.cosine_similarity(eye.final(images), eye.final(target))).tolist() if eye else [None] * len(images)
    return [Errors(*each) for each in zip(rmse.tolist(), scales.tolist(), apart)]


def prior(z: Tensor) -> Tensor:
    """z [N, Z] -> [N]: (|z| / sqrt(Z) - 1)^2. Nearly all of N(0, 1) in Z dimensions lies near the length sqrt(Z)."""
    return (z.norm(dim=1) / math.sqrt(z.shape[1]) - 1).square()


# ------------------------------------------------------------------------------------------------------------------------------
# The search


def optimise(
    net: nn.Module,
    objective: Objective,
    z: Tensor,
    attributes: Tensor,
    *,
    steps: int,
    lr: float,
    repeats: int = 1,
    free_condition: bool = False,
    on_step: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam (lr falling to 0 along a cosine) on z [repeats * N, Z], and on the condition if that is free; every row by itself.

    Returns (z, attributes, loss [repeats * N]) of each row's best step, the start included: so the loss never ends above its start.
    """
    z = z.detach().clone().requires_grad_()
    condition = attributes.detach().clone().requires_grad_(free_condition)
    moving = [z, condition] if free_condition else [z]
    optimizer = torch.optim.Adam(moving, lr=lr, betas=(0.9, 0.99))
    best_z, best_condition = z.detach().clone(), condition.detach().clone()
    best = torch.full((len(z),), float("inf"), device=z.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            loss = objective(net(z, condition), repeats) + PRIOR_WEIGHT * prior(z)
        better = loss.detach() < best
        best = torch.where(better, loss.detach(), best)
        best_z[better], best_condition[better] = z.detach()[better], condition.detach()[better]
        if step == steps:
            break
        gradients = torch.autograd.grad(loss.sum(), moving, allow_unused=True)  # a network may ignore its condition
        for parameter, gradient in zip(moving, gradients):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        condition.data.clamp_(0, 1)
        if on_step is not None:
            on_step()
    return best_z, best_condition, best


def starts(z: Tensor, count: int, seed: int) -> Tensor:
    """[count * N, Z]: the given latents z [N, Z], then count - 1 sets of latents drawn near them and at random, half and half.

    A drawn latent's length is that of N(0, 1): an encoder's guess is shorter, since it is a mean over what might be.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [z]
    for i in range(count - 1):
        noise = torch.randn(z.shape, generator=generator).to(z)
        drawn.append((z + noise) / math.sqrt(2) if i % 2 == 0 else noise)
    return torch.cat(drawn)


def search(
    generator: LoadedGenerator,
    objective: Objective,
    z: Tensor,
    attributes: Tensor,
    settings: Settings,
    on_step: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(z [N, Z], attributes [N, A], loss [N]) from several starts: all for a quarter of the steps, the best of each for the rest."""
    run = partial(optimise, generator.net, lr=settings.lr, free_condition=settings.free_condition, on_step=on_step)
    first = settings.steps // 4 if settings.starts > 1 else 0
    if settings.starts > 1:
        several = starts(z, settings.starts, settings.seed)
        codes, conditions, loss = run(objective, several, attributes.repeat(settings.starts, 1), steps=first, repeats=settings.starts)
        winner = loss.view(settings.starts, -1).argmin(0) * len(z) + torch.arange(len(z), device=z.device)
        z, attributes = codes[winner], conditions[winner]
    return run(objective, z, attributes, steps=settings.steps - first)


def zero_offsets(generator: LoadedGenerator, z: Tensor, attributes: Tensor) -> Offsets:
    """Offsets that change nothing: layer -> zeros [2, C]."""
    with torch.no_grad(), record(generator.net, layers(generator.net)) as seen:
        generator.net(z[:1].to(generator.device), attributes[:1].to(generator.device))
    return {name: torch.zeros(2, each.shape[1], device=generator.device) for name, each in seen.items()}


def offset_changes(offsets: Offsets) -> dict[str, Callable[[Tensor], Tensor]]:
    """For `activations.changed`: each channel c of a layer becomes activation * (1 + offsets[0, c]) + offsets[1, c]."""

    def shift(pair: Tensor, activation: Tensor) -> Tensor:
        scale, add = pair.to(activation)[:, None, :, None, None]
        return activation * (1 + scale) + add

    return {name: partial(shift, pair) for name, pair in offsets.items()}


def fit_offsets(generator: LoadedGenerator, objective: Objective, z: Tensor, attributes: Tensor, *, steps: int, lr: float,
                on_step: Callable[[], None] | None = None) -> Offsets:  # fmt: skip
    """Offsets for one face (z [1, Z]) that lower its loss, kept small; those of the best step, none at all being the first tried."""
    offsets = {name: pair.requires_grad_() for name, pair in zero_offsets(generator, z, attributes).items()}
    optimizer = torch.optim.Adam(offsets.values(), lr=lr, betas=(0.9, 0.99))
    best, kept = float("inf"), {name: pair.detach().clone() for name, pair in offsets.items()}
    for step in range(steps + 1):
        with torch.enable_grad(), changed(generator.net, offset_changes(offsets)):
            plain = objective(generator.net(z, attributes)).sum()
        size = torch.stack([pair.square().mean() for pair in offsets.values()]).mean()
        if plain.item() < best:
            best, kept = plain.item(), {name: pair.detach().clone() for name, pair in offsets.items()}
        if step == steps:
            break
        gradients = torch.autograd.grad(plain + OFFSET_WEIGHT * size, list(offsets.values()))
        for pair, gradient in zip(offsets.values(), gradients):
            pair.grad = gradient
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        if on_step is not None:
            on_step()
    return kept


@torch.no_grad()
def draw(generator: LoadedGenerator, z: Tensor, attributes: Tensor, offsets: Offsets | None = None) -> Tensor:
    """z [N, Z], attributes [N, A] -> images float [N, 3, R, R] in -1..1, with the offsets if there are any."""
    z, attributes = z.to(generator.device), attributes.to(generator.device)
    with changed(generator.net, offset_changes(offsets or {})):
        return generator.net.eval()(z, attributes).float()


def invert(
    generator: LoadedGenerator,
    target: Tensor,
    *,
    encoder: Encoder | None,
    classifier: FaceClassifier | None,
    attributes: Tensor | None = None,
    condition: str = "given",
    settings: Settings | None = None,
    on_step: Callable[[], None] | None = None,
) -> Inversion:
    """The latent of one face: target uint8 [1, 3, R, R] of the generator's size, cropped as its training faces.

    attributes: the condition [1, A] and `condition`, whose word it is; None: the encoder's (without one: all 0.5).
    classifier: the judge's network, for the features in the loss and the identity distance; None: pixels alone.
    on_step: after each of settings.steps + settings.offset_steps steps.
    """
    if target.dtype != torch.uint8 or tuple(target.shape) != (1, 3, generator.size, generator.size):
        raise ValueError(f"invert takes uint8 [1, 3, {generator.size}, {generator.size}], got {target.dtype} {list(target.shape)}")
    settings, device, began = settings or Settings(), generator.device, time.monotonic()
    pixels = to_float(target.to(device))
    eye = FaceFeatures(classifier) if classifier is not None else None
    objective = Objective(pixels, eye)
    pictures: dict[str, Tensor] = {}
    z, guessed = encoder.encode(pixels) if encoder else (torch.zeros(1, generator.z_dim, device=device),
                                                         torch.full((1, len(generator.attribute_names)), 0.5, device=device))  # fmt: skip
    if attributes is None:
        attributes, condition = guessed, "encoder" if encoder else "none"
    attributes = attributes.to(device)
    if encoder is not None:
        pictures["encoder"] = draw(generator, z, attributes)
    z, attributes, _ = search(generator, objective, z, attributes, settings, on_step)
    pictures["optimised"] = draw(generator, z, attributes)
    offsets = None
    if settings.offset_steps:
        offsets = fit_offsets(generator, objective, z, attributes, steps=settings.offset_steps, lr=settings.offset_lr, on_step=on_step)
        pictures["offsets"] = draw(generator, z, attributes, offsets)
    image = pictures["offsets" if offsets else "optimised"]
    if settings.free_condition or not generator.attribute_names:
        condition = "optimised" if generator.attribute_names else "none"
    return Inversion(
        z=z.cpu(), attributes=attributes.cpu(), offsets={name: pair.cpu() for name, pair in offsets.items()} if offsets else None,
        image=image.cpu(), errors={stage: errors(each, pixels, eye)[0] for stage, each in pictures.items()}, condition=condition,
        model=generator.meta.get("sha256"), attribute_names=generator.attribute_names, steps=settings.steps + settings.offset_steps,
        seconds=time.monotonic() - began, pictures={stage: each.cpu() for stage, each in pictures.items()},
    )  # fmt: skip


def references(generator: LoadedGenerator, target: Tensor, *, encoder: Encoder | None, classifier: FaceClassifier | None,
               settings: Settings, count: int = 4, on_step: Callable[[], None] | None = None) -> dict[str, Errors]:  # fmt: skip
    """What an inversion's errors are to be read against, medians over faces.

    "floor": `count` faces of the generator itself, found again with the same settings (but for offsets): what the search leaves.
    "ceiling": the photo (target uint8 [1, 3, R, R]) beside 64 faces of the generator that are not it.
    """
    z = latents(range(REFERENCE_FACES, REFERENCE_FACES + 64), generator.z_dim).to(generator.device)
    attributes = attribute_rows(generator, {}, 64, REFERENCE_FACES).to(generator.device)
    faces = to_float(to_uint8(draw(generator, z, attributes)))
    eye = FaceFeatures(classifier) if classifier is not None else None
    few, held = faces[:count], attributes[:count]
    start = encoder.encode(few)[0] if encoder else torch.zeros_like(z[:count])
    found, condition, _ = search(generator, Objective(few, eye), start, held, settings, on_step)
    photo = to_float(target.to(generator.device)).expand_as(faces)
    return {"floor": _median(errors(draw(generator, found, condition), few, eye)), "ceiling": _median(errors(faces, photo, eye))}


def _median(several: list[Errors]) -> Errors:
    identity = None if several[0].identity is None else median(each.identity for each in several if each.identity is not None)
    return Errors(median(each.pixel_rmse for each in several), median(each.multi_scale for each in several), identity)
