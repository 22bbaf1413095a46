"""Writes docs/cli.md from the commands' own --help. `make docs` runs it; tests/test_docs.py fails when the file is stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import typer

from mien.apps.cli.main import COMMANDS, app

WIDTH = "100"
HEAD = """# The command line

Made from the commands' own `--help` by `make docs`: do not edit it here.

Counts may be written 300k or 2M. A mistake in the input is told in one line, with exit code 2. Every list has `--json`.
MODEL is a run directory (its best snapshot), a snapshot file, a bundled name (`mien models`) or `hf:user/repo`.
"""


def pages() -> Iterator[tuple[str, str]]:
    """(command path, its help) of `mien`, each command and each command of a group, in the order of `mien --help`."""
    top = typer.main.get_command(app)
    with mock.patch.dict("os.environ", {"COLUMNS": WIDTH, "TERM": "dumb", "NO_COLOR": "1"}), top.make_context("mien", ["runs"]) as context:
        yield "mien", context.get_help()
        for section in COMMANDS.values():
            for name in section:
                yield from _pages(top.get_command(context, name), context)


def _pages(command, parent) -> Iterator[tuple[str, str]]:
    with type(parent)(command, info_name=command.name, parent=parent) as context:
        yield context.command_path, context.get_help()
        for inner in getattr(command, "commands", {}).values():
            yield from _pages(inner, context)


def render() -> str:
    """The text of docs/cli.md."""
    parts = [HEAD]
    for path, text in pages():
        lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"## `{path}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(render(), encoding="utf-8")
