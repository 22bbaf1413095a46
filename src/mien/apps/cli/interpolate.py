"""`mien interpolate`: a film that goes from face to face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mien.apps.cli.console import note, progress, say
from mien.apps.cli.strips import check_file
from mien.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mien.explore.interpolate import Morph
    from mien.explore.load import LoadedGenerator

SHOWN_PX = 256  # a face is enlarged by a whole number to about this, unless --scale says otherwise
FRAMES, STRIP_FRAMES = 60, 12


def interpolate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="PATH.mp4, PATH.gif, or PATH.png for a strip of frames.")],
    seeds: Annotated[str, typer.Option(metavar="1,2,3", help="Numbers of the faces; one will do for gliding attributes.")] = "1,2,3",
    frames: Annotated[int | None, typer.Option(min=1, help="Pictures in the film.  [default: 60; a strip 12]")] = None,
    from_attributes: Annotated[str | None, typer.Option(metavar="A=0,B=1", help="Attributes at the start; others: the faces' own.")] = None,
    to_attributes: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Attributes at the end (half-way, with --loop).")] = None,
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Attributes held all the way.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Come back to the first face, so that the film can run for ever.")] = False,
    mode: Annotated[str, typer.Option(metavar="NAME", help="slerp (arcs), lerp (straight lines) or spline (no corners).")] = "slerp",
    even: Annotated[bool, typer.Option("--even", help="Constant perceived speed: equal steps in the judge's features.")] = False,
    scale: Annotated[int | None, typer.Option(min=1, help="Enlarge by this.  [default: to about 256 px]")] = None,
    resample: Annotated[str, typer.Option(metavar="NAME", help="Enlarge by lanczos (smooth) or nearest (square pixels).")] = "lanczos",
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 30.0,
    truncation: Annotated[float, typer.Option(help="Scale of the latents: 0.7 gives more typical, less varied faces.")] = 1.0,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Make a film that goes from face to face, or turns an attribute up.

    mien interpolate runs/demo --out morph.mp4 --seeds 1,2,3 --loop --mode spline --even

    mien interpolate runs/demo --out smile.gif --seeds 7 --from-attributes Smiling=0 --to-attributes Smiling=1
    """
    from mien.apps.video import check_video_path, write_video

    suffix = check_video_path(out)
    check_file(out)
    count = frames or (STRIP_FRAMES if suffix == ".png" else FRAMES)
    numbers = face_numbers(seeds)

    from mien.engine.build import choose_device
    from mien.explore.interpolate import frames as drawn
    from mien.explore.interpolate import moments
    from mien.explore.latents import truncating
    from mien.explore.load import load_generator
    from mien.explore.sample import parse_where

    generator = load_generator(model, device=choose_device(device))
    names = generator.attribute_names
    held, first, last = (parse_where(text, names) for text in (where, from_attributes, to_attributes))
    morph = build_morph(generator, numbers, held=held, first=first, last=last, mode=mode, loop=loop, truncation=truncation)
    generator = truncating(generator, truncation)
    if len(numbers) == 1 and not morph.glides:
        raise UserError(f"--seeds {seeds}: one face alone does not move. Give more, or --from-attributes and --to-attributes.")
    u = _even(generator, morph, count, str(generator.device)) if even else moments(count, closed=loop)
    enlarged = scale or max(1, round(SHOWN_PX / generator.size))
    with progress("Drawing", count, unit="frames") as advance:
        write_video(_counted(drawn(generator, morph, u), advance), out, fps=fps, scale=enlarged, resample=resample)
    faces = ", ".join(map(str, numbers)) + (f" and back to {numbers[0]}" if loop and len(numbers) > 1 else "")
    some = "face" if len(numbers) == 1 else "faces"
    say(f"{out}: {count} frames of {generator.size * enlarged} px through {some} {faces}, drawn from {generator.path}.")


def face_numbers(text: str) -> list[int]:
    """[1, 2, 3] of '1,2,3'. UserError for anything but whole numbers from 0."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text!r}: write the numbers of faces, from 0, with commas: 1,2,3.")
    return [int(part) for part in parts]


def build_morph(generator: LoadedGenerator, numbers: Sequence[int], *, held: dict[str, float], first: dict[str, float],
                last: dict[str, float], mode: str, loop: bool, truncation: float) -> Morph:
    """The way through faces `numbers`, each with its own attributes but those that are held or glide from `first` to `last`.

    An attribute named only in one of these starts, or ends, as the first or last face has it. UserError for one both held and gliding.
    """
    import torch

    from mien.explore.interpolate import MODES, Morph
    from mien.explore.latents import latents, truncated
    from mien.explore.sample import attribute_rows

    if mode not in MODES:
        raise UserError(f"--mode {mode}: there are {', '.join(MODES)}.")
    both = set(held) & (set(first) | set(last))
    if both:
        raise UserError(f"{sorted(both)[0]} is both held by --where and gliding: name it in one of them.")
    rows = torch.cat([attribute_rows(generator, held, 1, number) for number in numbers])
    glides = {}
    for column, name in enumerate(generator.attribute_names):
        if name in first or name in last:
            start, end = first.get(name, float(rows[0, column])), last.get(name, float(rows[-1, column]))
            glides[column] = (start, end)
    _, z = truncated(generator, latents(numbers, generator.z_dim), truncation)
    return Morph(z, rows, mode=mode, closed=loop, glides=glides)


def _counted(frames: Iterator[np.ndarray], advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        advance(1)


def _even(generator: LoadedGenerator, morph: Morph, count: int, device: str) -> Tensor:
    from mien.explore.interpolate import even_moments
    from mien.metrics.judge import load_judge

    judge = load_judge(device=device)
    found = even_moments(generator, morph, count, features=judge.features)
    note(f"--even: perceived steps stray by {found.after:.0%} from their mean; evenly timed they would by {found.before:.0%}.")
    return found.u
