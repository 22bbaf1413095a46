"""From a model and a store to scores: every metric, its floor, its protocol, the cache, and the words for what does not fit."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mien.errors import UserError
from mien.metrics import evaluate as evaluation
from mien.metrics import face_sets
from mien.metrics.evaluate import evaluate

COMMON = {"features": "random", "count": 400, "latents": 64}


def by_name(scores):
    return {score.metric: score for score in scores}


@pytest.fixture(scope="module")
def everything(toys, toy_store, tmp_path_factory):
    """All scores of a toy generator that draws as the data are drawn, and those of the second call."""
    import mien.metrics.judge as judge

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load_judge", lambda *_, **__: toys.judge)
        patch.setenv("MIEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        stages = []
        first = evaluate(toys.generator(), toy_store, progress=lambda *told: stages.append(told), with_bias_curve=True, **COMMON)
        return by_name(first), by_name(evaluate(toys.generator(), toy_store, with_bias_curve=True, **COMMON)), stages


def test_every_score_is_there_with_interval_floor_and_protocol(everything):
    scores, _, stages = everything
    of_features = {"fd", "fd-infinite", "kid", "precision", "recall", "density", "coverage"}
    others = {"control", "leakage", "identity", "memorization", "diversity", "twins", "path-length"}
    assert set(scores) == {f"{name}-random" for name in of_features} | others
    for name, score in scores.items():
        assert score.low is not None and score.low <= score.value <= score.high, name
        assert (score.floor is None) == (name in ("identity", "path-length"))
        assert score.protocol.n_real == score.protocol.n_fake == 400 and score.protocol.nimg == 5000 and score.protocol.ema is True
        assert score.protocol.conditions == "the reals' own" and score.details["seconds"] >= 0
        json.dumps(score.line(), allow_nan=False)
    assert {stage for stage, _, _ in stages} >= {"reference images", "the model's faces", "reals for the floor", "training images"}
    assert all(done <= total for _, done, total in stages)


def test_a_generator_like_the_data_is_at_the_floor(everything):
    scores, _, _ = everything
    # its glasses and ground are drawn as the data's are, so each score's interval reaches its floor
    for name in ("kid-random", "precision-random", "recall-random", "coverage-random", "diversity"):
        room = 0.05 * abs(scores[name].floor)
        assert scores[name].low - room <= scores[name].floor <= scores[name].high + room, name
    assert scores["control"].value == 1 and scores["memorization"].details["verdict"] == "no sign of copying"
    assert scores["diversity"].details["verdict"].startswith("varied")
    assert scores["fd-infinite-random"].value < scores["fd-random"].value


def test_each_combination_is_scored_too(everything):
    parts = everything[0]["kid-random"].details["by_combination"]
    assert set(parts) == {f"Male={a},Smiling={b}" for a in (0, 1) for b in (0, 1)}
    assert sum(part["n_real"] for part in parts.values()) == 400
    assert all(part["n_real"] == part["n_fake"] and part["low"] < part["high"] and part["floor"] is not None for part in parts.values())


def test_of_many_attributes_each_value_is_scored_not_each_combination():
    """Five attributes make 32 combinations, none with enough images; each value of each has them, of the asked ones alone."""
    draw = np.random.default_rng(0)
    names = ("A", "B", "C", "D", "E")
    reals, fakes, others = (draw.integers(0, 2, (200, 5)) for _ in range(3))
    reals[:, 4] = np.arange(200) < 20  # too few of these
    subject = SimpleNamespace(real=SimpleNamespace(attributes=reals), fake=SimpleNamespace(attributes=fakes, attribute_names=names),
                              floor_attributes=others)  # fmt: skip
    groups = evaluation._combinations(subject)
    assert [label for label, *_ in groups] == [f"{name}={value}" for name in "ABCD" for value in (1, 0)] + ["E=0"]
    for label, *rows in groups:
        column, value = names.index(label[0]), int(label[2])
        for found, attributes in zip(rows, (reals, fakes, others)):
            assert found.tolist() == np.flatnonzero(attributes[:, column] == value).tolist()


def test_the_second_call_uses_the_cache_and_agrees(everything):
    first, second, _ = everything
    assert not first["memorization"].details["reals_from_cache"] and all(s.details["reals_from_cache"] for s in second.values())
    for name, score in first.items():
        assert dataclasses.replace(score, protocol=second[name].protocol, details={}) == dataclasses.replace(second[name], details={})


def test_a_changed_image_is_not_taken_from_the_cache(toys, tmp_path):
    rows, splits = toys.rows(300, 1), np.repeat([0, 1], 150)
    images = toys.draw(rows, 1)
    values = []
    for name in ("one", "two"):
        store = toys.store(tmp_path / name, images, rows, splits)
        values.append(evaluate(toys.generator(), store, metrics=["kid"], **COMMON)[0])
        images = images.clone()
        images[200:] = 255 - images[200:]
    assert values[0].value != values[1].value and not values[1].details["reals_from_cache"]


def test_a_damaged_cache_entry_is_made_anew(toys, toy_store, tmp_path):
    first = evaluate(toys.generator(), toy_store, metrics=["kid"], **COMMON)[0]
    for file in (tmp_path / "cache" / "features").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    again = evaluate(toys.generator(), toy_store, metrics=["kid"], **COMMON)[0]
    assert again.value == first.value and not again.details["reals_from_cache"]


def test_batches_change_nothing(toys, toy_store, monkeypatch):
    first = evaluate(toys.generator(), toy_store, metrics=["fd"], **COMMON)[0]
    monkeypatch.setattr(face_sets, "BATCH", 23)
    second = evaluate(toys.generator(), toy_store, metrics=["fd"], cache=False, **COMMON)[0]
    assert second.value == pytest.approx(first.value, rel=1e-4)


def test_count_is_capped_and_said(toys, toy_store):
    score = evaluate(toys.generator(), toy_store, metrics=["kid"], features="pixels", split="test", count=10_000)[0]
    assert score.protocol.n_real == score.protocol.n_fake == 400 and "test has 400 images" in score.details["notes"][0]


def test_a_model_that_was_trained_on_the_features_says_so(toys, toy_store):
    """loss.perceptual looks at the judge's features, so that a score in them measures how well it was obeyed."""
    plain = toys.generator()
    taught = dataclasses.replace(plain, meta={**plain.meta, "trained_on": ["face", "random"]})
    asked = {**COMMON, "cache": False}
    said, unsaid = (evaluate(model, toy_store, metrics=["kid"], **asked)[0] for model in (taught, plain))
    assert said.protocol.trained_on == "random" and "TRAINED on them" in str(said)
    assert any("--features inception-768" in note for note in said.details["notes"])
    assert unsaid.protocol.trained_on is None and "TRAINED" not in str(unsaid) and said.value == unsaid.value
    other = evaluate(taught, toy_store, metrics=["kid"], **{**asked, "features": "pixels"})[0]
    assert other.protocol.trained_on is None


def test_a_store_scored_with_itself_and_with_its_other_half(toys, toy_store):
    same = by_name(evaluate(toy_store, toy_store, metrics=["fd", "kid"], **COMMON))
    assert same["fd-random"].value == pytest.approx(0, abs=1e-8) and same["fd-random"].floor > 0
    assert same["fd-random"].protocol.conditions == "as the store has them" and same["fd-random"].protocol.ema is None


def test_all_of_a_store_of_generated_faces_is_scored_whatever_the_split(toys, toy_store, tmp_path):
    val = toy_store.indices("val")[:100]
    images = torch.from_numpy(toy_store.images[val].transpose(0, 3, 1, 2).copy())
    store = toys.store(tmp_path / "drawn", images, toy_store.attributes[val], np.zeros(100))     # all of them train
    with pytest.raises(UserError, match=r"has no val images \(it has train 100, val 0, test 0\)"):
        evaluate(store, toy_store, metrics=["kid"], **COMMON)
    store.manifest["generated"] = {}
    assert evaluate(store, toy_store, metrics=["kid"], **COMMON)[0].protocol.n_fake == 100


def test_swapped_labels_move_only_what_looks_at_labels(toys, toy_store, toy_judge, tmp_path):
    """The same pictures, with Male and Smiling exchanged in the table."""
    right, wrong = ({}, {})
    val = toy_store.indices("val")
    images = torch.from_numpy(toy_store.images[val].transpose(0, 3, 1, 2).copy())
    for rows, into in ((toy_store.attributes[val], right), (toy_store.attributes[val][:, [1, 0, 2]], wrong)):
        store = toys.store(tmp_path / f"s{id(into)}", images, rows, np.ones(len(val)))
        into |= by_name(evaluate(store, toy_store, metrics=["fd", "kid", "prdc", "control"], **COMMON))
    for name in ("fd-random", "kid-random", "precision-random", "recall-random", "density-random", "coverage-random"):
        assert wrong[name].value == pytest.approx(right[name].value, abs=1e-9), name
    assert right["control"].value == 1 and wrong["control"].value < 0.85
    label = "Male=1,Smiling=0,Eyeglasses=0"
    inside = [found["kid-random"].details["by_combination"][label] for found in (right, wrong)]
    assert inside[1]["low"] > max(0, inside[0]["high"])


def test_a_folder_of_pictures(toys, toy_store, toy_judge, tmp_path):
    rows = toys.rows(300, 31)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(toys.draw(rows, 31).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    plain = evaluate(folder, toy_store, metrics=["kid"], **COMMON)[0]
    assert plain.protocol.n_fake == 300 and plain.low < 0 < plain.high and plain.details["by_combination"] == {}
    with open(folder / "attributes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "seed", "Male", "Smiling"])
        table.writerows([f"{i:03d}.png", i, *row[:2]] for i, row in enumerate(rows))
    scores = by_name(evaluate(folder, toy_store, metrics=["control"], **COMMON))
    assert scores["control"].value == 1 and scores["control"].details["accuracy"] == {"Male": 1.0, "Smiling": 1.0}
    (folder / "attributes.csv").write_text("name,Male\n000.png,1\n")
    with pytest.raises(UserError, match="no line for 001.png"):
        evaluate(folder, toy_store, metrics=["control"], **COMMON)


def test_too_few_images_for_the_bias_curve_leave_the_distance_itself(toys, toy_store):
    problems = []
    asked = {**COMMON, "count": 150, "metrics": ["fd"]}
    scores = evaluate(toys.generator(), toy_store, with_bias_curve=True, on_problem=problems.append, **asked)
    assert [score.metric for score in scores] == ["fd-random"] and len(problems) == 1 and "fd-infinite: The bias curve needs" in problems[0]
    assert scores[0].value == evaluate(toys.generator(), toy_store, **asked)[0].value
    with pytest.raises(UserError, match="bias curve"):
        evaluate(toys.generator(), toy_store, with_bias_curve=True, **asked)


def test_floor_and_reference_share_no_image_and_have_the_same_table(toy_store):
    reference = face_sets.reference_indices(toy_store, "val", 500, 0)
    floor = face_sets.floor_indices(toy_store, reference, ("Male", "Smiling"), "val", 0)
    assert not set(reference) & set(floor) and len(floor) == 500
    columns = toy_store.columns(("Male", "Smiling"))
    tables = [np.unique(toy_store.attributes[i][:, columns], axis=0, return_counts=True)[1].tolist() for i in (reference, floor)]
    assert tables[0] == tables[1]


def test_without_other_reals_the_floor_is_two_halves_scaled(toys, tmp_path):
    rows = toys.rows(600, 2)
    store = toys.store(tmp_path / "all-val", toys.draw(rows, 2), rows, np.ones(600))
    score = evaluate(toys.generator(), store, metrics=["fd"], features="random", count=600)[0]
    assert "two halves" in score.details["floor_from"] and 0 < score.floor < score.value * 1.2


def test_only_the_reference_s_own_sources_make_the_floor(toys, tmp_path):
    """Half-size images of another source would raise it."""
    rows = toys.rows(900, 3)
    store = toys.store(tmp_path / "two", toys.draw(rows, 3), rows, np.repeat([1, 0, 0], 300))
    store.manifest["source"] = [{"name": "a", "count": 600}, {"name": "b", "count": 300}]
    floor = face_sets.floor_indices(store, store.indices("val"), (), "val", 0)
    assert len(floor) == 300 and floor.max() < 600


def test_conditions_of_the_fakes_are_the_reals_own(toys, toy_store):
    seen = []

    class Watched(type(toys.generator().net)):
        def forward(self, z, attributes):
            seen.append(attributes.clone())
            return super().forward(z, attributes)

    evaluate(toys.generator(net=Watched(("Male", "Smiling"))), toy_store, metrics=["kid"], features="pixels", count=192)
    asked = torch.cat(seen).numpy()
    reals = toy_store.attributes[face_sets.reference_indices(toy_store, "val", 192, 0)][:, toy_store.columns(("Male", "Smiling"))]
    np.testing.assert_array_equal(asked, reals)


@pytest.mark.parametrize("change, word", [
    ({"metrics": ["fid"]}, "Did you mean fd"),
    ({"split": "vol"}, "vol.*train, val or test.*Did you mean val"),
    ({"split": "all"}, "say train, val or test"),
    ({"count": 0}, "at least 1"),
    ({"features": "fase"}, "Did you mean face"),
    ({"metrics": ["fd"], "count": 50}, "too few for 64 features"),
    ({"metrics": ["torcheval"]}, "torchvision-inception"),
    ({"metrics": ["control"], "count": 1}, "at least 2 faces to ask with"),
])  # fmt: skip
def test_words_for_what_does_not_fit(toys, toy_store, toy_judge, change, word):
    with pytest.raises(UserError, match=word):
        evaluate(toys.generator(), toy_store, **(COMMON | change))


def test_a_diverged_or_constant_generator_gets_a_word_and_the_other_scores_go_on(toys, toy_store):
    class Constant(type(toys.generator().net)):
        def forward(self, z, attributes):
            return super().forward(z * 0, attributes * 0)

    problems = []
    scores = by_name(evaluate(toys.generator(net=Constant(("Male", "Smiling"))), toy_store, metrics=["fd", "kid", "prdc", "latent"],
                              on_problem=problems.append, **COMMON))  # fmt: skip
    assert len(problems) == 1 and "same features" in problems[0] and "fd-random" not in scores
    assert scores["diversity"].details["verdict"].startswith("collapsed") and scores["recall-random"].value == 0


def test_sizes_and_attributes_must_fit(toys, toy_store):
    with pytest.raises(UserError, match="--size 64"):
        evaluate(dataclasses.replace(toys.generator(), size=64), toy_store, metrics=["kid"], **COMMON)
    with pytest.raises(UserError, match="Bald"):
        evaluate(dataclasses.replace(toys.generator(), attribute_names=("Male", "Bald")), toy_store, metrics=["kid"], **COMMON)


