"""Ways between faces: exact where they must be, on the sphere, smooth, closed, and even when asked."""

import dataclasses

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.explore.interpolate import Morph, along, equidistant, even_moments, frames, lerp, moments, slerp
from mien.explore.latents import latents, truncate
from mien.explore.sample import render

Z = 64
KEYS = latents(range(5), Z)


def ways(mode, closed=False, keys=KEYS, count=201):
    return along(keys, moments(count) * (len(keys) if closed else len(keys) - 1), mode=mode, closed=closed)


# --- the arc ----------------------------------------------------------------------------------------------------------


def test_the_arc_keeps_the_norm_and_the_line_does_not():
    a, b = latents(range(500), Z), latents(range(500, 1000), Z)
    half = torch.full((500, 1), 0.5)
    norms = slerp(a, b, half).norm(dim=1)
    assert torch.allclose(norms, (a.norm(dim=1) + b.norm(dim=1)) / 2, rtol=1e-5)
    assert float(norms.mean()) == pytest.approx(Z**0.5, rel=0.02)  # the law of the latents ...
    assert float(lerp(a, b, half).norm(dim=1).mean()) == pytest.approx((Z / 2) ** 0.5, rel=0.02)  # ... and truncation 0.71


def test_the_arcs_middle_is_a_latent_like_any_other():
    """Its numbers are standard normal: mean 0, spread 1, no direction preferred."""
    middle = slerp(latents(range(4000), 16), latents(range(4000, 8000), 16), torch.full((4000, 1), 0.5))
    assert (middle.mean(0).abs() < 0.06).all() and (middle.std(0) - 1).abs().max() < 0.06
    assert (torch.corrcoef(middle.T) - torch.eye(16)).abs().max() < 0.08


def test_the_arc_turns_evenly_and_stays_in_its_plane():
    t = torch.linspace(0, 1, 11)[:, None]
    way = slerp(KEYS[:1].expand(11, -1), KEYS[1:2].expand(11, -1), t).double()
    turns = torch.cosine_similarity(way[1:], way[:-1]).acos()
    assert turns.max() - turns.min() < 1e-5
    assert torch.linalg.matrix_rank(way, rtol=1e-5) == 2


def test_truncated_ends_give_a_truncated_arc():
    t = torch.rand(5, 1, generator=torch.Generator().manual_seed(0))
    a, b = KEYS, KEYS.flip(0)
    assert torch.allclose(slerp(truncate(a, 0.7), truncate(b, 0.7), t), 0.7 * slerp(a, b, t), atol=1e-6)


@pytest.mark.parametrize("a, b", [(KEYS[:1], -KEYS[:1]), (KEYS[:1], KEYS[:1]), (KEYS[:1], 0 * KEYS[:1]), (0 * KEYS[:1], 0 * KEYS[:1])])
def test_arcs_without_a_plane_are_still_ways(a, b):
    t = torch.linspace(0, 1, 21)[:, None]
    way = slerp(a.expand(21, -1), b.expand(21, -1), t)
    assert way.isfinite().all() and torch.equal(way[0], a[0]) and torch.equal(way[-1], b[0])
    expected = (1 - t[:, 0]) * a.norm() + t[:, 0] * b.norm()
    assert torch.allclose(way.norm(dim=1), expected, atol=1e-4)
    steps = (way[1:] - way[:-1]).norm(dim=1)
    assert steps.max() <= steps.mean() * 1.01 + 1e-6


# --- through several faces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["slerp", "lerp", "spline"])
@pytest.mark.parametrize("closed", [False, True])
def test_every_way_goes_exactly_through_its_faces(mode, closed):
    times = torch.arange(6.0 if closed else 5.0)
    there = along(KEYS, times, mode=mode, closed=closed)
    assert torch.equal(there[:5], KEYS)
    if closed:
        assert torch.equal(there[5], KEYS[0])


@pytest.mark.parametrize("mode", ["slerp", "lerp", "spline"])
def test_a_closed_way_closes_without_a_jump(mode):
    way = ways(mode, closed=True, count=401)
    assert torch.equal(way[0], way[-1])
    steps = (way[1:] - way[:-1]).norm(dim=1)
    assert steps.max() < 3 * steps.mean()


def corner(mode, closed):
    """The sharpest turn of the way, in radians, at steps of 1/1000 of a segment."""
    way = ways(mode, closed=closed, count=(5 if closed else 4) * 1000 + 1).double()
    if closed:
        way = torch.cat([way, way[1:2]])  # also where it closes
    steps = way[1:] - way[:-1]
    return float(torch.cosine_similarity(steps[1:], steps[:-1]).clamp(-1, 1).acos().max())


@pytest.mark.parametrize("closed", [False, True])
def test_the_spline_has_no_corners_and_stays_on_the_sphere(closed):
    assert corner("spline", closed) < 0.03 < 0.8 < corner("slerp", closed)
    norms = ways("spline", closed).norm(dim=1)
    assert norms.min() >= KEYS.norm(dim=1).min() - 1e-4 and norms.max() <= KEYS.norm(dim=1).max() + 1e-4


def test_one_face_is_a_way_that_stays():
    assert torch.equal(ways("slerp", keys=KEYS[:1]), KEYS[:1].expand(201, -1))
    assert torch.allclose(ways("spline", closed=True, keys=KEYS[:1]), KEYS[:1].expand(201, -1))


def test_an_unknown_way_is_told():
    with pytest.raises(UserError, match="Did you mean slerp"):
        along(KEYS, torch.zeros(1), mode="slrp")


# --- morphs -----------------------------------------------------------------------------------------------------------


def test_attributes_glide_with_the_faces_or_over_the_whole_film():
    rows = torch.tensor([[0.0, 0], [1, 0], [0, 0]])
    _, found = Morph(KEYS[:3], rows, glides={1: (0.0, 2.0)}).at(moments(5))
    assert found.tolist() == [[0, 0], [0.5, 0.5], [1, 1], [0.5, 1.5], [0, 2]]
    _, found = Morph(KEYS[:3], rows, closed=True, glides={1: (0.0, 1.0)}).at(torch.tensor([0, 0.25, 0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(found[:, 1], torch.tensor([0.0, 0.5, 1.0, 0.0])) and torch.equal(found[-1, 0], found[0, 0])


def test_moments_end_where_the_film_does():
    assert moments(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert moments(4, closed=True).tolist() == [0, 0.25, 0.5, 0.75]  # the next would be the first again
    assert moments(1).tolist() == [0] and moments(1, closed=True).tolist() == [0]


def test_a_films_ends_are_the_very_faces(tiny_generator):
    keys, rows = latents([3, 9], 8), torch.tensor([[1.0, 0], [0, 1]])
    film = list(frames(tiny_generator, Morph(keys, rows), moments(7), batch=3))
    assert len(film) == 7 and film[0].shape == (32, 32, 3) and film[0].dtype == np.uint8
    faces = render(tiny_generator, keys, rows, batch=3).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(film[0], faces[0]) and np.array_equal(film[-1], faces[1])


# --- even steps -------------------------------------------------------------------------------------------------------


def test_even_moments_undo_a_planted_hurry():
    """A picture that rushes through the middle of the way, as a generator does that knows few faces between two."""
    def rush(u):
        place = torch.sigmoid(20 * (u - 0.5))
        return torch.stack([place.cos(), place.sin()], dim=1).numpy()

    even = equidistant(rush, 40)
    assert even.before > 1.0 and even.after < 0.05
    steps = np.linalg.norm(np.diff(rush(even.u), axis=0), axis=1)
    assert steps.std() / steps.mean() == pytest.approx(even.after)
    assert float(even.u[0]) == 0 and float(even.u[-1]) == 1 and (np.diff(even.u) > 0).all()


def test_even_moments_of_a_closed_way_count_the_step_that_closes_it():
    def swing(u):
        angle = 2 * torch.pi * (u + 0.12 * torch.sin(2 * torch.pi * u))
        return torch.stack([angle.cos(), angle.sin()], dim=1).numpy()

    even = equidistant(swing, 30, closed=True)
    points = swing(torch.cat([even.u, even.u[:1]]))
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert even.before > 0.4 and len(steps) == 30 and steps.std() / steps.mean() < 0.02


def test_a_way_that_is_even_or_stands_still_is_left_so():
    line = equidistant(lambda u: u[:, None].numpy(), 9)
    assert line.before < 1e-9 and torch.allclose(line.u, moments(9))
    still = equidistant(lambda u: np.zeros((len(u), 3)), 9)
    assert (still.before, still.after) == (0, 0) and torch.equal(still.u, moments(9))
    assert len(equidistant(lambda u: u[:, None].numpy(), 2).u) == 2


def test_a_jump_is_never_made_worse():
    even = equidistant(lambda u: (u > 0.3)[:, None].numpy().astype(float) + 0.01 * u[:, None].numpy(), 20)
    assert even.after <= even.before and len(even.u) == 20 and (np.diff(even.u) >= 0).all()


class Rushing(torch.nn.Module):
    """A generator whose grey level is a steep function of the first latent number."""

    z_dim = 2

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, z, attributes):
        level = torch.tanh(3 * z[:, :1]) * self.scale
        return level[:, :, None, None].expand(-1, 3, 32, 32)


def test_a_film_is_made_even_in_the_features_it_is_given(tiny_generator):
    generator = dataclasses.replace(tiny_generator, net=Rushing().eval(), z_dim=2, attribute_names=())
    morph = Morph(torch.tensor([[-2.0, 0.1], [2.0, 0.1]]), torch.zeros(2, 0))
    even = even_moments(generator, morph, 24, features=lambda images: images.float().mean((2, 3)).numpy())
    assert even.before > 0.8 and even.after < 0.1 * even.before
    levels = np.array([frame.mean() for frame in frames(generator, morph, even.u)])
    assert np.diff(levels).max() - np.diff(levels).min() <= 4  # grey levels, where even spacing in u gives 0 and 100
