"""Films: what is written is what was drawn, whole or not at all."""

import sys

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from mien.apps.video import check_video_path, write_video
from mien.errors import UserError


def film(count, height=64, width=64):
    """A bright disc that wanders over a coloured ramp: smooth, and every frame another."""
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 200 / width, y * 200 / height, 120 + 0 * x], axis=-1)
    for i in range(count):
        disc = np.exp(-((x - width * (0.2 + 0.6 * i / max(1, count - 1))) ** 2 + (y - height / 2) ** 2) / (0.02 * width * height))
        yield (ramp + disc[..., None] * (230 - ramp)).round().astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / ((a.astype(float) - b.astype(float)) ** 2).mean())


def test_an_mp4_has_every_frame_in_its_size_and_its_colours(tmp_path):
    path = write_video(film(24), tmp_path / "new" / "a.mp4", fps=24, scale=4)
    frames = iio.imread(path)
    assert frames.shape == (24, 256, 256, 3)
    enlarged = np.stack([np.asarray(Image.fromarray(each).resize((256, 256), Image.Resampling.LANCZOS)) for each in film(24)])
    assert min(psnr(a, b) for a, b in zip(frames, enlarged)) > 35
    assert np.abs((frames.astype(float) - enlarged).mean((0, 1, 2))).max() < 2  # a wrong colour matrix shifts a channel by more
    meta = iio.immeta(path)
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 24
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # plays before it is all there
    assert [each.name for each in path.parent.iterdir()] == ["a.mp4"]


def test_the_same_frames_are_the_same_file(tmp_path):
    for suffix in (".mp4", ".gif", ".png"):
        a, b = (write_video(film(5), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert a == b, suffix


def test_odd_sides_become_even_without_stretching(tmp_path):
    frames = iio.imread(write_video(film(3, 33, 47), tmp_path / "odd.mp4"))
    assert frames.shape == (3, 34, 48, 3)
    assert psnr(frames[0, :33, :47], next(film(3, 33, 47))) > 30


def test_a_gif_loops_keeps_its_frames_and_its_time(tmp_path):
    with Image.open(write_video(film(30), tmp_path / "a.gif", fps=30)) as gif:
        assert gif.n_frames == 30 and gif.info["loop"] == 0
        times, worst = [], np.inf
        for i, frame in enumerate(film(30)):
            gif.seek(i)
            times.append(gif.info["duration"])
            worst = min(worst, psnr(np.asarray(gif.convert("RGB")), frame))
    assert sum(times) == 1000 and set(times) == {30, 40}
    assert worst > 30


def test_nearest_makes_square_pixels(tmp_path):
    path = write_video(film(1, 8, 8), tmp_path / "a.png", scale=3, resample="nearest")
    frame = next(film(1, 8, 8))
    assert np.array_equal(iio.imread(path), frame.repeat(3, 0).repeat(3, 1))


def test_a_strip_holds_the_frames_in_reading_order(tmp_path):
    frames = list(film(18, 8, 8))
    strip = iio.imread(write_video(frames, tmp_path / "a.png"))
    assert strip.shape == (16, 16 * 8, 3)
    assert np.array_equal(strip[:8, 8:16], frames[1]) and np.array_equal(strip[8:, 8:16], frames[17]) and (strip[8:, 16:] == 255).all()


@pytest.mark.parametrize("name, options, message", [
    ("a.avi", {}, r"a\.avi: films are written as"), ("film", {}, "films are written as"), ("a.gif", {"fps": 60}, "a .gif up to 50"),
    ("a.gif", {"fps": 0.001}, "stays at most 655 s"),
    ("a.mp4", {"fps": 0}, "--fps 0"), ("a.mp4", {"scale": 100}, "lower --scale"), ("a.png", {"resample": "cubic"}, "lanczos or nearest"),
])  # fmt: skip
def test_what_cannot_be_written_is_told_in_one_line(tmp_path, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        write_video(film(2), tmp_path / name, **options)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_the_slowest_gif_is_written_and_pictures_that_stay_longer_are_told(tmp_path):
    with Image.open(write_video(film(2), tmp_path / "a.gif", fps=1 / 655)) as gif:
        assert gif.info["duration"] == 655_000
    still = [next(film(2))] * 700  # equal frames in a row are one picture of the file
    with pytest.raises(UserError, match="stays at most 655 s"):
        write_video(still, tmp_path / "b.gif", fps=1)
    assert [each.name for each in tmp_path.iterdir()] == ["a.gif"]


def test_no_frames_leave_no_file(tmp_path):
    for suffix in (".mp4", ".gif", ".png"):
        with pytest.raises(UserError, match="no frames"):
            write_video(iter([]), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_film_that_fails_midway_leaves_the_old_one(tmp_path, suffix):
    old = write_video(film(2), tmp_path / f"a{suffix}").read_bytes()

    def broken():
        yield from film(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(broken(), tmp_path / f"a{suffix}")
    assert [each.name for each in tmp_path.iterdir()] == [f"a{suffix}"] and (tmp_path / f"a{suffix}").read_bytes() == old


def test_a_film_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mien.apps.video.MAX_GIF_PX", 3 * 64 * 64)
    with pytest.raises(UserError, match="at most 3 such frames"):
        write_video(film(4), tmp_path / "a.gif")
    monkeypatch.setattr("mien.apps.video.MAX_PICTURE_PX", 3 * 64 * 64)
    with pytest.raises(UserError, match="at most 3 such frames"):
        write_video(film(4), tmp_path / "a.png")


def test_without_an_encoder_its_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg, or write a .gif"):
        check_video_path("a.mp4")
    assert check_video_path("a.GIF") == ".gif"


def test_an_encoder_that_breaks_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mien.apps.video.TO_BT709", "nofilter")
    with pytest.raises(UserError, match="could not be encoded") as caught:
        write_video(film(200), tmp_path / "a.mp4", scale=4)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
