"""Flips do not leak: G learns how often the reals are mirrored, not how often the augmented ones are.

The smallest game that can tell: G has one parameter, the share of left-lit images among its own; D is a small net, trained on. G's loss is
the expectation of its usual one over the two kinds of image, so that gradient descent moves the share and nothing else.
"""

import pytest
import torch
from torch import nn

from mien.augment.policy import Augment
from mien.losses.adversarial import nonsaturating_d, nonsaturating_g

REALS_LEFT = 0.8  # the share of reals whose left side is lit; in the others it is the right one
COUNT = 256


def images(left: torch.Tensor) -> torch.Tensor:
    """[N] bool, whether the left side is lit -> [N, 3, 4, 4], with some noise."""
    lit = torch.full((3, 4, 4), -0.8)
    lit[..., :2] = 0.8
    return torch.where(left[:, None, None, None], lit, lit.flip(2)) + 0.05 * torch.randn(len(left), 3, 4, 4)


def learnt_share(p_real: float, p_fake: float, *, rate: float, steps: int = 200) -> float:
    """The share of left-lit images that G ends with, over the last third, behind flips of these probabilities. It begins with 0.2."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 4 * 4, 1), nn.Flatten(0))
    share_logit = torch.tensor(0.2).logit().requires_grad_()
    opt_d, opt_g = torch.optim.Adam(D.parameters(), lr=5e-3, betas=(0.0, 0.99)), torch.optim.SGD([share_logit], lr=rate)
    augment, shares = Augment(["flip"]), []
    left, right = torch.ones(COUNT, dtype=torch.bool), torch.zeros(COUNT, dtype=torch.bool)
    for _ in range(steps):
        share = share_logit.sigmoid()
        for _ in range(2):
            real = augment(images(torch.rand(COUNT) < REALS_LEFT), p_real)
            fake = augment(images(torch.rand(COUNT) < share.detach()), p_fake)
            opt_d.zero_grad()
            nonsaturating_d(real=D(real), fake=D(fake)).mean().backward()
            opt_d.step()
        opt_g.zero_grad()
        of_left, of_right = (nonsaturating_g(fake=D(augment(images(kind), p_fake))).mean() for kind in (left, right))
        (share * of_left + (1 - share) * of_right).backward()
        opt_g.step()
        shares.append(share.item())
    last = shares[-steps // 3 :]
    return sum(last) / len(last)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_g_learns_the_reals_share_behind_flips(p):
    """The flips leave 1 - p of the difference between the two kinds in what D learns and in what G hears: hence the rate.

    With seeds 0 to 2 the share ends at 0.79 (p = 0.5) and at 0.76 to 0.84 (p = 0.9).
    """
    assert learnt_share(p, p, rate=0.3 / (1 - p) ** 2) == pytest.approx(REALS_LEFT, abs=0.08)


@pytest.mark.parametrize(("p", "leaked"), [(0.5, 0.65), (0.9, 0.53)])
def test_the_game_shows_a_leak(p, leaked):
    """Flips before the reals only, as one mirrors a data set: p / 2 of each kind turn into the other, and G learns that mixture."""
    assert leaked == pytest.approx(REALS_LEFT * (1 - p / 2) + (1 - REALS_LEFT) * p / 2)
    assert learnt_share(p, 0.0, rate=1.0) == pytest.approx(leaked, abs=0.05)
