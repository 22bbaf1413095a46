"""`mien compare`: several runs side by side as one HTML page, as Markdown (for docs/experiments.md) and as JSON. No torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mien import __version__
from mien.errors import UserError
from mien.reports import curves, findings, pictures, scores
from mien.reports.charts import interval_bars
from mien.reports.findings import Score, as_object, setting
from mien.reports.page import Html, document, duration, esc, heading, images, join, number, paragraph, table
from mien.reports.report import combinations
from mien.reports.seeds import OverSeeds, over_seeds, same_recipe
from mien.runs import SAME_PROTOCOL, Run, best_distance, is_frechet

DASH = "–"


@dataclass(frozen=True)
class Column:
    """One metric of all the runs. scores: of a run's best snapshot, None where it has none; ranked: whether one protocol covers them all.

    winners: names of the best run and of those whose intervals overlap the best's; empty when nothing may be ranked.
    """

    metric: str
    scores: dict[str, Score | None]
    ranked: bool
    winners: tuple[str, ...]
    history: dict[str, list[Score]]


@dataclass(frozen=True)
class Comparison:
    """What was found out about the runs, before it is put into words. names are unique."""

    runs: dict[str, Run]
    columns: list[Column]
    differences: dict[str, dict[str, Any]]
    """{key: {run: value}} for the settings that differ; a key that a run does not have is absent there."""

    @property
    def over_seeds(self) -> list[OverSeeds]:
        """What the runs that differ in their seed alone say together, recipe by recipe, metric by metric."""
        groups = same_recipe(list(self.runs), self.differences)
        told = [over_seeds(group, column.metric, column.scores) for group in groups for column in self.columns]
        return [one for one in told if one]

    @property
    def warnings(self) -> list[str]:
        return [
            f"{findings.title(column.metric)}: measured under different protocols, so the values must not be compared and are not ranked."
            for column in self.columns
            if not column.ranked and sum(score is not None for score in column.scores.values()) > 1
        ]


def compare(runs: Sequence[Run]) -> Comparison:
    """Raises UserError for fewer than two runs or the same one twice."""
    if len(runs) < 2:
        raise UserError("Name at least two runs to compare.")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("The same run is named twice; name each once.")
    named = dict(zip(_names(runs), runs))
    of_each = {name: findings.scores(run) for name, run in named.items()}
    metrics = list(dict.fromkeys(score.metric for some in of_each.values() for score in some))
    recipes = {name: findings.recipe(run) | _data(run) for name, run in named.items()}
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    rows = {key: {name: recipe[key] for name, recipe in recipes.items() if key in recipe} for key in keys}
    differing = {key: row for key, row in rows.items() if len(row) < len(named) or len({setting(value) for value in row.values()}) > 1}
    at = {name: int(line["nimg"]) for name, run in named.items() if (line := run.best_score() or best_distance(run.metrics()))}
    return Comparison(named, [_column(metric, of_each, at) for metric in metrics], differing)


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names; with the parent's before it where two are the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}" for name, run in zip(names, runs)]


def _data(run: Run) -> dict[str, Any]:
    store = as_object(run.config.get("store"))
    return {f"store {key}": store[key] for key in ("digest", "size", "crop", "attributes") if key in store}


def _column(metric: str, of_each: Mapping[str, Sequence[Score]], at: Mapping[str, int]) -> Column:
    """Each run under the protocol that most of them share; where none covers them all, each run's own, unranked.

    at: the images of each run's best snapshot, whose score it is judged by; the metric's own best where that has none.
    """
    mine = {name: [score for score in some if score.metric == metric] for name, some in of_each.items()}
    having = [name for name, some in mine.items() if some]
    shared = {
        key: sum(any(score.key == key for score in mine[name]) for name in having)
        for some in mine.values()
        for key in [s.key for s in some]
    }
    tests = {score.key for some in mine.values() for score in some if score.protocol.get("split") == "test"}
    key = max(reversed(shared), key=lambda k: (shared[k], k not in tests))  # of equally shared ones the newest, of the test split last
    ranked = shared[key] == len(having) > 1
    history = {name: [score for score in some if score.key == (key if ranked else some[-1].key)] for name, some in mine.items()}
    tops = {name: findings.standing(some, at.get(name)) for name, some in history.items()}
    there = {name: top for name, top in tops.items() if top}
    sign = findings.direction(metric)
    if not (ranked and sign):
        return Column(metric, tops, ranked, (), history)
    first = max(there, key=lambda name: sign * there[name].value)
    tied = [name for name, top in there.items() if name != first and _overlap(top, there[first])]
    return Column(metric, tops, ranked, (first, *tied), history)


def _overlap(a: Score, b: Score) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return a.value == b.value
    return a.low <= b.high and b.low <= a.high


# --- the page ---------------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page to `out` (its folder must exist) and return it."""
    out.write_text(render(comparison), encoding="utf-8")
    return out


def render(comparison: Comparison) -> str:
    runs = comparison.runs
    sections = [
        ("Scores", "Scores", _scores(comparison)),
        ("Recipes", "What differs in the recipes", _differences(comparison)),
        ("Samples", "Samples side by side", _samples(comparison)),
        ("Curves", "Training curves", curves.overlaid([(name, run.scalars()) for name, run in runs.items()])),
    ]
    verdicts = join(
        Html(f'<li><i class="key c{i % 8}"></i><b>{esc(name)}</b>: {esc(_lower(findings.verdict(run)))}</li>')
        for i, (name, run) in enumerate(runs.items())
    )
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return document(
        " v ".join(runs) if len(runs) < 4 else f"{len(runs)} runs",
        kind="mien comparison of training runs",
        lead=join([paragraph(in_a_sentence(comparison), css="verdict"), Html(f'<ul class="runs">{verdicts}</ul>')]),
        sections=sections,
        foot=f"Made {made} by mien {__version__} from the run directories alone. Every face on this page is generated.",
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def in_a_sentence(comparison: Comparison) -> str:
    """Which run is best by the Frechet distance, or why that cannot be said."""
    frechet = [column for column in comparison.columns if is_frechet(column.metric)]
    column = next((column for column in frechet if column.ranked), None) or next(iter(frechet), None)
    if column is None:
        return "None of these runs has a Fréchet distance, so none can be called the best."
    if not column.ranked:
        several = sum(score is not None for score in column.scores.values()) > 1
        return f"These runs cannot be ranked: {column.metric} was " + (
            "measured under different protocols." if several else "measured for one of them only."
        )
    first, *tied = column.winners
    top = column.scores[first]
    said = f"{first} has the best {findings.score_in_words(top)}" if top else ""
    whose = f"those of {_and(tied)}" if len(tied) > 1 else f"{tied[0]}'s" if tied else ""
    return said + (f", but its interval overlaps {whose}." if tied else ".")


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _scores(comparison: Comparison) -> Html:
    if not comparison.columns:
        return paragraph("None of the runs was scored.", css="soft")
    warnings = [paragraph(warning, css="warn") for warning in comparison.warnings]
    head = ["Run", "Images", "Time at work", *(column.metric for column in comparison.columns)]
    rows = [
        [name, images(findings.nimg(run)), _time(run), *(_cell(column, name) for column in comparison.columns)]
        for name, run in comparison.runs.items()
    ]
    note = "Each run's best snapshot under one protocol, with its interval. Bold: best of all; ≈: the interval overlaps the best's."
    bars, charts = [], []
    for column in comparison.columns:
        shown = [(name, top.value, top.low, top.high, i % 8) for i, (name, top) in enumerate(column.scores.items()) if top]
        if column.ranked and any(len({score.nimg for score in some}) > 1 for some in column.history.values()):
            charts.append(scores.chart(column.metric, column.history))
        elif column.ranked:
            bars.append(
                Html(f"<div><h3>{esc(findings.title(column.metric))}</h3>{interval_bars(shown, label=findings.title(column.metric))}</div>")
            )
    return join([*warnings, table(head, rows, caption="Scores of the runs", numeric=range(1, len(head))), paragraph(note, css="soft"),
                 _seeds(comparison), Html(f'<div class="charts">{join([*charts, *bars])}</div>'), _protocols(comparison)])  # fmt: skip


SEEDS_HEAD = ["Runs", "Metric", "Mean", "Standard deviation", "Another run: 95 %", "One run's own interval"]
SEEDS_NOTE = (
    "Runs that differ in their seed alone. A run's own interval is for the faces drawn from it; another run of the recipe is expected in "
    "the interval given here (Student's t on the runs)."
)


def _seeds_rows(comparison: Comparison) -> list[list[str]]:
    return [
        [", ".join(one.runs), one.metric, number(one.mean), number(one.sd), f"{number(one.low)} to {number(one.high)}",
         DASH if one.own is None else f"± {number(one.own)}"]
        for one in comparison.over_seeds
    ]  # fmt: skip


def _seeds(comparison: Comparison) -> Html:
    rows = _seeds_rows(comparison)
    if not rows:
        return Html("")
    told = table(SEEDS_HEAD, rows, caption="Scores over seeds", numeric=range(2, len(SEEDS_HEAD)))
    return join([heading("Over seeds"), told, paragraph(SEEDS_NOTE, css="soft")])


def _protocols(comparison: Comparison) -> Html:
    """Which scores were made how: a row for each protocol, naming the metrics and runs it holds for."""
    where: dict[tuple[Html, str], list[str]] = {}
    for column in comparison.columns:
        said: dict[Html, list[str]] = {}
        for name, top in column.scores.items():
            if top:
                said.setdefault(scores.in_a_line({key: top.protocol.get(key) for key in SAME_PROTOCOL}), []).append(name)
        for line, names in said.items():
            where.setdefault((line, "all that have it" if len(said) == 1 else ", ".join(names)), []).append(column.metric)
    rows = [[", ".join(metrics), names, line] for (line, names), metrics in where.items()]
    return join([heading("Protocols"), table(["Metrics", "Runs", "Protocol"], rows, caption="Protocols of the scores")])


def _cell(column: Column, name: str) -> Html:
    top = column.scores.get(name)
    if not top:
        return Html(DASH)
    span = f" <small>({number(top.low)} to {number(top.high)})</small>" if top.low is not None and top.high is not None else ""
    value = number(top.value)
    if column.winners[:1] == (name,):
        return Html(f'<b class="best">{value}</b>{span}')
    return Html(f"{'≈ ' if name in column.winners else ''}{value}{span}")


def _time(run: Run) -> str:
    spent = findings.time_s(run)
    return duration(spent) if spent else DASH


def _differences(comparison: Comparison) -> Html:
    if not comparison.differences:
        return paragraph("Nothing: the recipes and the data are the same.", css="soft")
    rows = [
        [Html(f"<code>{esc(key)}</code>"), *(_setting(row, name) for name in comparison.runs)]
        for key, row in comparison.differences.items()
    ]
    return table(["Key", *comparison.runs], rows, caption="Settings that differ")


def _setting(row: Mapping[str, Any], name: str) -> str:
    return scores.shortened(row[name]) if name in row else DASH


def _samples(comparison: Comparison) -> Html:
    """The grids nearest to the last image count that every run has reached; the newest of each where that is the untrained start."""
    grids = {name: run.samples() for name, run in comparison.runs.items()}
    there = [some for some in grids.values() if some]
    if not there:
        return Html("")
    at = min(max(nimg for nimg, _ in some) for some in there)
    parts = []
    for i, (name, some) in enumerate(grids.items()):
        found = min(some, key=lambda pair: abs(pair[0] - at) if at else -pair[0], default=None)
        picture = pictures.read(found[1]) if found else None
        if found and picture:
            where = pictures.layout(comparison.runs[name].path / "samples")
            shown = combinations(picture, where, columns=6, most_bytes=50_000)
            head = f'<h3 class="sub"><i class="key c{i % 8}"></i>{esc(name)}, {esc(images(found[0]))} images</h3>'
            parts.append(Html(f"<div>{head}{shown}</div>"))
        else:
            parts.append(Html(f'<div><h3 class="sub">{esc(name)}</h3><p class="soft">No samples.</p></div>'))
    told = (
        "After as many images each, as nearly as there are grids." if at else "The newest of each: not every run has a grid past its start."
    )
    return join([paragraph(told, css="soft"), Html(f'<div class="two">{join(parts)}</div>')])


# --- Markdown and JSON ------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """Scores and recipe differences as Markdown tables."""
    head = ["Run", "Images", "Time", *(column.metric for column in comparison.columns)]
    rows = [
        [name, images(findings.nimg(run)), _time(run), *(_plain(column, name) for column in comparison.columns)]
        for name, run in comparison.runs.items()
    ]
    parts = [in_a_sentence(comparison), *(f"**Warning:** {warning}" for warning in comparison.warnings), markdown_table(head, rows)]
    if comparison.columns:
        parts.append("The best snapshot of each run; **bold**: the best, ≈: its interval overlaps the best's. In brackets: the interval.")
        parts.append("\n".join(_protocol_lines(comparison)))
    if seeds := _seeds_rows(comparison):
        parts += [SEEDS_NOTE, markdown_table(SEEDS_HEAD, seeds)]
    if comparison.differences:
        changed = [[f"`{key}`", *(_setting(row, name) for name in comparison.runs)] for key, row in comparison.differences.items()]
        parts += ["What differs in the recipes:", markdown_table(["Key", *comparison.runs], changed)]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def _plain(column: Column, name: str) -> str:
    top = column.scores.get(name)
    if not top:
        return DASH
    span = f" ({number(top.low)} to {number(top.high)})" if top.low is not None and top.high is not None else ""
    value = number(top.value)
    return (f"**{value}**" if column.winners[:1] == (name,) else f"{'≈ ' if name in column.winners else ''}{value}") + span


def _protocol_lines(comparison: Comparison) -> list[str]:
    lines: dict[str, list[str]] = {}
    for column in comparison.columns:
        top = next((score for score in column.scores.values() if score), None)
        if column.ranked and top:
            said = ", ".join(f"{key} {scores.shortened(top.protocol[key])}" for key in SAME_PROTOCOL if top.protocol.get(key) is not None)
            lines.setdefault(said, []).append(column.metric)
    return [f"Protocol of {', '.join(metrics)}: {said}.  " for said, metrics in lines.items()]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data: runs (state, images, time, scores with their protocols), differences, warnings, winners by metric."""
    runs = [
        {
            "run": name,
            "path": str(run.path),
            "state": findings.status(run).get("state"),
            "nimg": findings.nimg(run),
            "time_s": findings.time_s(run),
            "scores": {column.metric: _record(top) for column in comparison.columns if (top := column.scores.get(name))},
        }
        for name, run in comparison.runs.items()
    ]
    ranking = {
        column.metric: {"ranked": column.ranked, "best": list(column.winners[:1]), "overlapping": list(column.winners[1:])}
        for column in comparison.columns
    }
    seeds = [dataclasses.asdict(one) for one in comparison.over_seeds]
    return {"runs": runs, "ranking": ranking, "over_seeds": seeds, "differences": comparison.differences, "warnings": comparison.warnings}


def _record(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "floor": score.floor,
        "nimg": score.nimg,
        "protocol": dict(score.protocol),
    }
