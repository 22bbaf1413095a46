"""Latents by number, and their truncation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from mien.errors import UserError
from mien.models.latents import latents, uniforms

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

__all__ = ["latents", "truncate", "truncated", "truncating", "uniforms"]

MAX_TRUNCATION = 2.0


def truncate(z: Tensor, psi: float) -> Tensor:
    """z [..., Z] with its norm scaled by psi: 1 changes nothing, less gives more typical and less varied faces, 0 the one at the centre.

    The truncation trick of StyleGAN (Karras 2019, appendix B: pull towards the mean by psi), on the latent itself, whose mean is 0.
    The norm of z is near sqrt(Z), so psi is the norm as a share of what training used. Raises UserError outside 0..2.
    """
    check_truncation(psi)
    return z if psi == 1 else z * psi


def truncating(generator: LoadedGenerator, psi: float) -> LoadedGenerator:
    """A generator that truncates by itself: of the families that do so on styles, with the same weights. Any other comes back as it is.

    Such a network has `truncated(psi)`; the length of its z says nothing. Raises UserError outside 0..2.
    """
    check_truncation(psi)
    own = getattr(generator.net, "truncated", None)
    return generator if own is None or psi == 1 else dataclasses.replace(generator, net=own(psi))


def truncated(generator: LoadedGenerator, z: Tensor, psi: float) -> tuple[LoadedGenerator, Tensor]:
    """The generator and the latents [N, Z] to draw with for truncation psi: styles are truncated by the one, else the other are scaled."""
    view = truncating(generator, psi)
    return (view, z) if view is not generator else (generator, truncate(z, psi))


def check_truncation(psi: float) -> None:
    """Raises UserError outside 0..2."""
    if not 0 <= psi <= MAX_TRUNCATION:
        raise UserError(f"Truncation {psi:g} is outside 0..{MAX_TRUNCATION:g}: 1 changes nothing, 0.7 gives more typical faces.")
