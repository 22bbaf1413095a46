from functools import partial

import pytest
import torch

from mien.errors import UserError
from mien.explore.encoder import EncoderRecipe, pixel_loss, train_encoder
from mien.explore.invert import Objective, Settings, draw, fit_offsets, invert, optimise, prior, read_inversion, zero_offsets
from mien.explore.latents import latents
from mien.models.pictures import to_uint8


@pytest.fixture(scope="module")
def encoder(tiny_generator):
    return train_encoder(tiny_generator, recipe=EncoderRecipe(steps=150, width=16))


def face(generator, seed):
    z, attributes = latents([seed], generator.z_dim), torch.tensor([[1.0, 0.0]])
    return z, attributes, to_uint8(draw(generator, z, attributes))


def test_a_generated_face_is_found_again(tiny_generator, encoder):
    z, attributes, target = face(tiny_generator, 5)
    found = invert(tiny_generator, target, encoder=encoder, classifier=None, attributes=attributes, settings=Settings(steps=120))
    other = (latents([6], tiny_generator.z_dim) - z).square().mean()
    assert (found.z - z).square().mean() < 0.3 * other
    random = 127.5 * (draw(tiny_generator, latents([6], tiny_generator.z_dim), attributes) - (target / 127.5 - 1)).square().mean().sqrt()
    assert found.errors["optimised"].pixel_rmse < 0.3 * random
    assert found.condition == "given" and found.offsets is None and found.errors["optimised"].identity is None


def test_the_encoder_starts_nearer_than_chance_at_equal_steps(tiny_generator, encoder):
    z = latents(range(8), tiny_generator.z_dim)
    attributes = torch.tensor([[0.0, 1.0]]).repeat(8, 1)
    target = draw(tiny_generator, z, attributes)
    objective = Objective(target, None)
    ends = [optimise(tiny_generator.net, objective, start, attributes, steps=10, lr=0.1)[2].mean()
            for start in (encoder.encode(target)[0], latents(range(50, 58), tiny_generator.z_dim))]  # fmt: skip
    assert ends[0] < ends[1]


def test_offsets_can_only_lower_the_loss(tiny_generator):
    z, attributes, _ = face(tiny_generator, 5)
    objective = Objective(torch.zeros(1, 3, 32, 32) + torch.linspace(-1, 1, 32), None)
    before = objective(draw(tiny_generator, z, attributes)).item()
    none = fit_offsets(tiny_generator, objective, z, attributes, steps=0, lr=0.02)
    assert all(not pair.any() for pair in none.values()) and set(none) == set(zero_offsets(tiny_generator, z, attributes))
    wild = fit_offsets(tiny_generator, objective, z, attributes, steps=3, lr=1e3)  # steps that only do harm are not kept
    assert objective(draw(tiny_generator, z, attributes, wild)).item() <= before + 1e-5
    fitted = fit_offsets(tiny_generator, objective, z, attributes, steps=20, lr=0.05)
    assert objective(draw(tiny_generator, z, attributes, fitted)).item() < 0.95 * before


def test_a_kept_latent_draws_the_same_face_and_no_other_model_takes_it(tiny_generator):
    _, attributes, target = face(tiny_generator, 9)
    found = invert(tiny_generator, target, encoder=None, classifier=None, attributes=attributes, settings=Settings(4, 1, offset_steps=2))
    kept = read_inversion(found.to_json({"photo": "a\nb"}), tiny_generator)
    assert torch.equal(draw(tiny_generator, kept.z, kept.attributes, kept.offsets), found.image)
    for text in ("{", "[]", '{"format": "mien-inversion/1"}', found.to_json().replace(found.model, "0" * 64)):
        with pytest.raises(UserError, match="This"):
            read_inversion(text, tiny_generator)


def test_the_prior_and_the_scales():
    assert prior(torch.ones(1, 25)).item() == pytest.approx(0) and prior(2 * torch.ones(1, 25)).item() == pytest.approx(1)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert pixel_loss(checks.expand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)).item() == pytest.approx(1 / 3)  # seen at full size only


@pytest.mark.parametrize("text", [
    '"offsets": [1]', '"offsets": "none"', f'"z": [{"1" + 400 * "0"}, 0, 0, 0, 0, 0, 0, 0]', '"attributes": null', '"offsets": {"8x8": 1}',
])  # fmt: skip
def test_a_damaged_latent_is_told_in_one_line(tiny_generator, text):
    whole = f'{{"format": "mien-inversion/1", "model": "{tiny_generator.meta["sha256"]}", "z": [0, 0, 0, 0, 0, 0, 0, 0], ' \
            '"attributes": {"Male": 0, "Smiling": 1}'  # fmt: skip
    assert read_inversion(f"{whole}}}", tiny_generator).attributes.tolist() == [[0, 1]]
    with pytest.raises(UserError, match="run mien invert again"):
        read_inversion(f"{whole}, {text}}}", tiny_generator)


@pytest.mark.parametrize("family, options, names", [
    ("dcgan", {"width": 16, "z_dim": 8, "condition": "none"}, ()), ("dcgan", {"width": 16, "z_dim": 8, "condition": "none"}, ("Male",)),
    ("resnet", {"width": 16, "z_dim": 8}, ()), ("style", {"width": 16, "z_dim": 8, "w_dim": 16}, ()),
    ("r3", {"width": 16, "blocks": 1}, ()),
])  # fmt: skip
def test_models_that_ignore_the_condition_are_searched_like_others(family, options, names):
    """A free condition that nothing depends on stays where it was; the latent still comes nearer."""
    from mien.explore.anomaly import redraw
    from mien.explore.encoder import Encoder
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import load_judge
    from mien.models.catalogue import build_generator

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_generator(family, size=32, attributes=len(names), options=options).eval().requires_grad_(False)
        generator = LoadedGenerator(net=net, attribute_names=names, size=32, z_dim=net.z_dim, meta={}, path=None)
        encoder = Encoder(32, net.z_dim, len(names), width=8).eval().requires_grad_(False)
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(redraw(generator, encoder, load_judge().net, target, steps=2).images) == 2
    pixels = target.float() / 127.5 - 1
    z, guess = encoder.encode(pixels)
    search = partial(optimise, net, Objective(pixels, None), z, guess, lr=0.1, free_condition=True)
    (_, _, start), (_, held, end) = search(steps=0), search(steps=4)
    assert (end < start).all() and torch.equal(held, guess)
    found = invert(generator, target[:1], encoder=encoder, classifier=None, settings=Settings(4, 2, free_condition=True))
    assert found.attributes.shape == (1, len(names)) and found.z.isfinite().all()
