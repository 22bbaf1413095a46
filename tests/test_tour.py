"""The notebook and the Python page do what they say: every block runs, in order, on a tiny model and drawn faces."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.main import app
from mien.data.store import problems

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_snapshot):
    """A folder with `runs/demo`, a model whose pictures are calm and framed as CelebA's, and the store `faces`."""
    from mien.engine.checkpoint import load_snapshot, save_snapshot

    world = tmp_path_factory.mktemp("tour")
    (world / "runs" / "demo").mkdir(parents=True)
    net, meta = load_snapshot(tiny_snapshot)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.25)
    save_snapshot(world / "runs" / "demo" / "000001kimg", net, {**meta, "store": {"digest": "0", "crop": "center178", "size": 32}})
    made = CliRunner().invoke(app, ["data", "synth", "--out", str(world / "faces"), "--count", "400", "--size", "32"])
    assert made.exit_code == 0, made.output
    return world


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of it, with the working directory there."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(blocks, name):
    """Each block in one namespace, as a notebook has; the namespace."""
    names: dict = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{name}, block {number}", "exec"), names)  # noqa: S102 (our own documents)
    return names


def test_the_python_page_runs(here):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    names = run(blocks, "api.md")
    assert Image.open("faces.png").width == 4 * 34 + 2
    assert list(problems("extra")) == [] and Path("morph.mp4").stat().st_size > 1000
    assert names["before_after"].shape == names["mixed"].shape == (4, 3, 32, 32)
    assert names["even"].after <= names["even"].before
    assert {"fd-pixels", "kid-pixels"} <= {score.metric for score in names["scores"]}


def test_the_notebook_runs(here):
    blocks = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(blocks) >= 8
    names = run(blocks, "tour.ipynb")
    with Image.open("morph.gif") as film:
        assert film.n_frames == 16
    assert names["effect"].count == 32 and names["found"].image.shape == (1, 3, 32, 32)


def test_the_notebook_is_clean():
    """No outputs, so no faces and no paths of the machine that ran it."""
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert not re.search(r"/(home|root|tmp|Users|work)/", json.dumps(NOTEBOOK))
