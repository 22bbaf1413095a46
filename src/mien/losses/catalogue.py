"""The adversarial objectives, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mien.errors import UserError, did_you_mean
from mien.losses import adversarial


@dataclass(frozen=True)
class Adversarial:
    """A pair of objectives: d_loss(real=, fake=) and g_loss(real=, fake=), each from logits [N] to [N].

    pairs: whether G's objective needs the logits of real images; where False, g_loss takes real=None.
    """

    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]
    pairs: bool = False


ADVERSARIAL = {
    "bce": Adversarial(adversarial.bce_d, adversarial.nonsaturating_g),
    "nonsaturating": Adversarial(adversarial.nonsaturating_d, adversarial.nonsaturating_g),
    "hinge": Adversarial(adversarial.hinge_d, adversarial.wasserstein_g),
    "least_squares": Adversarial(adversarial.least_squares_d, adversarial.least_squares_g),
    "wasserstein": Adversarial(adversarial.wasserstein_d, adversarial.wasserstein_g),
    "relativistic": Adversarial(adversarial.relativistic_d, adversarial.relativistic_g, pairs=True),
}


def build_adversarial(name: str, *, real_label: float = 1.0, label_noise: float = 0.0, label_flip: float = 0.0) -> Adversarial:
    """The objectives of that name. The labels' settings are bce's (see `adversarial.bce_d`), all in [0, 1].

    Raises UserError for an unknown name, a setting out of range, or label settings given to a loss without labels.
    """
    if name not in ADVERSARIAL:
        raise UserError(f"no loss {name!r}; there are {', '.join(ADVERSARIAL)}.{did_you_mean(name, ADVERSARIAL)}")
    settings = {"real_label": real_label, "label_noise": label_noise, "label_flip": label_flip}
    for setting, value in settings.items():
        if not 0 <= value <= 1:
            raise UserError(f"loss {setting} = {value} is not between 0 and 1.")
    loss = ADVERSARIAL[name]
    if name == "bce":
        labelled = partial(adversarial.bce_d, real_label=real_label, label_noise=label_noise, label_flip=label_flip)
        return Adversarial(labelled, loss.g_loss)
    if settings != {"real_label": 1.0, "label_noise": 0.0, "label_flip": 0.0}:
        raise UserError(f"loss {name} has no labels: leave out real_label, label_noise and label_flip, or take loss bce.")
    return loss
