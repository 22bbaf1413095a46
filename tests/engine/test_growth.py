"""A run that grows: which size when, what is kept, and that a fade in flight is resumed to the bit."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.conftest import TINY, tiny_recipe, write_tiny_store
from engine.test_resume import assert_same_bits
from mien.data.pyramid import Pyramid, PyramidLoader
from mien.data.store import open_store
from mien.engine import build, checkpoint, growth
from mien.engine.diagnosis import Alarm, History
from mien.engine.growth import Phase, plan_of
from mien.engine.loop import NotFinite
from mien.engine.recording import Scalars
from mien.engine.session import open_session
from mien.errors import UserError
from mien.explore.load import load_generator
from mien.models.dcgan import DCGANGenerator
from mien.models.growth import FadingDiscriminator, FadingGenerator
from mien.runs import Run

CPU = torch.device("cpu")
GROWING = ("growth.at_kimg=0.024", "growth.fade_kimg=0.032", "surgery.warmup_kimg=0.04", "train.images=72", "sample.every_kimg=0.024",
           "train.checkpoint_kimg=0.008", "train.keep=20", "balance.probe_kimg=0.016", "balance.patience_kimg=0.01")  # fmt: skip


def half_store(store, path):
    """The same faces at half the size: 2 x 2 pixels averaged."""
    shutil.copytree(store.path, path)
    images = np.load(path / "images.npy").astype(np.float32)
    n, size = images.shape[:2]
    np.save(path / "images.npy", images.reshape(n, size // 2, 2, size // 2, 2, 3).mean((2, 4)).round().astype(np.uint8))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "size": size // 2}))
    return open_store(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    large = open_store(write_tiny_store(folder / "s64", size=64))
    return half_store(large, folder / "s32"), large


def begin(path, stores, *overrides, stop_at=None, train=True):
    *smaller, store = stores
    begun = open_session(path, tiny_recipe(*GROWING, *overrides), store, device=CPU, smaller=smaller, say=lambda message: None)
    loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda snapshot, nimg: None, say=lambda message: None)
    if stop_at is not None:
        loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
    if train:
        loop.train()
    return begun


@pytest.fixture(scope="module")
def whole(stores, tmp_path_factory):
    """A run from 32 to 64 px that was never interrupted."""
    return begin(tmp_path_factory.mktemp("grown") / "whole", stores)


def test_the_plan_is_a_function_of_the_images_seen():
    plan = plan_of(tiny_recipe("growth.at_kimg=[10,40]", "growth.fade_kimg=20").config, 128)
    assert plan.sizes == (32, 64, 128) and plan.first == Phase(32)
    told = {0: (32, 1.0), 9_999: (32, 1.0), 10_000: (64, 0.0), 15_000: (64, 0.25), 30_000: (64, 1.0), 40_000: (128, 0.0),
            70_000: (128, 1.0)}  # fmt: skip
    assert {nimg: (plan.at(nimg).size, plan.at(nimg).alpha) for nimg in told} == told
    assert plan_of(tiny_recipe().config, 64).at(10**9) == Phase(64)
    with pytest.raises(UserError, match="would begin at 16 px"):
        plan_of(tiny_recipe("growth.at_kimg=1").config, 32)
    with pytest.raises(UserError, match=r"20 comes before the fade that begins at 10 is over \(growth.fade_kimg is 20\)"):
        tiny_recipe("growth.at_kimg=[10,20]", "growth.fade_kimg=20")


@pytest.mark.parametrize("stop_at", [16, 24, 40, 56])
def test_stop_before_in_and_after_the_fade_is_the_same_as_going_on(stores, whole, tmp_path, stop_at):
    begin(tmp_path / "run", stores, stop_at=stop_at)
    again = begin(tmp_path / "run", stores)
    assert again.resumed
    assert_same_bits(again.state, whole.state)
    assert again.state.warming == whole.state.warming and again.state.plain() == whole.state.plain()


def test_kill_9_in_the_fade(stores, whole, tmp_path):
    child = f"""
import sys, torch
sys.path.insert(0, {str(sys.path[0])!r})
torch.set_num_threads(1)
from pathlib import Path
from mien.config import resolve
from mien.data.store import open_store
from mien.engine.session import open_session
begun = open_session(Path(sys.argv[1]), resolve("seed0", sys.argv[4:]), open_store(sys.argv[3]), device=torch.device("cpu"),
                     smaller=[open_store(sys.argv[2])])
begun.loop(on_tick=lambda nimg, values: print("tick", nimg, flush=True), on_snapshot=lambda path, nimg: None).train()
"""
    command = [sys.executable, "-c", child, str(tmp_path / "run"), *(str(store.path) for store in stores), *TINY, *GROWING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line == "tick 40\n":
                break
        process.send_signal(signal.SIGKILL)
    assert 24 <= Run.open(tmp_path / "run").checkpoints()[-1][0] < 72
    assert_same_bits(begin(tmp_path / "run", stores).state, whole.state)


def test_what_a_run_says_and_leaves_at_each_size(whole):
    run = whole.run
    told = [(event["nimg"], event["message"]) for event in run.events() if event["kind"] == "growth"]
    assert told == [(24, "Growing from 32 to 64 px: new blocks fade in over 32 images."),
                    (56, "64 px: the new blocks are faded in, the old ones gone.")]  # fmt: skip
    assert whole.state.history.begun_nimg == 56
    assert [row["output"] for row in run.architecture["generator"]][-1] == [3, 64, 64]
    from PIL import Image

    widths = [Image.open(path).width for _, path in run.samples()]
    assert widths == [2 * 34 + 2, 2 * 66 + 2, 2 * 66 + 2, 2 * 66 + 2]  # at 0, 24, 48 and 72 images, two faces and their padding a row


def test_a_snapshot_in_the_fade_is_what_it_is_and_one_after_it_plain(stores, tmp_path):
    begun = begin(tmp_path / "run", stores, "train.images=48", "train.snapshot_kimg=0.048")
    loaded = load_generator(begun.run.snapshots()[-1][1])
    assert isinstance(loaded.net, FadingGenerator) and loaded.size == 64 and loaded.meta["alpha"] == loaded.net.alpha == 0.75
    z, attributes = torch.randn(3, 8), torch.ones(3, 2)
    assert torch.equal(loaded.net(z, attributes), begun.state.ema(z, attributes))
    assert loaded.net(z, attributes).shape == (3, 3, 64, 64)
    whole = load_generator(begin(tmp_path / "run", stores).run.snapshots()[-1][1])
    assert type(whole.net) is DCGANGenerator and "alpha" not in whole.meta and whole.size == 64


def test_what_grows_keeps_weights_moments_and_average(stores, tmp_path):
    begun = begin(tmp_path / "run", stores, stop_at=16)
    state, task = begun.state, begun.task
    before, moments = {name: value.clone() for name, value in state.tensors().items()}, len(state.opt_g.state)
    state.nimg = 24
    growth.follow(state, task)
    after = state.tensors()
    for old, new in (("blocks.image.", "old_image."), ("blocks.", "blocks.")):
        for name, value in before.items():
            if name.startswith(("G.", "ema.", "opt_g.")) and (old in name) and (old != "blocks." or "image" not in name):
                assert torch.equal(after[name.replace(old, new)], value), name
    assert len(state.opt_g.state) == moments and not any("blocks.64x64" in name for name in after if name.startswith("opt_g"))
    assert torch.equal(after["ema.blocks.64x64.conv.weight"], after["G.blocks.64x64.conv.weight"])
    assert {group["share"] for group in (*state.opt_g.param_groups, *state.opt_d.param_groups)} == {1.0}  # the fade is warm-up enough
    trained = {id(p) for group in state.opt_g.param_groups for p in group["params"]}
    assert trained == {id(p) for p in state.G.parameters()}


def test_a_checkpoint_from_before_the_growth_goes_into_a_run_that_has_grown(stores, whole, tmp_path):
    """As a rollback does; and from plain 64 px back into the fade."""
    begun = begin(tmp_path / "run", stores)
    for nimg, kind in ((16, DCGANGenerator), (40, FadingGenerator)):
        path = dict(begun.run.checkpoints())[nimg]
        build.restore(begun.state, begun.task, *checkpoint.load_checkpoint(path))
        assert type(begun.state.G) is kind and begun.task.faces.size == begun.state.G.size
        saved = checkpoint.load_checkpoint(path)[0]
        mine = begun.state.tensors()
        assert mine.keys() == saved.keys() and all(torch.equal(mine[name], saved[name]) for name in saved)


def test_architecture_json_goes_back_with_the_networks(stores, tmp_path):
    """By a resume from before the growth, and by a rollback over it."""
    begun = begin(tmp_path / "run", stores, "balance.mode=on", stop_at=40)

    def side():
        return begun.run.architecture["generator"][-1]["output"][-1]

    def forget(after):
        for nimg, path in begun.run.checkpoints():
            if nimg > after:
                shutil.rmtree(path)

    assert side() == 64
    forget(after=16)
    again = begin(tmp_path / "run", stores, "balance.mode=on", train=False)
    assert again.state.nimg == 16 and side() == 32
    made = again.loop(on_tick=lambda nimg, values: setattr(made, "should_stop", nimg >= 32), on_snapshot=lambda path, nimg: None,
                      say=lambda message: None)  # fmt: skip
    made.train()
    assert side() == 64
    forget(after=16)
    made.scalars = Scalars(again.run)
    made._roll_back(NotFinite("a planted NaN"))
    assert again.state.nimg == 16 and side() == 32
    made.scalars.close()


def test_what_was_suspected_before_a_growth_is_suspected_in_its_checkpoint(stores, tmp_path):
    begun = begin(tmp_path / "run", stores, train=False)
    supervisor = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None).supervisor
    for alarms in ((), (Alarm("mode collapse: nearest", "", since_nimg=8),)):
        begun.state.nimg += 8
        begun.state.history = History(alarms=alarms)
        supervisor.begin_anew()
        assert begun.state.history == History(begun_nimg=begun.state.nimg) and supervisor.healthy() is not bool(alarms)
    begun.state.nimg += 8
    assert supervisor.healthy()


def test_loaders_follow_the_size_and_average_what_has_no_store(stores):
    small, large = stores
    faces = Pyramid([large])
    loader = PyramidLoader(faces, attributes=("Male",), seed=3)
    images, attributes = loader.batch(5, 4)
    faces.size = 32
    averaged, same = loader.batch(5, 4)
    assert torch.equal(same, attributes) and torch.equal(averaged, F.avg_pool2d(images, 2))
    both = Pyramid([large, small])
    both.size = 32
    stored, same = PyramidLoader(both, attributes=("Male",), seed=3).batch(5, 4)
    assert torch.equal(same, attributes) and 0 < (stored - averaged).abs().max() <= 1 / 127.5  # rounded to 8 bits when it was stored


def test_stores_must_hold_the_same_faces(stores, tmp_path):
    small, large = stores
    other = open_store(write_tiny_store(tmp_path / "fewer", count=20))
    with pytest.raises(UserError, match="do not hold the same faces .20 and 40 images"):
        Pyramid([other, large])
    path = shutil.copytree(small.path, tmp_path / "shuffled")
    (path / "names.txt").write_text("".join(f"{i:06d}.png\n" for i in reversed(range(40))))
    with pytest.raises(UserError, match="the names of the images differ"):
        Pyramid([open_store(path), large])
    with pytest.raises(UserError, match="leave it out, or say when to grow, for example --set growth.at_kimg=300"):
        begin(tmp_path / "run", stores, "growth.at_kimg=[]")
    assert not (tmp_path / "run").exists()


def test_a_store_that_was_outgrown_may_go_and_one_in_use_may_not(stores, whole, tmp_path):
    begin(tmp_path / "run", stores, stop_at=16)
    with pytest.raises(UserError, match="for 32 px, and still trains at such a size: give the same stores again"):
        begin(tmp_path / "run", stores[1:])
    begin(tmp_path / "run", stores, stop_at=32)
    assert_same_bits(begin(tmp_path / "run", stores[1:]).state, whole.state)


def test_one_store_is_enough(stores, tmp_path):
    state = begin(tmp_path / "run", stores[1:], "train.images=32").state
    assert state.G.size == 64 and state.nimg == 32


def test_growth_at_once(stores, tmp_path):
    state = begin(tmp_path / "run", stores[1:], "growth.fade_kimg=0", "train.images=32").state
    assert type(state.G) is DCGANGenerator and state.G.size == 64 and state.grown_nimg == 24


def test_growth_by_two_doublings(tmp_path):
    store = open_store(write_tiny_store(tmp_path / "s128", size=128))
    config = tiny_recipe("growth.at_kimg=[0.016,0.048]", "growth.fade_kimg=0.016", "balance.probe_kimg=0").config
    task = build.build_task(config, store, CPU)
    state = build.build_state(config, size=task.plan.first.size, attributes=2, device=CPU)
    met = []
    for state.nimg in range(0, 72, 8):
        told = growth.follow(state, task)
        met.append((state.nimg, state.G.size, isinstance(state.D, FadingDiscriminator), bool(told)))
        assert state.G(torch.zeros(1, 8), torch.zeros(1, 2)).shape[-1] == task.data.batch(0, 2)[0].shape[-1] == state.D.size
    assert [at for at in met if at[3]] == [(16, 64, True, True), (32, 64, False, True), (48, 128, True, True), (64, 128, False, True)]
    plain = build.build_state(config, size=128, attributes=2, device=CPU)
    assert list(state.G.state_dict()) == list(plain.G.state_dict()) and list(state.D.state_dict()) == list(plain.D.state_dict())
