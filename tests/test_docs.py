"""The documents tell the truth: their commands parse, the cheap ones run, links lead somewhere, docs/cli.md is what the commands say."""

import importlib.metadata
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mien.apps.cli.main import PLACES, app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [path for path in DOCUMENTS if path.name != "cli.md"]  # by hand
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands(text):
    """The `mien ...` lines of a document's shell blocks, and those that are alone in a pair of backticks."""
    blocks = [block for language, block in FENCE.findall(text) if language in ("sh", "bash", "console", "text", "")]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(mien [^`]+)`", FENCE.sub("", text))
    return [line.partition("  #")[0] for line in [*lines, *inline] if line.startswith("mien ")]


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
CASES = [(document, line) for document, text in TEXTS.items() for line in dict.fromkeys(commands(text))]
CHEAP = re.compile(r"mien (presets|models|data synth .*--out)\b(?!.*(NAME|PRESET))")


@pytest.mark.parametrize("document, line", CASES, ids=lambda value: value[:70])
def test_every_command_in_the_documents_parses(document, line):
    words = shlex.split(line)[1:]
    if words[0] in ("COMMAND", "--help", "--version", "--install-completion"):
        return
    command = typer.main.get_command(app)
    context = command.make_context("mien", [])
    path: list[str] = []
    while getattr(command, "commands", None) is not None:  # a group: go down to the command itself
        name, command, words = command.resolve_command(context, words)
        path.append(name)
        context = type(context)(command, info_name=name, parent=context)
        if not words:
            break
    if words and words != ["--help"]:
        command.make_context(path[-1], words, parent=context.parent)  # raises what the command line would refuse
    elif not words:
        assert path[0] in PLACES  # a command named in passing


def test_there_are_commands_to_check():
    assert len([case for case in CASES if case[0] == "README.md"]) >= 10


@pytest.mark.parametrize("line", sorted({line for _, line in CASES if CHEAP.match(line)}))
def test_cheap_commands_run(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r" --count \d+", "", line))[1:]
    words += ["--count", "16"] if words[0] == "data" else []
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_the_command_reference_is_fresh():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    if importlib.metadata.version("typer") != pinned["typer"]:
        pytest.skip("another typer words its help differently")
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == make_cli.render(), "docs/cli.md is stale: run `make docs`"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    local = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link and not link.startswith("mailto:")]
    assert not [link for link in local if not (path.parent / link).exists()]


def test_the_file_tree_in_the_readme_is_there():
    (tree,) = [block for _, block in FENCE.findall((ROOT / "README.md").read_text()) if block.startswith("src/mien/")]
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name
        path = folder if not line.startswith(" ") else folder / name
        assert path.exists(), name
    listed = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "src" / "mien").glob("*/__init__.py")}
    assert packages - {"apps"} <= listed


def test_the_page_on_stability_names_every_rule_with_its_limits_and_every_remedy():
    from mien.engine.balance import REMEDIES
    from mien.engine.diagnosis import RULES

    limits, ladders = TEXTS["docs/stability.md"].split("| diagnosis | rungs |")
    rows = {line.split("|")[1].strip(): line for line in limits.splitlines() if line.startswith("|")}
    for rule in RULES:
        for limit in rule.limits:
            assert f"`{limit.signal}`" in rows[rule.name] and f"{limit.threshold:g}" in rows[rule.name], (rule.name, limit.signal)
            assert f"{limit.back:g}" in rows[rule.name] or limit.signal == "progress", (rule.name, limit.back)
    for diagnosis, remedies in REMEDIES.items():
        line = next(line for line in ladders.splitlines() if line.startswith(f"| {diagnosis.partition(' (')[0]}"))
        assert all(f"`{remedy.knob}`" in line or "its rate" in line for remedy in remedies), diagnosis
