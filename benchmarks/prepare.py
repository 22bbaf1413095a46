"""How much faster `mien data prepare` is than the loop one would write by hand, on the same images.

    python benchmarks/prepare.py CELEBA_FOLDER [--count 4000] [--rounds 3] [--workers 2]

The yardstick is one process: open each image with Pillow, crop, resize with Lanczos, stack, save an .npy. mien does the same and more
(finds the files, reads annotations, checks headers, hashes, syncs to disk), all of it timed. The two run by turns, so that whatever else
the machine does meets both; the medians are compared. Seconds of processor time, which other work disturbs less, are printed too. Without
a folder, JPEGs of the CelebA frame are drawn first.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mien.data.prepare import prepare
from mien.data.store import open_store

BOX, SIZE = (0, 20, 178, 198), 64     # center178


def plain_loop(files: list[Path], out: Path) -> None:
    """The hand-written loop."""
    images = [np.asarray(Image.open(file).convert("RGB").crop(BOX).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for file in files]
    np.save(out, np.stack(images))


def draw_jpegs(folder: Path, count: int) -> None:
    """Toy faces as JPEGs of 178x218 pixels, numbered as CelebA's."""
    from mien.data.synthetic import draw_faces

    images, _ = draw_faces(count, size=256, seed=0)
    for number, image in enumerate(images, 1):
        Image.fromarray(image).crop((39, 19, 217, 237)).save(folder / f"{number:06d}.jpg", quality=92)


def processor_s() -> float:
    """Seconds of processor time of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="an img_align_celeba folder")
    parser.add_argument("--count", type=int, default=4000, help="images (default 4000); 0 is all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        folder = options.folder
        if folder is None:
            folder = room / "img_align_celeba"
            folder.mkdir()
            draw_jpegs(folder, options.count or 4000)
        files = sorted(folder.glob("*.jpg"))
        if not files:
            sys.exit(f"no .jpg in {folder}: name the img_align_celeba folder itself")
        count = min(options.count or len(files), len(files))
        files = [files[row] for row in np.arange(count) * len(files) // count]      # as --limit chooses
        seconds: dict[str, list[float]] = {"plain loop": [], "mien": []}
        processor: dict[str, list[float]] = {"plain loop": [], "mien": []}
        for turn in range(options.rounds):
            for name in list(seconds)[::1 if turn % 2 else -1]:
                start, before = time.perf_counter(), processor_s()
                if name == "mien":
                    prepare([str(folder)], room / "store", limit=count, workers=options.workers, crop="center178")
                else:
                    plain_loop(files, room / "plain.npy")
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(processor_s() - before)
            same = np.array_equal(open_store(room / "store").images, np.load(room / "plain.npy", mmap_mode="r"))
            assert same, "the two disagree: a prepared image must equal Pillow's, bit for bit"
            shutil.rmtree(room / "store")
    rates = {name: count / statistics.median(times) for name, times in seconds.items()}
    print(f"{count:,} images, {options.rounds} rounds by turns, medians; pixels identical")
    for name, rate in rates.items():
        rounds = ", ".join(f"{count / each:,.0f}" for each in seconds[name])
        print(f"{name:12}{rate:10,.0f} images/s   processor {statistics.median(processor[name]):.1f} s   rounds: {rounds}")
    print(f"ratio       {rates['mien'] / rates['plain loop']:10.2f}")
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load > 2 * cores:
        print(f"the machine is busy (load {load:.1f} on {cores} cores): the ratio says little, measure again when it is free")


if __name__ == "__main__":
    main()
