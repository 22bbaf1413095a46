"""A score cannot be made, printed or written without its protocol."""

import json

import pytest

from mien.metrics.protocol import Estimate, Protocol, Score
from mien.runs import protocol_key

FIELDS = {"store": "ab" * 32, "data": "faces", "crop": "center178", "size": 64, "split": "val", "n_real": 2000, "n_fake": 2000,
          "features": "face", "weights_sha256": "cd" * 32, "model": "run/000320kimg", "nimg": 320_000, "ema": True, "truncation": 1.0,
          "seed": 0, "conditions": "the reals' own", "device": "cpu"}  # fmt: skip


def test_no_score_without_protocol():
    for protocol in (None, {}, FIELDS):
        with pytest.raises(TypeError, match="no protocol"):
            Score.of("fd-face", Estimate(value=1.0), protocol=protocol)
    with pytest.raises(TypeError):
        Score(metric="fd-face", value=1.0, low=None, high=None, interval="none", floor=None)
    for field in FIELDS:  # nothing of it may be left out in silence
        with pytest.raises(TypeError):
            Protocol.now(**{name: value for name, value in FIELDS.items() if name != field})


def test_a_line_of_metrics_jsonl_holds_what_the_architecture_says():
    estimate = Estimate(value=3.0, low=2.5, high=3.5, interval="95 %")
    score = Score.of("fd-face", estimate, protocol=Protocol.now(**FIELDS), floor=1.0, seconds=2)
    line = json.loads(json.dumps(score.line(), allow_nan=False))
    assert set(line) == {"nimg", "time_s", "metric", "value", "low", "high", "floor", "protocol", "details"}
    assert line["nimg"] == 320_000 and line["protocol"] | FIELDS == line["protocol"]
    assert line["protocol"]["torch"] and line["protocol"]["date"]
    assert line["details"] == {"interval": "95 %", "seconds": 2}


def test_printing_says_the_protocol():
    text = str(Score.of("fd-face", Estimate(value=3.0, low=2.5, high=3.5), protocol=Protocol.now(**FIELDS), floor=1.0))
    for part in ("fd-face 3 [2.5, 3.5], reals 1", "2,000 of run/000320kimg", "EMA weights", "faces val", "center178", "face cdcdcdcd"):
        assert part in text


def test_a_precision_is_said_when_it_is_not_fp32():
    """A line in fp32 reads as those do that were written before there was a choice."""
    protocols = (Protocol.now(**FIELDS), Protocol.now(**FIELDS, precision="bf16"))
    plain, other = (Score.of("fd-face", Estimate(value=3.0), protocol=protocol) for protocol in protocols)
    assert plain.protocol.precision == "fp32" and "precision" not in plain.record()["protocol"] and "fp32" not in str(plain)
    assert other.record()["protocol"]["precision"] == "bf16" and "face cdcdcdcd in bf16;" in str(other)
    keys = [protocol_key(score.record()["protocol"]) for score in (plain, other)]
    assert keys[0] != keys[1] and protocol_key({**FIELDS, "precision": "fp32"}) == protocol_key(FIELDS) == keys[0]
    assert protocol_key({**FIELDS, "features": "fp32"}) != protocol_key({**FIELDS, "features": None})


def test_an_estimate_is_a_number():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Estimate(value=value)
