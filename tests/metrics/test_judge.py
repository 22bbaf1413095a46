import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mien.data.formats import open_picture, render
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.metrics.calibration import calibration_error, calibration_floor, cross_fitted, fit_platt, reliability, sigmoid
from mien.metrics.classifier_scores import ranking, validation_scores
from mien.metrics.judge import Judge, load_judge
from mien.models.classifier import FaceClassifier


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """uint8 [48, 3, 64, 64], drawn."""
    return torch.from_numpy(draw_faces(48, seed=5)[0]).permute(0, 3, 1, 2)


# --- the bundled judge ------------------------------------------------------------------------------------------------


def test_the_bundled_weights_are_small_and_known(judge):
    import mien

    weights = Path(mien.__file__).parent / "weights" / "face.safetensors"
    assert weights.stat().st_size <= 6e6
    assert len(judge.attribute_names) == 40 and judge.attribute_names[judge.column("Smiling")] == "Smiling"
    scores = judge.meta["validation"]
    assert scores["count"] == 2044 and scores["mean"]["accuracy"] >= 0.885
    assert all(scores["attributes"][name]["accuracy"] >= least for name, least in (("Male", 0.96), ("Smiling", 0.90), ("Eyeglasses", 0.98)))
    for attribute in scores["attributes"].values():
        assert attribute["ece"] < attribute["ece_floor"] + 0.03


def test_the_model_card_says_what_was_measured(judge):
    """Each row of its accuracy table is what the weights' own record holds."""
    card = (Path(__file__).parents[2] / "docs" / "model_cards" / "face.md").read_text(encoding="utf-8")
    columns = ("share", "majority", "accuracy", "balanced", "auc", "ece_raw", "ece", "ece_floor")
    for name, scores in judge.meta["validation"]["attributes"].items():
        assert f"| {name} | " + " | ".join(f"{scores[column]:.4f}" for column in columns) + " |" in card
    assert f"**{judge.meta['validation']['mean']['accuracy']:.4f}**" in card


def test_probabilities_are_probabilities(judge, faces):
    noise = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    flat = torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), 255.0)]).to(torch.uint8)
    probabilities = judge.probabilities(torch.cat([faces, noise, flat]))
    assert probabilities.dtype == np.float32 and probabilities.shape == (58, 40)
    assert np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1
    assert np.isfinite(judge.features(torch.cat([noise, flat]))).all()


def test_calibration_is_applied_and_keeps_the_order(judge, faces):
    logits, probabilities = judge.logits(faces), judge.probabilities(faces)
    in_order = np.take_along_axis(probabilities, np.argsort(logits, axis=0), axis=0)
    assert np.diff(in_order, axis=0).min() >= 0
    assert np.abs(probabilities - sigmoid(logits)).max() > 1e-3


def test_batch_size_changes_nothing(judge, faces):
    np.testing.assert_allclose(judge.probabilities(faces, batch=7), judge.probabilities(faces, batch=48), atol=1e-5)
    np.testing.assert_allclose(judge.features(faces, batch=1), judge.features(faces, batch=48), atol=1e-4)


def test_the_size_of_the_picture_hardly_matters(judge):
    """The same drawn faces at 128 px: seen alike, and told apart from each other as well as before."""
    small, large = (judge.features(torch.from_numpy(draw_faces(24, size=size, seed=5)[0]).permute(0, 3, 1, 2)) for size in (64, 128))
    same = np.linalg.norm(small - large, axis=1)
    other = np.linalg.norm(small[:, None] - small[None], axis=2)[~np.eye(24, dtype=bool)]
    assert np.median(same) < 0.4 * np.median(other)


def test_it_sees_what_is_drawn(judge):
    """Trained on photographs alone, it still ranks drawn hats, glasses and smiles well above chance."""
    images, attributes = draw_faces(300, seed=11)
    logits = judge.logits(torch.from_numpy(images).permute(0, 3, 1, 2))
    columns = [judge.column(name) for name in TOY_ATTRIBUTES]
    area = dict(zip(TOY_ATTRIBUTES, ranking(logits[:, columns], attributes)))
    assert min(area["Eyeglasses"], area["Smiling"]) > 0.7, area


@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 32), (1, 3, 16, 16), (2, 3, 64, 64)])
def test_other_inputs_are_refused(judge, shape):
    images = torch.zeros(shape, dtype=torch.float32 if shape[0] == 2 else torch.uint8)
    for see in (judge.probabilities, judge.features):
        with pytest.raises(ValueError, match="judge takes"):
            see(images)


def test_weights_without_calibration_give_plain_sigmoids(faces):
    torch.manual_seed(0)
    net = FaceClassifier(2, widths=(4, 8, 8, 16), depths=(1, 1, 1, 1)).eval()
    bare = Judge(net=net, attribute_names=("a", "b"), weights_sha256="", meta={"calibration": None})
    np.testing.assert_allclose(bare.probabilities(faces), sigmoid(bare.logits(faces)), atol=1e-6)


@pytest.mark.skipif("MIEN_TEST_CELEBA" not in os.environ, reason="needs MIEN_TEST_CELEBA, an unpacked CelebA")
def test_accuracy_on_real_validation_images(judge):
    root = Path(os.environ["MIEN_TEST_CELEBA"])
    rows = (root / "list_attr_celeba.txt").read_text().splitlines()
    names, labels = rows[1].split(), {row.split()[0]: row.split()[1:] for row in rows[2:]}
    partition = (row.split() for row in (root / "list_eval_partition.txt").read_text().splitlines())
    held_out = [file for file, split in partition if split == "1"]
    files = [file for file in held_out if (root / "img_align_celeba" / file).exists()][:600]
    images = np.stack([render(open_picture(root / "img_align_celeba" / file), crop="center178", size=64) for file in files])
    truth = np.array([[labels[file][names.index(name)] == "1" for name in judge.attribute_names] for file in files])
    probabilities = judge.probabilities(torch.from_numpy(images).permute(0, 3, 1, 2))
    right = ((probabilities > 0.5) == truth).mean(axis=0)
    assert len(files) > 300 and right.mean() >= 0.88
    assert right[judge.column("Male")] >= 0.95 and right[judge.column("Smiling")] >= 0.89 and right[judge.column("Eyeglasses")] >= 0.97
    assert calibration_error(probabilities, truth).mean() < 0.05                     # 600 images alone make about 0.03


# --- calibration ------------------------------------------------------------------------------------------------------


def drawn_labels(count: int, *, scale: float, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 2], and labels whose true probability is sigmoid(scale * logit + bias)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, 2))
    return logits, (generator.random((count, 2)) < sigmoid(scale * logits + bias)).astype(float)


def test_platt_scaling_finds_the_scale_and_bias_that_made_the_labels():
    scale, bias = fit_platt(*drawn_labels(20_000, scale=0.5, bias=-1.0))
    np.testing.assert_allclose(scale, 0.5, atol=0.03)
    np.testing.assert_allclose(bias, -1.0, atol=0.05)


def test_platt_scaling_is_logistic_regression():
    logits, labels = drawn_labels(4_000, scale=0.7, bias=0.3)
    scale, bias = fit_platt(logits, labels)
    plain = LogisticRegression(C=1e6).fit(logits[:, :1], labels[:, 0])
    np.testing.assert_allclose([scale[0], bias[0]], [plain.coef_[0, 0], plain.intercept_[0]], atol=0.01)     # the prior is this weak


def test_an_attribute_that_never_occurs_gets_small_probabilities_not_infinities():
    logits, labels = drawn_labels(200, scale=1, bias=0)
    scale, bias = fit_platt(logits, labels * 0)
    assert np.isfinite([scale, bias]).all() and sigmoid(scale * logits + bias).max() < 0.5


def test_cross_fitting_never_shows_an_image_to_its_own_fit():
    """An image's own label changes everybody's probability but those of its own fold."""
    logits, labels = drawn_labels(100, scale=1, bias=0)
    changed = labels.copy()
    changed[3] = 1 - changed[3]
    alike = np.isclose(cross_fitted(logits, labels), cross_fitted(logits, changed), rtol=0, atol=1e-12).all(axis=1)
    assert alike[3] and alike.sum() == 20


def test_calibration_error_tells_true_from_overconfident_probabilities():
    logits, labels = drawn_labels(20_000, scale=1, bias=0)
    true, loud = sigmoid(logits), sigmoid(3 * logits)
    assert (calibration_error(true, labels) < 0.02).all() and (calibration_error(loud, labels) > 0.08).all()
    np.testing.assert_allclose(calibration_error(true, labels), calibration_floor(true), atol=0.008)
    assert (calibration_error(cross_fitted(3 * logits, labels), labels) < 0.02).all()


def test_calibration_error_by_hand():
    """Two bins: mean 0.2 with no ones in two, mean 0.9 with both: (2 * 0.2 + 2 * 0.1) / 4."""
    probabilities, labels = np.array([[0.1], [0.3], [0.85], [0.95]]), np.array([[0], [0], [1], [1]])
    assert calibration_error(probabilities, labels, bins=2)[0] == pytest.approx(0.15)
    count, mean, share = reliability(probabilities, labels, bins=4)
    assert count[0].tolist() == [1, 1, 0, 2] and np.isnan(mean[0, 2]) and share[0, 3] == 1


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_by_attribute_and_group():
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 3)) < [0.5, 0.7, 0.1]).astype(np.uint8)
    logits = (labels * 2.0 - 1) * 3 + generator.normal(0, 0.5, labels.shape)
    young_men = (labels[:, 0] == 1) & (labels[:, 1] == 1)
    logits[young_men, 2] *= -1                                        # always wrong on young men's glasses, never elsewhere
    scores = validation_scores(logits, labels, ["Male", "Young", "Eyeglasses"])
    assert scores["attributes"]["Male"]["accuracy"] == 1 and scores["attributes"]["Male"]["auc"] == 1
    assert scores["groups"]["men, young"]["Eyeglasses"] == 0 and scores["groups"]["women, young"]["Eyeglasses"] == 1
    assert scores["attributes"]["Eyeglasses"]["accuracy"] == pytest.approx(1 - young_men.mean(), abs=1e-4)
    assert scores["attributes"]["Eyeglasses"]["majority"] == pytest.approx(1 - labels[:, 2].mean(), abs=1e-4)
    assert sum(group["count"] for group in scores["groups"].values()) == 400
    json.dumps(scores, allow_nan=False)


def test_an_attribute_with_one_value_has_no_ranking_and_no_balance():
    labels = np.stack([np.zeros(50), np.arange(50) % 2], axis=1)
    scores = validation_scores(np.random.default_rng(0).normal(size=(50, 2)), labels, ["a", "b"])
    assert scores["attributes"]["a"]["auc"] is None and scores["attributes"]["a"]["balanced"] is None and scores["groups"] == {}


def test_ranking_is_the_area_under_the_curve():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 1)).round(1), generator.integers(0, 2, (200, 1))       # rounded: with ties
    assert ranking(logits, labels)[0] == pytest.approx(roc_auc_score(labels[:, 0], logits[:, 0]))
