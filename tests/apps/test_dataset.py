"""Labelled sets: resumed to the byte, balanced, with their provenance, and readable by everything else."""

import csv
import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mien.apps import dataset
from mien.apps.cli.main import app
from mien.apps.dataset import Order, Selection, unfinished_folder, write_dataset
from mien.data.store import open_store, problems
from mien.errors import UserError
from mien.explore.load import load_generator
from mien.explore.select import draw_set

LUMA = Selection(of=2, by="brightness", score=lambda images, attributes: images.float().mean((1, 2, 3)).numpy(), identity={"made": "here"})


def mien(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 8)


class Killed(BaseException):
    pass


def killed_after(faces):
    """An `advance` that stops the work, as a kill does, once so many faces are drawn."""
    seen = 0

    def advance(n):
        nonlocal seen
        seen += n
        if seen >= faces:
            raise Killed
    return advance


@pytest.mark.parametrize("form", ["png", "store"])
@pytest.mark.parametrize("selection", [None, LUMA], ids=["plain", "best-of"])
def test_a_stopped_set_goes_on_to_the_same_bytes(tiny_generator, tmp_path, small_pieces, form, selection):
    order = Order(40, 3, {}, balance="data", form=form, selection=selection)
    whole = write_dataset(tiny_generator, tmp_path / "whole" / "set", order, model="m")
    out = tmp_path / "stopped" / "set"
    for faces in (24, 32):
        with pytest.raises(Killed):
            write_dataset(tiny_generator, out, order, model="m", advance=killed_after(faces))
        assert not out.exists()
    with open(unfinished_folder(out) / "attributes.csv", "ab") as table:
        table.write(b"000099.png,9")  # a line that was being written
    again = []
    write_dataset(tiny_generator, out, order, model="m", advance=again.append)
    assert again[0] >= 24 and sum(again) == 40  # it did go on
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == ["set"]


def test_a_process_killed_outright_goes_on_to_the_same_bytes(tiny_snapshot, tmp_path):
    """SIGKILL, which no program can prepare for, in the middle of a piece's PNGs."""
    code = textwrap.dedent("""
        import os, signal, sys
        from PIL import Image
        from mien.apps import dataset
        from mien.apps.cli.main import app

        def saving(picture, path, save=Image.Image.save, saved=[], **options):
            saved.append(path)
            if len(saved) > 20:
                os.kill(os.getpid(), signal.SIGKILL)
            save(picture, path, **options)

        Image.Image.save, dataset.CHUNK = saving, 8
        app(sys.argv[1:])
    """)
    words = ["sample", str(tiny_snapshot), "--count", "32", "--device", "cpu", "--out", "set"]
    (tmp_path / "killed").mkdir()
    died = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path / "killed", capture_output=True, timeout=250)
    assert died.returncode == -9 and [path.name for path in (tmp_path / "killed").iterdir()] == [".set.unfinished"]
    for name, had in (("killed", 16), ("whole", 0)):  # two pieces of eight were finished, of the third some PNGs
        done: list[int] = []
        snapshot, out = load_generator(tiny_snapshot), tmp_path / name / "set"
        write_dataset(snapshot, out, Order(32, 0, {}), model=str(tiny_snapshot), advance=done.append)
        assert done[0] == had
    assert contents(tmp_path / "killed" / "set") == contents(tmp_path / "whole" / "set")


def test_a_set_that_never_began_leaves_nothing(tiny_generator, tmp_path, small_pieces):
    with pytest.raises(Killed):
        write_dataset(tiny_generator, tmp_path / "set", Order(20, 0, {}), model="m", advance=killed_after(0))
    assert list(tmp_path.iterdir()) == []


def test_another_order_does_not_go_on_with_it(tiny_generator, tmp_path, small_pieces):
    with pytest.raises(Killed):
        write_dataset(tiny_generator, tmp_path / "set", Order(20, 0, {}), model="m", advance=killed_after(16))
    other = Order(20, 1, {})
    with pytest.raises(UserError, match="unfinished set of another command"):
        write_dataset(tiny_generator, tmp_path / "set", other, model="m")
    write_dataset(tiny_generator, tmp_path / "set", other, model="m", force=True)
    assert not (tmp_path / "set" / "000000.png").exists() and (tmp_path / "set" / "000020.png").exists()


def test_two_commands_do_not_draw_the_same_set_at_once(tiny_generator, tmp_path, small_pieces):
    order = Order(20, 0, {})

    def meanwhile(n):
        if n:
            with pytest.raises(UserError, match="Another command is drawing"):
                write_dataset(tiny_generator, tmp_path / "set", order, model="m")

    write_dataset(tiny_generator, tmp_path / "set", order, model="m", advance=meanwhile)
    assert len(list((tmp_path / "set").glob("*.png"))) == 20


def test_uniform_balance_is_equal_in_the_table_and_said_in_the_provenance(tiny_generator, tmp_path):
    out = write_dataset(tiny_generator, tmp_path / "set", Order(64, 0, {}, balance="uniform"), model="m")
    rows = list(csv.DictReader((out / "attributes.csv").read_text().splitlines()))
    assert sorted(path.name for path in out.glob("*.png")) == [row["name"] for row in rows]
    note = json.loads((out / "provenance.json").read_text())
    assert set(note["combinations"].values()) == {16} and len(note["combinations"]) == 4
    assert note["balance"] == "uniform" and note["model"]["sha256"] == tiny_generator.meta["sha256"] and note["best_of"] is None


def test_the_best_of_k_is_said_and_its_faces_can_be_drawn_again(tiny_generator, tmp_path):
    out = write_dataset(tiny_generator, tmp_path / "set", Order(8, 0, {"Male": 1.0}, selection=LUMA), model="m")
    note = json.loads((out / "provenance.json").read_text())
    assert note["best_of"]["of"] == 2 and "no sample of the generator's own distribution" in note["best_of"]["warning"]
    assert "--best-of 2" in note["command"]
    row = list(csv.DictReader((out / "attributes.csv").read_text().splitlines()))[5]
    held = {"Male": float(row["Male"]), "Smiling": float(row["Smiling"])}
    alone = write_dataset(tiny_generator, tmp_path / "one", Order(1, int(row["seed"]), held), model="m")
    assert int(row["seed"]) in (10, 11) and (alone / row["name"]).read_bytes() == (out / row["name"]).read_bytes()


def test_a_store_is_whole_and_holds_the_same_faces_as_the_folder(tiny_snapshot, tmp_path):
    words = ["sample", tiny_snapshot, "--count", 48, "--seed", 5, "--balance", "uniform"]
    mien(*words, "--out", tmp_path / "folder")
    mien(*words, "--out", tmp_path / "store", "--format", "store")
    assert list(problems(tmp_path / "store")) == []
    assert "48 images" in mien("data", "verify", tmp_path / "store").stdout
    store = open_store(tmp_path / "store")
    assert store.attribute_names == ("Male", "Smiling") and store.attributes.mean(axis=0).tolist() == [0.5, 0.5]
    note = store.manifest["generated"]
    assert note["format"] == "mien-samples/1" and store.source_of(0) == note["model"]["sha256"][:12]
    for i in (0, 47):
        assert np.array_equal(store.images[i], np.asarray(Image.open(tmp_path / "folder" / store.names[i])))
    assert json.loads(mien("data", "inspect", tmp_path / "store", "--json").stdout)["count"] == 48


def test_a_store_of_generated_faces_can_be_trained_on(tiny_snapshot, tmp_path):
    mien("sample", tiny_snapshot, "--count", 64, "--out", tmp_path / "store", "--format", "store")
    mien("train", tmp_path / "store", "--preset", "demo", "--run", tmp_path / "run", "--images", 32, "--device", "cpu", "--set",
         "model.generator.width=16", "--set", "model.discriminator.width=16", "--set", "train.batch=16")  # fmt: skip
    assert json.loads((tmp_path / "run" / "status.json").read_text())["nimg"] == 32


def test_labels_that_a_store_cannot_hold_are_refused(tiny_generator, tmp_path):
    with pytest.raises(UserError, match="labels are 0 or 1"):
        write_dataset(tiny_generator, tmp_path / "set", Order(4, 0, {"Male": 0.5}, form="store"), model="m")
    plain = dataclasses.replace(tiny_generator, meta={**tiny_generator.meta, "attribute_table": [[[0, 1], 1.0]]})
    write_dataset(plain, tmp_path / "half", Order(4, 0, {"Male": 0.5}), model="m")
    assert "0.5" in (tmp_path / "half" / "attributes.csv").read_text()
    with pytest.raises(UserError, match="--format jpg"):
        write_dataset(tiny_generator, tmp_path / "set", Order(4, 0, {}, form="jpg"), model="m")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_memory_does_not_grow_with_the_count(tiny_generator, tmp_path, monkeypatch):
    """However many are asked for, no more than a piece of faces is drawn at a time; large faces make smaller pieces."""
    drawn = []

    def drawing(generator, places, **rest):
        drawn.append(len(places))
        return draw_set(generator, places, **rest)

    monkeypatch.setattr(dataset, "draw_set", drawing)
    monkeypatch.setattr(dataset, "CHUNK_PX", 16 * 32 * 32)
    write_dataset(tiny_generator, tmp_path / "set", Order(40, 0, {}), model="m")
    write_dataset(tiny_generator, tmp_path / "best", Order(10, 0, {}, selection=LUMA), model="m")
    assert drawn == [16, 16, 8, 8, 2]
