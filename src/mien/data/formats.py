"""What a picture may be and how it becomes a store's image: sizes, crops in the CelebA frame, decoding, resampling.

Crop boxes are stated in the 178x218 frame of `img_align_celeba` and scale with an image that is a scaled copy of it (89x109).
A box that falls on whole pixels gives exactly `image.crop(box).resize((R, R), LANCZOS)` of Pillow; a box that does not is
resampled in one step by `image.resize((R, R), LANCZOS, box=box)`. Pillow's Lanczos is antialiased: its support grows as it shrinks.
JPEG draft decoding (which shrinks in the decoder) is never used.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from mien.errors import UserError, did_you_mean

FRAME = (178, 218)              # width, height in pixels of an aligned CelebA image
SIZES = (32, 64, 128, 256, 512, 1024)
FILTER = "lanczos"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
MAX_PIXELS = 100_000_000        # more is a decompression bomb, or no face photo
MAX_FILE_BYTES = 256 * 2**20

# (left, top, right, bottom) in the frame; the eyes of the aligned faces lie on y = 111 or so, the nose on x = 89.
CELEBA_CROPS: dict[str, tuple[int, int, int, int]] = {
    "center178": (0, 20, 178, 198),     # the whole width
    "center148": (15, 35, 163, 183),    # as VAE and NCSN codes crop
    "center140": (19, 39, 159, 179),
    "box128": (25, 57, 153, 185),       # PGAN (Karras et al. 2018) and DDIM: centred at (89, 121)
    "center108": (35, 55, 143, 163),    # as the first DCGAN code for CelebA crops
}
CROPS = (*CELEBA_CROPS, "whole", "square")

# EXIF orientation: what turns the stored picture upright. 1 is upright already.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
# What decoders raise on damaged files, and Pillow on odd EXIF, which it reads while it loads a TIFF.
DAMAGED = (OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error)


class BadImageError(Exception):
    """A file that cannot be read as a picture. The message is the reason, a few words; the file is skipped, counted and listed."""


class UnfitImageError(Exception):
    """A sound picture that the crop or the size asked for does not suit. The message says why; the whole preparation stops."""


def check_size(size: int) -> int:
    """`size` if a store may have it: a power of two, 32 to 1024. UserError otherwise."""
    if size not in SIZES:
        raise UserError(f"size {size} is not possible: it must be a power of two from 32 to 1024 ({', '.join(map(str, SIZES))})")
    return size


def check_crop(crop: str) -> str:
    """`crop` if it is the name of one. UserError with the nearest name otherwise."""
    if crop not in CROPS:
        raise UserError(f"no crop is called {crop!r}.{did_you_mean(crop, CROPS)} The crops: {', '.join(CROPS)}")
    return crop


def is_framed(width: int, height: int) -> bool:
    """Whether an image of this size is a scaled copy of the CelebA frame, up to the rounding of its sides to whole pixels."""
    return abs(height - width * FRAME[1] / FRAME[0]) < 1 or abs(width - height * FRAME[0] / FRAME[1]) < 1


def crop_box(crop: str, width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of an image of this size. UnfitImageError for a CelebA crop of an image of another shape."""
    if crop == "whole":
        return 0, 0, width, height
    if crop == "square":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    if not is_framed(width, height):
        raise UnfitImageError(f"is {width}x{height}, not the shape of the {FRAME[0]}x{FRAME[1]} CelebA frame that {crop} needs")
    across, down = width / FRAME[0], height / FRAME[1]
    left, top, right, bottom = CELEBA_CROPS[crop]
    # 89x109 is exactly half the frame; other copies were rounded to whole pixels, so a box within 1/100 px of a whole one is that one.
    exact = (left * across, top * down, right * across, bottom * down)
    whole = tuple(round(edge) if abs(edge - round(edge)) < 0.01 else edge for edge in exact)
    return whole[0], whole[1], whole[2], whole[3]


def is_integral(box: tuple[float, float, float, float]) -> bool:
    """Whether the box falls on whole pixels."""
    return all(float(edge).is_integer() for edge in box)


def check_fit(width: int, height: int, *, crop: str, size: int, allow_upscale: bool = False) -> tuple[float, float, float, float]:
    """The crop box of an image of this size in pixels; UnfitImageError if the crop does not suit it or is under size x size pixels."""
    box = crop_box(crop, width, height)
    across, down = box[2] - box[0], box[3] - box[1]
    if min(across, down) < size and not allow_upscale:
        raise UnfitImageError(f"gives only {across:g}x{down:g} pixels after the crop {crop}, {size}x{size} are asked for")
    return box


def open_picture(source: Path | str | bytes) -> Image.Image:
    """Open an image file, or its bytes, without decoding it yet. BadImageError with the reason when it is none, or far too large."""
    try:
        if isinstance(source, bytes):
            if len(source) > MAX_FILE_BYTES:
                raise BadImageError("file over 256 MB")
            image = Image.open(io.BytesIO(source))
        else:
            image = Image.open(source)
    except Image.DecompressionBombError:
        raise BadImageError("far too many pixels: a decompression bomb?") from None
    except DAMAGED as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else _reason(error)
        raise BadImageError(reason) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width}x{image.height} pixels: a decompression bomb?")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels as a viewer shows it: EXIF orientations 5 to 8 lie on their side."""
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def render(image: Image.Image, *, crop: str, size: int, allow_upscale: bool = False) -> np.ndarray:
    """An opened picture, upright, on white where it is transparent, cropped and resampled: uint8 [size, size, 3] RGB.

    BadImageError when its pixels cannot be decoded, UnfitImageError when the crop or the size does not suit it.
    """
    box = check_fit(*upright_size(image), crop=crop, size=size, allow_upscale=allow_upscale)
    try:
        image = upright(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise BadImageError(f"pixels of kind {image.mode}: save it with 8 bits a channel")
        if image.has_transparency_data:     # what lies under transparent pixels is not part of the picture
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":     # converting RGB to RGB would copy it for nothing
            image = image.convert("RGB")
        if is_integral(box):
            left, top, right, bottom = (int(edge) for edge in box)
            image = image.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.LANCZOS)
        else:
            image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    except DAMAGED as error:
        raise BadImageError(_reason(error)) from None
    return np.asarray(image)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says. Any error of Pillow for a damaged one."""
    turn = TURNS.get(_orientation(image))   # ImageOps.exif_transpose also writes the EXIF anew, which fails where a value of it is odd
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) when there is none, or no such. Looked up only if there is EXIF: parsing costs time."""
    if "exif" not in image.info:
        return 1
    try:
        found = int(image.getexif().get(0x0112, 1))
    except DAMAGED:
        return 1
    return found if found in TURNS else 1


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text or "Truncated" in text:
        return "cut short"
    return text[:80] or type(error).__name__
