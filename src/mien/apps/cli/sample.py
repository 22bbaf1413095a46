"""`mien sample`: faces from a generator, as one picture or as a folder with their attributes."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, progress, say
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

CHUNK = 1024  # faces drawn before they are written, so that memory does not grow with --count
MAX_PICTURE_PX = 100_000_000  # of one picture: 24,414 faces of 64 px
TABLE = "attributes.csv"


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="PATH.png for one picture; otherwise a folder of PNGs with attributes.csv.")],
    count: Annotated[str, typer.Option(metavar="N", help="How many faces: 64, 10k.")] = "64",
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Hold attributes at 0, 1 or between; others as in the data.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first face; the others follow.")] = 0,
    truncation: Annotated[float, typer.Option(help="Scale of the latents: 0.7 gives more typical, less varied faces.")] = 1.0,
    grid: Annotated[bool, typer.Option("--grid", help="A row per attribute combination, the same latents in each.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of samples that is there already.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Draw faces from a generator, as one picture or as a folder of PNGs.

    mien sample runs/demo --out faces.png --where Male=1,Smiling=0

    Face number 1234 of a model is always the same face, whatever is drawn beside it.
    """
    from mien.config import parse_count

    number = parse_count(count)
    if number < 1:
        raise UserError(f"--count {count}: ask for at least one face.")
    picture = is_picture(out)
    if grid and not picture:
        raise UserError(f"--grid draws one picture: give --out a name that ends in .png, not {out}.")
    if not picture:
        check_replaceable(out, force)
    elif out.is_dir():
        raise UserError(f"{out} is a folder: name a picture, for example {out / 'faces.png'}.")

    from mien.engine.build import choose_device
    from mien.explore.load import load_generator
    from mien.explore.sample import parse_where

    generator = load_generator(model, device=choose_device(device))
    held = parse_where(where, generator.attribute_names)
    if picture:
        check_picture(number, generator.size)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not picture:
        write_folder(generator, out, count=number, where=held, seed=seed, truncation=truncation)
    else:
        draw = _combination_grid if grid else _plain_grid
        _save(draw(generator, count=number, where=held, seed=seed, truncation=truncation), out)
    say(f"{out}: drawn from {generator.path}, first face number {seed}.")


def is_picture(out: Path) -> bool:
    """Whether `out` names one picture. UserError for a kind of picture that is not written, rather than a folder called faces.jpg."""
    suffix = out.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UserError(f"Pictures are written as .png: give --out {out.with_suffix('.png')}, or a folder.")
    return suffix == ".png"


def check_picture(count: int, size: int) -> None:
    """Raises UserError when one picture of `count` faces of `size` px would be more than a viewer, and memory, can hold."""
    most = MAX_PICTURE_PX // size**2
    if count > most:
        raise UserError(f"--count {count:,}: one picture holds at most {most:,} faces of {size} px. Name a folder for them: --out faces.")


def check_replaceable(folder: Path, force: bool) -> None:
    """Raises UserError when `folder` is there, unless --force was given and it holds nothing but samples."""
    if not folder.exists():
        return
    if not force:
        raise UserError(f"{folder} is there already: give another --out, or --force to replace it.")
    if not folder.is_dir() or any(each.suffix != ".png" and each.name != TABLE for each in folder.iterdir()):
        raise UserError(f"{folder} holds more than samples: --force will not delete it. Give another --out.")


def _faces(generator: LoadedGenerator, first: int, count: int, where: dict[str, float], truncation: float) -> tuple[Any, Any]:
    """(images uint8 [N, 3, R, R], attributes [N, A]) of faces first, first + 1, ..."""
    from mien.explore.latents import latents, truncate
    from mien.explore.sample import attribute_rows, render

    rows = attribute_rows(generator, where, count, first)
    return render(generator, truncate(latents(range(first, first + count), generator.z_dim), truncation), rows), rows


def write_folder(generator: LoadedGenerator, folder: Path, *, count: int, where: dict[str, float], seed: int, truncation: float) -> None:
    """`folder` with NNNNNN.png (named by the face's number) and attributes.csv, there whole or not at all."""
    from PIL import Image

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    digits = max(6, len(str(seed + count - 1)))
    try:
        with open(temporary / TABLE, "w", newline="", encoding="utf-8") as file, progress("Drawing", count, unit="faces") as advance:
            table = csv.writer(file)
            table.writerow(["name", "seed", *generator.attribute_names])
            for first in range(seed, seed + count, CHUNK):
                images, rows = _faces(generator, first, min(CHUNK, seed + count - first), where, truncation)
                for number, (image, row) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), rows.tolist()), start=first):
                    name = f"{number:0{digits}d}.png"
                    Image.fromarray(image).save(temporary / name)
                    table.writerow([name, number, *(f"{value:g}" for value in row)])
                advance(len(images))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plain_grid(generator: LoadedGenerator, *, count: int, where: dict[str, float], seed: int, truncation: float) -> Any:
    """A picture as near to square as `count` allows."""
    from mien.models.pictures import grid

    images, _ = _faces(generator, seed, count, where, truncation)
    return grid(images, columns=round(count**0.5 + 0.4999))


def _combination_grid(generator: LoadedGenerator, *, count: int, where: dict[str, float], seed: int, truncation: float) -> Any:
    """A row of the same latents for each attribute combination; --count is divided among the rows. A plain grid when there is only one."""
    from mien.explore.latents import latents, truncate
    from mien.explore.sample import captions, combinations, labelled_grid, render

    rows = combinations(generator, where)
    if len(rows) == 1:
        note("There is only one combination to show: the grid has no rows by attribute.")
        return _plain_grid(generator, count=count, where=where, seed=seed, truncation=truncation)
    columns = max(1, count // len(rows))
    z = truncate(latents(range(seed, seed + columns), generator.z_dim), truncation)
    images = render(generator, z.repeat(len(rows), 1), rows.repeat_interleave(columns, dim=0))
    return labelled_grid(images, captions(rows, generator.attribute_names))


def _save(picture: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.png")
    try:
        picture.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
