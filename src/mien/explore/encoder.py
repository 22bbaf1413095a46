"""An encoder of one generator: image -> latent and condition, the fast start of an inversion.

Learned from what the generator itself draws, whose latents are known, and, when given, from real images, which it must redraw (the encoder
of f-AnoGAN, Schlegl et al. 2019, doi:10.1016/j.media.2019.01.010, "izi"; generated and real images together as in Zhu et al. 2020,
arXiv:2004.00049). A generator's own faces alone teach it little about photographs, reals alone little about the latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.explore.load import LoadedGenerator
from mien.explore.sample import attribute_rows
from mien.models.pictures import to_float

MAX_PX = 32  # larger images are averaged down to this: what the latent decides is seen there, at a quarter of the cost
MAX_WIDTH = 256


class Encoder(nn.Module):
    """forward: images float [N, 3, R, R] in -1..1 -> (z [N, Z], condition logits [N, A])."""

    def __init__(self, size: int, z_dim: int, attributes: int, *, width: int = 64):
        super().__init__()
        self.options = {"size": size, "z_dim": z_dim, "attributes": attributes, "width": width}
        self.px = min(size, MAX_PX)
        self.z_dim = z_dim
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(int(math.log2(self.px)) - 2):  # px, px / 2, ... 8 -> 4
            wider = min(width * 2**stage, MAX_WIDTH)
            layers += [nn.Conv2d(channels, wider, 4, 2, 1, bias=False), nn.BatchNorm2d(wider), nn.LeakyReLU(0.2, inplace=True)]
            channels = wider
        self.trunk = nn.Sequential(*layers)  # [N, C, 4, 4]
        self.head = nn.Linear(channels * 16, z_dim + attributes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-1] != self.px:
            images = F.adaptive_avg_pool2d(images, self.px)
        out = self.head(self.trunk(images).flatten(1))
        return out[:, : self.z_dim], out[:, self.z_dim :]

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch: int = 256) -> tuple[Tensor, Tensor]:
        """As forward, in eval mode and batches, with the condition as probabilities 0..1."""
        parts = [self.eval()(part) for part in images.split(batch)]
        return torch.cat([z for z, _ in parts]), torch.cat([logits for _, logits in parts]).sigmoid()


@dataclass(frozen=True)
class EncoderRecipe:
    """How an encoder is trained. Each step sees `batch` generated images and, when there are reals, as many real ones."""

    steps: int = 1200
    batch: int = 32
    lr: float = 2e-3
    width: int = 64
    seed: int = 0


def pixel_loss(images: Tensor, target: Tensor) -> Tensor:
    """[N]: mean squared difference of float images [N, 3, R, R], averaged over the full, half and quarter size, each summed from cells."""
    scales = [(images - target).square().flatten(1).mean(1)]
    for _ in range(2):
        images, target = F.avg_pool2d(images, 2), F.avg_pool2d(target, 2)
        scales.append((images - target).square().flatten(1).mean(1))
    return torch.stack(scales).mean(0)


def train_encoder(
    generator: LoadedGenerator,
    *,
    reals: Tensor | None = None,
    real_attributes: Tensor | None = None,
    recipe: EncoderRecipe | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Encoder:
    """An encoder of `generator`, in eval mode. reals: uint8 [N, 3, R, R] of the generator's size, cropped as its training faces.
    real_attributes: their labels [N, A]; None: the encoder's own guess stands for them.

    The loss: squared error of the latent and cross-entropy of the condition on generated images, `pixel_loss` of what the generator draws
    from the code on all images, and a weak pull of real images' codes towards the norm of the latents the generator knows.
    A function of its arguments and the seed; the caller's random state is left alone. on_step(step, steps) after each step.
    """
    recipe = recipe or EncoderRecipe()
    if reals is not None and (reals.dtype != torch.uint8 or tuple(reals.shape[1:]) != (3, generator.size, generator.size)):
        raise ValueError(f"reals are uint8 [N, 3, {generator.size}, {generator.size}], got {reals.dtype} {list(reals.shape)}")
    device, names = generator.device, generator.attribute_names
    net = generator.net.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        encoder = Encoder(generator.size, generator.z_dim, len(names), width=recipe.width).to(device).train()
        optimizer = torch.optim.Adam(encoder.parameters(), lr=recipe.lr, betas=(0.9, 0.99))
        rise = min(0.2, 1 - 1 / recipe.steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=rise)
        conditions = attribute_rows(generator, {}, recipe.steps * recipe.batch, 0).split(recipe.batch)
        for step in range(recipe.steps):
            z = torch.randn(recipe.batch, generator.z_dim).to(device)
            attributes = conditions[step].to(device)
            with torch.no_grad():
                images = net(z, attributes)
                if reals is not None:
                    chosen = torch.randint(len(reals), (recipe.batch,))
                    images = torch.cat([images, to_float(reals[chosen].to(device))])
                    if real_attributes is not None:
                        attributes = torch.cat([attributes, real_attributes[chosen].to(device).float()])
            loss = _loss(encoder, net, images, z, attributes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step + 1, recipe.steps)
    return encoder.eval().requires_grad_(False)


def _loss(encoder: Encoder, net: nn.Module, images: Tensor, z: Tensor, attributes: Tensor) -> Tensor:
    """images [N + M, 3, R, R]: N drawn from the latents z [N, Z], then M real ones. attributes: of all of them, or of the first N."""
    known = len(z)
    codes, logits = encoder(images)
    loss = (codes[:known] - z).square().mean()
    if logits.shape[1]:
        loss = loss + F.binary_cross_entropy_with_logits(logits[: len(attributes)], attributes)
    redrawn = net(codes, torch.cat([attributes, logits[len(attributes):].sigmoid()]))  # the latent holds what the condition does not
    loss = loss + 10 * pixel_loss(redrawn, images).mean()  # a face's pixels differ by about 0.1 (squared), its latent by 1
    if len(codes) > known:
        loss = loss + 0.1 * F.relu(codes[known:].square().mean(1) - 1).square().mean()
    return loss
