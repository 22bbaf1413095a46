from pathlib import Path

import pytest

from mien.apps.cli.sample import check_picture, is_picture
from mien.errors import UserError


def test_a_picture_is_a_png_and_anything_else_a_folder():
    assert is_picture(Path("a b/faces.PNG")) and not is_picture(Path("faces")) and not is_picture(Path("faces.v2"))
    with pytest.raises(UserError, match="--out faces.png, or a folder"):
        is_picture(Path("faces.jpg"))


def test_a_picture_that_no_memory_holds_is_refused_before_a_face_is_drawn():
    check_picture(24_414, 64)
    with pytest.raises(UserError, match="--count 10,000,000: one picture holds at most 24,414 faces of 64 px"):
        check_picture(10_000_000, 64)
