import io
import os
import shutil
import zipfile
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from mien.data import prepare as preparing
from mien.data.prepare import prepare
from mien.data.store import open_store, problems
from mien.errors import UserError

from .conftest import number_name, picture, write_celeba


def by_hand(path, box, size=64):
    """What Pillow makes of a file, written without any of our code."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").crop(box).resize((size, size), Image.LANCZOS))


def left(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_of_celeba_is_what_pillow_makes_of_it(celeba, tmp_path, workers):
    notes = []
    store, made = prepare([str(celeba)], tmp_path / "s", workers=workers, note=notes.append)
    assert made and (len(store), store.size, store.crop, len(store.attribute_names)) == (40, 64, "center178", 40)
    assert list(problems(store.path)) == [] and left(tmp_path) == ["celeba", "s"]
    for row in range(40):
        folder, box = ("img_align_celeba", (0, 20, 178, 198)) if row < 30 else ("img_align_celeba_half", (0, 10, 89, 99))
        assert store.names[row] == number_name(row + 1)
        assert np.array_equal(store.images[row], by_hand(celeba / folder / store.names[row], box))
    lines = (celeba / "list_attr_celeba.txt").read_text().splitlines()[2:42]
    assert store.attributes.tolist() == [[int(word == "1") for word in line.split()[1:]] for line in lines]
    assert store.splits.tolist() == [row % 3 for row in range(40)]
    assert [(each["name"], each["count"]) for each in store.manifest["source"]] == [
        ("img_align_celeba", 30), ("img_align_celeba_half", 10)]
    assert store.source_of(29) == "img_align_celeba" and store.source_of(30) == "img_align_celeba_half"
    assert "img_align_celeba: 30 of 60 images present" in notes


def test_the_number_of_workers_and_chunks_changes_nothing(celeba, tmp_path, monkeypatch):
    one, _ = prepare([str(celeba)], tmp_path / "one", workers=1)
    monkeypatch.setattr(preparing, "CHUNK", 3)
    two, _ = prepare([str(celeba)], tmp_path / "two", workers=2)
    assert one.digest == two.digest


def test_attributes_are_kept_in_the_order_asked_for(celeba, tmp_path):
    full, _ = prepare([str(celeba)], tmp_path / "all")
    some, _ = prepare([str(celeba)], tmp_path / "some", attributes=["Smiling", "Male"])
    assert some.attribute_names == ("Smiling", "Male") and np.array_equal(some.attributes, full.attributes[:, [31, 20]])
    assert prepare([str(celeba)], tmp_path / "none", attributes=[])[0].attributes.shape == (40, 0)
    with pytest.raises(UserError, match="the source img_align_celeba has no attribute 'Smilling'. Did you mean Smiling?"):
        prepare([str(celeba)], tmp_path / "x", attributes=["Smilling"])


def test_a_limit_is_spread_over_all(celeba, tmp_path):
    store, _ = prepare([str(celeba)], tmp_path / "s", limit=8)
    assert store.names == [number_name(number) for number in (1, 6, 11, 16, 21, 26, 31, 36)]
    assert [each["count"] for each in store.manifest["source"]] == [6, 2]


def test_the_crop_follows_the_shape_unless_told(celeba, photos, tmp_path):
    assert prepare([str(photos)], tmp_path / "a")[0].crop == "square"
    assert prepare([str(celeba)], tmp_path / "b")[0].crop == "center178"
    joined, _ = prepare([str(celeba), str(photos)], tmp_path / "c", attributes=[])
    assert joined.crop == "square" and len(joined) == 52
    with pytest.raises(UserError, match=r"12 of 52 images do not suit: p00.png of photos is 80x100, not the shape .* use --crop square"):
        prepare([str(celeba), str(photos)], tmp_path / "d", crop="center178", attributes=[])
    assert left(tmp_path) == ["a", "b", "c", "celeba", "photos"]


def test_a_fractional_crop_is_said(celeba, tmp_path):
    notes = []
    prepare([str(celeba)], tmp_path / "s", crop="center148", note=notes.append)
    assert any("falls between pixels" in line and "7.5, 17.5, 81.5, 91.5" in line for line in notes)


def test_joined_sources_keep_names_apart_and_say_where_each_image_is_from(celeba, photos, tmp_path):
    other = tmp_path / "elsewhere" / "photos"
    shutil.copytree(photos, other)
    store, _ = prepare([str(photos), str(other)], tmp_path / "s")
    assert len(set(store.names)) == 24 and store.names[0] == "photos/p00.png" and store.names[12] == "photos-2/p00.png"
    assert (store.source_of(11), store.source_of(12)) == ("photos", "photos-2")
    assert np.array_equal(store.images[0], store.images[12]) and list(problems(store.path)) == []
    write_celeba(tmp_path / "both", [1, 2], half=[1, 2])
    both, _ = prepare([str(tmp_path / "both/img_align_celeba"), str(tmp_path / "both/img_align_celeba_half")], tmp_path / "t")
    assert both.names == [f"{folder}/{number_name(n)}" for folder in ("img_align_celeba", "img_align_celeba_half") for n in (1, 2)]
    assert np.array_equal(both.attributes[:2], both.attributes[2:])


def test_only_shared_attributes_of_joined_sources_are_kept_and_it_is_said(celeba, photos, tmp_path):
    (photos / "labels.csv").write_text("file,Smiling,Tired\n" + "".join(f"p{n:02d}.png,{n % 2},1\n" for n in range(12)))
    notes = []
    store, _ = prepare([str(celeba), str(photos)], tmp_path / "s", note=notes.append)
    assert store.attribute_names == ("Smiling",) and store.attributes[40:, 0].tolist() == [0, 1] * 6
    assert any("not every source has" in line for line in notes)
    with pytest.raises(UserError, match="the source photos has no attribute 'Male'"):
        prepare([str(celeba), str(photos)], tmp_path / "t", attributes=["Male"])


def test_a_zip_and_its_folder_give_the_same_store(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.iterdir()):
            archive.write(path, f"photos/{path.name}")
    folder, _ = prepare([str(photos)], tmp_path / "a")
    zipped, _ = prepare([str(tmp_path / "photos.zip")], tmp_path / "b", workers=2)
    assert folder.digest == zipped.digest


def many(folder, count):
    """`count` small PNGs in a folder, quick to write: one picture, copied."""
    folder.mkdir()
    file = io.BytesIO()
    picture(0, (40, 40)).save(file, "PNG")
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(file.getvalue())
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_up_to_a_hundredth_of_bad_files_is_skipped_counted_and_listed(tmp_path, workers):
    folder = many(tmp_path / "f", 298)
    (folder / "0007.png").write_bytes((folder / "0007.png").read_bytes()[:900])
    (folder / "0100.jpg").write_text("I am no picture")
    (folder / "notes.txt").write_text("neither am I")
    store, _ = prepare([str(folder)], tmp_path / "s", size=32, workers=workers)
    assert len(store) == 297 and "0007.png" not in store.names and len(store.names) == 297
    skipped = {each["name"]: each["reason"] for each in store.manifest["skipped"]}
    assert set(skipped) == {"0007.png", "0100.jpg", "notes.txt"} and skipped["0100.jpg"] == "not an image"
    assert list(problems(store.path)) == []


def test_over_a_hundredth_stops_with_the_list_and_nothing_written(tmp_path):
    folder = many(tmp_path / "f", 200)
    for number in (3, 50, 120):
        (folder / f"{number:04d}.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"3 of 200 files cannot be used, over 1%: 0003.png \(not an image\), 0050.png .*0120.png") as error:
        prepare([str(folder)], tmp_path / "s", size=32)
    assert "\n" not in str(error.value) and left(tmp_path) == ["f"]
    assert len(prepare([str(folder)], tmp_path / "s", size=32, max_skipped=0.02)[0]) == 197


def test_a_folder_of_nothing_but_bad_files(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/a.jpg").write_text("no")
    with pytest.raises(UserError, match="1 of 1 files cannot be used"):
        prepare([str(tmp_path / "f")], tmp_path / "s", max_skipped=1.0)
    assert left(tmp_path) == ["f"]


def test_images_smaller_than_the_size_stop_all(celeba, tmp_path):
    with pytest.raises(UserError, match=r"10 of 40 images do not suit: 000031.jpg of img_align_celeba_half gives only 89x89 "
                                          r"pixels .*leave out img_align_celeba_half or pass --allow-upscale") as error:
        prepare([str(celeba)], tmp_path / "s", size=128)
    assert "\n" not in str(error.value) and left(tmp_path) == ["celeba"]
    assert prepare([str(celeba)], tmp_path / "s", size=128, allow_upscale=True)[0].images.shape == (40, 128, 128, 3)


def test_a_lone_unfit_image_that_the_first_look_missed_stops_all_too(tmp_path):
    folder = many(tmp_path / "f", 200)
    picture(1, (20, 20)).save(folder / "0002.png")
    with pytest.raises(UserError, match=r"1 of 200 images do not suit: 0002.png gives only 20x20"):
        prepare([str(folder)], tmp_path / "s", size=32)
    assert left(tmp_path) == ["f"]
    store, _ = prepare([str(folder)], tmp_path / "s", size=32, max_skipped=0.005)
    assert len(store) == 199 and "0002.png" not in store.names and store.manifest["skipped"][0]["name"] == "0002.png"
    with pytest.raises(UserError, match="--max-skipped 5 is not a share"):
        prepare([str(folder)], tmp_path / "t", size=32, max_skipped=5)


def test_the_advice_on_unfit_images_can_be_followed(tmp_path):
    folder = many(tmp_path / "f", 100)      # 40 px
    for number in (2, 3, 4):
        picture(1, (20, 20)).save(folder / f"{number:04d}.png")
    (folder / "0009.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"3 of 100 images do not suit: .* asked for; leave them out with --max-skipped 0.04 or pass"):
        prepare([str(folder)], tmp_path / "s", size=32)         # no smaller size exists that would do
    with pytest.raises(UserError, match="choose --size 32") as error:
        prepare([str(many(tmp_path / "g", 10))], tmp_path / "s", size=128)
    assert "--max-skipped" not in str(error.value)
    with pytest.raises(UserError) as error:
        prepare([str(folder)], tmp_path / "s", size=64)
    assert "choose --size" not in str(error.value)
    assert len(prepare([str(folder)], tmp_path / "s", size=32, max_skipped=0.04)[0]) == 96


def test_notes_and_films_among_the_images_do_not_stop_a_preparation(tmp_path):
    folder = many(tmp_path / "f", 10)
    for name in ("notes.txt", "film.mp4"):
        (folder / name).write_text("no picture")
    store, _ = prepare([str(folder)], tmp_path / "s", size=32)
    assert len(store) == 10 and [each["name"] for each in store.manifest["skipped"]] == ["film.mp4", "notes.txt"]
    (folder / "face.heic").write_text("a picture, but not for us")
    with pytest.raises(UserError, match=r"1 of 11 files cannot be used, over 1%: face.heic \(an image of a kind that is not read"):
        prepare([str(folder)], tmp_path / "t", size=32)


@pytest.mark.parametrize("name", ["a=b", "a,b"])
def test_an_attribute_that_no_option_could_name_is_refused_before_the_work(photos, tmp_path, name):
    (photos / "attributes.csv").write_text(f'file,"{name}",Male\n' + "".join(f"p{n:02d}.png,{n % 2},{n % 3 == 0:d}\n" for n in range(12)))
    with pytest.raises(UserError, match=f"the column '{name}' of photos cannot be an attribute"):
        prepare([str(photos)], tmp_path / "s")
    assert prepare([str(photos)], tmp_path / "s", attributes=["Male"])[0].attribute_names == ("Male",)
    for folder in (name, "other"):
        (tmp_path / "classes" / folder).mkdir(parents=True)
        picture(0, (80, 80)).save(tmp_path / "classes" / folder / "0.png")
    with pytest.raises(UserError, match=f"the folder '{name}' of classes cannot be an attribute"):
        prepare([str(tmp_path / "classes")], tmp_path / "t")


def test_a_table_with_gaps_does_not_matter_when_no_attributes_are_kept(celeba, tmp_path):
    table = celeba / "list_attr_celeba.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:20]) + "\n")
    with pytest.raises(UserError, match="no row for .* --attributes none"):
        prepare([str(celeba)], tmp_path / "s")
    assert prepare([str(celeba)], tmp_path / "s", attributes=[])[0].attributes.shape == (40, 0)


def test_the_same_again_is_left_alone_and_another_is_refused(celeba, tmp_path):
    first, _ = prepare([str(celeba)], tmp_path / "s")
    stamp = (tmp_path / "s/images.npy").stat().st_mtime_ns
    again, made = prepare([str(celeba)], tmp_path / "s")
    assert not made and again.digest == first.digest and (tmp_path / "s/images.npy").stat().st_mtime_ns == stamp
    for change in ({"size": 32}, {"attributes": ["Male"]}, {"limit": 10}, {"crop": "whole"}):
        with pytest.raises(UserError, match="exists already"):
            prepare([str(celeba)], tmp_path / "s", **change)
    (celeba / "img_align_celeba/000001.jpg").unlink()
    with pytest.raises(UserError, match="exists already"):
        prepare([str(celeba)], tmp_path / "s")
    assert open_store(tmp_path / "s").digest == first.digest
    forced, made = prepare([str(celeba)], tmp_path / "s", size=32, force=True)
    assert made and forced.size == 32 and left(tmp_path) == ["celeba", "s"]


def flat(shade, side=40):
    """A BMP of one shade: its length is the same whatever the shade."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(file, "BMP")
    return file.getvalue()


def zip_of(path, shades, year=2020):
    with zipfile.ZipFile(path, "w") as archive:
        for number, shade in enumerate(shades):
            archive.writestr(zipfile.ZipInfo(f"{number}.bmp", (year, 1, 1, 0, 0, 0)), flat(shade))


def test_changed_pixels_of_the_same_length_are_another_store(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bmp").write_bytes(flat(250))
    prepare([str(folder)], tmp_path / "s", size=32)
    shutil.copytree(folder, tmp_path / "copies" / "f")     # keeps the times, as cp -a and rsync -t do
    assert not prepare([str(tmp_path / "copies/f")], tmp_path / "s", size=32)[1]
    (folder / "1.bmp").write_bytes(flat(40))
    with pytest.raises(UserError, match="exists already"):
        prepare([str(folder)], tmp_path / "s", size=32)
    assert prepare([str(folder)], tmp_path / "s", size=32, force=True)[0].images[:, 0, 0, 0].tolist() == [250, 40, 250]


def test_a_zip_is_known_by_what_it_holds(tmp_path):
    zip_of(tmp_path / "f.zip", [250, 250])
    prepare([str(tmp_path / "f.zip")], tmp_path / "s", size=32)
    (tmp_path / "again").mkdir()
    zip_of(tmp_path / "again/f.zip", [250, 250], year=2021)
    assert not prepare([str(tmp_path / "again/f.zip")], tmp_path / "s", size=32)[1]     # packed again: the same images
    (tmp_path / "other").mkdir()
    zip_of(tmp_path / "other/f.zip", [250, 40])
    with pytest.raises(UserError, match="exists already"):
        prepare([str(tmp_path / "other/f.zip")], tmp_path / "s", size=32)


def test_a_folder_in_the_way_is_refused_before_the_work(celeba, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/mine.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(UserError, match="exists already|holds other things"):
            prepare([str(celeba)], tmp_path / "s", force=force)
    assert left(tmp_path / "s") == ["mine.txt"]


def test_a_full_disk_is_seen_before_the_work(celeba, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 10**5))
    with pytest.raises(UserError, match=r"is full: the store needs 0\.5 MB, 0\.1 MB are free"):
        prepare([str(celeba)], tmp_path / "s")
    assert left(tmp_path) == ["celeba"]


class Failing:
    """A reader that breaks in the middle, as a fault of ours would; defined here so that a worker process can load it."""

    def __init__(self, reader, key, deadly=False):
        self.reader, self.key, self.deadly = reader, key, deadly

    def read(self, name):
        if name.endswith(self.key):
            if self.deadly:
                os._exit(9)     # as the system's memory killer does it
            raise RuntimeError("a fault in a worker")
        return self.reader.read(name)


@pytest.mark.parametrize("deadly", [False, True])
def test_a_crash_in_a_worker_leaves_nothing(celeba, tmp_path, monkeypatch, deadly):
    real = preparing.find_sources

    def found(name, **how):
        sources = real(name, **how)
        sources[0].reader = Failing(sources[0].reader, "000013.jpg", deadly)
        return sources

    monkeypatch.setattr(preparing, "find_sources", found)
    monkeypatch.setattr(preparing, "SAMPLE", 2)     # looks at the first and the last header only
    monkeypatch.setattr(preparing, "CHUNK", 4)
    with pytest.raises(UserError if deadly else RuntimeError, match="--workers 1" if deadly else "a fault in a worker"):
        prepare([str(celeba)], tmp_path / "s", workers=2)
    assert left(tmp_path) == ["celeba"]


def test_ctrl_c_leaves_nothing(celeba, tmp_path, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def interrupted(label, total):
        def advance(count):
            raise KeyboardInterrupt
        yield advance

    with pytest.raises(KeyboardInterrupt):
        prepare([str(celeba)], tmp_path / "s", workers=2, progress=interrupted)
    assert left(tmp_path) == ["celeba"]


@pytest.mark.parametrize(("options", "message"), [
    ({"size": 100}, "power of two"), ({"crop": "centre"}, "no crop is called 'centre'"), ({"limit": 0}, "--limit"),
    ({"workers": 0}, "--workers")])
def test_impossible_wishes(celeba, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare([str(celeba)], tmp_path / "s", **options)
    assert left(tmp_path) == ["celeba"]


@pytest.mark.skipif("MIEN_TEST_CELEBA" not in os.environ, reason="needs CelebA: set MIEN_TEST_CELEBA to its folder")
def test_real_celeba_equals_pillow(tmp_path):
    root = os.environ["MIEN_TEST_CELEBA"]
    store, _ = prepare([os.path.join(root, "img_align_celeba")], tmp_path / "s", limit=200, attributes=["Male", "Smiling"])
    for name, image in zip(store.names, store.images):
        assert np.array_equal(image, by_hand(os.path.join(root, "img_align_celeba", name), (0, 20, 178, 198)))
    with open(os.path.join(root, "list_attr_celeba.txt")) as file:
        rows = {line.split()[0]: line.split()[1:] for line in file.readlines()[2:]}
    assert store.attributes.tolist() == [[int(rows[name][20] == "1"), int(rows[name][31] == "1")] for name in store.names]
