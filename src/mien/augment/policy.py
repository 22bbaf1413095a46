"""Which augmentations, and how often: the same policy stands before D for real and for generated images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mien.augment import ops
from mien.errors import UserError, did_you_mean

# In the order in which they are best applied: geometry, light, then what a camera adds.
AUGMENT_OPS = {
    "flip": ops.flip,
    "rotation": ops.rotation,
    "scale": ops.scale,
    "translation": ops.translation,
    "brightness": ops.brightness,
    "saturation": ops.saturation,
    "contrast": ops.contrast,
    "lighting": ops.lighting,
    "noise": ops.noise,
    "cutout": ops.cutout,
}

AUGMENT_PRESETS = {
    "light": ("translation", "brightness", "saturation", "contrast"),
    "diffaugment": ("translation", "brightness", "saturation", "contrast", "cutout"),  # Zhao et al. 2020
    "full": tuple(AUGMENT_OPS),
}


class Augment:
    """Applies each operation to each sample with probability p: augment(images [N, 3, R, R] in [-1, 1], p) -> the same shape.

    operations  names of AUGMENT_OPS, each at most once, or of AUGMENT_PRESETS; applied in AUGMENT_OPS' order

    Why it does not leak into G's images: with probability p a sample is changed, so an operation is (1 - p) identity + p change.
    Below p = 1/2 the identity outweighs any change, the mixture has an inverse, and augmented reals and fakes are alike only if
    the un-augmented are (Karras et al. 2020, section 2.2). Above 1/2 that holds for most changes but is no longer assured;
    for flips it holds up to p = 1, excluded, since `flip` mirrors only half of the samples that it is given.

    p = 0 returns the images bit for bit. Raises UserError for a name that does not exist.
    """

    def __init__(self, operations: Sequence[str]):
        names = {part for name in operations for part in AUGMENT_PRESETS.get(name, (name,))}
        known = (*AUGMENT_OPS, *AUGMENT_PRESETS)
        for name in names:
            if name not in AUGMENT_OPS:
                raise UserError(f"no augmentation {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
        self.names = tuple(name for name in AUGMENT_OPS if name in names)

    def __call__(self, images: Tensor, p: float | Tensor) -> Tensor:
        """p: probability in [0, 1], a float or a 0-d tensor (which stays on its device)."""
        if not isinstance(p, Tensor) and p <= 0:
            return images
        plain = images = images.contiguous()  # the operations are up to twice as slow on a channels-last CPU tensor
        touched = torch.zeros(len(images), 1, 1, 1, dtype=torch.bool, device=images.device)
        for name in self.names:
            chosen = torch.rand(touched.shape, device=images.device) < p  # [N, 1, 1, 1]
            images = AUGMENT_OPS[name](images, chosen.float())
            touched = touched | chosen
        return torch.where(touched, images, plain)  # an amount of 0 changes a sample by rounding; this does not

    def __repr__(self) -> str:
        return f"Augment({', '.join(self.names)})"
