"""Every bundled recipe resolves, states only differences and takes two steps."""

import pytest
import torch

from engine.conftest import write_tiny_store
from mien.config import DEFAULTS, flatten, preset_layers, preset_names, read_preset, resolve
from mien.data.store import open_store
from mien.engine import build
from mien.engine.growth import follow
from mien.engine.schedules import knobs_at
from mien.engine.step import train_step

SMALL = ("model.generator.width=16", "model.discriminator.width=16", "model.generator.min_width=8",
         "model.discriminator.min_width=8", "train.batch=8")  # fmt: skip

SIX = ("Male", "Smiling", "Young", "Attractive", "No_Beard", "Wavy_Hair")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(write_tiny_store(tmp_path_factory.mktemp("data") / "tiny", attributes=SIX))


@pytest.fixture(scope="module")
def larger_store(tmp_path_factory):
    return open_store(write_tiny_store(tmp_path_factory.mktemp("data") / "larger", size=64))


def test_the_recipes_of_the_five_seeds_and_the_demo_are_there():
    assert {"demo", "seed0", "seed1", "seed2", "seed3", "seed4"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_takes_two_steps(name, store, larger_store):
    """At every size that it grows through, too."""
    config = resolve(name, SMALL).config
    task = build.build_task(config, larger_store if config.growth.at_kimg else store, torch.device("cpu"))
    config = task.config  # with numbers for "auto"
    names, size = task.data.attribute_names, task.plan.first.size
    state = build.build_state(config, size=size, attributes=len(names), device=torch.device("cpu"))
    for at_nimg in (0, *task.plan.at_nimg):
        state.nimg = at_nimg
        follow(state, task)
        for _ in range(2):
            signals = train_step(state, task, knobs_at(config, state.nimg))
        assert all(torch.isfinite(value) for value in signals.values())
    assert state.G.size == task.plan.sizes[-1]


def test_seed_0s_story_is_told_in_order():
    """What each of its eight runs changed, and that each goes on from the one before; the last from before the surgery."""
    runs = {number: resolve(f"s0-exp{number}").config for number in range(1, 9)}
    assert [len(run.data.attributes) if run.data.attributes else None for run in runs.values()] == [None, 6, 6, 6, 2, 2, 2, 2]
    assert [run.loss.name for run in runs.values()] == ["bce"] * 4 + ["hinge"] * 4
    assert [run.schedule.lr for run in runs.values()] == ["cosine"] * 5 + ["constant"] * 3
    assert [run.model.discriminator.minibatch_stddev for run in runs.values()] == [0, 0, 0, 0, 0, 0, 4, 0]
    assert runs[2].regularizer.r1.gamma == 0 < runs[3].regularizer.r1.gamma and runs[3].augment.p == 0 < runs[4].augment.p
    assert runs[5].model.generator.width < runs[6].model.generator.width
    assert runs[8].optimizer.lr_g < runs[6].optimizer.lr_g and runs[8].optimizer.clip_value is not None
    assert [read_preset(f"s0-exp{number}").get("base") for number in (2, 3, 4, 5, 6, 7, 8)] == [f"s0-exp{n}" for n in (1, 2, 3, 4, 5, 6, 6)]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_states_only_differences(name):
    *bases, (_, own) = preset_layers(name)
    before = dict(DEFAULTS)
    for _, flat in bases:
        before |= flat
    same = [key for key, value in own.items() if before[key] == value]
    assert not same, f"{same} are what they would be without being said"
    assert read_preset(name)["description"]
    assert set(own) <= set(flatten(resolve(name).config.model_dump()))
