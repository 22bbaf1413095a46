"""`mien report` and `mien compare`: a run, or several, as a page to read in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mien.apps.cli.console import note, print_json, say
from mien.errors import UserError
from mien.runs import Run


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory; a live run may be reported on.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Where to write the page. [default: RUN/report.html]")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    with_reals: Annotated[
        bool, typer.Option("--with-reals", help="Add a strip of the training images; without it no real face is in the page.")
    ] = False,
) -> None:
    """Write one self-contained page about a run: verdict, samples, scores, curves, networks, recipe.

    mien report runs/demo --open
    """
    from mien.reports.report import write_report

    there = Run.open(run)
    page = _place(out or there.path / "report.html", ".html")
    write_report(there, page, with_reals=with_reals)
    _told(page, show)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more run directories.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Where to write the page. [default: compare.html, unless --markdown or --json]")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the tables as Markdown; '-' prints them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Set runs side by side: scores with intervals, recipe differences, samples, curves.

    mien compare runs/one runs/two --out compare.html

    Scores measured under different protocols are shown but never ranked.
    """
    from mien.reports import compare as comparing

    comparison = comparing.compare([Run.open(path) for path in runs])
    for warning in comparison.warnings:
        note(f"Warning: {warning}")
    if markdown is not None and str(markdown) != "-":
        _place(markdown, ".md").write_text(comparing.markdown(comparison), encoding="utf-8")
        note(f"Wrote {markdown}.")
    elif markdown is not None:
        say(comparing.markdown(comparison))
    if json:
        print_json(comparing.as_json(comparison))
    if out is not None or show or not (json or markdown):
        page = comparing.write_comparison(comparison, _place(out or Path("compare.html"), ".html"))
        (note if json or markdown else say)(f"Wrote {page}.")
        if show:
            _open(page)


def _place(path: Path, suffix: str) -> Path:
    if path.suffix.lower() != suffix:
        raise UserError(f"{path} should end in {suffix}: other files are not written over.")
    if not path.parent.is_dir():
        raise UserError(f"No such folder: {path.parent}. Make it, or name another file.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it.")
    return path


def _told(page: Path, show: bool) -> None:
    say(f"Wrote {page}.")
    if show:
        _open(page)


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        note(f"No browser could be opened; open {page} yourself.")
