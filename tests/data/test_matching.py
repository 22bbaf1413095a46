"""Which row of a table describes which image, when folders repeat file names."""

import numpy as np
import pytest

from mien.data.annotations import match
from mien.data.sources import find_sources, hash_splits
from mien.errors import UserError

from .conftest import picture

WRITTEN = ("{path}", "./{path}", "images/{path}", "data/images/{path}", "{stem}.jpg", "images/{stem}.jpg", "{stem}")
FOUR = ("a/0.png", "a/1.png", "b/0.png", "b/1.png")


def folder_of(root, files, table):
    """A folder of these pictures, with this text as its attributes.csv."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, (40, 40)).save(root / name)
    (root / "attributes.csv").write_text(table)
    return root


@pytest.mark.parametrize("top", ["", "images/", "faces/images/"])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_table_with_paths_labels_each_image_whose_name_repeats(tmp_path, top, written):
    rows = [written.format(path=path, stem=path[:-4]) for path in FOUR]
    table = "file,Smiling,Male\n" + "".join(f"{row},{smiling},{male}\n" for row, smiling, male in zip(rows, (1, 1, 0, 0), (0, 1, 0, 1)))
    [source] = find_sources(str(folder_of(tmp_path / "set", [top + path for path in FOUR], table)))
    assert source.names == list(FOUR)
    assert source.attributes.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize(("files", "rows", "complaint"), [
    (FOUR, ("0.png", "1.png"), "the row 0.png of t.csv fits both a/0.png and b/0.png; write the path of each image into the first column"),
    (FOUR, ("0", "1"), "the row 0 of t.csv fits both a/0.png and b/0.png"),
    (("0.png",), ("a/0.png", "b/0.png"), "the rows a/0.png and b/0.png of t.csv both fit 0.png"),
    (("0.png",), ("0.jpg", "0.webp"), "the rows 0.jpg and 0.webp of t.csv both fit 0.png"),
    (("c/0.png", "a/0.png"), ("a/0.png", "b/0.png"), r"no row for 1 of 2 images \(c/0.png\)"),
    (("0.png", "old/0.png"), ("0.png",), r"no row for 1 of 2 images \(old/0.png\)"),
    (("a/0.png", "b/0.jpg"), ("a/0.jpg",), r"no row for 1 of 2 images \(b/0.jpg\)"),
    (("0.png", "0.jpg"), ("0.jpg",), r"no row for 1 of 2 images \(0.png\)"),
])
def test_a_row_is_never_guessed(files, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        match(files, dict.fromkeys(rows), "t.csv")


def test_the_surest_row_is_taken():
    rows = dict.fromkeys(["y/0.png", "a/0.jpg", "deep/x/1.png", "2.jpg", "unused/3.png"])
    files = ["x/y/0.png", "x/a/0.png", "x/1.png", "x/2.png"]
    assert match(files, rows, "t.csv") == ["y/0.png", "a/0.jpg", "deep/x/1.png", "2.jpg"]
    many = [f"{number:06d}.png" for number in range(3000)]
    assert match(many, {name.replace("png", "jpg"): 0 for name in many}, "t.csv")[2999] == "002999.jpg"


def test_a_split_column_without_val_has_one_drawn(tmp_path):
    files = [f"{number:03d}.png" for number in range(60)]
    table = "file,Smiling,split\n" + "".join(f"{name},{n % 2},{'train' if n < 50 else 'test'}\n" for n, name in enumerate(files))
    [source] = find_sources(str(folder_of(tmp_path, files, table)))
    drawn = hash_splits(files)[:50]
    assert drawn.any() and np.array_equal(source.splits, [*drawn, *[2] * 10])
