"""What commands say and how: results on stdout (text, tables, JSON), progress on stderr. rich is loaded only for a live bar."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

PLAIN_EVERY_S = 10.0  # between progress lines when stderr is no terminal


def say(text: str = "") -> None:
    """One line of result on stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """One line beside the result, on stderr: a warning or a hint that must not end up in a pipe."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """`value` on stdout as JSON. Paths become strings; NaN and infinities, which JSON cannot hold, raise ValueError."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """An aligned table on stdout: numbers to the right, None as '-', the last column cut to the terminal's width."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) if cells else len(name) for i, name in enumerate(columns)]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows) for i in range(len(columns))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in [list(columns), *cells]:
        aligned = [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right)]
        line = "  ".join(aligned).rstrip()
        say(line if room is None or len(line) <= room else line[: room - 1] + "…")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """'42 s', '3 min 05 s', '2 h 07 min', '3 d 04 h'."""
    whole = max(0, round(seconds))
    for unit, size, below, below_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below_size:02d} {below}"
    return f"{whole} s"


def progress(label: str, total: int, *, unit: str = "images", done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
    """A context that yields `advance(n)`: a live bar with rate and time left on a terminal; elsewhere a line now and then.

    `done` is what an earlier process had finished already: it counts towards the bar, not towards the rate.
    """
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return _live(label, total, unit, done) if live else _lines(label, total, unit, done)


@contextmanager
def _lines(label: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    start = shown = time.monotonic()
    count = done

    def line() -> str:
        rate = (count - done) / max(time.monotonic() - start, 1e-9)
        left = f", {duration((total - count) / rate)} left" if rate > 0 and count < total else ""
        return f"{label}: {count:,} of {total:,} {unit}, {rate:,.0f} {unit}/s{left}"

    def advance(n: int) -> None:
        nonlocal shown, count
        count += n
        if time.monotonic() - shown >= PLAIN_EVERY_S:
            shown = time.monotonic()
            note(line())

    yield advance
    note(line())


@contextmanager
def _live(label: str, total: int, unit: str, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} {unit}/s", style="progress.data.speed")

    label_column, counts = TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} / {task.total:,.0f}")
    with Progress(label_column, BarColumn(), counts, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda n: bar.advance(task, n)
