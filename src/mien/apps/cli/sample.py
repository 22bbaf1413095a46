"""`mien sample`: faces from a generator, as one picture, a folder with their attributes, or a store to train on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, progress, say
from mien.apps.cli.strips import check_file, save_picture
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.apps.dataset import Order, Selection
    from mien.apps.together import Draw
    from mien.explore.load import LoadedGenerator

MAX_PICTURE_PX = 100_000_000  # of one picture: 24,414 faces of 64 px
MAX_CANDIDATES = 64
REALS = 2000  # validation images that realism is measured against


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="PATH.png for one picture; otherwise a folder of PNGs with attributes.csv.")],
    count: Annotated[str, typer.Option(metavar="N", help="How many faces: 64, 10k.")] = "64",
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Hold attributes at 0, 1 or between; -2 to 3 extrapolates.")] = None,
    balance: Annotated[str, typer.Option(metavar="NAME", help="The other attributes: none (drawn as often as in the data), data (exactly "
                                         "as often), uniform (each combination equally often).")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Number of the first face; the others follow.")] = 0,
    truncation: Annotated[float, typer.Option(help="Scale of the latents: 0.7 gives more typical, less varied faces.")] = 1.0,
    best_of: Annotated[int, typer.Option(metavar="K", min=1, max=MAX_CANDIDATES, help="Keep the best of K candidates for each face. "
                                         "This changes the distribution.")] = 1,
    by: Annotated[str, typer.Option(metavar="NAME", help="Best by judge (shows what was asked) or realism (like real faces).")] = "judge",
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The store whose validation faces are --by realism's reals.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="A folder as png, or as a store to train on.")] = "png",
    grid: Annotated[bool, typer.Option("--grid", help="A row per attribute combination, the same latents in each.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of samples that is there already.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Draw faces from a generator, as one picture, a folder of PNGs or a labelled store.

    mien sample runs/demo --out faces.png --where Male=1,Smiling=0

    mien sample runs/demo --out extra --count 50k --balance uniform --format store

    Face number 1234 of a model is always the same face, whatever is drawn beside it. A folder or store
    that was interrupted goes on when the same command is given again.
    """
    from mien.config import parse_count

    number = parse_count(count)
    if number < 1:
        raise UserError(f"--count {count}: ask for at least one face.")
    check_choice(best_of, by, data)
    picture = check_place(out, form=form, grid=grid, force=force, best_of=best_of)

    from mien.apps.dataset import Order
    from mien.apps.together import drawing, help_drawing
    from mien.engine.build import choose_device
    from mien.engine.distributed import joined, local_device
    from mien.explore.load import load_generator
    from mien.explore.sample import parse_where

    place = choose_device(local_device(device))
    generator = load_generator(model, device=place)
    held = parse_where(where, generator.attribute_names)
    if picture:
        check_picture(number, generator.size)
    selection = choose_score(generator, best_of, by, data) if best_of > 1 else None
    order = Order(number, seed, held, balance=balance, truncation=truncation, form=form, selection=selection)
    with joined(place, shared=device == str(place)) as ranks:
        if not ranks.leads:
            help_drawing(partial(order.draw, generator), ranks)
            return
        draw = drawing(partial(order.draw, generator), ranks)
        if picture:
            save_picture(_combination_grid(generator, order, draw) if grid else _plain_grid(generator, order, draw), out)
        else:
            _write(generator, out, order, draw, model=model, force=force)
        ranks.tell(None)
    _tell(out, generator, order)


def _tell(out: Path, generator: LoadedGenerator, order: Order) -> None:
    say(f"{out}: drawn from {generator.path}, first face number {order.seed}.")
    if order.selection:
        from mien.explore.select import WARNING

        say(WARNING.format(of=order.selection.of, by=order.selection.by))


def check_place(out: Path, *, form: str, grid: bool, force: bool, best_of: int) -> bool:
    """Whether `out` is one picture. UserError for what does not go together, and for a folder that may not be written."""
    from mien.apps.dataset import check_replaceable

    picture = is_picture(out, or_folder=not grid)
    if picture and form == "store":
        raise UserError(f"--format store writes a folder: give --out a name without .png, not {out}.")
    if grid and not picture:
        raise UserError(f"--grid draws one picture: give --out a name that ends in .png, not {out}.")
    if grid and best_of > 1:
        raise UserError("--grid has the same latents in each row, --best-of would choose others: give one of them.")
    if picture:
        check_file(out)
    if not picture and form == "png":
        check_replaceable(out, force)
    return picture


def check_choice(best_of: int, by: str, data: Path | None) -> None:
    """UserError for an option of the choice among candidates that would have no effect."""
    if best_of == 1 and (by != "judge" or data is not None):
        raise UserError(f"{'--data' if by == 'judge' else f'--by {by}'} chooses among candidates: say of how many with --best-of K.")
    if data is not None and by != "realism":
        raise UserError("--data names the real faces of --by realism: give that too, or leave --data out.")


def choose_score(generator: LoadedGenerator, of: int, by: str, data: Path | None) -> Selection:
    """The judge's or realism's choice among `of` candidates. UserError for another name, or reals that are missing."""
    from mien.apps.dataset import Selection
    from mien.explore.select import by_condition, by_realism
    from mien.metrics.judge import load_judge

    if by not in ("judge", "realism"):
        raise UserError(f"--by {by}: there are judge and realism.")
    judge = load_judge(device=generator.device)
    known = {"judge_sha256": judge.weights_sha256}
    if by == "judge":
        score = by_condition(judge.probabilities, judged=judge.attribute_names, asked=generator.attribute_names)
        return Selection(of, by, score, known)
    if data is None:
        raise UserError("--by realism compares with real faces: name their store with --data DIR.")

    import numpy as np

    from mien.data.store import open_store
    from mien.metrics.face_sets import real_faces, reference_indices

    store = open_store(data)
    faces = real_faces(store, reference_indices(store, "val", REALS, seed=0), [])
    note(f"Looking at {len(faces):,} validation faces of {data} ...")
    real = np.concatenate([judge.features(part) for part in faces.read()])
    return Selection(of, by, by_realism(judge.features, real=real), {**known, "reals": store.digest, "reals_count": len(faces)}, str(data))


def _write(generator: LoadedGenerator, out: Path, order: Order, draw: Draw, *, model: str, force: bool) -> None:
    """A folder or a store, with a word on how to go on when it is stopped."""
    from mien.apps.cli.data import stoppable
    from mien.apps.dataset import unfinished_folder, write_dataset

    begun = unfinished_folder(out).exists()
    try:
        with stoppable(), progress("Drawing", order.count, unit="faces") as advance:
            write_dataset(generator, out, order, model=model, force=force, draw=draw, advance=advance)
    finally:
        if unfinished_folder(out).exists() and not begun:
            note("What is drawn is kept: the same command goes on from there.")


def is_picture(out: Path, *, or_folder: bool = False) -> bool:
    """Whether `out` names one picture. UserError for a kind of picture that is not written, rather than a folder called faces.jpg."""
    suffix = out.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UserError(f"Pictures are written as .png: give --out {out.with_suffix('.png')}{', or a folder' if or_folder else ''}.")
    return suffix == ".png"


def check_picture(count: int, size: int) -> None:
    """Raises UserError when one picture of `count` faces of `size` px would be more than a viewer, and memory, can hold."""
    most = MAX_PICTURE_PX // size**2
    if count > most:
        raise UserError(f"--count {count:,}: one picture holds at most {most:,} faces of {size} px. Name a folder for them: --out faces.")


def _plain_grid(generator: LoadedGenerator, order: Order, draw: Draw) -> Any:
    """A picture as near to square as the count allows."""
    import torch

    from mien.apps.dataset import pieces
    from mien.models.pictures import grid

    images = torch.cat([draw(places).images for places in pieces(generator, order)])
    return grid(images, columns=round(order.count**0.5 + 0.4999))


def _combination_grid(generator: LoadedGenerator, order: Order, draw: Draw) -> Any:
    """A row of the same latents for each attribute combination; --count is divided among the rows. A plain grid when there is only one."""
    from mien.explore.latents import latents, truncated
    from mien.explore.sample import captions, combinations, labelled_grid, render

    rows = combinations(generator, order.where)
    if len(rows) == 1:
        note("There is only one combination to show: the grid has no rows by attribute.")
        return _plain_grid(generator, order, draw)
    columns = max(1, order.count // len(rows))
    generator, z = truncated(generator, latents(range(order.seed, order.seed + columns), generator.z_dim), order.truncation)
    images = render(generator, z.repeat(len(rows), 1), rows.repeat_interleave(columns, dim=0))
    return labelled_grid(images, captions(rows, generator.attribute_names))
