"""Moving pictures: frames to an MP4 that every browser plays, a looping GIF, or one PNG strip. A file is there whole or not at all."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mien.errors import UserError

SUFFIXES = (".mp4", ".gif", ".png")
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
MAX_SIDE_PX = 4096  # what H.264 decoders of phones and browsers take
MAX_PICTURE_PX = 100_000_000  # of a strip
MAX_GIF_PX = 400_000_000  # of all frames together, one byte each in memory: 6,100 frames of 256 px
MAX_GIF_FRAME_S = 655  # a frame's time is written in two bytes, 1/100 s
MAX_GIF_FPS = 50  # browsers slow a GIF down whose frames last less than 2/100 s
STRIP_COLUMNS = 16
PALETTE_FRAMES = 32  # looked at for a GIF's colours
CRF = "16"  # of x264: no visible loss
TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
SAY_BT709 = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"  # else players guess, by the picture's size


def check_video_path(path: str | Path) -> str:
    """'.mp4', '.gif' or '.png' of a name. UserError for another ending, or for .mp4 without an encoder: ask before drawing a frame."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: films are written as .mp4, .gif or .png (a strip of frames); give a name that ends so.")
    if suffix == ".mp4":
        _encoder()
    return suffix


def write_video(frames: Iterable[np.ndarray], path: str | Path, *, fps: float = 30.0, scale: int = 1, resample: str = "lanczos") -> Path:
    """Writes uint8 frames [H, W, 3], all of one size, to `path`, by its ending; returns the path.

    .mp4  H.264, yuv420p, BT.709, index first: plays everywhere. An odd width or height gets its last column or row doubled.
    .gif  loops for ever, 255 colours chosen over the whole film; frame times are in 1/100 s and right on average.
    .png  the frames side by side, 16 to a row.
    scale: each pixel becomes scale x scale of them, by 'lanczos' (smooth) or 'nearest' (square pixels). fps: frames a second, above 0.
    The frames are read one by one, and for an .mp4 not kept. UserError for an unknown ending, no frames, too large a picture, a speed that
    the format has not, a missing or failing encoder, or a folder that cannot be written; nothing is left behind then.
    """
    path = Path(path)
    suffix = check_video_path(path)
    if resample not in FILTERS or scale < 1:
        raise UserError(f"scale {scale}, resample {resample!r}: scale is a whole number from 1, resample is {' or '.join(FILTERS)}.")
    if not 0 < fps <= 240 or (suffix == ".gif" and fps > MAX_GIF_FPS):
        raise UserError(f"--fps {fps:g}: a .mp4 has up to 240 frames a second, a .gif up to {MAX_GIF_FPS}.")
    if suffix == ".gif" and fps * MAX_GIF_FRAME_S < 1:
        raise UserError(f"--fps {fps:g}: a frame of a .gif stays at most {MAX_GIF_FRAME_S} s. Raise --fps, or write an .mp4.")
    write: Callable[[Iterator[np.ndarray], Path, float], None] = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_strip}[suffix]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(_enlarged(frames, scale, resample), temporary, fps)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _enlarged(frames: Iterable[np.ndarray], scale: int, resample: str) -> Iterator[np.ndarray]:
    """The frames, checked and `scale` times as wide and high. UserError when there are none."""
    shape = None
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame is uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        if shape is None:
            shape = frame.shape
            if max(shape[:2]) * scale > MAX_SIDE_PX:
                raise UserError(f"A frame of {shape[1]}x{shape[0]} px, {scale} times as large, passes {MAX_SIDE_PX} px: lower --scale.")
        if frame.shape != shape:
            raise ValueError(f"frames of {list(shape)} and of {list(frame.shape)} in one film")
        if scale > 1:
            size = frame.shape[1] * scale, frame.shape[0] * scale
            frame = np.asarray(Image.fromarray(frame).resize(size, FILTERS[resample]))
        yield frame
    if shape is None:
        raise UserError("There are no frames to write: ask for at least one.")


def _encoder() -> str:
    """The path of ffmpeg. UserError when there is none."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError("Writing .mp4 needs ffmpeg: pip install imageio-ffmpeg, or write a .gif.") from None


def _write_mp4(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    from imageio_ffmpeg import write_frames

    first = _even(next(frames))
    height, width = first.shape[:2]
    options = ["-vf", f"{TO_BT709},{SAY_BT709}", "-crf", CRF, "-preset", "slow"]
    options += ["-movflags", "+faststart", "-fflags", "+bitexact", "-flags:v", "+bitexact"]  # the same frames are the same file
    # macro_block_size: H.264 pads to blocks of 16 by itself; by default imageio would resize the picture instead
    output = write_frames(str(path), (width, height), fps=fps, codec="libx264", pix_fmt_out="yuv420p", quality=None, bitrate=None,
                          macro_block_size=2, output_params=options, ffmpeg_log_level="error")  # fmt: skip
    output.send(None)
    try:
        for frame in itertools.chain([first], map(_even, frames)):
            output.send(np.ascontiguousarray(frame))
        output.close()
    except (OSError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"The video could not be encoded: {lines[-1] if lines else type(error).__name__}.") from None
    finally:
        output.close()
    if not path.is_file() or not path.stat().st_size:  # ffmpeg's own end is not reported by imageio
        raise UserError("The video could not be encoded: ffmpeg wrote nothing. Is the disk full?")


def _even(frame: np.ndarray) -> np.ndarray:
    """The frame with even sides, as yuv420p has one colour for 2x2 pixels."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else frame


def _write_gif(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    kept: list[np.ndarray] = []
    room = MAX_GIF_PX
    for frame in frames:
        room -= frame.shape[0] * frame.shape[1]
        if room < 0:
            raise UserError(f"A .gif holds at most {len(kept)} such frames: ask for fewer or smaller ones, or write an .mp4.")
        kept.append(frame)
    palette = _palette(kept)
    # no dithering: it flickers twice as much as the film moves, is half as large again, and measures worse (31.7 dB against 33.7)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in kept]
    ends = [round((i + 1) * 100 / fps) for i in range(len(kept))]  # 1/100 s: 30 frames a second are 3, 4, 3, 3, 4, ... of them
    times_ms = [10 * (end - start) for start, end in zip([0, *ends], ends)]
    try:
        pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=times_ms, loop=0, disposal=1,
                         optimize=True)  # fmt: skip
    except struct.error:  # equal frames in a row become one, whose time is too long
        raise UserError(f"A picture of a .gif stays at most {MAX_GIF_FRAME_S} s. Raise --fps, or write an .mp4.") from None


def _palette(frames: list[np.ndarray]) -> Image.Image:
    """256 colours for all frames: one palette, since a new one each frame flickers."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, PALETTE_FRAMES).round().astype(int))]
    step = max(1, max(chosen[0].shape[:2]) // 128)  # the colours of an enlarged picture are those of its smaller self
    sheet = np.concatenate([frame[::step, ::step] for frame in chosen])
    return Image.fromarray(sheet).quantize(255, Image.Quantize.FASTOCTREE)  # the 256th stands for "as in the frame before": a third less


def _write_strip(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    kept: list[np.ndarray] = []
    room = MAX_PICTURE_PX
    for frame in frames:
        room -= frame.shape[0] * frame.shape[1]
        if room < 0:
            raise UserError(f"A strip holds at most {len(kept)} such frames: ask for fewer or smaller ones, or write an .mp4.")
        kept.append(frame)
    columns = min(len(kept), STRIP_COLUMNS)
    blank = [np.full_like(kept[0], 255)] * (-len(kept) % columns)
    rows = [np.concatenate((kept + blank)[start : start + columns], axis=1) for start in range(0, len(kept), columns)]
    Image.fromarray(np.concatenate(rows)).save(path, format="PNG")
