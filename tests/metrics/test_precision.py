"""Features in bf16: nearly those of fp32, kept apart from them everywhere, and fp32 to the bit what it was."""

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from mien.data.synthetic import draw_faces
from mien.errors import UserError
from mien.metrics.cache import content_key
from mien.metrics.evaluate import evaluate
from mien.metrics.face_sets import reference_indices
from mien.metrics.features import build_extractor, extract
from mien.metrics.judge import load_judge
from mien.models.classifier import prepare_images

COMMON = {"features": "random", "count": 400, "metrics": ["fd"]}


@pytest.fixture(scope="module")
def faces():
    """uint8 [24, 3, 64, 64], drawn."""
    return torch.from_numpy(draw_faces(24, seed=5)[0]).permute(0, 3, 1, 2)


def test_fp32_is_the_plain_network_to_the_bit(faces):
    judge = load_judge()
    seen = prepare_images(faces).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features, logits = judge.net.features(seen).numpy(), judge.net(seen).numpy()
    np.testing.assert_array_equal(judge.features(faces), features)
    np.testing.assert_array_equal(judge.logits(faces), logits)
    for extractor in (build_extractor("face"), build_extractor("face", precision="fp32")):
        np.testing.assert_array_equal(extract(extractor, faces), features)


@pytest.mark.parametrize("name", ["face", "random"])
def test_bf16_moves_features_a_little(name, faces):
    plain, other = (extract(build_extractor(name, precision=precision), faces) for precision in ("fp32", "bf16"))
    assert other.dtype == np.float32 and (other != torch.from_numpy(other).bfloat16().float().numpy()).any()  # not rounded at the end
    moved = np.linalg.norm(other - plain, axis=1)
    apart = np.linalg.norm(plain[:, None] - plain[None], axis=2)[~np.eye(len(plain), dtype=bool)]
    assert moved.min() > 0 and moved.max() < 0.02 * np.median(apart)


def test_the_judge_s_head_and_calibration_stay_in_fp32(faces):
    plain, other = load_judge(), load_judge(precision="bf16")
    with torch.no_grad():
        logits = plain.net.head(torch.from_numpy(other.features(faces))).numpy()
    np.testing.assert_array_equal(other.logits(faces), logits)
    np.testing.assert_allclose(other.features_and_probabilities(faces)[1], other.probabilities(faces), atol=1e-6)
    moved = np.abs(other.probabilities(faces) - plain.probabilities(faces))
    assert 0 < moved.max() < 0.05


def test_the_distance_moves_by_far_less_than_its_interval(toys, toy_store):
    plain, said, other = (evaluate(toys.generator(), toy_store, **COMMON, **more)[0]
                          for more in ({}, {"precision": "fp32", "cache": False}, {"precision": "bf16"}))  # fmt: skip
    assert (said.value, said.low, said.high, said.floor) == (plain.value, plain.low, plain.high, plain.floor)
    assert 0 < abs(other.value - plain.value) < 0.05 * (plain.high - plain.low)
    assert [score.protocol.precision for score in (plain, said, other)] == ["fp32", "fp32", "bf16"]


def test_the_cache_keeps_both_and_what_it_had(toys, toy_store, tmp_path):
    first = {precision: evaluate(toys.generator(), toy_store, **COMMON, precision=precision)[0] for precision in ("fp32", "bf16")}
    assert not any(score.details["reals_from_cache"] for score in first.values())
    reference = reference_indices(toy_store, "val", 400, 0)
    before = content_key("random", 1, None, toy_store.digest, reference)  # as it was made when there was no choice
    there = {file.stem for file in (tmp_path / "cache" / "features").iterdir()}
    assert before in there and len(there) == 4
    for precision, score in first.items():
        again = evaluate(toys.generator(), toy_store, **COMMON, precision=precision)[0]
        assert again.details["reals_from_cache"] and (again.value, again.floor) == (score.value, score.floor)


class Ranks:
    """Two threads in the place of two processes."""

    size = 2

    def __init__(self, rank, told, said):
        self.rank, self.told, self.said = rank, told, said

    def tell(self, words=None):
        if self.rank:
            return self.told.get(timeout=100)
        self.told.put(words)
        return words

    def collect(self, words):
        if self.rank:
            self.said.put(words)
            return []
        return [words, self.said.get(timeout=100)]


def test_several_processes_give_what_one_gives(toys, toy_store):
    asked = {**COMMON, "metrics": ["fd", "control"], "precision": "bf16", "count": 200, "latents": 32, "cache": False}
    alone = evaluate(toys.generator(), toy_store, **asked)
    told, said = queue.Queue(), queue.Queue()
    other = threading.Thread(target=lambda: evaluate(toys.generator(), toy_store, **asked, ranks=Ranks(1, told, said)), daemon=True)
    other.start()
    together = evaluate(toys.generator(), toy_store, **asked, ranks=Ranks(0, told, said))
    other.join(timeout=100)
    assert [(score.metric, score.protocol.precision) for score in together] == [(score.metric, "bf16") for score in alone]
    for one, two in zip(alone, together):
        assert two.value == pytest.approx(one.value, rel=1e-6, abs=1e-9), one.metric
        assert replace(two.protocol, date="") == replace(one.protocol, date="")


def test_other_precisions_are_refused(toys, toy_store):
    with pytest.raises(UserError, match=r"named fp16\..* fp32, bf16"):
        evaluate(toys.generator(), toy_store, **COMMON, precision="fp16")
    with pytest.raises(UserError, match="There are: fp32, bf16"):
        load_judge(precision="half")
    for name in ("imagenet", "inception", "inception-768", "torchvision-inception"):  # before any weights are looked for
        with pytest.raises(UserError, match=f"features {name} are extracted in fp32 alone"):
            build_extractor(name, precision="bf16")
