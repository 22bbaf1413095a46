"""Truncation (the numbers themselves are tests/models' matter)."""

from pathlib import Path

import pytest
import torch

from mien.errors import UserError
from mien.explore.latents import latents, truncate, truncated, truncating
from mien.explore.load import LoadedGenerator
from mien.explore.sample import render
from mien.models.catalogue import build_generator


def test_a_face_is_the_same_whatever_is_drawn_beside_it():
    alone = latents([1234], 100)
    assert torch.equal(latents(range(1200, 1300), 100)[34], alone[0])
    assert torch.equal(latents([1234, 0], 100)[0], alone[0])
    assert not torch.equal(latents([1235], 100), alone)


def test_these_numbers_never_change():
    expected = torch.tensor([1.9899, -0.305, 1.4273, -0.6381])  # written down once: a changed stream changes everybody's faces
    assert (latents([1234], 4)[0] - expected).abs().max() < 6e-5


def test_latents_are_standard_normal():
    z = latents(range(2000), 50)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    neighbours = (z[1:] * z[:-1]).mean()  # seeds one apart are unrelated
    assert abs(neighbours) < 0.02


def test_truncation_scales_the_norm_and_keeps_the_direction():
    z = latents(range(5), 64)
    small = truncate(z, 0.7)
    assert torch.allclose(small.norm(dim=1), 0.7 * z.norm(dim=1))
    assert torch.allclose(torch.cosine_similarity(small, z), torch.ones(5))
    assert torch.equal(truncate(z, 1.0), z)
    assert torch.equal(truncate(z, 0.0), torch.zeros_like(z))


@pytest.mark.parametrize("psi", [-0.1, 2.5, float("nan")])
def test_truncation_out_of_range_is_refused(psi):
    with pytest.raises(UserError, match="outside 0..2"):
        truncate(latents([0], 4), psi)


def test_negative_seeds_are_refused():
    with pytest.raises(UserError, match="negative"):
        latents([-1], 4)


def loaded(family: str, **options) -> LoadedGenerator:
    torch.manual_seed(0)
    net = build_generator(family, size=32, attributes=1, options={"width": 16, "z_dim": 8, "condition": "concat", **options}).eval()
    return LoadedGenerator(net=net, attribute_names=("Smiling",), size=32, z_dim=8, meta={}, path=Path("none"))


def test_styles_are_truncated_where_a_family_has_them_and_latents_elsewhere():
    z, rows = latents(range(4), 8), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    style = loaded("style", w_dim=8, wide_px=8)
    view, same = truncated(style, z, 0.0)
    assert torch.equal(same, z) and torch.equal(render(style, z, rows), render(truncated(style, z, 1.0)[0], z, rows))
    faces = render(view, same, rows, batch=4)
    assert torch.equal(faces[0], faces[1]) and torch.equal(faces[2], faces[3])
    assert not torch.equal(render(style, z, rows)[0], render(style, z, rows)[1])  # the generator itself is as it was
    plain = loaded("dcgan")
    view, scaled = truncated(plain, z, 0.5)
    assert view is plain and torch.equal(scaled, 0.5 * z) and truncating(plain, 0.5) is plain
    with pytest.raises(UserError, match="outside 0..2"):
        truncating(style, 3.0)
