import io
import struct

import numpy as np
import pytest
from PIL import Image

from mien.apps.photos import align, find_face, read_photo, trained_crop
from mien.data.synthetic import draw_faces
from mien.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_every_kind_of_picture_becomes_rgb():
    grey = PIXELS[..., 0]
    assert np.array_equal(read_photo(encoded(Image.fromarray(PIXELS))), PIXELS)
    assert np.array_equal(read_photo(encoded(Image.fromarray(grey)))[..., 2], grey)
    assert np.array_equal(read_photo(encoded(Image.fromarray(grey.astype(np.uint16) * 257)))[..., 1], grey)  # 16 bits
    clear = np.dstack([PIXELS, np.zeros_like(grey)])
    assert (read_photo(encoded(Image.fromarray(clear))) == 255).all()  # what is transparent is white
    assert read_photo(encoded(Image.fromarray(PIXELS).convert("CMYK"), "TIFF")).shape == (40, 60, 3)


def test_a_photo_taken_with_the_camera_on_its_side_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(read_photo(encoded(Image.fromarray(PIXELS), exif=exif)), np.rot90(PIXELS, -1))


def test_odd_exif_does_not_stop_a_photo():
    """Its width is text, as careless programs write it: Pillow reads that and cannot write it again."""
    entries = struct.pack("<HHII", 0x0100, 2, 4, int.from_bytes(b"60\0\0", "little")) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    odd = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    assert read_photo(encoded(Image.fromarray(PIXELS), "JPEG", exif=odd)).shape == (60, 40, 3)


@pytest.mark.parametrize(("content", "word"), [
    (b"hello", "not a picture"),
    (b"", "not a picture"),
    (encoded(Image.fromarray(PIXELS))[:-3000], "cut short"),
    (encoded(Image.new("L", (10_000, 6_000))), "10000x6000, 60 million pixels"),
    (encoded(Image.new("1", (30_000, 30_000))), "far more than 50 million pixels"),
    (encoded(Image.new("RGB", (4, 4))), "too small"),
    (bytes(33 << 20), "33 MB"),
])  # fmt: skip
def test_what_is_no_fit_picture_is_refused_in_one_line(content, word, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)  # nothing is decoded that far
    with pytest.raises(UserError, match=word) as caught:
        read_photo(content)
    assert "\n" not in str(caught.value)


def test_odd_names_are_read_and_told_in_one_line(tmp_path):
    path = tmp_path / "a b\n'ü;$x.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS)))
    assert np.array_equal(read_photo(path), PIXELS)
    with pytest.raises(UserError) as caught:
        read_photo(tmp_path / "no\nsuch\x1b.png")
    assert "no\\nsuch\\x1b.png" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="a folder"):
        read_photo(tmp_path)


def test_a_picture_of_celebas_shape_or_the_models_size_is_taken_directly():
    frame = np.tile(np.arange(178, dtype=np.uint8)[None, :, None], (218, 1, 3))
    frame[:20] = frame[198:] = 255  # outside center178
    assert align(frame, crop="center178", size=64).image.max() < 180
    same = align(PIXELS[:32, :32], crop="center178", size=32)
    assert np.array_equal(same.image, PIXELS[:32, :32]) and same.face is None
    assert align(PIXELS, crop="center178", size=32, method="square").image.shape == (32, 32, 3)
    with pytest.raises(UserError, match="Did you mean square"):
        align(PIXELS, crop="center178", size=32, method="sqare")


def test_a_picture_without_a_face_is_said_to_have_none():
    pytest.importorskip("cv2")
    with pytest.raises(UserError, match="No face was found"):
        align(np.full((300, 400, 3), 90, np.uint8), crop="center178", size=64)


def test_the_missing_extra_is_named(monkeypatch):
    import sys

    from mien.apps import photos

    photos._cascades.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'mien\[photo\]'"):
        align(PIXELS, crop="center178", size=32)


def test_a_found_face_follows_the_photo_that_moves():
    pytest.importorskip("cv2")
    drawn = draw_faces(1, size=256, start=1)[0][0]
    before, after = find_face(drawn), find_face(np.pad(drawn, ((64, 0), (32, 32), (0, 0)), mode="edge"))
    assert before is not None and after is not None
    nose = 89 + 135j  # of the CelebA frame
    places = [face.frame_to_photo[0] * nose + face.frame_to_photo[1] for face in (before, after)]
    assert abs(places[1] - places[0] - (32 + 64j)) < 25


def test_a_model_of_drawn_faces_takes_photos_where_its_faces_stand(tiny_generator):
    """Toy stores are cropped as `drawn`, which is no crop of a photo: their faces stand as those of center178 do."""
    from dataclasses import replace

    from mien.data.formats import CELEBA_CROPS
    from mien.explore.regions import crop_frame

    drawn, plain = (replace(tiny_generator, meta={"store": {"crop": crop}}) for crop in ("drawn", "center140"))
    assert CELEBA_CROPS[trained_crop(drawn)] == crop_frame("drawn") and trained_crop(plain) == "center140"
    frame = np.tile(np.arange(178, dtype=np.uint8)[None, :, None], (218, 1, 3))
    frame[:20] = frame[198:] = 255  # outside center178
    assert align(frame, crop=trained_crop(drawn), size=32).image.max() < 180
