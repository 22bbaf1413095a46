"""Scores on a page: charts over images with intervals and floor, tables that never part a value from its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mien.reports import findings
from mien.reports.charts import Line, line_chart
from mien.reports.findings import Score
from mien.reports.page import Html, esc, facts, heading, images, join, number, paragraph, table


def of_run(all_scores: Sequence[Score], first: Score | None) -> Html:
    """A chart for each metric, then the best of each under each protocol. A line never joins scores of two protocols.

    first: the run's headline, beside which the others are told.
    """
    if not all_scores:
        return paragraph("No score was taken yet. ", Html("<code>mien eval</code>"), " scores a snapshot.", css="soft")
    groups: dict[str, list[Score]] = {}
    for score in all_scores:
        groups.setdefault(score.key, []).append(score)
    charts = [chart(group[0].metric, {"this run": group}) for group in groups.values() if len({score.nimg for score in group}) > 1]
    tops = [top for group in groups.values() if (top := findings.standing(group, first.nimg if first else None))]
    shared = {name: value for name, value in tops[0].protocol.items() if all(top.protocol.get(name) == value for top in tops)}
    head = ["Metric", "Value", "Interval", "Floor", "At images"]
    rows: list[list[str | None]] = []
    for top in tops:
        rows.append([findings.title(top.metric), number(top.value), interval(top), number(top.floor), images(top.nimg)])
    own = [{name: value for name, value in top.protocol.items() if name not in (*shared, "nimg", "model", "date")} for top in tops]
    if any(own):
        head.append("Protocol, where it differs")
        rows = [[*row, in_a_line(said) if said else None] for row, said in zip(rows, own)]
    ways = sorted({str(top.details["interval"]) for top in tops if top.details.get("interval")})
    chosen = f"Best by {first.metric}; chosen among several, its value flatters it a little. " if first else ""
    note = f"{chosen}Floor: what real images score against others, the best to be asked for."
    words = [(findings.title(metric), said) for metric, said in findings.in_words(all_scores).items()]
    return join(
        [
            Html(f'<div class="charts">{join(charts)}</div>') if any(charts) else "",
            heading("Scores of the best snapshot"),
            table(head, rows, caption="Scores of the best snapshot", numeric=(1, 2, 3, 4)),
            paragraph(note, f" Intervals: {'; '.join(ways)}." if ways else "", css="soft"),
            paragraph(Html("<b>Protocol.</b> "), in_a_line(shared), css="soft"),
            heading("In words") if words else "",
            facts(words, "facts small") if words else "",
            _by_combination(first),
        ]
    )


def _by_combination(score: Score | None) -> Html:
    """The headline score for each attribute combination, with how many images it rests on; '' when it was not taken apart."""
    parts = findings.as_object(score.details.get("by_combination")) if score else {}
    rows = []
    for name, part in parts.items():
        said = findings.as_object(part)
        low, high = findings.finite(said.get("low")), findings.finite(said.get("high"))
        span = f"{number(low)} – {number(high)}" if low is not None and high is not None else said.get("why")
        rows.append([name.replace(",", " "), number(said.get("value")), span, number(said.get("floor")), number(said.get("n_real"))])
    if not (rows and score):
        return Html("")
    note = (
        "A combination with fewer images has a higher Fréchet distance and a higher floor by that alone: compare each with its own floor."
    )
    return join(
        [
            heading(f"{findings.title(score.metric)} by attribute combination"),
            table(["Combination", "Value", "Interval", "Floor", "Real images"], rows, caption="By combination", numeric=(1, 2, 3, 4)),
            paragraph(note, css="soft"),
        ]
    )


def chart(metric: str, named: Mapping[str, Sequence[Score]]) -> Html:
    """One metric over images with its intervals, a line a run, and the floor of the first."""
    lines: list[Line] = []
    floors: list[Line] = []
    for i, (name, group) in enumerate(named.items()):
        ordered = sorted(group, key=lambda score: score.nimg)
        x, y, low, high, floor = (
            np.array([np.nan if (value := getattr(score, what)) is None else value for score in ordered], dtype=float)
            for what in ("nimg", "value", "low", "high", "floor")
        )
        lines.append(Line(name, x / 1000, y, i % 8, "dashed" if i >= 8 else "", low, high))
        if np.isfinite(floor).any() and not floors:
            floors.append(Line("real against real (floor)", x / 1000, floor, 6, "dashed"))
    note = {-1: "Lower is better.", 1: "Higher is better."}.get(findings.direction(metric), "")
    return line_chart(findings.title(metric), [*lines, *floors], y_label=metric, note=note)


def interval(score: Score) -> str:
    return f"{number(score.low)} – {number(score.high)}" if score.low is not None and score.high is not None else "–"


def in_a_line(protocol: Mapping[str, Any]) -> Html:
    """A protocol in small print; long hashes shortened, what is absent left out."""
    parts = [f"{name.replace('_', ' ')} {shortened(value)}" for name, value in protocol.items() if value is not None and value != ""]
    return Html(f"<small>{esc(', '.join(parts) or 'not stated')}</small>")


def shortened(value: Any) -> str:
    text = findings.setting(value)
    return f"{text[:10]}…" if len(text) >= 40 and text.isalnum() else text
