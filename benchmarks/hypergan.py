"""Our training against HyperGAN 2.0.0a1's DCGAN starter, per image, on this machine.

    python benchmarks/hypergan.py --width 256 --environment DIR [--threads 2] [--steps 12] [--rounds 3]

HyperGAN gets its own virtual environment in DIR (made with uv, or venv and pip, if it is not there yet). Its recipe is what its own
`hypergan new -t dcgan -r 64` writes, with the channels scaled so that the 4x4 map has WIDTH of them; at 512 nothing changes. Both train on
the same faces, batch 64, 64 px, latent 128, on the same number of threads, as a user would start them: `hypergan train` and `mien train`.

Each is run for two lengths, and the difference is what the extra steps cost: start-up, and what comes once at the end, cancel. Lengths
differ between the two so that both take about as long; the rounds go by turns. What the recipes do not share stays in and is theirs:
HyperGAN's has no batch norm in D and a gradient penalty in every step, learns its latents as particles and reads PNG files; mien's (seed3)
has batch norm in D, keeps an average and signals, and probes itself. So the ratio says how long a user waits for an image seen, not how
good a kernel is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mien.data.store import FaceStore
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.data.writer import write_store

PACKAGE, BATCH, SIZE = "hypergan[train,image]==2.0.0a1", 64, 64
SIDES = ("mien", "hypergan")


def make_environment(folder: Path) -> Path:
    """The `hypergan` command of the environment in `folder`, made if need be."""
    command = folder / "bin" / "hypergan"
    if not command.exists():
        uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
        python = str(folder / "bin" / "python")
        if uv is not None:
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", python, PACKAGE], check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    return command


def write_recipe(command: Path, faces: Path, width: int, out: Path) -> Path:
    """HyperGAN's own starter for these faces, its channels scaled from 512 to `width`."""
    ask = [str(command), "new", str(out), "-t", "dcgan", "-r", str(SIZE), "--device", "cpu", "--dataset", str(faces)]
    subprocess.run(ask, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [line for line in out.read_text().splitlines() if not line.startswith("# body-sha256")]
    scaled = [re.sub(r"\b(de)?conv\((\d+),", lambda found: scale(found, width), line) for line in lines]
    out.write_text("\n".join(scaled) + "\n")
    return out


def scale(found: re.Match[str], width: int) -> str:
    """`conv(64,` of a network 512 wide as one `width` wide has it; colours and the logit keep their channels."""
    channels = int(found[2])
    return f"{found[1] or ''}conv({channels * width // 512 if channels >= 32 else channels},"


def run(command: list[str], threads: int) -> tuple[float, float]:
    """(seconds by the clock, seconds of processor time) of a command and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def hypergan_command(command: Path, recipe: Path, steps: int, out: Path) -> list[str]:
    quiet = ["--no-server", "--no-previews", "--checkpoint-every", "1000000", "--progress-every", "1000000"]
    return [str(command), "train", str(recipe), "--steps", str(steps), "--run-dir", str(out), "--devices", "cpu", *quiet]


def mien_command(store: FaceStore, width: int, steps: int, out: Path) -> list[str]:
    settings = [f"model.generator.width={width}", f"model.discriminator.width={width}", f"train.batch={BATCH}"]
    sets = [part for each in settings for part in ("--set", each)]
    ask = ["train", str(store.path), "--preset", "seed3", "--images", str(steps * BATCH), "--run", str(out), "--device", "cpu"]
    return [sys.executable, "-m", "mien", *ask, *sets]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """{side: {"clock" or "processor": images a second in each round}}."""
    images, attributes = draw_faces(2048, size=SIZE)
    names, splits = [f"{i:05d}.png" for i in range(len(images))], np.zeros(len(images), np.uint8)
    store = write_store(folder / "store", images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, splits=splits, names=names,
                        crop="square", source=[{"name": "drawn", "count": len(images)}])  # fmt: skip
    (folder / "faces").mkdir()
    for name, image in zip(names, images):
        Image.fromarray(image).save(folder / "faces" / name)
    command = make_environment((options.environment or folder / "environment").absolute())
    recipe = write_recipe(command, folder / "faces", options.width, folder / "dcgan.toml")
    lengths = {"mien": 6 * options.steps, "hypergan": options.steps}  # steps between the short run and the long one
    rates: dict[str, dict[str, list[float]]] = {side: {"clock": [], "processor": []} for side in SIDES}
    for turn in range(options.rounds):
        for side in SIDES[:: 1 if turn % 2 else -1]:
            took = []
            for steps in (2, 2 + lengths[side]):
                out = folder / f"{side}-run"
                own = mien_command(store, options.width, steps, out) if side == "mien" else hypergan_command(command, recipe, steps, out)
                took.append(run(own, options.threads))
                shutil.rmtree(out)
            for place, kind in enumerate(("clock", "processor")):
                rates[side][kind].append(lengths[side] * BATCH / (took[1][place] - took[0][place]))
    return rates


def table(rates: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> str:
    lines = [f"width {options.width}, batch {BATCH}, {SIZE} px, cpu, {options.threads} threads, {options.rounds} rounds"]
    for kind in ("clock", "processor"):
        for side in SIDES:
            each = rates[side][kind]
            spread = f"(min {min(each):.1f}, max {max(each):.1f})"
            lines.append(f"  {side:9s} {statistics.median(each):8.1f} images per second of {kind}  {spread}")
        ratios = sorted(ours / theirs for ours, theirs in zip(rates["mien"][kind], rates["hypergan"][kind]))
        lines.append(f"  mien / hypergan by {kind}: {statistics.median(ratios):.2f}  (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--environment", type=Path, help="where HyperGAN is or shall be installed [default: a temporary folder]")
    parser.add_argument("--steps", type=int, default=12, help="extra steps of HyperGAN in a round; mien makes six times as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), options)
    print(json.dumps(rates) if options.json else table(rates, options))


if __name__ == "__main__":
    main()
