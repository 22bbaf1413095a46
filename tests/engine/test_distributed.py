"""Several processes train one run as one process would; one that dies ends it, and nothing is lost."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.conftest import TINY, tiny_recipe, write_tiny_store
from engine.cut import RECIPES, STEPS, draw, gone_back, scores, steps
from mien.apps.cli import main as command_line
from mien.data.store import FaceStore, open_store
from mien.engine import checkpoint
from mien.engine.batch import check_cut
from mien.errors import UserError
from mien.runs import Run

TESTS = Path(__file__).parents[1]


def main(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.app(arguments)
    assert ended.value.code == 0


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]), **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> FaceStore:
    return open_store(write_tiny_store(tmp_path_factory.mktemp("large") / "store", count=400))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two") / "found"


@pytest.fixture(scope="module")
def two(store, large, tiny_snapshot, out) -> list[dict]:
    """What each of two processes found: in each recipe, and in scoring and drawing together."""
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "engine.cut", str(store.path), str(large.path), str(tiny_snapshot), str(out)]
    children = [subprocess.Popen(command, env=environment(RANK=str(rank), **meeting)) for rank in (0, 1)]
    assert [child.wait(timeout=280) for child in children] == [0, 0]
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]


def assert_close(found: list[dict], expected: list[dict], rel: float) -> None:
    for step in range(STEPS):
        assert found[step].keys() == expected[step].keys()
        for name, value in expected[step].items():
            assert found[step][name] == pytest.approx(value, rel=rel, abs=rel), f"{name} of step {step}"


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_do_what_one_does(store, two, name):
    assert_close(two[0][name]["signals"], steps(name, store)["signals"], rel=2e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_weights_and_signals_are_the_same_bits_in_both(two, name):
    assert two[0][name] == two[1][name]


def test_a_rollback_takes_both_processes_back(store, two, tmp_path):
    alone = gone_back(tmp_path / "run", store)
    assert two[0]["gone back"] == two[1]["gone back"] == pytest.approx(alone, rel=1e-3) and alone["rollbacks"] == 1


def test_two_processes_resume_bit_for_bit(two, out):
    """Also in the process that does not read the checkpoint."""
    for found in two:
        assert found["in parts"][0] != found["in parts"][1] == found["whole"]
    assert two[0]["whole"] == two[1]["whole"]
    assert "resume" in [event["kind"] for event in Run(out.with_name("parts")).events()]


def test_two_processes_score_as_one(two, large, tiny_snapshot):
    alone = scores(tiny_snapshot, large)
    assert two[1]["scores"] == {} and two[0]["scores"].keys() == alone.keys() and len(alone) > 8
    for metric, values in alone.items():
        assert two[0]["scores"][metric] == pytest.approx(values, rel=1e-6), metric


def test_two_processes_draw_what_one_draws(two, out, tiny_snapshot, tmp_path):
    draw(tiny_snapshot, tmp_path / "alone")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in out.with_name("faces").iterdir()) and len(names) == 152
    for name in names:
        if name != "provenance.json":
            assert (tmp_path / "alone" / name).read_bytes() == (out.with_name("faces") / name).read_bytes()


# --- the command line under torchrun ----------------------------------------------------------------------------------


def torchrun(count: int, *arguments: str) -> subprocess.Popen:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(free_port()), "-m", "--", "mien"]
    return subprocess.Popen([sys.executable, *command, *arguments], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def train(store, run: Path, images: int) -> list[str]:
    settings = [word for setting in (*TINY, "train.checkpoint_kimg=0.04", "sample.every_kimg=0") for word in ("--set", setting)]
    return ["train", str(store.path), "--preset", "seed0", "--run", str(run), "--device", "cpu", *settings, "--images", str(images)]


def wait_for(found, child: subprocess.Popen, *, seconds: float = 200):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def ours(word: str) -> dict[int, int]:
    """{rank: process} of the processes that train with `word` on their command line. Linux."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            rank = re.search(rb"\0RANK=(\d)", (folder / "environ").read_bytes())
            if rank and word.encode() in (folder / "cmdline").read_bytes():
                found[int(rank[1])] = int(folder.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_killed_process_ends_the_run_in_one_line_and_one_process_goes_on(store, tmp_path):
    path = tmp_path / "killed"
    child = torchrun(2, *train(store, path, 1_000_000))
    wait_for(lambda: len(Run(path).checkpoints()) > 1, child)
    os.kill(ours(str(path))[1], signal.SIGKILL)
    killed_s = time.monotonic()
    said = child.communicate(timeout=120)[0]
    assert child.returncode != 0
    assert time.monotonic() - killed_s < 60
    lines = [line for line in said.splitlines() if line.startswith("mien:")]
    assert len(lines) == 1 and "One of the 2 processes is gone" in lines[0] and "another number of processes" in lines[0], said
    assert Run(path).status["state"] == "failed" and not ours(str(path))
    newest, skipped = checkpoint.newest_valid(Run(path).checkpoints())
    assert newest is not None and not skipped
    images = int(newest.name) + 40
    main(train(store, path, images))
    status, events = Run(path).status, [event["kind"] for event in Run(path).events()]
    assert (status["state"], status["nimg"]) == ("finished", images) and "resume" in events


def test_mien_stop_ends_all_processes_and_two_go_on_where_one_was(store, tmp_path, capsys):
    path = tmp_path / "stopped"
    main(train(store, path, 40))
    child = torchrun(2, *train(store, path, 1_000_000))
    wait_for(lambda: Run(path).status.get("nimg", 0) > 80, child)
    Run(path).request_control({"lr_g": 1e-3})
    wait_for(lambda: Run(path).scalars()[-1].get("lr_g") == 1e-3, child)  # knobs reach the run
    main(["stop", str(path)])
    said = child.communicate(timeout=120)[0]
    assert child.returncode == 0, said
    status = Run(path).status
    assert status["state"] == "stopped" and Run(path).checkpoints()[-1][0] == status["nimg"] and f"{status['nimg']:,} images" in said


@pytest.mark.parametrize("name", ["wgan-gp", "spectral norm, hinge, lazy R1, augmentation, projection", "relativistic, R1 and R2"])
def test_pieces_of_a_batch_do_what_the_whole_does(store, name):
    """In wgan-gp batch norm is left out: its statistics are a piece's own."""
    plain = ("model.generator.norm=none",) if name == "wgan-gp" else ()
    if name.startswith("spectral"):
        plain = ("model.generator.norm=none", "model.discriminator.minibatch_stddev=0")
    assert_close(steps(name, store, *plain, "train.micro_batch=2")["signals"], steps(name, store, *plain)["signals"], rel=2e-3)


@pytest.mark.parametrize(
    ("setting", "word"),
    [("train.batch=7", "cannot share train.batch=7 equally"),
     ("model.discriminator.minibatch_stddev=8", "no multiple of model.discriminator.minibatch_stddev"),
     ("train.micro_batch=8", None), ("model.discriminator.minibatch_discrimination=4", "compares all images of a batch")],
)  # fmt: skip
def test_what_two_processes_cannot_share_is_refused(setting, word):
    config = tiny_recipe(setting, "train.separate_batches=true").config
    check_cut(config, 1)
    with pytest.raises(UserError, match=word) if word else contextlib.nullcontext():
        check_cut(config, 2)
