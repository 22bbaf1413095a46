"""Best of K: it keeps what scores best, says the same again, and does what the two scores promise."""

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.explore.sample import render
from mien.explore.select import by_condition, by_realism, draw_set


def brightness(images, attributes):
    return images.float().mean((1, 2, 3)).numpy()


def test_without_selection_it_is_what_sample_always_drew(tiny_generator):
    faces = draw_set(tiny_generator, range(3, 9), seed=10, where={})
    assert faces.numbers == list(range(13, 19))
    from mien.explore.latents import latents
    from mien.explore.sample import attribute_rows

    rows = attribute_rows(tiny_generator, {}, 6, 13)
    assert torch.equal(faces.attributes, rows) and torch.equal(faces.images, render(tiny_generator, latents(range(13, 19), 8), rows))


def test_the_best_of_each_k_is_kept_and_can_be_drawn_again(tiny_generator):
    kept = draw_set(tiny_generator, range(12), seed=5, where={}, best_of=4, score=brightness)
    plain = draw_set(tiny_generator, range(12), seed=5, where={})
    assert torch.equal(kept.attributes, plain.attributes)  # selection chooses faces, not conditions
    from mien.explore.latents import latents

    for place, number in enumerate(kept.numbers):
        own = range(5 + 4 * place, 9 + 4 * place)
        candidates = render(tiny_generator, latents(own, 8), kept.attributes[place].expand(4, -1))
        best = int(brightness(candidates, None).argmax())
        assert number == own[best] and torch.equal(candidates[best], kept.images[place])
    assert brightness(kept.images, None).mean() > brightness(plain.images, None).mean()


@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("balance", ["none", "data", "uniform"])
def test_a_set_is_the_same_in_one_piece_and_in_several(tiny_generator, best_of, balance):
    def draw(places):
        return draw_set(tiny_generator, places, seed=7, where={}, balance=balance, best_of=best_of, score=brightness)

    whole, first, rest = draw(range(20)), draw(range(8)), draw(range(8, 20))
    assert torch.equal(whole.images, torch.cat([first.images, rest.images])) and whole.numbers == first.numbers + rest.numbers
    assert torch.equal(whole.attributes, torch.cat([first.attributes, rest.attributes]))


def test_the_judges_score_is_the_likelihood_of_what_was_asked():
    seen = np.array([[0.9, 0.2, 0.5], [0.1, 0.2, 0.5]])
    score = by_condition(lambda images: seen, judged=("Smiling", "Male", "Young"), asked=("Male", "Smiling", "Unknown"))
    asked = torch.tensor([[0.0, 1, 0], [0, 1, 0]])
    assert score(torch.zeros(2), asked) == pytest.approx([np.log(0.8 * 0.9) / 2, np.log(0.8 * 0.1) / 2])
    beyond = torch.tensor([[-1.0, 2, 0], [0, 0.5, 0]])  # an extrapolated condition asks for its end, a half for even odds
    assert score(torch.zeros(2), beyond) == pytest.approx([np.log(0.8 * 0.9) / 2, (np.log(0.8) + np.log(0.1 * 0.9) / 2) / 2])


def test_a_sure_judge_gives_no_infinities():
    score = by_condition(lambda images: np.array([[0.0], [1.0]]), judged=("Male",), asked=("Male",))
    assert np.isfinite(score(torch.zeros(2), torch.tensor([[1.0], [1.0]]))).all()


@pytest.mark.parametrize("asked", [(), ("Robot",)])
def test_a_model_that_the_judge_cannot_judge_is_told(asked):
    with pytest.raises(UserError, match="--by realism"):
        by_condition(lambda images: None, judged=("Male",), asked=asked)


def test_realism_is_high_among_the_reals_and_falls_with_distance():
    draw = np.random.default_rng(0)
    real = draw.normal(size=(500, 8))
    score = by_realism(lambda images: images, real=real)
    among, near, far = (score(draw.normal(size=(200, 8)) * 0.5 + shift, None) for shift in (0.0, 1.5, 6.0))
    assert np.median(among) > 1 > np.median(near) > np.median(far)
    assert score(real[:5] + 1e-4, None).max() > 100  # a copy of a real is as real as can be


def test_realism_prunes_the_balls_of_outliers():
    """Without pruning, a real far from all others has a ball that would call its whole neighbourhood real."""
    real = np.concatenate([np.random.default_rng(0).normal(size=(99, 2)), [[40.0, 0.0]]])
    assert by_realism(lambda images: images, real=real)(np.array([[30.0, 0.0]]), None)[0] < 0.1
    with pytest.raises(UserError, match="more than 6 real images"):
        by_realism(lambda images: images, real=real[:6])


def test_the_highest_numbers_stay_whole(tiny_generator):
    """Beyond 2^63 no array of integers holds them; as floats they would all be one face."""
    first = 2**63 - 2
    faces = draw_set(tiny_generator, range(3), seed=first, where={}, best_of=2, score=brightness)
    assert all(number in (first + 2 * place, first + 2 * place + 1) for place, number in enumerate(faces.numbers))
    plain = draw_set(tiny_generator, range(3), seed=first, where={})
    assert plain.numbers == [first, first + 1, first + 2] and len(plain.images.flatten(1).unique(dim=0)) == 3
