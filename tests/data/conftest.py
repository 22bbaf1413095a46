"""Small made-up data sets in the layouts people have."""

import numpy as np
import pytest
from PIL import Image

from mien.data.attributes import CELEBA_ATTRIBUTES
from mien.data.writer import write_store


def picture(seed, size=(178, 218)):
    """A colourful picture with detail at every scale, so that a shifted or differently filtered crop cannot look the same."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.7 + rng.integers(0, 76, (size[1], size[0], 3))).astype(np.uint8))


def number_name(number):
    return f"{number:06d}.jpg"


def write_celeba(root, numbers, half=(), listed=60):
    """CelebA's official layout with these images (full size, half size) and annotations of `listed` rows. Returns values [listed, 40]."""
    for folder, members, size in (("img_align_celeba", numbers, (178, 218)), ("img_align_celeba_half", half, (89, 109))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in members:
            picture(number, size).save(root / folder / number_name(number), quality=92)
    values = np.random.default_rng(7).integers(0, 2, (listed, 40))
    rows = [f"{number_name(row + 1)} " + " ".join(f"{2 * value - 1:2d}" for value in values[row]) for row in range(listed)]
    (root / "list_attr_celeba.txt").write_text(f"{listed}\n{' '.join(CELEBA_ATTRIBUTES)} \n" + "\n".join(rows) + "\n")
    (root / "list_eval_partition.txt").write_text("".join(f"{number_name(row + 1)} {row % 3}\n" for row in range(listed)))
    return values


@pytest.fixture
def celeba(tmp_path):
    """A CelebA root: images 1 to 30 full size, 31 to 40 half size, 60 listed."""
    write_celeba(tmp_path / "celeba", range(1, 31), range(31, 41))
    return tmp_path / "celeba"


@pytest.fixture
def photos(tmp_path):
    """A plain folder of twelve 80x100 PNGs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(number, (80, 100)).save(folder / f"p{number:02d}.png")
    return folder


@pytest.fixture
def small_store(tmp_path):
    """100 images of 32 px whose pixels tell their index; attributes A (index odd), B (index % 5 == 0); 80 train, 20 val."""
    index = np.arange(100)
    images = np.zeros((100, 32, 32, 3), np.uint8)
    images[..., 0] = index[:, None, None]
    images[:, :, :16, 1] = 255      # the left half is green: a flip shows
    attributes = np.stack([index % 2, index % 5 == 0], axis=1).astype(np.uint8)
    return write_store(tmp_path / "store", images=images, attributes=attributes, attribute_names=("A", "B"),
                       splits=(index >= 80).astype(np.uint8), names=[f"n{i}" for i in index], crop="whole",
                       source=[{"name": "first", "count": 60}, {"name": "second", "count": 40}])
