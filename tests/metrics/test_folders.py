"""Pictures that come from a folder or another store: as many on both sides, and read as a store's preparation reads them."""

import numpy as np
import pytest
from PIL import Image

from mien.data.formats import open_picture, render
from mien.errors import UserError
from mien.metrics.evaluate import evaluate
from mien.metrics.face_sets import _labels, folder_faces

FEW = 60


@pytest.fixture()
def few(toys, tmp_path):
    """60 toys, none of them in the store, as a folder and as the validation images of a store."""
    rows = toys.rows(FEW, 77)
    images = toys.draw(rows, 77)
    folder = tmp_path / "few {of} them"
    folder.mkdir()
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder, toys.store(tmp_path / "small", images, rows, np.ones(FEW))


@pytest.mark.parametrize("kind", [0, 1])
def test_a_model_with_few_faces_is_compared_with_as_few_reals_as_its_floor_is(few, toy_store, kind):
    """Coverage by 60 faces of 400 reals is low whoever drew them; these are as good as any real."""
    scores = {score.metric: score for score in evaluate(few[kind], toy_store, metrics=["prdc", "kid"], features="random", count=400)}
    coverage = scores["coverage-random"]
    assert coverage.protocol.n_real == coverage.protocol.n_fake == FEW
    assert coverage.low <= coverage.floor <= coverage.high and coverage.value > coverage.floor - 0.15
    note, = coverage.details["notes"]
    assert "60 images, so 60 are compared with as many, not 400" in note and ("folder few {of} them", "store to score")[kind] in note
    assert coverage.details["floor_from"].startswith("60 reals")


def test_copies_among_few_faces_are_still_looked_for_with_many_held_out_images(toys, toy_store, few):
    seen, = evaluate(few[0], toy_store, metrics=["memorization"], features="random", count=400)
    assert seen.protocol.n_fake == FEW and seen.details["n_held_out"] == 400


@pytest.mark.parametrize("count", [600, 1000])  # the reference holds more than are looked at; the model has fewer faces than the reference
def test_a_store_of_two_sources_is_held_out_of_both(toys, tmp_path, monkeypatch, count):
    """A store lies source after source: its first images are of one alone, and fresh faces of another would pass for copies."""
    from mien.metrics import subject

    monkeypatch.setattr(subject, "MAX_HELD_OUT", 300)

    def two_sources(name, faces, splits, seed):
        rows = toys.rows(2 * faces, seed)
        images = toys.draw(rows, seed)
        images[faces:] = 120 + images[faces:] // 8  # paler, so nearer to one another
        return toys.store(tmp_path / name, images, rows, np.tile(splits, 2))

    store = two_sources("store", 1000, np.repeat([0, 1], 500), 3)
    seen, = evaluate(two_sources("fresh", 300, np.ones(300), 4), store, metrics=["memorization"], features="pixels", count=count)
    assert seen.details["n_held_out"] == 300 and seen.details["verdict"].startswith("no sign of copying")


def picture_of(tmp_path, image, **options):
    Image.fromarray(image).save(tmp_path / "a.png", **options)
    return next(folder_faces(tmp_path, 32).read())[0].permute(1, 2, 0).numpy()


def test_a_turned_photo_is_read_upright_as_a_store_has_it(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter clockwise to see it
    read = picture_of(tmp_path, np.rot90(upright).copy(), exif=exif)
    np.testing.assert_array_equal(read, upright)
    np.testing.assert_array_equal(read, render(open_picture(tmp_path / "a.png"), crop="whole", size=32))


def test_other_sizes_and_kinds_are_scaled_as_before(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (50, 50), dtype=np.uint8)
    wanted = Image.fromarray(grey).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(picture_of(tmp_path, grey), np.asarray(wanted))
    small = grey[:20, :20].copy()
    wanted = Image.fromarray(small).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(picture_of(tmp_path, small), np.asarray(wanted))


@pytest.mark.parametrize("image, word", [
    (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 16, r"a\.png cannot be read as a picture \(pixels of kind I"),
    (np.zeros((32, 40), np.uint8), r"a\.png is 40x32; pictures to score must be square"),
])  # fmt: skip
def test_a_picture_that_cannot_be_scored_is_named(tmp_path, image, word):
    with pytest.raises(UserError, match=word):
        picture_of(tmp_path, image)


@pytest.mark.parametrize("content", ["name,Fr\u00f6hlich\n".encode("latin-1"), b"name,Male\n000.png," + b"1" * 200_000 + b"\n"])
def test_a_table_in_another_encoding_or_no_table_is_named(few, content):
    (few[0] / "attributes.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"attributes\.csv cannot be read as a table .*UTF-8"):
        folder_faces(few[0], 32)


@pytest.mark.parametrize(("files", "said"), [(["a.png", "b.png"], "no line for b.png."), (["b.png", "c.png"], "b.png and 1 other picture."),
                                             (["b.png", "c.png", "d.png"], "b.png and 2 other pictures.")])  # fmt: skip
def test_pictures_without_a_label_are_counted(tmp_path, files, said):
    (tmp_path / "labels.csv").write_text("file,Male\na.png,1\n")
    with pytest.raises(UserError, match=said):
        _labels(tmp_path / "labels.csv", files)
