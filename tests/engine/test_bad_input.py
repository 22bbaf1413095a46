"""What bad input to `mien train` gets, through the command line: one line, exit code 2, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from engine.conftest import TINY, write_tiny_store
from mien.apps.cli.main import app
from mien.engine import checkpoint, loop, session
from mien.engine.step import train_step
from mien.runs import Run

SMALL = [part for setting in TINY for part in ("--set", setting)]


def command(data, *args):
    return ["train", *map(str, (data, "--preset", "seed0", "--device", "cpu", *SMALL, *args))]


def train(data, *args):
    return CliRunner().invoke(app, command(data, *args))


def fails(data, *args):
    """The last line of a command that must fail with exit code 2; what was said before it (that training began) is no error."""
    result = train(data, *args)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("mien: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    return lines[0]


@pytest.fixture
def trained(store, tmp_path):
    """A run of 48 images, finished."""
    result = train(store.path, "--run", tmp_path / "run", "--images", 48)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


@pytest.mark.parametrize("args, words", [
    (["--preset", "sed0"], "Did you mean seed0?"),
    (["--set", "optimizer.lrg=1"], "Did you mean optimizer.lr_g?"),
    (["--set", "train.batch=64"], "train.batch is 64, but"),
    (["--set", 'data.attributes=["Mael"]'], "no attribute 'Mael'. Did you mean Male?"),
    (["--set", "balance.patience_kimg=0"], "balance.patience_kimg"),
    (["--set", 'augment.ops=["fliip"]'], "Did you mean flip?"),
    (["--images", "many"], "'many' is not a count"),
    (["--images", "0"], "train.images"),
    (["--device", "tpu"], "No device is called tpu"),
    (["--device", "cuda:99"], "no cuda:99 device"),
])  # fmt: skip
def test_a_mistake_in_the_recipe_leaves_no_run(store, tmp_path, args, words):
    assert words in fails(store.path, "--run", tmp_path / "run", *args)
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_version_and_one_cut_short(store, tmp_path):
    other = shutil.copytree(store.path, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "format": "mien-faces/9"}))
    assert "has format 'mien-faces/9'" in fails(other, "--run", tmp_path / "run")
    (other / "manifest.json").write_text(json.dumps(manifest))
    (other / "images.npy").write_bytes((other / "images.npy").read_bytes()[:-1000])
    assert "is damaged" in fails(other, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_is_something_else(store, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    assert "exists and is not a run directory" in fails(store.path, "--run", tmp_path / "thesis")
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(store.path, "--run", tmp_path / "file")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "thesis" / "config.json").write_text('{"format": "of something else"}')
    assert "has format 'of something else'" in fails(store.path, "--run", tmp_path / "thesis")
    assert not (tmp_path / "thesis" / "control").exists()


def test_going_on_otherwise_than_begun(store, trained, tmp_path):
    line = fails(store.path, "--run", trained, "--set", "optimizer.lr_g=1e-3", "--seed", 3)
    assert "optimizer.lr_g: 0.0002 -> 0.001; train.seed: 0 -> 3" in line
    other = write_tiny_store(tmp_path / "other", count=60)
    assert "was begun with other data" in fails(other, "--run", trained)
    assert "has seen 48 images already" in fails(store.path, "--run", trained, "--images", 16)
    (trained / "config.json").write_text('{"format": "mien-run/1"}')
    assert "does not say with what it was begun" in fails(store.path, "--run", trained)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(store, trained):
    newest = Run.open(trained).checkpoints()[-1][1]
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    result = train(store.path, "--run", trained, "--images", 48)
    assert result.exit_code == 0 and f"Checkpoint {newest.name} is damaged (state.safetensors was cut short or altered)" in result.stderr
    assert "32 of 48 images seen" in result.stderr and checkpoint.check(newest) is None  # made anew


def test_out_of_memory_names_the_batch_and_the_largest_that_fits(store, tmp_path, monkeypatch):
    """Memory for three images: of a batch of 10, halved, 2 fits; a micro-batch must divide the 10, so 2 there too."""
    def bounded(state, task, *args, **kwargs):
        if (task.config.train.micro_batch or task.config.train.batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return train_step(state, task, *args, **kwargs)

    for module in (loop, session):
        monkeypatch.setattr(module, "train_step", bounded)
    line = fails(store.path, "--run", tmp_path / "run", "--set", "train.batch=10")
    assert "Out of memory on cpu with train.batch=10; 2 fits: --set train.batch=2, or --set train.micro_batch=2 " in line
    assert Run.open(tmp_path / "run").status["state"] == "failed"
    assert train(store.path, "--run", tmp_path / "run", "--set", "train.batch=2", "--images", 16).exit_code == 0  # as the line says
    monkeypatch.setattr(session, "train_step", lambda *args: (_ for _ in ()).throw(MemoryError()))
    assert "not even one image fits" in fails(store.path, "--run", tmp_path / "other")


def test_a_full_disk_is_told_and_the_run_goes_on_later(store, trained, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write_tensors", full)
        assert "The disk is full" in fails(store.path, "--run", trained)
    assert Run.open(trained).status["state"] == "failed"
    assert checkpoint.newest_valid(Run.open(trained).checkpoints())[0].name == "0000000048"
    assert train(store.path, "--run", trained).exit_code == 0 and Run.open(trained).status["nimg"] == 96


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(store, tmp_path):
    rarely = [part for name in ("checkpoint", "snapshot") for part in ("--set", f"train.{name}_kimg=50")]
    process = subprocess.Popen([sys.executable, "-m", "mien", *command(store.path, "--run", tmp_path / "run", "--images", "1M", *rarely)],
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert "Training" in process.stderr.readline()
    while not Run.open(tmp_path / "run").scalars():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    status = Run.open(tmp_path / "run").status
    assert process.returncode == 0 and "nothing is lost. Go on with the same command" in said
    assert status["state"] == "stopped" and Run.open(tmp_path / "run").checkpoints()[-1][0] == status["nimg"] > 0
