"""Memory is foreseen: within 15 % of what a step takes, for every family and penalty; and batches are cut so that it suffices."""

import multiprocessing
import sys

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.config import resolve
from mien.engine import build, memory
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session
from mien.engine.step import train_step
from mien.errors import UserError
from mien.rules import settle

NAMES = ("Male", "Smiling")
SMALL = ("model.generator.width=64", "model.discriminator.width=64")
RECIPES = {
    "dcgan, batch norm": ("seed3", "model.generator.width=256", "model.discriminator.width=256", "train.batch=64"),
    "dcgan, r1 and augmentation": ("seed0-cpu", "regularizer.r1.gamma=1", "augment.ops=diffaugment", "augment.p=0.5", "train.batch=96"),
    "resnet": ("resnet64-cpu", "train.batch=24"),
    "resnet, gradient penalty, five updates of D": ("wgan-gp", *SMALL, "train.batch=8"),
    "r3, r1 and r2": ("r3-64-cpu", "train.batch=16"),
    "style, r1 and path length": ("style64-cpu", "train.batch=16"),
    "in pieces": ("resnet64-cpu", "train.batch=48", "train.micro_batch=16"),
}  # fmt: skip
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident set can be reset on Linux only")


def foresee_and_use(words, answers):
    """Bytes foreseen, and those that three steps take, the heap as a run has it: in a process of its own, whose peak is its own."""
    torch.set_num_threads(1)
    preset, *overrides = words
    config = resolve(preset, overrides).config
    names = config.data.attributes if config.data.attributes is not None else NAMES
    store = memory.noise_store(names, size_px=64, count=2000)
    config = settle(config, 64)[0]
    foreseen = memory.forecast(config, store, device=torch.device("cpu")).memory
    state = build.build_state(config, size=64, attributes=len(names), device=torch.device("cpu"))
    task = build.build_task(config, store, torch.device("cpu"))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    for _ in range(3):
        train_step(state, task, knobs_at(task.config, state.nimg))
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    answers.put((foreseen.total, peak))


@pytest.fixture(scope="module")
def loaded():
    """What torch loads with the first step of an optimiser, loaded once for all processes."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


@linux
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_takes_what_was_foreseen(recipe, loaded):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=foresee_and_use, args=(RECIPES[recipe], answers))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    total, used = answers.get()
    assert total == pytest.approx(used, rel=0.15), f"{total / 1e6:.0f} MB foreseen, {used / 1e6:.0f} MB used"


def test_bytes_are_counted_while_they_live():
    with memory.watching() as watch:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # the same block
        assert watch.bytes == 4000
        c = a + 1
        assert watch.bytes == 8000
        del a, c
        assert watch.bytes == 4000
        del b
        assert watch.bytes == 0


def test_the_line_through_two_small_steps_meets_a_large_one(store):
    config = settle(tiny_recipe("train.batch=32").config, store.size)[0]
    step = memory.StepMemory(config, size_px=store.size, attributes=NAMES, device=torch.device("cpu"))
    assert step.peak(32) == pytest.approx(max(step._watch(32, whole=True)), rel=0.002)
    assert step.peak(16) == pytest.approx(max(step._watch(16, whole=False)), rel=0.002)
    assert step.peak(8) < step.peak(16) < step.peak(32)


def test_watching_leaves_the_random_numbers_and_the_recipe_alone(store):
    config = settle(tiny_recipe().config, store.size)[0]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    told = memory.forecast(config, store, device=torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
    assert told.config is config


def limit_for(config, store, piece):
    """A limit, in GB, within which `piece` images fit, and no more."""
    step = memory.StepMemory(config, size_px=store.size, attributes=NAMES, device=torch.device("cpu"))
    larger = step.memory(2 * piece, store)
    return (step.memory(piece, store).above_base + larger.above_base) / 2 / 1e9


def test_the_largest_pieces_that_fit_are_taken(store, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    monkeypatch.setattr(memory, "data_bytes", lambda store, device: 0)
    config = settle(tiny_recipe("train.batch=32").config, store.size)[0]
    limit = limit_for(config, store, 8)
    recipe = tiny_recipe("train.batch=32", f"train.memory_gb={limit}")
    session = open_session(tmp_path / "run", recipe, store, device=torch.device("cpu"))
    session.run.unlock()
    assert session.task.config.train.micro_batch == 8
    assert session.run.config["config"]["train"]["micro_batch"] == 8
    assert "in pieces of 8" in session.memory and "batch norm sees one piece at a time" in session.memory


def test_pieces_keep_the_groups_of_minibatch_stddev_whole():
    config = tiny_recipe("train.batch=48", "model.discriminator.minibatch_stddev=4").config
    assert list(memory.pieces_of(config, 1)) == [48, 24, 16, 12, 8, 4]
    assert list(memory.pieces_of(config, 2)) == [24, 12, 8, 4]


def test_nothing_fits(store):
    config = settle(tiny_recipe("train.memory_gb=0.001").config, store.size)[0]
    with pytest.raises(UserError, match="too little: even 2 images"):
        memory.forecast(config, store, device=torch.device("cpu"))


def test_a_run_asked_for_the_same_memory_keeps_its_pieces(store):
    config = settle(tiny_recipe("train.memory_gb=50").config, store.size)[0]
    kept = {"train.memory_gb": 50.0, "train.micro_batch": 4}
    assert memory.forecast(config, store, device=torch.device("cpu"), kept=kept).config.train.micro_batch == 4
    assert memory.forecast(config, store, device=torch.device("cpu"), kept={}).config.train.micro_batch is None
