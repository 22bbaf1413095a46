import csv
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from mien.data.annotations import official_split
from mien.data.attributes import CELEBA_ATTRIBUTES
from mien.data.sources import find_sources, hash_splits
from mien.errors import UserError

from .conftest import number_name, picture, write_celeba


def zip_folder(folder, archive, prefix=""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def as_kaggle(root):
    """Turn the official layout into Kaggle's: CSVs, and the image folder inside a folder of its own name."""
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    rows = [["image_id", *lines[1].split()], *(line.split() for line in lines[2:])]
    with open(root / "list_attr_celeba.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    parts = (root / "list_eval_partition.txt").read_text().split()
    (root / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(
        f"{name},{part}\n" for name, part in zip(parts[::2], parts[1::2])))
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (root / name).unlink()
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba/img_align_celeba")


def truth(root_values, numbers):
    return root_values[np.array(numbers) - 1], (np.array(numbers) - 1) % 3


LAYOUTS = ("root", "folder", "zip", "zip of images beside the texts", "root with a zip", "kaggle", "kaggle zip", "Anno and Eval")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_celeba_in_any_of_its_forms(tmp_path, layout):
    root = tmp_path / "data" / "celeba"
    values = write_celeba(root, range(1, 13))
    (root / "img_align_celeba_half").rmdir()
    (root / "identity_CelebA.txt").write_text("000001.jpg 2880\n")
    images = root / "img_align_celeba"
    given = root
    if layout == "folder":
        given = images
    elif layout == "zip":
        given = zip_folder(root, tmp_path / "celeba.zip", "celeba/")
    elif layout in ("zip of images beside the texts", "root with a zip"):
        archive = zip_folder(images, root / "img_align_celeba.zip", "img_align_celeba/")
        for file in images.iterdir():
            file.unlink()
        images.rmdir()
        given = archive if layout.startswith("zip") else root
    elif layout.startswith("kaggle"):
        as_kaggle(root)
        given = zip_folder(root, tmp_path / "archive.zip") if layout == "kaggle zip" else root
    elif layout == "Anno and Eval":
        for folder, name in (("Anno", "list_attr_celeba.txt"), ("Eval", "list_eval_partition.txt")):
            (root / folder).mkdir()
            (root / name).rename(root / folder / name)
        given = images
    [source] = find_sources(str(given))
    attributes, splits = truth(values, range(1, 13))
    assert (source.name, source.kind, source.listed) == ("img_align_celeba", "CelebA", 60)
    assert source.names == [number_name(number) for number in range(1, 13)]
    assert source.attribute_names == CELEBA_ATTRIBUTES
    assert np.array_equal(source.attributes, attributes) and np.array_equal(source.splits, splits)
    assert source.skipped == {} and source.notes == []
    decoded = np.asarray(Image.open(io.BytesIO(pickle.loads(pickle.dumps(source.reader)).read(source.keys[3]))))
    assert decoded.shape == (218, 178, 3)


def test_the_half_size_folder_fills_gaps_only(tmp_path):
    write_celeba(tmp_path, [1, 2, 3], half=[2, 3, 4, 5])
    full, half = find_sources(str(tmp_path))
    assert full.names == ["000001.jpg", "000002.jpg", "000003.jpg"] and half.names == ["000004.jpg", "000005.jpg"]
    assert "2 images left out" in half.notes[0]
    [alone] = find_sources(str(tmp_path / "img_align_celeba_half"))
    assert alone.names == [number_name(number) for number in (2, 3, 4, 5)] and alone.attributes.shape == (4, 40)


def test_without_the_partition_file_the_official_bounds_serve(celeba):
    (celeba / "list_eval_partition.txt").unlink()
    source = find_sources(str(celeba / "img_align_celeba"))[0]
    assert set(source.splits) == {0} and "official bounds" in source.notes[0]
    bounds = {1: 0, 162_770: 0, 162_771: 1, 182_637: 1, 182_638: 2, 202_599: 2}
    assert {number: official_split(f"{number:06d}.png") for number in bounds} == bounds
    assert official_split("202600.jpg") is official_split("me.jpg") is None


def test_without_the_attribute_file_there_are_none_and_it_is_said(celeba):
    (celeba / "list_attr_celeba.txt").unlink()
    source = find_sources(str(celeba))[0]
    assert source.attributes.shape == (30, 0) and "no list_attr_celeba" in " ".join(source.notes)


def test_an_attribute_file_that_misses_rows(celeba):
    text = (celeba / "list_attr_celeba.txt").read_text().splitlines()
    (celeba / "list_attr_celeba.txt").write_text("\n".join(text[:2] + text[7:]))
    with pytest.raises(UserError, match=r"no row for 5 of 30 images \(000001.jpg, 000002.jpg, 000003.jpg, ...\)"):
        find_sources(str(celeba))


def test_an_attribute_file_with_a_short_line_or_of_another_kind(celeba):
    path = celeba / "list_attr_celeba.txt"
    text = path.read_text()
    path.write_text(text.replace("000002.jpg -1", "000002.jpg", 1).replace("000002.jpg  1", "000002.jpg", 1))
    with pytest.raises(UserError, match="line 4 of .*list_attr_celeba.txt has 40 cells, 41 are needed"):
        find_sources(str(celeba))
    for wrong, message in (("", "is empty"), ("hello world\n", "not an attribute file"), ("\xff\xfe", "not text in UTF-8")):
        path.write_bytes(wrong.encode("latin1"))
        with pytest.raises(UserError, match=message):
            find_sources(str(celeba))


def test_a_partition_with_a_wrong_word(celeba):
    (celeba / "list_eval_partition.txt").write_text("".join(f"{number_name(n)} {n if n == 7 else 0}\n" for n in range(1, 61)))
    with pytest.raises(UserError, match="line 7 of .* has the split '7'"):
        find_sources(str(celeba))


def test_a_plain_folder(photos):
    [source] = find_sources(str(photos))
    assert source.kind == "images" and source.names == [f"p{n:02d}.png" for n in range(12)] and source.attributes.shape == (12, 0)
    assert np.array_equal(source.splits, hash_splits(source.names))


def test_hashed_splits_are_a_tenth_and_never_move():
    names = [f"{n}.png" for n in range(5000)]
    splits = hash_splits(names)
    assert abs(splits.mean() - 0.1) < 0.015 and set(splits) == {0, 1}
    assert np.array_equal(hash_splits(names[::-1])[::-1], splits)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_with_a_csv_of_attributes(photos, tmp_path, zipped):
    rows = [f'p{n:02d}.png,{n % 2},{"yes" if n < 3 else "no"},{2 * (n % 3 == 0) - 1},{20 + n},{["train", "val", "test"][n % 3]}'
            for n in range(12)]
    table = "\ufefffile,odd,early,third,age,split\r\n" + "\r\n".join(rows) + "\r\n"
    if zipped:
        given = zip_folder(photos, tmp_path / "faces.zip", "faces/")
        (tmp_path / "faces.csv").write_text(table, encoding="utf-8")
    else:
        given = photos
        (photos / "labels.csv").write_text(table, encoding="utf-8")
    [source] = find_sources(str(given))
    n = np.arange(12)
    assert source.attribute_names == ("odd", "early", "third")
    assert np.array_equal(source.attributes, np.stack([n % 2, n < 3, n % 3 == 0], axis=1))
    assert np.array_equal(source.splits, n % 3)
    assert "age" in source.notes[0] and source.skipped == {}


def test_what_mien_sample_writes_can_be_prepared(photos):
    (photos / "attributes.csv").write_text("file,Male\n" + "".join(f"p{n:02d}.png,{n % 2}\n" for n in range(12)))
    (photos / "other.csv").write_text("a,b\n1,2\n")
    assert find_sources(str(photos))[0].attributes[:, 0].tolist() == [0, 1] * 6
    (photos / "attributes.csv").rename(photos / "third.csv")
    with pytest.raises(UserError, match="several CSVs .*attributes.csv"):
        find_sources(str(photos))


def test_class_folders(tmp_path):
    for split, count in (("train", 20), ("test", 3)):
        for name in ("cat", "dog", "owl"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                picture(number, (40, 40)).save(tmp_path / "set" / split / name / f"{number}.png")
    [source] = find_sources(str(tmp_path / "set"))
    assert (source.kind, source.attribute_names) == ("class folders", ("cat", "dog", "owl"))
    assert (source.attributes.sum(axis=1) == 1).all() and source.attributes.sum(axis=0).tolist() == [23, 23, 23]
    dog = source.names.index("train/dog/7.png")
    assert source.attributes[dog].tolist() == [0, 1, 0]
    splits = dict(zip(source.names, source.splits))
    assert all((splits[name] == 2) == name.startswith("test/") for name in source.names) and (source.splits == 1).any()
    [plain] = find_sources(str(tmp_path / "set/train"))
    assert plain.attribute_names == ("cat", "dog", "owl")
    [one] = find_sources(str(tmp_path / "set/train/cat"))
    assert one.attribute_names == () and one.kind == "images"


def folders_of_pictures(root, *names, count=3):
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(number, (40, 40)).save(root / name / f"{number}.png")
    return root


def test_folders_of_splits_beside_others_are_refused(tmp_path):
    root = folders_of_pictures(tmp_path / "set", "train", "val", "extra")
    with pytest.raises(UserError, match="has the folders of splits train, val beside extra: put each"):
        find_sources(str(root))


def test_folders_that_a_stray_picture_keeps_from_being_classes_are_told(tmp_path):
    root = folders_of_pictures(tmp_path / "set", "happy", "sad")
    assert find_sources(str(root))[0].notes == []
    picture(0, (40, 40)).save(root / "cover.jpg")
    [source] = find_sources(str(root))
    assert source.attribute_names == ()
    assert source.notes == ["the folders happy, sad were not taken as classes, because cover.jpg stands beside them"]
    split = folders_of_pictures(tmp_path / "split", "train", "val")
    picture(0, (40, 40)).save(split / "cover.jpg")
    assert "train, val were not taken as splits" in find_sources(str(split))[0].notes[0]


def test_class_folders_and_their_zip_have_the_same_names_and_splits(tmp_path):
    root = folders_of_pictures(tmp_path / "set", "happy", "sad", count=20)
    [folder], [archive] = find_sources(str(root)), find_sources(str(zip_folder(root, tmp_path / "set.zip", "set/")))
    assert folder.names == archive.names and folder.names[0] == "happy/0.png"
    assert np.array_equal(folder.splits, archive.splits) and np.array_equal(folder.attributes, archive.attributes)


def test_a_table_parted_by_tabs(photos):
    (photos / "labels.tsv").write_text("file\tMale\n" + "".join(f"p{n:02d}.png\t{n % 2}\n" for n in range(12)))
    [source] = find_sources(str(photos))
    assert source.attribute_names == ("Male",) and source.attributes[:, 0].tolist() == [0, 1] * 6 and source.skipped == {}


def test_the_number_of_a_sampled_face_is_no_attribute(tmp_path):
    root = folders_of_pictures(tmp_path / "drawn", ".", count=2)
    (root / "attributes.csv").write_text("name,seed,Male\n0.png,0,1\n1.png,1,0\n")
    assert find_sources(str(root))[0].attribute_names == ("seed", "Male")     # somebody's own column
    (root / "provenance.json").write_text("{}")
    [source] = find_sources(str(root))
    assert source.attribute_names == ("Male",) and source.attributes.tolist() == [[1], [0]] and source.notes == []


def test_names_that_differ_in_their_case_are_said_so(photos):
    (photos / "attributes.csv").write_text("file,Male\n" + "".join(f"P{n:02d}.PNG,{n % 2}\n" for n in range(12)))
    with pytest.raises(UserError, match="p00.png is P00.PNG there; capital and small letters must be the same"):
        find_sources(str(photos))


def test_only_celebas_own_lists_are_to_be_downloaded_again(photos, celeba):
    (photos / "attributes.csv").write_text("file,Male\np00.png\n")
    (celeba / "list_attr_celeba.txt").write_text("")
    for root, advice in ((photos, "; mend it$"), (celeba, "; download it again, or mend it$")):
        if root == photos:
            (photos / "attributes.csv").write_text("file,Male\n" + "".join(f"p{n:02d}.png\n" for n in range(12)))
        with pytest.raises(UserError, match=advice):
            find_sources(str(root))


@pytest.mark.parametrize(("table", "complaint"), [
    ("file,Male\n{0},1\n{1},0\n{0},0\n", r"lines 2 and 4 of attributes.csv both describe a.png, and differ"),
    ("Male,file\n1,{0}\n0,{1}\n", r"no row for any of the 2 images .*its rows begin with 1, 0; the file names must be its first column"),
])
def test_a_table_that_would_mislead_is_refused(tmp_path, table, complaint):
    for number, name in enumerate(("a.png", "b.png")):
        picture(number, (64, 64)).save(tmp_path / name)
    (tmp_path / "attributes.csv").write_text(table.format("a.png", "b.png"))
    with pytest.raises(UserError, match=complaint):
        find_sources(str(tmp_path))
    [bare] = find_sources(str(tmp_path), annotated=False)
    assert bare.names == ["a.png", "b.png"] and bare.attribute_names == ()


def test_a_column_left_out_is_said_with_the_cell_that_spoilt_it(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        picture(number, (64, 64)).save(tmp_path / name)
    (tmp_path / "attributes.csv").write_text("file,Male,Smiling,Hair\na.png,1,-1,0\nb.png,0,,2\n")
    [source] = find_sources(str(tmp_path))
    assert source.attribute_names == ("Male",)
    assert source.notes[0].endswith("left out: Smiling ('' in line 3), Hair ('2' in line 3)")


def write_cifar(folder, rows=6):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    batches = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        data = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels = [int(label) for label in rng.integers(0, 10, rows)]
        batches[name] = data, labels
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels, "filenames": [f"{name}_{n}.png" for n in range(rows)]}))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return batches


def test_cifar_batches(tmp_path):
    batches = write_cifar(tmp_path / "cifar-10-batches-py")
    [source] = find_sources(str(tmp_path))
    assert source.kind == "CIFAR-10" and source.attribute_names[3] == "cat" and len(source.names) == 18
    data, labels = batches["data_batch_2"]
    place = source.names.index("data_batch_2/data_batch_2_4.png")
    assert source.attributes[place].tolist() == [int(labels[4] == column) for column in range(10)]
    image = np.asarray(pickle.loads(pickle.dumps(source.reader)).read(source.keys[place]))
    assert np.array_equal(image, data[4].reshape(3, 32, 32).transpose(1, 2, 0))
    assert all((split == 2) == name.startswith("test_batch") for name, split in zip(source.names, source.splits))

    meta = {"label_names": [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]}
    (tmp_path / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    assert find_sources(str(tmp_path))[0].attribute_names[3] == "cat"      # bytes, as Python 3 writes them

    batch = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_2").read_bytes())
    batch["data"][4, 1000] ^= 1
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps(batch))
    again = find_sources(str(tmp_path))[0].marks
    assert [old == new for old, new in zip(source.marks, again)] == [at != place for at in range(18)]


class Evil:
    def __reduce__(self):
        return print, ("the pickle ran code",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, capsys):
    write_cifar(tmp_path / "c")
    (tmp_path / "c/data_batch_1").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(UserError, match=r"not a CIFAR batch \(it wants to call builtins.print\)"):
        find_sources(str(tmp_path / "c"))
    assert capsys.readouterr().out == ""
    for wrong in (b"no pickle", pickle.dumps([1]), pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]})):
        (tmp_path / "c/data_batch_1").write_bytes(wrong)
        with pytest.raises(UserError, match="is not a CIFAR"):
            find_sources(str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("good.png", b"x")
        file.writestr(name, b"x")
    with pytest.raises(UserError, match="unsafe name"):
        find_sources(str(tmp_path / "z.zip"))


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("huge.bmp", "w") as entry:
        for _ in range(257):
            entry.write(bytes(2**20))
    assert (tmp_path / "z.zip").stat().st_size < 2**21
    with pytest.raises(UserError, match="unpacks to 257 MB"):
        find_sources(str(tmp_path / "z.zip"))


def test_systems_leftovers_are_no_images(photos, tmp_path):
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "Thumbs.db").write_bytes(b"x")
    (photos / "__MACOSX").mkdir()
    (photos / "__MACOSX/._p00.png").write_bytes(b"x")
    (photos / "README.md").write_text("hello")
    (photos / "todo.txt").write_text("hello")
    for given in (photos, zip_folder(photos, tmp_path / "z.zip")):
        [source] = find_sources(str(given))
        assert len(source.names) == 12 and source.skipped == {"todo.txt": "not an image file"}


def test_nothing_there(tmp_path, small_store):
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.tar").write_bytes(b"x")
    (tmp_path / "broken.zip").write_bytes(b"PK not really")
    for name, message in ((tmp_path / "empti", "no such folder or zip file: .*Did you mean empty"), (tmp_path / "empty", "holds no images"),
                          (tmp_path / "some.tar", "neither a folder nor a zip"), (tmp_path / "broken.zip", "damaged zip"),
                          (tmp_path / "no/where", "no such folder"), (small_store.path, "prepared store already"),
                          ("kaggle:celeba", "write kaggle:owner/name")):
        with pytest.raises(UserError, match=message):
            find_sources(str(name))


def test_hub_names_say_which_extra_is_missing(monkeypatch):
    for package, name in (("kagglehub", "kaggle:owner/name"), ("datasets", "hf:owner/name")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"needs the package {package}; install it with: pip install 'mien\[hub\]'"):
            find_sources(name)


def test_kaggle_names_go_through_kagglehub(celeba, monkeypatch):
    asked = []
    fake = types.SimpleNamespace(dataset_download=lambda handle: asked.append(handle) or str(celeba))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert find_sources("kaggle:jessicali9530/celeba-dataset")[0].kind == "CelebA" and asked == ["jessicali9530/celeba-dataset"]

    def fail(handle):
        raise ConnectionError("no\nnetwork")

    fake.dataset_download = fail
    with pytest.raises(UserError, match="could not download a/b: no network"):
        find_sources("kaggle:a/b")


class FakeTable:
    """As much of a datasets.Dataset as is used: rows by number, columns by name, cast_column."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def __len__(self):
        return len(self.columns["image"])

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}

    def cast_column(self, name, feature):
        assert name == "image" and feature.decode is False
        return self


def test_hugging_face_names_go_through_datasets(monkeypatch):
    class Image:
        def __init__(self, decode=True):
            self.decode = decode

    features = {"image": Image(), "Smiling": types.SimpleNamespace(dtype="bool"), "age": types.SimpleNamespace(dtype="int64"),
                "label": types.SimpleNamespace(dtype="int64", names=["cat", "dog", "owl"])}
    file = io.BytesIO()
    picture(0, (40, 40)).save(file, "PNG")
    cell = {"bytes": file.getvalue(), "path": None}
    tables = {"train": FakeTable({"image": [cell] * 3, "Smiling": [True, False, True], "age": [20, 30, 40], "label": [0, 1, 2]}, features),
              "test": FakeTable({"image": [cell], "Smiling": [False], "age": [50], "label": [1]}, features)}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name: tables, Image=Image))
    [source] = find_sources("hf:owner/faces")
    assert source.names == ["train/0", "train/1", "train/2", "test/0"] and source.splits[-1] == 2
    assert source.attribute_names == ("Smiling", "cat", "dog", "owl")
    assert source.attributes.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    assert source.reader.read("train/1") == file.getvalue()
