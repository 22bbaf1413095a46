import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from mien.data.formats import (
    CELEBA_CROPS,
    BadImageError,
    UnfitImageError,
    check_crop,
    check_size,
    crop_box,
    open_picture,
    render,
    upright_size,
)
from mien.errors import UserError

from .conftest import picture

STATED = {  # the boxes of the design, written out again by hand
    "center178": (0, 20, 178, 198), "center148": (15, 35, 163, 183), "center140": (19, 39, 159, 179), "box128": (25, 57, 153, 185),
    "center108": (35, 55, 143, 163), "whole": (0, 0, 178, 218), "square": (0, 20, 178, 198)}


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("crop", STATED)
def test_a_prepared_image_is_pillows_crop_and_lanczos_bit_for_bit(crop):
    data = encoded(picture(1), "JPEG", quality=90)
    reference = Image.open(io.BytesIO(data)).convert("RGB").crop(STATED[crop]).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(render(open_picture(data), crop=crop, size=64), np.asarray(reference))


def test_boxes_scale_with_copies_of_the_frame():
    assert crop_box("center178", 89, 109) == (0, 10, 89, 99)
    assert crop_box("center148", 89, 109) == (7.5, 17.5, 81.5, 91.5)
    assert crop_box("box128", 356, 436) == (50, 114, 306, 370)
    image = picture(2, (89, 109))
    reference = image.resize((64, 64), Image.Resampling.LANCZOS, box=(7.5, 17.5, 81.5, 91.5))
    assert np.array_equal(render(open_picture(encoded(image)), crop="center148", size=64), np.asarray(reference))


@pytest.mark.parametrize("crop", CELEBA_CROPS)
def test_a_celeba_crop_of_another_shape_is_refused(crop):
    with pytest.raises(UnfitImageError, match="300x300, not the shape"):
        crop_box(crop, 300, 300)


def test_square_is_the_largest_and_centred():
    assert crop_box("square", 300, 200) == (50, 0, 250, 200)
    assert crop_box("square", 200, 301) == (0, 50, 200, 250)


def test_small_images_are_refused_unless_allowed():
    image = open_picture(encoded(picture(3, (60, 60))))
    with pytest.raises(UnfitImageError, match="only 60x60"):
        render(image, crop="square", size=64)
    assert render(image, crop="square", size=64, allow_upscale=True).shape == (64, 64, 3)


def test_exif_orientation_is_respected():
    image = picture(4, (120, 80))
    exif = Image.Exif()
    exif[0x0112] = 6    # the camera was turned: shown upright it is 80x120
    turned = open_picture(encoded(image, exif=exif))
    assert upright_size(turned) == (80, 120)
    upright = image.transpose(Image.Transpose.ROTATE_270).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(render(turned, crop="whole", size=64), np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(4, (120, 80)), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright_size(open_picture(data)) == upright.size
    found = render(open_picture(data), crop="square", size=64)
    assert np.array_equal(found, render(open_picture(encoded(upright)), crop="square", size=64))


@pytest.mark.parametrize("orientation", [0, 9, 600])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(4, (120, 80))
    odd = open_picture(encoded(image, exif=exif))
    assert upright_size(odd) == (120, 80)
    upright = image.resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(render(odd, crop="whole", size=64), np.asarray(upright))


def exif_with_a_width_as_text(orientation):
    """EXIF whose width is text, as careless programs write it: Pillow reads it and cannot write it again."""
    entries = struct.pack("<HHI4s", 0x0100, 2, 4, b"120\0") + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


@pytest.mark.parametrize(("exif", "turned"), [(exif_with_a_width_as_text(6), True), (b"Exif\0\0II", False), (b"Exif\0\0", False)])
def test_odd_exif_does_not_stop_a_picture(exif, turned):
    image = picture(4, (120, 80))
    odd = open_picture(encoded(image, "JPEG", quality=95, exif=exif))
    assert upright_size(odd) == ((80, 120) if turned else (120, 80))
    plain = Image.open(io.BytesIO(encoded(image, "JPEG", quality=95)))
    upright = (plain.transpose(Image.Transpose.ROTATE_270) if turned else plain).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(render(odd, crop="whole", size=64), np.asarray(upright))


def see_through(mode):
    """64x64: an opaque green square on a red that is wholly transparent, but for its left quarter, which is half so where the mode can."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[...] = 255, 0, 0, 0
    pixels[:, :16, 3] = 128
    pixels[16:48, 16:48] = 0, 200, 0, 255
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        return encoded(image.convert(mode))
    flat = Image.new("RGB", (64, 64), (255, 0, 0))
    flat.paste((0, 200, 0), (16, 16, 48, 48))
    if mode == "RGB":
        return encoded(flat, transparency=(255, 0, 0))
    palette = flat.quantize(2)
    return encoded(palette, "GIF" if mode == "GIF" else "PNG", transparency=palette.getpixel((0, 0)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P", "GIF"])
def test_transparent_pixels_are_white(mode):
    found = render(open_picture(see_through(mode)), crop="whole", size=64).astype(int)
    assert (found[2, 60] == 255).all()
    opaque = [117] * 3 if mode == "LA" else [0, 200, 0]     # the grey of that green
    assert np.abs(found[32, 32] - opaque).max() <= 2
    if mode == "RGBA":
        assert np.abs(found[2, 2] - [255, 127, 127]).max() <= 1     # half of red, half of white


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_pixel_kinds_become_rgb(mode):
    image = picture(5, (64, 64)).convert(mode)
    found = render(open_picture(encoded(image, "TIFF")), crop="square", size=32)
    reference = image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(found, np.asarray(reference))


@pytest.mark.parametrize(("data", "reason"), [
    (b"hello, I am a text file", "not an image"), (b"", "not an image"), (encoded(picture(6), "JPEG")[:3000], "cut short"),
    (encoded(picture(6), "PNG")[:9000], "."), (encoded(Image.new("I;16", (64, 64)), "PNG"), "8 bits")])
def test_what_is_no_picture_says_why(data, reason):
    with pytest.raises(BadImageError, match=reason):
        render(open_picture(data), crop="square", size=32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_500, 20_000])     # above our limit; above Pillow's own
def test_decompression_bombs_are_not_decoded(side):
    with pytest.raises(BadImageError, match="bomb"):
        open_picture(encoded(Image.new("1", (side, side)), "PNG"))


@pytest.mark.parametrize("size", [0, 16, 48, 63, 2048])
def test_sizes_are_powers_of_two(size):
    with pytest.raises(UserError, match="power of two from 32 to 1024"):
        check_size(size)


def test_an_unknown_crop_gets_the_nearest():
    with pytest.raises(UserError, match="Did you mean center178"):
        check_crop("centre178")
