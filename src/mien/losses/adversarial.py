"""Adversarial objectives: pure functions of logits [N], one value per sample [N]. Logits are high for real.

sigmoid's logarithms are written with softplus(x) = log(1 + e^x): -log sigmoid(x) = softplus(-x), -log(1 - sigmoid(x)) = softplus(x).
So no logit overflows and no gradient vanishes where the formula's does not.
"""

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


def bce_d(*, real: Tensor, fake: Tensor, real_label: float = 1.0, label_noise: float = 0.0, label_flip: float = 0.0) -> Tensor:
    """Binary cross-entropy (Goodfellow et al. 2014, eq. 1), with t the label of a real and s of a fake:

        -[t log sigmoid(real) + (1 - t) log(1 - sigmoid(real))] - [s log sigmoid(fake) + (1 - s) log(1 - sigmoid(fake))]

    real_label   t; .9 is one-sided smoothing (Salimans et al. 2016, section 3.4): the fakes' label stays 0
    label_noise  t is drawn from [t - noise, t] and s from [0, noise], uniformly, per sample
    label_flip   probability that a sample's label is turned round (t -> 1 - t), reals and fakes alike (Chintala et al. 2016)
    """
    real_labels = labels(real, real_label, noise=-label_noise, flip=label_flip)
    fake_labels = labels(fake, 0.0, noise=label_noise, flip=label_flip)
    return cross_entropy(real, real_labels) + cross_entropy(fake, fake_labels)


def labels(logits: Tensor, value: float, *, noise: float, flip: float) -> Tensor:
    """Labels [N] in [0, 1]: `value`, plus uniform noise in [0, noise] (or [noise, 0]), each turned round with probability `flip`."""
    label = torch.full_like(logits, value)
    if noise:
        label = (label + noise * torch.rand_like(logits)).clamp(0, 1)
    if flip:
        label = torch.where(torch.rand_like(logits) < flip, 1 - label, label)
    return label


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-[t log sigmoid(x) + (1 - t) log(1 - sigmoid(x))] = softplus(x) - t x, written as two terms that cannot cancel."""
    return label * softplus(-logits) + (1 - label) * softplus(logits)


def nonsaturating_d(*, real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-real) + softplus(fake) (Goodfellow et al. 2014, eq. 1)."""
    return softplus(-real) + softplus(fake)


def nonsaturating_g(*, real: Tensor | None = None, fake: Tensor) -> Tensor:
    """softplus(-fake) = -log sigmoid(fake) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake)


def hinge_d(*, real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017; Miyato et al. 2018, eq. 16)."""
    return relu(1 - real) + relu(1 + fake)


def wasserstein_d(*, real: Tensor, fake: Tensor) -> Tensor:
    """fake - real (Arjovsky et al. 2017, eq. 2). D must be held Lipschitz: gradient penalty or spectral norm."""
    return fake - real


def wasserstein_g(*, real: Tensor | None = None, fake: Tensor) -> Tensor:
    """-fake (Arjovsky et al. 2017); G's side of the hinge loss too (Miyato et al. 2018, eq. 17)."""
    return -fake


def least_squares_d(*, real: Tensor, fake: Tensor) -> Tensor:
    """((real - 1)^2 + fake^2) / 2 (Mao et al. 2017, eq. 9)."""
    return ((real - 1).square() + fake.square()) / 2


def least_squares_g(*, real: Tensor | None = None, fake: Tensor) -> Tensor:
    """(fake - 1)^2 / 2 (Mao et al. 2017, eq. 9)."""
    return (fake - 1).square() / 2


def relativistic_d(*, real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-(real - fake)): each real is paired with a fake (Jolicoeur-Martineau 2019; Huang et al. 2024, R3GAN)."""
    return softplus(fake - real)


def relativistic_g(*, real: Tensor | None, fake: Tensor) -> Tensor:
    """softplus(-(fake - real)), the pairing turned round; `real` is needed (Huang et al. 2024, R3GAN)."""
    if real is None:
        raise ValueError("the relativistic loss pairs each fake with a real: G's step needs D's logits of real images too")
    return softplus(real - fake)
