"""What "auto" stands for: the sources' own numbers, settled once, and kept by a run that goes on."""

import pytest
import torch
from typer.testing import CliRunner

from engine.conftest import tiny_recipe
from engine.test_resume import assert_same_bits, train
from mien.apps.cli.main import app
from mien.config import flatten, resolve
from mien.engine.session import open_session
from mien.errors import UserError
from mien.rules import RULES, settle
from mien.runs import Run

AUTO = ("regularizer.r1.gamma=auto", "ema.half_life_kimg=auto")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from engine.conftest import write_tiny_store
    from mien.data.store import open_store

    return open_store(write_tiny_store(tmp_path_factory.mktemp("data") / "tiny"))


@pytest.mark.parametrize("preset, size, gamma", [
    ("style64", 64, 0.0256), ("style64", 128, 0.1024), ("style64", 256, 0.4096), ("r3-64", 64, 2), ("r3-64", 256, 150),
    ("r3-64", 128, 17.3), ("best128", 128, 0.1024), ("fast64", 64, 0.2),
])  # fmt: skip
def test_gamma_is_what_the_sources_used(preset, size, gamma):
    config = settle(resolve(preset, ["regularizer.r1.gamma=auto"]).config, size)[0]
    assert config.regularizer.r1.gamma == pytest.approx(gamma, rel=0.005)


def test_a_smaller_batch_wants_more_of_styles_penalty():
    gammas = [settle(resolve("style64", [f"train.batch={batch}"]).config, 64)[0].regularizer.r1.gamma for batch in (16, 32, 64)]
    assert gammas == [pytest.approx(0.0512), pytest.approx(0.0256), pytest.approx(0.0128)]


def test_the_average_is_as_long_as_the_sources_and_never_as_long_as_the_run():
    half_lives = [settle(resolve(preset, [f"train.images={images}", "ema.half_life_kimg=auto"]).config, 64)[0].ema.half_life_kimg
                  for preset, images in (("r3-64", "20M"), ("style64", "10M"), ("style64", "40k"))]  # fmt: skip
    assert half_lives == [500, 10, 2]


def test_only_some_keys_have_a_rule():
    for key, value in flatten(resolve().config.model_dump()).items():
        if isinstance(value, float) and key not in RULES:
            with pytest.raises(UserError):
                resolve(None, [f"{key}=auto"])
    with pytest.raises(UserError, match="regularizer.r1.gamma: write a number of 0 or more, or auto"):
        resolve(None, ["regularizer.r1.gamma=-1"])


def test_a_run_writes_the_number_down_and_keeps_it_when_it_is_made_longer(store, tmp_path):
    whole = train(tmp_path / "whole", store, *AUTO)
    train(tmp_path / "run", store, *AUTO, stop_at=48)
    assert_same_bits(train(tmp_path / "run", store, *AUTO), whole)
    said = Run.open(tmp_path / "run").config
    assert said["config"]["regularizer"]["r1"]["gamma"] == 0.05 and said["config"]["ema"]["half_life_kimg"] == 0.0048
    assert said["provenance"]["regularizer.r1.gamma"] == "command line, auto: 0.2 x (32 / 64)^2 (tried at 64 px)"
    longer = open_session(tmp_path / "run", tiny_recipe(*AUTO, "train.images=192"), store, device=torch.device("cpu"), say=lambda _: None)
    longer.run.unlock()
    assert longer.resumed and longer.task.config.ema.half_life_kimg == 0.0048


def test_the_command_shows_the_number_and_the_rule():
    shown = CliRunner().invoke(app, ["presets", "r3-64", "--size", "128"]).output
    assert "17.32" in shown and "2 x (128 / 64)^3.114" in shown
