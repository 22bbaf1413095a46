"""Terms beside the adversarial one, as pure functions."""

from torch import Tensor


def feature_matching(*, real: Tensor, fake: Tensor) -> Tensor:
    """|| mean of f(real) - mean of f(fake) ||^2 over features [N, F]: a 0-d tensor (Salimans et al. 2016, section 3.1).

    A property of the batch, so not per sample. With D's features, G's term against collapse; the gradient into `real` is cut.
    With a fixed network's features, such as a face classifier's, the perceptual term: G's faces get the reals' statistics there.
    """
    return (real.detach().float().mean(0) - fake.float().mean(0)).square().sum()


def consistency(*, plain: Tensor, augmented: Tensor) -> Tensor:
    """(D(x) - D(T(x)))^2 from logits: [N]; T an augmentation. On reals: consistency regularisation (Zhang et al. 2020);
    on reals and on fakes: balanced, bCR (Zhao et al. 2021)."""
    return (plain.float() - augmented.float()).square()
