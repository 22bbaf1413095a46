import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from mien.data.store import file_sha256, open_store, problems
from mien.data.writer import StoreWriter, write_store
from mien.errors import UserError


def new_store(out, count=10, value=0, **options):
    return write_store(out, images=np.full((count, 32, 32, 3), value, np.uint8), attributes=np.zeros((count, 1), np.uint8),
                       attribute_names=("A",), splits=np.zeros(count, np.uint8), names=[f"n{i}" for i in range(count)], crop="whole",
                       source=[{"name": "made", "count": count}], **options)


def test_what_is_written_is_read(small_store):
    store = open_store(small_store.path)
    assert (len(store), store.size, store.crop, store.attribute_names) == (100, 32, "whole", ("A", "B"))
    assert isinstance(store.images, np.memmap) and store.images[42, 0, 0, 0] == 42
    assert store.names[7] == "n7"
    assert store.manifest["splits"] == {"train": 80, "val": 20, "test": 0}
    assert list(store.indices("val")) == list(range(80, 100)) and store.indices("val").dtype == np.int64
    assert len(store.indices("all")) == 100 and len(store.indices("test")) == 0
    assert store.columns(["B", "A"]) == [1, 0]
    assert store.attribute_table(["A"], "train") == [((0,), 0.5), ((1,), 0.5)]
    assert store.attribute_table(["A", "B"], "val") == [((0, 0), 0.4), ((0, 1), 0.1), ((1, 0), 0.4), ((1, 1), 0.1)]
    assert store.attribute_table([], "all") == [((), 1.0)]
    assert (store.source_of(59), store.source_of(60)) == ("first", "second")
    assert list(problems(store.path)) == []


def test_any_numpy_reads_the_arrays(small_store):
    assert np.load(small_store.path / "images.npy").shape == (100, 32, 32, 3)
    assert np.load(small_store.path / "attributes.npy").dtype == np.uint8


def test_the_sha256_table_is_true_and_makes_the_digest(small_store, tmp_path):
    table = small_store.manifest["sha256"]
    assert table == {name: file_sha256(small_store.path / name) for name in table} and len(table) == 4
    shutil.copytree(small_store.path, tmp_path / "copy")
    manifest = small_store.manifest | {"made_by": "somebody else"}
    del manifest["sha256"]
    (tmp_path / "copy/manifest.json").write_text(json.dumps(manifest))
    assert open_store(tmp_path / "copy").digest == small_store.digest      # hashed when asked for
    assert new_store(tmp_path / "other").digest != small_store.digest


def test_a_store_travels_to_another_process_by_name(small_store):
    data = pickle.dumps(small_store)
    assert len(data) < 500 and np.array_equal(pickle.loads(data).images, small_store.images)


def test_fewer_images_than_expected_still_make_a_true_store(tmp_path):
    with StoreWriter(tmp_path / "s", count=1000, size=32, crop="whole") as writer:
        writer.add(np.ones((7, 32, 32, 3), np.uint8))
        store = writer.finish(attributes=np.zeros((7, 0), np.uint8), attribute_names=(), splits=np.zeros(7, np.uint8),
                              names=[f"n{i}" for i in range(7)], source=[{"name": "x", "count": 7}])
    assert store.images.shape == (7, 32, 32, 3) and list(problems(store.path)) == []


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_broken_writing(tmp_path, error):
    with pytest.raises(type(error)), StoreWriter(tmp_path / "s", count=10, size=32, crop="whole") as writer:
        writer.add(np.zeros((5, 32, 32, 3), np.uint8))
        raise error
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    real = os.fsync

    def full(handle):
        real(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk .* is full: the store needs .*MB, .* are free"):
        new_store(tmp_path / "s")
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_seen_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"needs 0\.0 MB, 0\.0 MB are free"):
        new_store(tmp_path / "s")
    assert os.listdir(tmp_path) == []


def test_an_existing_store_is_replaced_only_by_force_and_whole(tmp_path, monkeypatch):
    first = new_store(tmp_path / "s", value=1)
    with pytest.raises(UserError, match="exists already.*--force"):
        new_store(tmp_path / "s", value=2)
    assert new_store(tmp_path / "s", value=2, force=True).images[0, 0, 0, 0] == 2
    assert os.listdir(tmp_path) == ["s"]
    # The renaming fails half-way: the old store comes back.
    real = Path.rename

    def failing(self, target):
        if "partial" in self.name:
            raise OSError(errno.EIO, "disk trouble")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk trouble"):
        new_store(tmp_path / "s", value=3, force=True)
    assert os.listdir(tmp_path) == ["s"] and open_store(tmp_path / "s").images[0, 0, 0, 0] == 2
    assert first.path == tmp_path / "s"


def test_force_never_deletes_other_peoples_things(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        new_store(home, force=True)
    store = new_store(tmp_path / "s")
    (store.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        new_store(tmp_path / "s", force=True)
    assert (home / "thesis.tex").exists() and (store.path / "notes.txt").exists()


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".s.partial-{process.pid}").mkdir()
    (tmp_path / ".s.partial-notes").mkdir()     # not ours
    new_store(tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == [".s.partial-notes", "s"]


def test_what_is_no_store_says_what_to_do(tmp_path, small_store):
    with pytest.raises(UserError, match="no such data folder"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a data store.*mien data prepare"):
        open_store(tmp_path / "empty")
    manifest = small_store.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("mien-faces/1", "mien-faces/9"))
    with pytest.raises(UserError, match="'mien-faces/9'; this mien reads 'mien-faces/1'"):
        open_store(small_store.path)
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="damaged: manifest.json"):
        open_store(small_store.path)


def test_an_array_that_disagrees_with_the_manifest_is_damage(small_store):
    np.save(small_store.path / "splits.npy", np.zeros(99, np.uint8))
    with pytest.raises(UserError, match=r"splits.npy is uint8 \[99\]"):
        open_store(small_store.path)


def test_unknown_split_and_attribute(small_store):
    with pytest.raises(UserError, match="Did you mean train"):
        small_store.indices("trian")
    with pytest.raises(UserError, match="no attribute 'a'. Did you mean A?"):
        small_store.columns(["a"])


def damage(path, name):
    data = bytearray((path / name).read_bytes())
    data[-3] ^= 1
    (path / name).write_bytes(data)


@pytest.mark.parametrize("name", ["images.npy", "attributes.npy", "splits.npy", "names.txt"])
def test_one_changed_bit_is_found(small_store, name):
    damage(small_store.path, name)
    assert any(f"{name} is not what was written" in line for line in problems(small_store.path))


def test_wrong_values_and_names_are_found_even_with_true_hashes(tmp_path):
    store = write_store(tmp_path / "s", images=np.zeros((4, 32, 32, 3), np.uint8), attributes=np.full((4, 1), 2, np.uint8),
                        attribute_names=("A",), splits=np.full(4, 3, np.uint8), names=["a", "b", "b", "c"], crop="whole",
                        source=[{"name": "x", "count": 3}])
    found = "\n".join(problems(store.path))
    for word in ("other than 0 and 1", "other than 0, 1 and 2", "1 repeated names", "do not add up"):
        assert word in found


def test_a_missing_or_cut_file_is_found(small_store):
    data = (small_store.path / "images.npy").read_bytes()
    (small_store.path / "images.npy").write_bytes(data[:-1000])
    assert any("damaged" in line for line in problems(small_store.path))
    (small_store.path / "images.npy").unlink()
    assert "images.npy is missing" in list(problems(small_store.path))


@pytest.mark.parametrize(("key", "value"), [
    ("source", 3), ("source", None), ("source", [{"name": "x"}]), ("source", ["x"]), ("source", [{"name": "x", "count": "60"}]),
    ("source", [{"name": "x", "count": 100, "listed": "all"}]), ("sha256", [1]), ("sha256", "abc"), ("sha256", {"images.npy": 1}),
    ("skipped", 5), ("attributes", ["A", 1]), ("attributes", [["A"], "B"])])
def test_a_manifest_with_odd_things_in_it_is_damage(small_store, key, value):
    (small_store.path / "manifest.json").write_text(json.dumps(small_store.manifest | {key: value}))
    for look in (open_store, lambda path: list(problems(path))):
        with pytest.raises(UserError, match=f"is damaged: manifest.json has something odd as {key}; prepare it again"):
            look(small_store.path)


@pytest.mark.parametrize(("content", "said"), [
    (None, "No such file"), (b"\xff\n" * 100, "cannot be read"), (b"n0\nn1\n", "2 names for 100")])
def test_names_that_are_missing_or_wrong_are_said(small_store, content, said):
    path = small_store.path / "names.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    store = open_store(small_store.path)    # training needs no names
    with pytest.raises(UserError, match=f"is damaged: names.txt.*{said}"):
        _ = store.names
    found = list(problems(small_store.path))
    assert len(found) == 2 and found[0].startswith("names.txt is") and said in found[1]
    (small_store.path / "manifest.json").write_text(json.dumps({**store.manifest, "sha256": {}}))
    if content is None:
        with pytest.raises(UserError, match="is damaged"):
            _ = open_store(small_store.path).digest
