"""`mien judge`: attribute probabilities of face images. `mien train-classifier`: the network that judges, trained anew."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, print_table, progress, say
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mien.metrics.judge import Judge

LEAST_PX = 16   # of a side: smaller ones show no face
CHUNK = 256     # pictures read before they are judged, so that memory does not grow with the folder


def judge(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Picture files, or folders of them.")],
    attributes: Annotated[str | None, typer.Option(metavar="A,B", help="Only these attributes, one column each.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="PATH", help="Another classifier: .safetensors with its .json beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All probabilities, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Say how likely each attribute is in face images, by the bundled classifier.

    mien judge samples/ --attributes Male,Smiling

    Faces should stand as in CelebA: upright, centred, with some room around the head. Pictures of CelebA's shape (178x218 or a scaled copy)
    are cropped as center178, others to the middle square. The probabilities are calibrated on real photographs.
    """
    files = find_pictures(images)

    from mien.engine.build import choose_device
    from mien.metrics.judge import load_judge

    loaded = load_judge(weights, device=choose_device(device))
    names = pick(attributes, loaded.attribute_names)
    rows, skipped = judge_files(loaded, files)
    for path, reason in skipped:
        note(f"skipped {path}: {reason}")
    if not rows:
        raise UserError(f"none of the {len(files):,} files could be judged; the first: {skipped[0][0]} ({skipped[0][1]}).")
    if as_json:
        print_json({"weights_sha256": loaded.weights_sha256, "skipped": [{"file": path, "reason": reason} for path, reason in skipped],
                    "images": [{**row, "probabilities": {name: row["probabilities"][name] for name in names}} for row in rows]})
    elif attributes is not None:
        print_table(["file", *names], [[row["file"], *(f"{row['probabilities'][name]:.2f}" for name in names)] for row in rows])
    else:
        print_table(["file", "crop", "likely attributes"], [[row["file"], row["crop"], likely(row["probabilities"])] for row in rows])


def likely(probabilities: dict[str, float]) -> str:
    """The attributes over one half, likeliest first."""
    found = sorted(((p, name) for name, p in probabilities.items() if p >= 0.5), reverse=True)
    return ", ".join(f"{name} {p:.2f}" for p, name in found) or "none over 0.5"


def pick(attributes: str | None, known: Sequence[str]) -> list[str]:
    """The names in a list A,B; all known ones for None. UserError for one the classifier does not know."""
    if attributes is None:
        return list(known)
    names = [name.strip() for name in attributes.split(",") if name.strip()]
    if not names:
        raise UserError(f"--attributes {attributes!r} names nothing: write for example Male,Smiling.")
    for name in names:
        if name not in known:
            raise UserError(f"The classifier knows no attribute {name}.{did_you_mean(name, known)} It knows: {', '.join(known)}.")
    return names


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the pictures in the folders named (sorted). UserError for what is not there or a folder without pictures."""
    from mien.data.files import is_system
    from mien.data.formats import IMAGE_SUFFIXES

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir()
                            if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file() and not is_system(each.name))
            if not inside:
                raise UserError(f"{path} has no pictures in it (folders inside are not searched): name the folder that has them.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"There is no file or folder {path}.")
    return found


def judge_files(loaded: Judge, files: Sequence[Path]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """[{file, crop, probabilities {name: p}}] of the readable files, and (file, reason) of the others."""
    import numpy as np
    import torch

    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    with progress("judging", len(files)) as advance:
        for start in range(0, len(files), CHUNK):
            pictures, read = [], []
            for path in files[start:start + CHUNK]:
                outcome = read_picture(path)
                if isinstance(outcome, str):
                    skipped.append((str(path), outcome))
                else:
                    pictures.append(outcome[0])
                    read.append((str(path), outcome[1]))
            if pictures:
                batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
                for (file, crop), row in zip(read, loaded.probabilities(batch)):
                    table = {name: round(float(p), 4) for name, p in zip(loaded.attribute_names, row)}
                    rows.append({"file": file, "crop": crop, "probabilities": table})
            advance(len(files[start:start + CHUNK]))
    return rows, skipped


def read_picture(path: Path) -> tuple[Any, str] | str:
    """(uint8 [64, 64, 3], the crop used), or why it cannot be read."""
    from mien.data.formats import BadImageError, UnfitImageError, is_framed, open_picture, render, upright_size
    from mien.models.classifier import INPUT_PX

    try:
        image = open_picture(path)
        with image:
            if min(image.size) < LEAST_PX:
                return f"only {image.width}x{image.height} pixels"
            crop = "center178" if is_framed(*upright_size(image)) else "square"
            return render(image, crop=crop, size=INPUT_PX, allow_upscale=True), crop
    except (BadImageError, UnfitImageError) as error:
        return str(error)


def train_classifier(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A store of 64 px or more, prepared with --attributes all.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the weights and the record go; the same DIR again resumes.")],
    phases: Annotated[str, typer.Option(metavar="PX:EPOCHS,...", help="Image sizes and how long to train at each; the last must be 64.")]
    = "32:10,48:10,64:14",
    batch: Annotated[int, typer.Option(min=2, metavar="N", help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 3e-3,
    precision: Annotated[str, typer.Option(metavar="bf16|fp32", help="Of the convolutions.")] = "bf16",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data order and augmentation.")] = 0,
    initial: Annotated[Path | None, typer.Option(metavar="PATH", help="Weights (.safetensors) to start from.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; by default one a core.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Train the face-attribute classifier, which judges and gives the `face` features.

    mien train-classifier celeba64 --out classifier

    Writes DIR/face.safetensors with face.json (calibration, accuracy by attribute and group on the validation split) and reliability.png.
    """
    if not lr > 0:
        raise UserError(f"--lr {lr}: it must be above 0.")
    if precision not in ("bf16", "fp32"):
        raise UserError(f"--precision {precision}: say bf16 or fp32.")
    planned = parse_phases(phases)

    import torch

    from mien.engine.build import choose_device
    from mien.metrics import train_classifier as training

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = training.Recipe(phases=planned, batch=batch, lr=lr, precision=precision, seed=seed)
    with stop_signals() as stopping, step_bar(batch) as on_step:
        path = training.train_classifier(data, out, recipe, initial=initial, device=str(choose_device(device)), stopping=stopping,
                                         on_step=on_step, report=note)
    if path is None:
        note(f"the state is saved in {out}: the same command goes on from there.")
        raise KeyboardInterrupt
    say(f"{path}: {summary(path)}")


@contextmanager
def step_bar(batch: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that starts with the first step it is told of: a resumed training starts where it was."""
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def on_step(step: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress("training", total * batch, done=(step - 1) * batch))
            advance(batch)

        yield on_step


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, Ctrl-C and SIGTERM only make the yielded question True, so that a step is finished first. A second one strikes at once."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        note("finishing the step, then saving.")

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def parse_phases(text: str) -> list[list[int]]:
    """'32:10,64:14' -> [[32, 10], [64, 14]]. UserError for anything else, or a last size other than 64."""
    try:
        phases = [[int(number) for number in part.split(":")] for part in text.split(",")]
        fits = all(len(phase) == 2 and 32 <= phase[0] <= 64 and phase[0] % 16 == 0 and phase[1] > 0 for phase in phases)
    except ValueError:
        fits = False
    if not fits or phases[-1][0] != 64:
        raise UserError(f"--phases {text}: write PX:EPOCHS,... with sizes of 32, 48 and 64, 64 last, for example 32:10,48:10,64:14.")
    return phases


def summary(weights: Path) -> str:
    """One line of what the finished classifier is worth."""
    import json

    meta = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    scores = meta["validation"]
    if scores is None:
        return "the store has fewer than two validation images, so nothing was measured or calibrated."
    mean, each = scores["mean"], scores["attributes"]
    watched = [f"{name} {each[name]['accuracy']:.3f}" for name in ("Male", "Smiling", "Eyeglasses") if name in each]
    return (f"accuracy on {scores['count']:,} validation images {mean['accuracy']:.4f} (majority {mean['majority']:.4f}), "
            f"{', '.join(watched)}{'; ' if watched else ''}calibration error {mean['ece']:.4f}.")
