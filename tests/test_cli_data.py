"""`mien data`, as a person types it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mien.apps.cli.data import app
from mien.data.store import open_store
from mien.errors import UserError


def mien_data(*words):
    """(exit code, stdout, stderr); a UserError comes through as the exception it is."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    out = tmp_path_factory.mktemp("toys") / "faces"
    code, said, _ = mien_data("synth", "--out", out, "--count", "200", "--size", "32")
    assert code == 0 and "200 images, 32x32 px" in said
    return out


def test_synth_is_a_function_of_the_seed(toys, tmp_path):
    mien_data("synth", "--out", tmp_path / "same", "--count", "200", "--size", "32", "--seed", "0")
    mien_data("synth", "--out", tmp_path / "other", "--count", "200", "--size", "32", "--seed", "1")
    first = open_store(toys)
    assert open_store(tmp_path / "same").digest == first.digest != open_store(tmp_path / "other").digest
    assert {"Male", "Smiling", "Eyeglasses"} <= set(first.attribute_names)
    assert 0 < first.manifest["splits"]["val"] < 50 and first.manifest["splits"]["test"] == 0


def test_synth_again_leaves_the_store_and_refuses_another(toys):
    assert "left as it is" in mien_data("synth", "--out", toys, "--count", "200", "--size", "32")[1]
    with pytest.raises(UserError, match="exists already"):
        mien_data("synth", "--out", toys, "--count", "100", "--size", "32")
    with pytest.raises(UserError, match="power of two"):
        mien_data("synth", "--out", toys, "--size", "50")
    with pytest.raises(UserError, match="at least 1"):
        mien_data("synth", "--out", toys, "--count", "0")


def test_inspect_tells_counts_splits_and_correlations(toys):
    store = open_store(toys)
    facts = json.loads(mien_data("inspect", toys, "--json")[1])
    assert facts["count"] == 200 and facts["digest"] == store.digest and facts["splits"] == store.manifest["splits"]
    male = facts["attributes"][store.attribute_names.index("Male")]
    assert male["name"] == "Male" and male["count"] == int(store.attributes[:, store.columns(["Male"])].sum())
    assert sum(split["count"] for split in male["splits"].values()) == male["count"]
    a, b = store.attributes[:, store.columns(["Male", "No_Beard"])].T
    pair = next(pair for pair in facts["pairs"] if {pair["a"], pair["b"]} == {"Male", "No_Beard"})
    assert pair["r"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    strengths = [abs(pair["r"]) for pair in facts["pairs"]]
    assert strengths == sorted(strengths, reverse=True)
    matrix = facts["correlation"]["matrix"]
    assert len(matrix) == len(store.attribute_names) == len(matrix[0]) and matrix[0][0] in (None, pytest.approx(1))
    said = mien_data("inspect", toys)[1]
    assert f"Male{' ' * 17}" in said and "strongest correlations" in said and "of train" in said


def test_inspect_draws_a_sheet(toys, tmp_path):
    mien_data("inspect", toys, "--sheet", tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        rows = (sheet.height - 4) // (24 + 64 + 4)
        assert rows == 4 and sheet.width == 4 + 12 * 68
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 500
    mien_data("inspect", toys, "--sheet", tmp_path / "t.png", "--attributes", "Eyeglasses")
    with Image.open(tmp_path / "t.png") as sheet:
        assert (sheet.height - 4) // (24 + 64 + 4) == 2
    for words, message in ((("--sheet", tmp_path / "s.jpg"), "should end in .png"), (("--sheet", tmp_path / "no/s.png"), "no such folder"),
                           (("--sheet", tmp_path / "u.png", "--attributes", "Smilling"), "Did you mean Smiling")):
        with pytest.raises(UserError, match=message):
            mien_data("inspect", toys, *words)


def test_verify_passes_a_whole_store_and_fails_a_damaged_one(tmp_path):
    mien_data("synth", "--out", tmp_path / "s", "--count", "20", "--size", "32")
    code, said, _ = mien_data("verify", tmp_path / "s")
    assert code == 0 and "is whole: 20 images" in said
    data = bytearray((tmp_path / "s/images.npy").read_bytes())
    data[5000] ^= 4
    (tmp_path / "s/images.npy").write_bytes(data)
    code, said, _ = mien_data("verify", tmp_path / "s")
    assert code == 1 and "images.npy is not what was written" in said and "is damaged" in said
    code, said, _ = mien_data("verify", tmp_path / "s", "--json")
    assert code == 1 and json.loads(said)["whole"] is False and len(json.loads(said)["problems"]) == 1
    with pytest.raises(UserError, match="no such data folder"):     # wrong use, exit code 2, is not damage
        mien_data("verify", tmp_path / "nowhere")


@pytest.mark.parametrize("words", [("inspect",), ("verify",), ("subset", "--out", "part")])
def test_a_damaged_store_is_said_in_a_line(toys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toys, "s")
    manifest = tmp_path / "s/manifest.json"
    text = manifest.read_text()
    for change in ({"source": 3}, {"source": [{"name": "x"}]}, {"sha256": [1]}, {"skipped": 5}):
        manifest.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(UserError, match="is damaged: manifest.json has something odd as"):
            mien_data(words[0], "s", *words[1:])
    manifest.write_text(text)
    os.unlink("s/names.txt")
    if words[0] == "subset":
        with pytest.raises(UserError, match="is damaged: names.txt cannot be read"):
            mien_data(words[0], "s", *words[1:])
    else:
        assert mien_data(words[0], "s")[0] == (1 if words[0] == "verify" else 0)
    assert os.listdir() == ["s"]


def test_a_subset_without_training_images_is_refused(toys, tmp_path):
    for limit in ("0", "-5"):
        with pytest.raises(UserError, match=f"--limit {limit} is not possible"):
            mien_data("subset", toys, "--out", tmp_path / "part", "--limit", limit)
    assert os.listdir(tmp_path) == []


def photos_at(folder, count):
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    for number in range(count):
        image.save(folder / f"{number:05d}.png", compress_level=0)
    return folder


def test_prepare_says_what_it_found_and_made(tmp_path):
    folder = photos_at(tmp_path / "photos", 5)
    (folder / "labels.csv").write_text("file,Smiling,Male\n" + "".join(f"{n:05d}.png,{n % 2},1\n" for n in range(5)))
    code, said, news = mien_data("prepare", folder, "--out", tmp_path / "s", "--size", "128", "--attributes", "Male,Smiling")
    assert code == 0 and "5 images, 128x128 px, 2 attributes" in said
    assert "photos: 5 of 5 images present" in news and "crop square" in news and "prepare: 5 of 5 images" in news
    assert open_store(tmp_path / "s").attribute_names == ("Male", "Smiling")
    code, said, _ = mien_data("prepare", folder, "--out", tmp_path / "s", "--size", "128", "--attributes", "Male,Smiling")
    assert code == 0 and "already the store of these files" in said
    assert mien_data("prepare", folder, "--out", tmp_path / "s", "--attributes", "none", "--limit", "3", "--force")[0] == 0
    assert open_store(tmp_path / "s").attributes.shape == (3, 0)
    with pytest.raises(UserError, match="names nothing"):
        mien_data("prepare", folder, "--out", tmp_path / "t", "--attributes", ",")


LISTENING = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's background job is born deaf to it
             "from mien.apps.cli.data import app; app()")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_preparation_leaves_nothing_behind(tmp_path, stop):
    folder = photos_at(tmp_path / "photos", 40)
    for copy in range(1, 40):       # 1,600 names for 40 files: enough work to be interrupted
        for number in range(40):
            os.link(folder / f"{number:05d}.png", folder / f"{copy:03d}-{number:05d}.png")
    command = [sys.executable, "-c", LISTENING, "prepare", str(folder), "--out", str(tmp_path / "s"),
               "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    while not any(entry.startswith(".s.partial") for entry in os.listdir(tmp_path)) and time.monotonic() - started < 60:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    assert process.poll() is None, "too quick to be interrupted"
    process.send_signal(stop)
    assert process.wait(60) != 0
    assert os.listdir(tmp_path) == ["photos"]


def test_loading_the_commands_loads_nothing_heavy():
    script = "import sys, mien.apps.cli.data; print([name for name in ('torch', 'numpy', 'PIL', 'rich.progress') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
