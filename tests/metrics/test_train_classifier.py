import json

import numpy as np
import pytest
import torch
from torch import Generator

from mien.data.store import open_store
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.data.writer import write_store
from mien.errors import UserError
from mien.metrics.classifier_views import jpeg, move, random_views
from mien.metrics.judge import load_judge
from mien.metrics.train_classifier import Faces, Recipe, Training, load_state, train_classifier

TINY = {"phases": [[32, 2], [64, 1]], "batch": 8, "precision": "fp32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A store of 64 drawn faces: 40 to train on, 24 held out."""
    images, attributes = draw_faces(64, seed=3)
    splits = np.array([0] * 40 + [1] * 24, np.uint8)
    path = tmp_path_factory.mktemp("data") / "store"
    write_store(path, images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, splits=splits,
                names=[f"{i:03d}" for i in range(64)], crop="whole", source=[{"name": "toys", "count": 64}])
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training that was never stopped: 15 steps."""
    out = tmp_path_factory.mktemp("whole")
    train_classifier(data, out, Recipe(**TINY), report=lambda line: None)
    return out


def test_a_training_leaves_weights_record_and_figure(whole):
    judge = load_judge(whole / "face.safetensors")
    assert judge.attribute_names == TOY_ATTRIBUTES
    training = judge.meta["training"]
    assert training["steps"] == 15 and training["images"] == 40 and training["store"]["crop"] == "whole"
    assert judge.meta["validation"]["count"] == judge.meta["calibration"]["count"] == 24
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["size_px"]) for line in lines] == [(1, 32), (2, 32), (3, 64)]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (whole / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_stopped_and_resumed_gives_the_same_bytes(data, whole, tmp_path):
    """Stopped within an epoch, across a change of image size, and once more."""
    recipe = Recipe(**TINY)
    assert train_classifier(data, tmp_path, recipe, stop_after_steps=3, report=lambda line: None) is None
    assert train_classifier(data, tmp_path, recipe, stop_after_steps=9, report=lambda line: None) is None
    finished = train_classifier(data, tmp_path, recipe, report=lambda line: None)
    assert finished is not None and finished.read_bytes() == (whole / "face.safetensors").read_bytes()
    losses = [[json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()] for out in (tmp_path, whole)]
    assert losses[0] == losses[1]
    assert len(list(tmp_path.glob("state-*"))) == 1


def test_an_interrupt_saves_the_state(data, tmp_path):
    def strike(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(data, tmp_path, Recipe(**TINY), report=strike)
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 5           # struck at the end of the first epoch


def test_another_recipe_or_a_damaged_state_is_refused(data, tmp_path):
    train_classifier(data, tmp_path, Recipe(**TINY), stop_after_steps=1, report=lambda line: None)
    with pytest.raises(UserError, match="differs in recipe"):
        train_classifier(data, tmp_path, Recipe(**{**TINY, "seed": 1}), report=lambda line: None)
    state = next(tmp_path.glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        train_classifier(data, tmp_path, Recipe(**TINY), report=lambda line: None)


def test_starting_from_other_weights(data, whole, tmp_path):
    recipe = Recipe(**{**TINY, "lr": 1e-12, "ema_decay": 0.0, "weight_decay": 0.0})
    train_classifier(data, tmp_path, recipe, initial=whole / "face.safetensors", stop_after_steps=1, report=lambda line: None)
    training = Training(recipe, len(TOY_ATTRIBUTES))
    before = load_judge(whole / "face.safetensors").net.head.weight
    load_state(training, tmp_path)
    torch.testing.assert_close(training.net.head.weight, before)


def test_any_seed_will_do(data, tmp_path):
    assert train_classifier(data, tmp_path, Recipe(**{**TINY, "seed": 2**66 + 1}), stop_after_steps=1, report=lambda line: None) is None
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 1


def test_one_validation_image_is_too_few_to_calibrate_by_and_ends_no_training(tmp_path):
    images, attributes = draw_faces(9)
    write_store(tmp_path / "store", images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, crop="whole",
                splits=np.array([0] * 8 + [1], np.uint8), names=[f"{i}" for i in range(9)], source=[{"name": "toys", "count": 9}])
    recipe = Recipe(**{**TINY, "phases": [[32, 1]]})
    weights = train_classifier(tmp_path / "store", tmp_path / "out", recipe, report=lambda line: None)
    meta = load_judge(weights).meta
    assert meta["calibration"] is None and meta["validation"] is None


def test_a_store_that_does_not_suit(tmp_path, data):
    images, attributes = draw_faces(16, size=32)
    common = {"splits": np.zeros(16, np.uint8), "names": [f"{i}" for i in range(16)], "crop": "whole",
              "source": [{"name": "toys", "count": 16}]}
    write_store(tmp_path / "small", images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, **common)
    write_store(tmp_path / "bare", images=draw_faces(16)[0], attributes=attributes[:, :0], attribute_names=[], **common)
    for path, words in ((tmp_path / "small", "32 px"), (tmp_path / "bare", "no attributes"), (tmp_path / "none", "no such data folder")):
        with pytest.raises(UserError, match=words):
            train_classifier(path, tmp_path / "out", Recipe(**TINY))
    with pytest.raises(UserError, match="under one batch"):
        train_classifier(data, tmp_path / "out", Recipe(**{**TINY, "batch": 41}))
    assert not (tmp_path / "out").exists()


def test_the_label_blurry_is_not_learned_from_views_we_blurred():
    """Where trust is 0 the label does not matter: not to the loss, not to the weights."""
    weights = []
    for label in (0.0, 1.0):
        training = Training(Recipe(**TINY), 2)
        images, labels = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32), torch.ones(4, 2)
        labels[:, 1] = label
        training.update(images, labels, torch.tensor([[1.0, 0.0]]).expand(4, 2), 1e-3)
        weights.append(training.net.head.weight)
    assert torch.equal(*weights)


def test_the_rate_rises_and_then_falls_to_nothing():
    rates = [Recipe().rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(3e-3) and 45 <= rates.index(max(rates)) <= 50 and rates[-1] < 1e-7


# --- views ------------------------------------------------------------------------------------------------------------


def batch(data, count: int = 40) -> torch.Tensor:
    return Faces(open_store(data)).batch(np.arange(count), 64)


def test_views_are_a_function_of_the_seed_and_stay_in_range(data):
    images = batch(data)
    (one, soft), (two, _), (other, _) = (random_views(images.clone(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == images.shape and one.min() >= -1 and one.max() <= 1 and torch.isfinite(one).all()
    assert soft.dtype == torch.bool and soft.shape == (40,)


def test_views_that_are_only_shifted_stay_exactly_as_sharp(data, monkeypatch):
    """With nothing rotated or zoomed, each view's middle is a window of the image or of its mirror image, pixel for pixel."""
    monkeypatch.setattr("mien.metrics.classifier_views.MOVED_SHARE", 0.0)
    images = batch(data, 8)
    views = move(images, Generator().manual_seed(0))
    for image, view in zip(images, views):
        middle = view[:, 8:56, 8:56]
        windows = (source[:, y:y + 48, x:x + 48] for source in (image, image.flip(-1)) for y in range(4, 13) for x in range(4, 13))
        assert min((window - middle).abs().max().item() for window in windows) < 1e-4


def test_jpeg_keeps_the_picture_and_loses_more_at_low_quality(data):
    images = batch(data, 4)
    low, high = ((jpeg(images, [quality] * 4) - images).square().mean().item() for quality in (35, 95))
    assert 0 < high < low < 0.02
