"""The command `mien`: what commands there are, how help reads, and what an error looks like.

A command is a light module (typer, `mien.errors` and `mien.runs` at load time; all else inside the function), and only the one asked for is
imported, so that help comes at once. The first line of a command's docstring is its line in `mien --help`.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import sys
import textwrap
import time
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mien import __version__
from mien.errors import UserError, did_you_mean

COMMANDS: dict[str, dict[str, str]] = {  # section -> command -> module:function (or :app, a group of commands)
    "Data": {
        "data": "data:app",
        "judge": "classifier:judge",
    },
    "Train": {
        "train": "train:train",
        "ema": "ema:ema",
        "train-classifier": "classifier:train_classifier",
    },
    "Measure": {
        "eval": "evaluate:evaluate",
        "report": "report:report",
        "compare": "report:compare",
    },
    "Explore": {
        "sample": "sample:sample",
        "interpolate": "interpolate:interpolate",
        "edit": "edit:edit",
        "directions": "directions:directions",
        "ablate": "ablate:ablate",
        "mix": "mix:mix",
        "invert": "invert:invert",
        "anomaly": "anomaly:anomaly",
        "models": "models:models",
        "export": "export:export",
        "push": "push:push",
        "app": "app:app",
    },
    "Runs": {
        "runs": "run:runs",
        "stop": "run:stop",
        "control": "control:control",
        "presets": "presets:presets",
        "doctor": "doctor:doctor",
        "bench": "bench:bench",
    },
}
PLACES = {name: place for section in COMMANDS.values() for name, place in section.items()}
EXAMPLE = """  mien data synth --out faces
  mien train faces --preset demo --run runs/demo
  mien sample runs/demo --out faces.png --grid"""
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
                errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}  # mended by the user, not by us  # fmt: skip


class Commands(TyperGroup):
    """The top level: commands by section, each imported when it is first named, every failure told in one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _build(cmd_name) if cmd_name in PLACES else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in PLACES:
            raise UserError(f"No command is named {args[0]}.{did_you_mean(args[0], PLACES)} 'mien --help' lists them.")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, PLACES)) + 2
        lines = ["Usage: mien COMMAND ...", "", "Train a face GAN that works, know how good it is, and steer it.", "", EXAMPLE]
        for section, commands in COMMANDS.items():
            lines += ["", section, *(f"  {name:{width}}{summary(_load(place))}" for name, place in commands.items())]
        lines += ["", "'mien COMMAND --help' says what a command does and shows an example.", "'mien --version' prints the version;"]
        lines[-1] += " 'mien --install-completion' teaches your shell to complete commands and options."
        formatter.write("\n".join(lines) + "\n")

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # before typer turns it into a wordless exit
            raise Interrupted from None

    def main(self, args: Any = None, *_: Any, **extra: Any) -> Any:
        """Run a command line and exit: 0 done, 1 a fault of ours, 2 a mistake in the input, 130 interrupted."""
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            result = super().main(args, **{**extra, "prog_name": "mien", "standalone_mode": False})
            sys.stdout.flush()
        except Exception as error:
            if os.environ.get("MIEN_DEBUG"):
                traceback.print_exc()
            result = explain(error)
        sys.exit(result if isinstance(result, int) else 0)


class Once(TyperCommand):
    """A command that refuses a comma list given twice: typer would silently keep the last. Of any other option the last counts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[Any] = list(self.make_parser(ctx).parse_args(args=list(args))[2])  # a parameter for each time it was given
        for option in given:
            listed = option.param_type_name == "option" and "," in (option.metavar or "") and not option.multiple
            if listed and given.count(option) > 1 and not ctx.resilient_parsing:
                name = option.opts[0]
                raise UserError(f"{name} is given twice: write {name} {','.join(_values(option.opts, args))}.")
        return super().parse_args(ctx, args)


def _values(names: list[str], args: list[str]) -> list[str]:
    """What follows these names in a command line, as the next word or behind '='."""
    found = []
    for word, following in zip(args, [*args[1:], ""]):
        name, equals, value = word.partition("=")
        if name in names:
            found.append(value if equals else following)
    return found


class Interrupted(Exception):
    """Ctrl-C, on its way to the top."""


def explain(error: Exception) -> int:
    """Say on stderr, in one line, what went wrong; returns the exit code."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(1)  # of several processes the first speaks; torchrun ends this one meanwhile, unless the trouble is here alone
    if isinstance(error, Interrupted):
        return _tell("interrupted.", 130)
    if isinstance(error, UserError):
        return _tell(str(error), 2)
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `head` does: not worth a word
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the interpreter flushes it at exit)
        return 1
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument (its class has moved between versions)
        return _usage(error)
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        place = error.filename2 or error.filename  # of a file that was to be put in its place, the place
        return _tell(f"{error.strerror}{f': {place}' if place else ''}.", 2)
    return _unexpected(error)


def _tell(message: str, code: int) -> int:
    print(f"mien: {message}", file=sys.stderr)
    return code


def _usage(error: Any) -> int:
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help())
        return 0
    message = error.message if getattr(error, "possibilities", None) else error.format_message()
    if hasattr(error, "possibilities"):
        options = [name for param in context.command.params for name in param.opts] if context else []
        message += "." + did_you_mean(error.option_name, options)
    hint = f" '{context.command_path} --help' shows how it is used." if context else ""
    return _tell(f"{message.rstrip().rstrip('.')}{'' if message.rstrip().endswith('?') else '.'}{hint}", 2)


def _unexpected(error: Exception) -> int:
    if os.environ.get("MIEN_DEBUG"):
        return 1
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="mien-error-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"mien {__version__}: {sys.argv}\n")
        traceback.print_exception(error, file=log)
    first_line = (str(error).strip() or "no message").splitlines()[0]
    what = f"unexpected {type(error).__name__}: {first_line}"
    return _tell(f"{what} (a fault of mien; the traceback is in {log.name}, or set MIEN_DEBUG=1 to see it)", 1)


def summary(function: Any) -> str:
    """The first line of a command's docstring, or of a group's help."""
    text = function.info.help if isinstance(function, typer.Typer) else inspect.getdoc(function)
    return str(text).strip().splitlines()[0]


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"mien.apps.cli.{module}"), name)


def _build(name: str) -> Any:
    """The typer command of a name, its examples kept from being wrapped."""
    target = _load(PLACES[name])
    if isinstance(target, typer.Typer):
        for each in target.registered_commands:
            each.cls = Once
        command: Any = typer.main.get_group(target)
        command.name = name
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=Once)(target)
        command = typer.main.get_command(single)
    for each in (command, *getattr(command, "commands", {}).values()):
        each.help = _verbatim_examples(each.help or "")
    return command


def _verbatim_examples(text: str) -> str:
    """Mark the paragraphs that hold a command line, so that typer prints them as they stand, set in by two."""
    paragraphs = text.replace("\b\n", "").split("\n\n")
    verbatim = [any(line.startswith((" ", "mien ")) for line in part.splitlines()) for part in paragraphs]
    return "\n\n".join("\b\n" + textwrap.indent(textwrap.dedent(part), "  ") if keep else part for part, keep in zip(paragraphs, verbatim))


app = typer.Typer(
    cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"max_content_width": 100}
)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"mien {__version__}")
    elif context.invoked_subcommand is None:
        raise UserError("Name a command: 'mien --help' lists them.")


def main() -> None:
    """The console script `mien`."""
    app()
