"""`mien push`: a model and its card to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from mien.apps.cli.console import note, say


def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file or a bundled name.")],
    to: Annotated[str, typer.Argument(metavar="hf:USER/REPO", help="Where to; made when there is no such repository yet.")],
    half: Annotated[bool, typer.Option("--half/--full", help="Weights in fp16 (half the size) or as they are.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; otherwise only you see it.")] = False,
) -> None:
    """Upload a model with its card, so that hf:USER/REPO names it anywhere.

    mien push runs/demo hf:someone/demo-faces

    A new repository is private until you say --public: read the card first, and see that the data's terms let you pass the weights on.
    What a repository holds already stays, but for files of the same names. Log in once with 'hf auth login', or set HF_TOKEN.
    """
    from mien.apps.export.hub import check_target
    from mien.apps.export.hub import push as upload
    from mien.explore.load import load_generator

    repository = check_target(to)
    address = upload(load_generator(model), repository, half=half, public=public)
    say(f"{to}: uploaded, {address}")
    note(f"Anyone who may see it can now run: mien sample {to} --out faces.png")
