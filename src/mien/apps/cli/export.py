"""`mien export`: a model as files for other programs, or as a page that runs it in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.apps.cli.console import note, say


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="safetensors (a MODEL for mien), onnx (for other programs) or web "
                                      "(a page that runs it in the browser).")] = "safetensors",
    half: Annotated[bool, typer.Option("--half", help="Keep the weights in fp16: half the size.")] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the model.  [default: the run's or the file's]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that mien export wrote.")] = False,
) -> None:
    """Write a model as safetensors, as ONNX, or as a web page that runs it.

    mien export runs/demo --out demo --format safetensors --half

    mien export runs/demo --out site --format web

    README.md in the folder is the model's card: data, licence, recipe, scores, limits. An ONNX file is
    checked by onnxruntime against PyTorch, and not written when a pixel differs by more than 0.001 (of -1..1).
    """
    from mien.apps.cli.data import stoppable
    from mien.apps.export.package import check_place
    from mien.apps.export.package import export as write
    from mien.explore.load import load_generator

    check_place(out, force=force)
    with stoppable():
        done = write(load_generator(model), out, form=form, half=half, name=name, force=force)
    if done.moved_levels:
        largest, mean = done.moved_levels
        note(f"fp16 weights move a pixel by at most {largest} of 255 levels, {mean:.3f} on average.")
    if done.parity is not None:
        note(f"Checked by onnxruntime: a pixel differs from PyTorch's by at most {done.parity:.1g} (of -1..1).")
    say(f"{out}: {done.name} as {form}, {done.bytes / 1e6:.1f} MB.")
    if form == "web":
        say(f"Look at it: python -m http.server --directory {out}, then open the address that it prints.")
