"""`mien app`: the browser app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.apps.cli.console import note, say


def app(
    model: Annotated[str | None, typer.Argument(help="A run, a snapshot file, a bundled name or hf:user/repo.")] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="The folder of runs to show, and to train new ones in.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 7860,
    host: Annotated[str, typer.Option(help="The address to listen on; another than 127.0.0.1 lets other machines in.")] = "127.0.0.1",
    share: Annotated[bool, typer.Option("--share", help="Let the machines of your network in, by a link with a key.")] = False,
) -> None:
    """Open the browser app: generate, morph, edit, ablate, train and compare.

    mien app runs/demo

    Everything stays on this machine: the page loads nothing from elsewhere, and listens on 127.0.0.1 unless told otherwise.
    """
    from mien.apps.web.app import make_server

    server = make_server(model, runs=runs, host="0.0.0.0" if share and host == "127.0.0.1" else host, port=port)
    if server.site.exposed:
        note("Warning: other machines can reach this app. Whoever has the link, key and all, can use your models, start and stop training")
        note("runs, and see what you do; the connection is not encrypted. Share the link with people you trust, on a network you trust.")
    say(f"mien app: {server.url}")
    note("Ctrl-C ends it; runs that it started go on ('mien stop RUN' ends those).")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        note("The app has ended.")
    finally:
        server.server_close()
