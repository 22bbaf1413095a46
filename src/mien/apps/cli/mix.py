"""`mien mix`: a table of faces, content down the side and style along the top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, say
from mien.apps.cli.strips import save_picture
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator

MOST_FACES = 32  # on a side of the table


def mix(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="PATH.png", help="The picture to write.")],
    content: Annotated[str, typer.Option(metavar="N,N", help="Numbers of the faces that give the content.")] = "1,2,3,4",
    style: Annotated[str, typer.Option(metavar="N,N", help="Numbers of the faces that give the style.")] = "5,6,7,8",
    layers: Annotated[str, typer.Option(metavar="NAMES", help="16x16,32x32, or coarse, middle, fine, all.")] = "fine",
    mode: Annotated[str, typer.Option(metavar="NAME", help="statistics (of each channel) or whole (activations).")] = "statistics",
    part: Annotated[str | None, typer.Option(metavar="PART", help="Only there: mouth, eyes, nose, hair, ...")] = None,
    strength: Annotated[float, typer.Option(help="0 is the content's face, 1 the whole change.")] = 1.0,
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Hold attributes at 0, 1 or between; others as in the data.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Mix faces: the content of some with the look of others, by layer.

    mien mix runs/demo --content 1,2,3 --style 4,5 --layers fine --out mix.png

    mien mix runs/demo --content 1,2,3 --style 4,5 --layers 8x8 --mode whole --part mouth --out mouths.png

    Fine layers carry colour and light, coarse ones shape. Whole activations without --part give the style's face.
    """
    from mien.apps.cli.sample import is_picture

    if not is_picture(out) or out.is_dir():
        raise UserError(f"mix draws one picture: give --out a name that ends in .png, not {out}.")
    lists = numbers("--content", content), numbers("--style", style)

    from mien.engine.build import choose_device
    from mien.explore import mix as mixing
    from mien.explore.load import load_generator
    from mien.explore.regions import boxes
    from mien.explore.sample import parse_where

    generator = load_generator(model, device=choose_device(device))
    held = parse_where(where, generator.attribute_names)
    names = mixing.choose_layers(generator.net, layers)
    places = boxes(part, generator.crop) if part else ()
    if part and not places:
        raise UserError(f"This model's pictures show no {part}: give another --part.")
    if mode == "whole" and not part and strength == 1:
        note("Whole activations replace all that follows, so every face is its style's: give --part, --strength or --mode statistics.")
    faces = [inputs(generator, chosen, held) for chosen in lists]
    mixed = mixing.table(generator, faces[0], faces[1], names, mode=mode, strength=strength, where=places)
    save_picture(_sheet(generator, mixed, faces, lists), out)
    say(f"{out}: {len(lists[0])} contents by {len(lists[1])} styles, {mode} at {', '.join(names)}{f', {part} only' if part else ''}.")


def numbers(option: str, text: str) -> list[int]:
    """'1,2,3' -> [1, 2, 3]. UserError for anything else, or more than a table holds."""
    parts = text.replace(" ", "").split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise UserError(f"{option} {text}: write numbers of faces, for example 1,2,3.")
    if len(parts) > MOST_FACES:
        raise UserError(f"{option}: {len(parts)} faces are too many for a table, which holds {MOST_FACES} on a side.")
    return [int(part) for part in parts]


def inputs(generator: LoadedGenerator, chosen: list[int], where: dict[str, float]) -> tuple[Any, Any]:
    """(z [N, Z], attributes [N, A]) of faces by number, as `mien sample` draws them."""
    import torch

    from mien.explore.latents import latents
    from mien.explore.sample import attribute_rows

    return latents(chosen, generator.z_dim), torch.cat([attribute_rows(generator, where, 1, number) for number in chosen])


def _sheet(generator: LoadedGenerator, mixed: Any, faces: list[tuple[Any, Any]], lists: tuple[list[int], list[int]]) -> Any:
    """The table with contents down the left and styles along the top, each with its number."""
    import torch

    from mien.explore.sample import generate, labelled_grid
    from mien.models.pictures import to_uint8

    contents, styles = (generate(generator, *each) for each in faces)
    corner = torch.ones_like(contents[:1])
    rows = [torch.cat([corner, styles])] + [torch.cat([one[None], row]) for one, row in zip(contents, mixed)]
    styled = ", ".join(map(str, lists[1]))
    labels = [f"style\n{styled}" if len(styled) < 24 else "style"] + [f"content {number}" for number in lists[0]]
    return labelled_grid(to_uint8(torch.cat(rows)), labels)
