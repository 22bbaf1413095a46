"""The drawn toy faces: pure, well distributed, and with attributes that can be seen."""
import hashlib

import numpy as np
import pytest

from mien.data import synthetic
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.errors import UserError


@pytest.fixture(scope="module")
def faces():
    return draw_faces(1400, seed=11)


@pytest.fixture(scope="module")
def attributes():
    """The attributes alone of 20,000 faces."""
    has = synthetic._attributes(synthetic._Numbers(np.arange(20_000), 3), {})
    return {name: has[name] for name in TOY_ATTRIBUTES}


def test_shapes_and_types():
    images, attributes = draw_faces(3, size=64)
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    assert attributes.shape == (3, len(TOY_ATTRIBUTES)) and attributes.dtype == np.uint8
    assert set(np.unique(attributes)) <= {0, 1}
    assert TOY_ATTRIBUTES[:3] == ("Male", "Smiling", "Eyeglasses")
    empty, none = draw_faces(0)
    assert empty.shape == (0, 64, 64, 3) and none.shape == (0, len(TOY_ATTRIBUTES))


@pytest.mark.parametrize("wrong", [{"size": 48}, {"size": 512}, {"start": -1}, {"seed": -1}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UserError):
        draw_faces(1, **wrong)


def test_a_face_does_not_depend_on_what_is_drawn_with_it():
    images, attributes = draw_faces(45, seed=5)
    for start, count in ((0, 1), (17, 20), (44, 1)):
        same, known = draw_faces(count, seed=5, start=start)
        assert (same == images[start : start + count]).all()
        assert (known == attributes[start : start + count]).all()


def test_another_seed_draws_other_faces():
    assert not (draw_faces(8, seed=0)[0] == draw_faces(8, seed=1)[0]).all(axis=(1, 2, 3)).any()


def test_the_bytes_are_the_same_on_every_machine():
    """Change the digest when the drawing is changed on purpose. It was the same with and without AVX, under numpy 1.26 and 2.4."""
    images, attributes = draw_faces(64, seed=0)
    digest = hashlib.sha256(images.tobytes() + attributes.tobytes()).hexdigest()
    assert digest == "d574afa34f74d0abfaba772fffb99033381e1db8358ead63b281ad029451aff8"


@pytest.mark.parametrize("size", [32, 128, 256])
def test_every_size_draws_the_same_faces(size):
    images, attributes = draw_faces(12, size=64, seed=2)
    others, known = draw_faces(12, size=size, seed=2)
    assert (known == attributes).all()
    small = min(size, 64)

    def reduced(pictures):
        factor = pictures.shape[1] // small
        return pictures.reshape(12, small, factor, small, factor, 3).mean(axis=(2, 4))

    error = np.abs(reduced(others) - reduced(images)).mean(axis=(1, 2, 3))
    others_error = np.abs(reduced(others) - reduced(images)[::-1]).mean()
    assert error.max() < 4 and others_error > 25      # of 255; measured: at most 2.6 for the same face, 48 for another


def test_attribute_rates(attributes):
    rates = {name: attributes[name].mean() for name in TOY_ATTRIBUTES}
    expected = {"Male": 0.45, "Smiling": 0.5, "Eyeglasses": 0.2, "Young": 0.78, "Wearing_Hat": 0.1, "Bangs": 0.22}
    for name, rate in expected.items():
        assert rates[name] == pytest.approx(rate, abs=0.02), name
    assert all(0.03 < rate < 0.9 for rate in rates.values())


def test_attributes_are_independent_but_for_the_stated_exceptions(attributes):
    assert not (~attributes["No_Beard"] & ~attributes["Male"]).any()
    assert not (attributes["Bald"] & ~attributes["Male"]).any()
    assert not (attributes["Bald"] & (attributes["Bangs"] | attributes["Wearing_Hat"])).any()
    assert not (attributes["Blond_Hair"] & (~attributes["Young"] | attributes["Bald"])).any()
    tied = {("No_Beard", "Male"), ("Bald", "Male"), ("Blond_Hair", "Young"), ("Bald", "Bangs"), ("Bald", "No_Beard")}
    table = np.corrcoef(np.stack([attributes[name] for name in TOY_ATTRIBUTES]).astype(float))
    for i, first in enumerate(TOY_ATTRIBUTES):
        for j, second in enumerate(TOY_ATTRIBUTES[:i]):
            limit = 0.09 if "Bald" in (first, second) else 0.03
            assert (first, second) in tied or abs(table[i, j]) < limit, (first, second)


@pytest.mark.parametrize("name", ["Male", "Smiling", "Eyeglasses"])
def test_forcing_an_attribute_changes_it_and_leaves_the_wall(name):
    off, known_off = synthetic._draw(np.arange(24), size=64, seed=4, force={name: 0})
    on, known_on = synthetic._draw(np.arange(24), size=64, seed=4, force={name: 1})
    column = TOY_ATTRIBUTES.index(name)
    assert not known_off[:, column].any() and known_on[:, column].all()
    change = np.abs(on.astype(int) - off).max(axis=3)
    assert (change.max(axis=(1, 2)) > 60).all()
    assert (change[:, :4, :4] == 0).all()


def edges(images):
    """How strong edges of each of 8 directions are in each 4x4 cell (Dalal and Triggs, CVPR 2005): what a linear probe can read."""
    grey = images.astype(np.float32).mean(axis=3)
    down, right = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1], grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    cells = []
    for turn in np.arange(8) * (np.pi / 4):
        strength = np.maximum(np.cos(turn) * right + np.sin(turn) * down, 0)[:, :60, :60]
        cells.append(strength.reshape(-1, 15, 4, 15, 4).mean(axis=(2, 4)).reshape(len(images), -1))
    return np.sqrt(np.concatenate(cells, axis=1))


@pytest.fixture(scope="module")
def described(faces):
    features = edges(faces[0])
    return (features - features[:1000].mean(axis=0)) / (features[:1000].std(axis=0) + 1e-3)


LEAST = {"Male": 0.96, "Smiling": 0.87, "Eyeglasses": 0.88, "Wearing_Hat": 0.94, "Mouth_Slightly_Open": 0.83}


@pytest.mark.parametrize("name", LEAST)
def test_attributes_are_visible(faces, described, name):
    """A linear probe on 1,000 faces tells 400 others. Measured on 600: .99, .93, .92, .99, .88."""
    from sklearn.linear_model import LogisticRegression

    truth = faces[1][:, TOY_ATTRIBUTES.index(name)] == 1
    probe = LogisticRegression(C=0.01, max_iter=200, class_weight="balanced").fit(described[:1000], truth[:1000])
    guess, truth = probe.predict(described[1000:]), truth[1000:]
    balanced = (guess[truth].mean() + (~guess[~truth]).mean()) / 2
    assert balanced > LEAST[name], balanced


def test_faces_are_many_and_differ(faces):
    images, _ = faces
    assert len({image.tobytes() for image in images}) == len(images)
    flat = images[:400].reshape(400, -1).astype(np.float32)
    distance = np.abs(flat[:200] - flat[200:]).mean(axis=1)
    assert distance.mean() > 35 and distance.min() > 10      # measured: 50 and 19 of 255
    assert 90 < images.mean() < 180 and images.std(axis=(1, 2, 3)).min() > 15
