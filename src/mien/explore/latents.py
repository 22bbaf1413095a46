"""Latents by number, and their truncation."""

from torch import Tensor

from mien.errors import UserError
from mien.models.latents import latents, uniforms

__all__ = ["latents", "truncate", "uniforms"]

MAX_TRUNCATION = 2.0


def truncate(z: Tensor, psi: float) -> Tensor:
    """z [..., Z] with its norm scaled by psi: 1 changes nothing, less gives more typical and less varied faces, 0 the one at the centre.

    The truncation trick of StyleGAN (Karras 2019, appendix B: pull towards the mean by psi), on the latent itself, whose mean is 0.
    The norm of z is near sqrt(Z), so psi is the norm as a share of what training used. Raises UserError outside 0..2.
    """
    if not 0 <= psi <= MAX_TRUNCATION:
        raise UserError(f"Truncation {psi:g} is outside 0..{MAX_TRUNCATION:g}: 1 changes nothing, 0.7 gives more typical faces.")
    return z if psi == 1 else z * psi
