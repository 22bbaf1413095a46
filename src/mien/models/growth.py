"""Networks in the middle of doubling their size (Karras et al. 2018, section 2): the old way and the new one, mixed by `alpha` in [0, 1].

Alpha 0 is the network of half the size, exactly; alpha 1 the plain network of the whole size, exactly. The mixed network holds the blocks
of the plain one under the plain one's names, and beside them the old way to the picture (`old_image`) or from it (`old_stem`). So blocks,
with all that an optimiser or a hook knows of them, pass through a growth as they are.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.catalogue import Discriminator, Generator, build_discriminator, build_generator
from mien.models.dcgan import DCGANDiscriminator, DCGANGenerator

Net = TypeVar("Net", bound=nn.Module)


class FadingGenerator(DCGANGenerator):
    """(1 - alpha) x the old picture, each pixel doubled, + alpha x the new picture."""

    def __init__(self, half: DCGANGenerator, whole: DCGANGenerator):
        """Takes over the modules of both: what they share from `half`, the new blocks and the new last layer from `whole`."""
        nn.Module.__init__(self)
        self.size, self.attributes, self.z_dim, self.condition = whole.size, whole.attributes, whole.z_dim, whole.condition
        self.alpha = 0.0
        for name, block in half.blocks.named_children():
            if name != "image":
                setattr(whole.blocks, name, block)
        self.blocks, self.old_image = whole.blocks, half.blocks[-1]
        self._shared = len(half.blocks) - 1
        self.train(half.training)

    @property
    def new_blocks(self) -> nn.Sequential:
        return self.blocks[self._shared :]

    def paint(self, x: Tensor) -> Tensor:
        x = self.blocks[: self._shared](x)  # [N, C, r, r], what the old last layer saw
        old = F.interpolate(self.old_image(x), scale_factor=2.0, mode="nearest")  # [N, 3, R, R]
        return torch.lerp(old, self.new_blocks(x), self.alpha)


class FadingDiscriminator(DCGANDiscriminator):
    """What the shared blocks see: (1 - alpha) x the old first block on the picture averaged 2 x 2, + alpha x the new blocks."""

    def __init__(self, half: DCGANDiscriminator, whole: DCGANDiscriminator):
        """Takes over the modules of both, as FadingGenerator."""
        nn.Module.__init__(self)
        self.size, self.attributes, self.condition, self.pool = whole.size, whole.attributes, whole.condition, whole.pool
        self.input_noise = whole.input_noise
        self.alpha = 0.0
        first, *shared = half.trunk.named_children()
        for name, block in shared:
            setattr(whole.trunk, name, block)
        self.trunk, self.old_stem = whole.trunk, first[1]
        self.crowd, self.logit, self.embedding = half.crowd, half.logit, half.embedding
        self._new = len(whole.trunk) - len(shared)
        self.train(half.training)

    def reduce(self, x: Tensor) -> Tensor:
        old = self.old_stem(F.avg_pool2d(x, 2))  # [N, C, R/4, R/4]
        return self.trunk[self._new :](torch.lerp(old, self.trunk[: self._new](x), self.alpha))


def grown_generator(half: Generator, *, family: str, options: dict) -> FadingGenerator:
    """`half` on the way to twice its size; the new blocks are drawn from torch's default generator, on its device."""
    whole = build_generator(family, size=2 * half.size, attributes=half.attributes, options=options)
    assert isinstance(half, DCGANGenerator) and isinstance(whole, DCGANGenerator)  # a recipe that would grow another family is refused
    return FadingGenerator(half, _as(half, whole))


def grown_discriminator(half: Discriminator, *, family: str, options: dict) -> FadingDiscriminator:
    whole = build_discriminator(family, size=2 * half.size, attributes=half.attributes, options=options)
    assert isinstance(half, DCGANDiscriminator) and isinstance(whole, DCGANDiscriminator)
    return FadingDiscriminator(half, _as(half, whole))


def settled_generator(fading: FadingGenerator, *, family: str, options: dict) -> DCGANGenerator:
    """The plain network that `fading` is at alpha 1, with its modules."""
    plain = build_generator(family, size=fading.size, attributes=fading.attributes, options=options)
    assert isinstance(plain, DCGANGenerator)
    plain.blocks = fading.blocks
    return plain.train(fading.training)


def settled_discriminator(fading: FadingDiscriminator, *, family: str, options: dict) -> DCGANDiscriminator:
    plain = build_discriminator(family, size=fading.size, attributes=fading.attributes, options=options)
    assert isinstance(plain, DCGANDiscriminator)
    plain.trunk, plain.crowd, plain.logit, plain.embedding = fading.trunk, fading.crowd, fading.logit, fading.embedding
    return plain.train(fading.training)


def _as(like: nn.Module, net: Net) -> Net:
    """`net` on the device of `like`, in its mode."""
    return net.to(next(like.parameters()).device).to(memory_format=torch.channels_last).train(like.training)
