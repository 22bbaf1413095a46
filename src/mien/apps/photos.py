"""A person's own photo: read safely, then cropped as the training faces were.

Reading trusts nothing: size and kind are checked before a pixel is decoded. Aligning finds the face and its eyes with the Haar cascades of
OpenCV (Viola & Jones 2001; the extra `photo`) and brings the eyes to where the aligned CelebA images have them, by a similarity transform.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mien.data.formats import CELEBA_CROPS, check_crop, is_framed, render, upright
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000  # a telephone's camera has 48 or 50 megapixels
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # decoders that read pixels and start no other program
MIN_SIDE_PX = 16

# Where the cascades see the eyes and the face of aligned CelebA images, 178x218 px: medians over 300 of them (their spread: 1.2 px across,
# 0.7 px down). The annotated eyes lie within a pixel of these; using the cascade's own places cancels its bias.
EYES = (68.6 + 112.2j, 108.1 + 112.3j)  # x + iy, the eye on the left of the picture first
FACE_CENTRE, FACE_SIDE = 88.6 + 124.1j, 102.5

TILTS = (0, -15, 15, -30, 30, -45, 45)  # degrees tried: a cascade sees faces upright to 10 or so
WORK_PX = 512  # longest side of the picture that is searched
SURE_HITS = 8  # overlapping detections that count as a face although its eyes are not seen
METHODS = ("auto", "square", "whole")
_LOCK = threading.Lock()  # a cascade is no thread's own: it may look at one picture at a time


@dataclass(frozen=True)
class Face:
    """A face found in a photo. frame_to_photo: (a, b), complex, such that a point x + iy of the 178x218 CelebA frame lies at
    a * point + b of the photo (pixels, from its top left corner). eyes: how many were found, 0 to 2."""

    frame_to_photo: tuple[complex, complex]
    eyes: int
    hits: int  # overlapping detections: how sure the cascade is


@dataclass(frozen=True)
class Aligned:
    """image: uint8 [R, R, 3]. how: what was done, in words. face: where it was found, None when it was not looked for."""

    image: np.ndarray
    how: str
    face: Face | None


# ------------------------------------------------------------------------------------------------------------------------------
# Reading


def read_photo(source: str | Path | bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture file, or its bytes, as uint8 [H, W, 3] RGB, upright (EXIF orientation applied), transparency on white, 16 bits made 8.

    UserError, in one line, for what is missing, no picture, of an unknown kind, cut short, or larger than `max_bytes` or `max_pixels`;
    a picture too large is refused before it is decoded. Of several frames or pages the first is taken.
    """
    name = "The picture" if isinstance(source, bytes) else _printable(source)
    content = source if isinstance(source, bytes) else _content(Path(source), name, max_bytes)
    if len(content) > max_bytes:
        raise UserError(f"{name} is {len(content) / 2**20:.0f} MB: photos of up to {max_bytes / 2**20:.0f} MB are read. Save it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the count below is stricter
            image = Image.open(io.BytesIO(content), formats=KINDS)
        _check_pixels(image, name, max_pixels)
        image.load()
        return _rgb(upright(image), name)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not a picture that can be read: give a PNG, JPEG, WebP, BMP, GIF or TIFF.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} has far more than {max_pixels / 1e6:.0f} million pixels. Save it smaller.") from None
    except MemoryError:
        raise UserError(f"{name} is too large for this machine's memory. Save it smaller.") from None
    except Exception as error:  # decoders fail in many ways on damaged files (OSError, ValueError, struct.error, SyntaxError ...)
        reason = "is cut short" if "truncated" in str(error).lower() else f"is damaged ({_one_line(error)})"
        raise UserError(f"{name} {reason}: it cannot be read to its end. Copy or save it again.") from None


def _content(path: Path, name: str, max_bytes: int) -> bytes:
    if path.is_dir():
        raise UserError(f"{name} is a folder: name one picture in it.")
    if not path.is_file():  # nor a pipe or a device, which may never end
        raise UserError(f"There is no picture {name}.")
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes + 1) if path.stat().st_size <= max_bytes else b"\0" * (max_bytes + 1)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from None


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UserError(f"{name} is {image.width}x{image.height}, {image.width * image.height / 1e6:.0f} million pixels: up to "
                        f"{max_pixels / 1e6:.0f} million are read. Save it smaller.")  # fmt: skip
    if min(image.size) < MIN_SIDE_PX:
        raise UserError(f"{name} is {image.width}x{image.height} pixels: too small for a face. Give a larger picture.")


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """Any decoded picture as uint8 [H, W, 3]."""
    if image.mode == "F":
        raise UserError(f"{name} holds fractional numbers instead of colours. Save it with 8 or 16 bits a channel.")
    if image.mode == "I" or image.mode.startswith("I;"):  # 16-bit grey; "I" is how older versions of Pillow open it
        grey = np.asarray(image).astype(np.float32)
        scale = 255 / 65535 if grey.max(initial=0) > 255 or image.mode.startswith("I;16") else 1.0
        return np.repeat((grey * scale).round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _printable(path: str | Path) -> str:
    """A path for a message of one line: line breaks and bytes that are no text are shown as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in os.fspath(path))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


# ------------------------------------------------------------------------------------------------------------------------------
# Aligning


def trained_crop(generator: LoadedGenerator) -> str:
    """How a photo is to be cropped for a generator: as the faces that it was trained on; "whole" when its snapshot does not say."""
    crop = generator.crop or "whole"
    return "center178" if crop == "drawn" else crop  # drawn faces stand as those of center178 do: explore.regions.CROPS


def judged(judge: Judge, picture: Tensor, names: Sequence[str]) -> Tensor | None:
    """How likely each of the attributes `names` is in a picture, uint8 [1, 3, R, R]: [1, A]; None when the judge does not know them all."""
    import torch

    if not names or not set(names) <= set(judge.attribute_names):
        return None
    seen = torch.as_tensor(judge.probabilities(picture))
    return seen[:, [judge.attribute_names.index(name) for name in names]].float()


def align(photo: np.ndarray, *, crop: str, size: int, method: str = "auto") -> Aligned:
    """A photo (uint8 [H, W, 3]) as a training face: uint8 [size, size, 3], cropped as `crop` (data.formats.CROPS) says.

    method "auto": a picture of exactly size x size is taken as it is; one of CelebA's shape (178x218 or a scaled copy) is cropped directly;
    in any other the face is found and its eyes brought to CelebA's places (for the crops "square" and "whole" nothing is looked for).
    "square" takes the middle square, "whole" all of it, scaled. Beyond its edge the photo's outermost pixels are repeated, as in CelebA.
    UserError when there is no face to be found, or the extra `photo` is missing.
    """
    check_crop(crop)
    if method not in METHODS:
        raise UserError(f"No way to crop is called {method!r}: say {', '.join(METHODS)}.{did_you_mean(method, METHODS)}")
    height, width = photo.shape[:2]
    if method == "auto" and (width, height) == (size, size):
        return Aligned(photo.copy(), "taken as it is, of the model's size", None)
    chosen = crop if method == "auto" else method
    if chosen in CELEBA_CROPS and not is_framed(width, height):
        face = find_face(photo)
        if face is None:
            raise UserError("No face was found in the photo: give one with the face upright, from the front and well lit, or crop it "
                            "around the head yourself and say --crop square.")  # fmt: skip
        how = "aligned by the eyes" if face.eyes == 2 else "aligned by the face's outline, the eyes were not found"
        return Aligned(_sample(photo, face.frame_to_photo, CELEBA_CROPS[chosen], (size, size)), how, face)
    picture = render(Image.fromarray(photo), crop=chosen, size=size, allow_upscale=True)  # pixel for pixel as a store has it
    words = {"square": "the middle square", "whole": "the whole picture"}
    return Aligned(np.array(picture), words.get(chosen, f"cropped as {chosen}, from CelebA's frame"), None)


def find_face(photo: np.ndarray) -> Face | None:
    """The clearest face of a photo (uint8 [H, W, 3]), leaning up to 50 degrees either way; None when there is none.

    UserError when OpenCV or its cascades are missing.
    """
    cascades = _cascades()
    longest = max(photo.shape[:2])
    scale = WORK_PX / longest  # photo px -> searched px
    small = Image.fromarray(photo).convert("L").resize((max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))),
                                                       Image.Resampling.LANCZOS)  # fmt: skip
    margin = WORK_PX // 6  # a face that fills the picture needs room around it
    grey = np.pad(np.asarray(small), margin, mode="edge")
    with _LOCK:
        found = [each for tilt in TILTS if (each := _upright_face(grey, tilt, cascades["face"]))]
        faces = []
        for _, hits, a, b in sorted(found, key=lambda each: -each[0])[:3]:
            faces.append(_by_the_eyes(photo, (a / scale, (b - margin * (1 + 1j)) / scale), hits, cascades["eyes"]))
            if faces[-1].eyes == 2:
                return faces[-1]
    return next((face for face in faces if face.hits >= SURE_HITS), None)


def _by_the_eyes(photo: np.ndarray, frame_to_photo: tuple[complex, complex], hits: int, cascades: list[Any]) -> Face:
    """A face that the cascade put at `frame_to_photo`, moved so that its eyes, if both are seen, come to their places."""
    a, b = frame_to_photo
    seen = 0
    for _ in range(2):  # the second look is at a face already upright, where the cascades are surest
        eyes = _find_eyes(photo, (a, b), cascades)
        seen = max(seen, len(eyes))
        if len(eyes) == 2:
            left, right = (a * eyes[side] + b for side in (0, 1))
            a = (right - left) / (EYES[1] - EYES[0])
            b = left - a * EYES[0]
    return Face((a, b), seen, hits)


def _upright_face(grey: np.ndarray, tilt: float, cascade: Any) -> tuple[float, int, complex, complex] | None:
    """(rank, hits, a, b) of the clearest face in `grey` when it is turned back by `tilt` degrees: frame point -> a * point + b in grey."""
    turned = Image.fromarray(grey).rotate(tilt, Image.Resampling.BILINEAR, fillcolor=128) if tilt else Image.fromarray(grey)
    boxes, counts = cascade.detectMultiScale2(np.asarray(turned), scaleFactor=1.1, minNeighbors=3, minSize=(40, 40))
    if not len(boxes):
        return None
    best = max(range(len(boxes)), key=lambda i: counts[i] * boxes[i][2])
    x, y, side, _ = (float(edge) for edge in boxes[best])
    turn = complex(np.exp(1j * np.radians(tilt)))  # PIL turns counterclockwise as seen: the turned picture's axes lie so in grey
    middle = complex(grey.shape[1], grey.shape[0]) / 2
    centre = middle + (complex(x + side / 2, y + side / 2) - middle) * turn
    a = turn * side / FACE_SIDE
    return float(counts[best]) * side, int(counts[best]), a, centre - a * FACE_CENTRE


def _find_eyes(photo: np.ndarray, frame_to_photo: tuple[complex, complex], cascades: list[Any]) -> dict[int, complex]:
    """{side: place in the CelebA frame} of the eyes seen in a face aligned by `frame_to_photo`."""
    zoom, (left, top, right, bottom) = 3, (38, 78, 140, 146)  # the frame's part that is searched, px
    patch = _sample(photo, frame_to_photo, (left, top, right, bottom), (zoom * (right - left), zoom * (bottom - top)))
    band = np.asarray(Image.fromarray(patch).convert("L"))
    eyes: dict[int, complex] = {}
    middle = zoom * 51
    for side, part in enumerate((slice(0, middle + 24), slice(middle - 24, None))):
        seen: list[complex] = []
        weights: list[float] = []
        for cascade in cascades:
            boxes, counts = cascade.detectMultiScale2(np.ascontiguousarray(band[:, part]), scaleFactor=1.05, minNeighbors=3,
                                                      minSize=(45, 45), maxSize=(120, 120))  # fmt: skip
            if len(boxes):
                best = int(np.argmax(counts))
                x, y, w, h = (float(edge) for edge in boxes[best])
                seen.append(complex((x + (part.start or 0) + w / 2) / zoom + left, (y + h / 2) / zoom + top))
                weights.append(float(counts[best]))
        if seen:
            eyes[side] = complex(np.average(seen, weights=weights))
    span = eyes[1] - eyes[0] if len(eyes) == 2 else 0j
    plausible = 26 < abs(span) < 54 and abs(np.degrees(np.angle(span))) < 25 if len(eyes) == 2 else False
    return eyes if plausible else dict(list(eyes.items())[:1])


def _sample(photo: np.ndarray, frame_to_photo: tuple[complex, complex], box: tuple[float, float, float, float],
            size: tuple[int, int]) -> np.ndarray:  # fmt: skip
    """The part `box` of the CelebA frame as (width, height) `size` pixels of the photo, antialiased: uint8 [height, width, 3]."""
    a, b = frame_to_photo
    left, top, right, bottom = box
    shrink = max(1, int(abs(a) * (right - left) / size[0]))  # whole photo pixels under one of the result
    corners = np.array([a * complex(x, y) + b for x in (left, right) for y in (top, bottom)])
    x0, y0 = (int(np.floor(part.min())) - 2 * shrink for part in (corners.real, corners.imag))
    x1, y1 = (int(np.ceil(part.max())) + 2 * shrink for part in (corners.real, corners.imag))
    height, width = photo.shape[:2]
    inside = photo[np.clip(y0, 0, height - 1):np.clip(y1, 1, height), np.clip(x0, 0, width - 1):np.clip(x1, 1, width)]
    beyond = (_overhang(y0, y1, height), _overhang(x0, x1, width), (0, 0))
    picture = Image.fromarray(np.pad(inside, beyond, mode="edge")).reduce(shrink)
    step = (right - left) / (2 * size[0]) / shrink  # frame px per pixel of a result twice as large, in pixels of the shrunk picture
    origin = (a * complex(left, top) + b - complex(x0, y0)) / shrink
    matrix = (a.real * step, -a.imag * step, origin.real, a.imag * step, a.real * step, origin.imag)
    fine = picture.transform((2 * size[0], 2 * size[1]), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.array(fine.resize(size, Image.Resampling.LANCZOS))


def _overhang(first: int, last: int, length: int) -> tuple[int, int]:
    """How many of first..last lie before 0 and past `length`, when at least one pixel inside is kept."""
    return min(max(0, -first), last - first - 1), min(max(0, last - length), last - first - 1)


@functools.cache
def _cascades() -> dict[str, Any]:
    try:
        import cv2
    except ImportError:
        raise UserError("Finding the face in a photo needs OpenCV: pip install 'mien[photo]', or crop the photo around the head yourself "
                        "and say --crop square.") from None  # fmt: skip
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has no cascades any more
        raise UserError(f"OpenCV {cv2.__version__} has no Haar cascades: pip install 'opencv-python-headless<5', or say --crop square.")
    folder = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    load = {name: cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml")) for name in
            ("frontalface_alt2", "eye", "eye_tree_eyeglasses")}  # fmt: skip
    if any(each.empty() for each in load.values()):
        raise UserError("OpenCV came without its Haar cascades: pip install --force-reinstall 'opencv-python-headless<5'.")
    return {"face": load["frontalface_alt2"], "eyes": [load["eye"], load["eye_tree_eyeglasses"]]}


def face_seen(image: np.ndarray) -> bool:
    """Whether the cascade sees an upright face in the middle of an aligned picture, uint8 [R, R, 3]. UserError when OpenCV is missing."""
    cascades = _cascades()
    grey = Image.fromarray(image).convert("L").resize((256, 256), Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(grey), 48, mode="edge")
    with _LOCK:
        boxes, _ = cascades["face"].detectMultiScale2(padded, scaleFactor=1.1, minNeighbors=2, minSize=(80, 80))
    return any(abs(x + side / 2 - 176) < 64 and abs(y + side / 2 - 176) < 64 for x, y, side, _ in boxes)
