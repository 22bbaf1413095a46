"""How attributes enter a network. An attribute is 0 or 1 in the data; between and beyond, it is a strength.

Networks see the *signed* value 2a - 1: absent is -1, present is +1, unknown (0.5) is 0. So both values carry signal, with the
same magnitude, and values beyond 0..1 exaggerate.
"""

import torch
from torch import Tensor


def signed(attributes: Tensor) -> Tensor:
    """Attributes [N, A] (0 = absent, 1 = present) -> [N, A] (-1 = absent, +1 = present)."""
    return attributes * 2 - 1


def concat_latent(z: Tensor, attributes: Tensor) -> Tensor:
    """Latent [N, Z] and attributes [N, A] -> [N, Z + A]: conditional GAN, Mirza & Osindero 2014."""
    return torch.cat([z, signed(attributes).to(z.dtype)], dim=1)  # [N, Z + A]


def concat_planes(images: Tensor, attributes: Tensor) -> Tensor:
    """Images [N, C, H, W] and attributes [N, A] -> [N, C + A, H, W]: one constant plane per attribute (as in the conditional
    DCGAN of Perarnau et al. 2016, "Invertible Conditional GANs")."""
    n, _, height, width = images.shape
    planes = signed(attributes).to(images.dtype)[:, :, None, None].expand(n, -1, height, width)  # [N, A, H, W]
    return torch.cat([images, planes], dim=1)  # [N, C + A, H, W]


def check_attributes(attributes: Tensor, *, expected: int) -> None:
    """Raises ValueError unless attributes are [N, expected]; with no attributes they are [N, 0], never None."""
    if attributes.ndim != 2 or attributes.shape[1] != expected:
        raise ValueError(f"attributes have shape {list(attributes.shape)}, the network was built for [N, {expected}]")
