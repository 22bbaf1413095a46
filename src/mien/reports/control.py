"""Attribute control on a page: is an attribute given when it is asked for, and what else moves with it.

Reads the scores `control`, `leakage` and `identity` (metrics/attribute_control.py) and their details.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mien.reports import findings
from mien.reports.findings import Score, as_object
from mien.reports.page import Html, esc, folded, heading, images, join, number, paragraph, scrolling, table

NARROW = 12  # judged attributes shown at once; the full matrix is folded away


def control(all_scores: Sequence[Score]) -> Html:
    """What the newest control scores found; '' when there are none."""
    newest = {score.metric: score for score in all_scores if score.metric in ("control", "leakage", "identity")}
    accuracy, leakage, identity = (newest.get(metric) for metric in ("control", "leakage", "identity"))
    return join([_accuracy(accuracy) if accuracy else "", _leakage(leakage) if leakage else "", _identity(identity) if identity else ""])


def _accuracy(score: Score) -> Html:
    of_each = {str(name): as_object(said) for name, said in as_object(score.details.get("per_attribute")).items()}
    reals = (
        f"; the judge is right on {score.floor:.1%} of real images, which is the most to be asked for" if score.floor is not None else ""
    )
    right = f"{score.value:.1%}{_interval(score)}"
    lead = f"After {images(score.nimg)} images, {right} of faces have an attribute as it was asked for{reals}."
    rows = [[name, *(_percent(said.get(key)) for key in ("accuracy", "asked_1", "asked_0", "reals"))] for name, said in of_each.items()]
    head = ["Attribute", "Right", "Given when asked for", "Absent when asked to be", "Judge on real images"]
    parts = [paragraph(lead), table(head, rows, caption="Accuracy of each attribute asked for", numeric=(1, 2, 3, 4)) if rows else ""]
    confusion = {str(name): as_object(row) for name, row in as_object(score.details.get("combinations")).items()}
    if confusion:
        columns = sorted({name for row in confusion.values() for name in row} | set(confusion))
        values = [[findings.finite(row.get(column, 0.0)) for column in columns] for row in confusion.values()]
        drawn = _matrix(list(confusion), columns, values, percent=True)
        parts += [
            heading("Combinations"),
            paragraph("Row: asked for. Column: what the judge sees.", css="soft"),
            scrolling("Combinations", drawn),
        ]
    sweep = {str(name): curve for name, curve in as_object(score.details.get("sweep")).items() if _is_curve(curve)}
    if sweep:
        at = [f"{point[0]:g}" for point in next(iter(sweep.values()))]
        shown = [[name, *(_percent(point[1]) for point in curve)] for name, curve in sweep.items()]
        note = "The judge's mean probability as the condition goes from 0 to 1; a condition that can be dialled rises evenly."
        parts += [
            heading("Between 0 and 1"),
            table(["Asked", *at], shown, caption="Sweep", numeric=range(1, len(at) + 1)),
            paragraph(note, css="soft"),
        ]
    parts.append(_rare(score.details.get("rare_combinations")))
    return join(parts)


def _is_curve(curve: Any) -> bool:
    return isinstance(curve, list) and all(
        isinstance(point, list) and len(point) == 2 and findings.finite(point[0]) is not None for point in curve
    )


def _rare(found: Any) -> Html:
    rows = [
        [str(row.get("combination")).replace(",", " "), _percent(row.get("share_of_reals")), _percent(row.get("all_right"))]
        for row in (found if isinstance(found, list) else [])
        if isinstance(row, dict)
    ]
    if not rows:
        return Html("")
    shown = table(["Combination", "Share of reals", "All of it right"], rows, caption="Rare combinations", numeric=(1, 2))
    return folded(f"Combinations that under 1% of the real images have ({len(rows)})", shown)


def _leakage(score: Score) -> Html:
    """The named leaks, then the matrix: asked by judged, the attributes asked for and the most moved first."""
    said = score.details
    names = (said.get("attributes"), said.get("judged"))
    asked, judged = ([str(name) for name in given] if isinstance(given, list) else [] for given in names)
    floor = f"; noise alone would give {number(score.floor)}" if score.floor is not None else ""
    size = f"{number(score.value)}{_interval(score, percent=False)}{floor}"
    lead = f"Mean leakage {size}: how far the other attributes move when one is switched, beyond "
    parts = [heading("Leakage"), paragraph(lead + "what real faces with and without it explain."), _named(said.get("leaks"))]
    values = _square(said.get("leakage"), len(asked), len(judged))
    if not values:
        return join(parts)
    effect = _square(said.get("effect"), len(asked), len(judged)) or values
    for i, name in enumerate(asked):  # against itself an attribute does not leak: there stands how far it moves
        values[i] = [effect[i][j] if other == name else value for j, (other, value) in enumerate(zip(judged, values[i]))]

    def moved(j: int) -> tuple[bool, float]:
        return judged[j] not in asked, -max(abs(row[j] or 0.0) for row in values)

    order = sorted(range(len(judged)), key=moved)
    first = order[: max(NARROW, len(asked))]
    note = "Row: the attribute switched. Column: how far the judged one moves beyond what the data explain. Outlined: the attribute itself."
    parts += [
        paragraph(note, css="soft"),
        scrolling("Leakage matrix", _matrix(asked, [judged[j] for j in first], [[row[j] for j in first] for row in values])),
    ]
    if len(first) < len(judged):
        parts.append(folded(f"All {len(judged)} judged attributes", scrolling("Whole leakage matrix", _matrix(asked, judged, values))))
    return join(parts)


def _named(leaks: Any) -> Html:
    rows = [
        [
            row.get("asked"),
            row.get("judged"),
            signed(row.get("leakage")),
            f"{signed(row.get('low'))} to {signed(row.get('high'))}",
            signed(row.get("effect")),
            signed(row.get("explained")),
        ]
        for row in (leaks if isinstance(leaks, list) else [])
        if isinstance(row, dict)
    ]
    if not rows:
        return paragraph("No leak is both sure and large enough to name.", css="soft") if isinstance(leaks, list) else Html("")
    head = ["Switching", "moves", "Leakage", "Interval", "Whole effect", "Explained by the data"]
    more = table(head, rows[10:], caption="Further leaks", numeric=(2, 3, 4, 5))
    return join(
        [
            table(head, rows[:10], caption="Named leaks", numeric=(2, 3, 4, 5)),
            folded(f"{len(rows) - 10} more leaks", more) if rows[10:] else "",
        ]
    )


def _square(given: Any, rows: int, columns: int) -> list[list[float | None]]:
    """A matrix of numbers of that shape (None where one is none); [] when it is not one."""
    fits = isinstance(given, list) and len(given) == rows and all(isinstance(row, list) and len(row) == columns for row in given)
    return [[findings.finite(value) for value in row] for row in given] if fits and columns else []


def _identity(score: Score) -> Html:
    rows = [[name, number(value)] for name, value in as_object(score.details.get("per_attribute")).items()]
    size = f"{number(score.value)}{_interval(score, percent=False)}"
    note = f"{size}: how far a face moves when an attribute is switched, as a share of the distance "
    return join(
        [
            heading("Identity kept"),
            paragraph(note + "between two different faces. 0 is the same face, 1 another person."),
            table(["Attribute", "Moves"], rows, caption="Identity by attribute", numeric=(1,)) if rows else "",
        ]
    )


def _matrix(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], *, percent: bool = False) -> str:
    """A table of coloured cells: warm for a rise, cool for a fall, pale for little; the numbers are there for those who see no colour."""
    head = join(Html(f'<th scope="col">{_breakable(name)}</th>') for name in columns)
    body = ""
    for name, row in zip(rows, values):
        cells = join(_cell(value, own=column == name, percent=percent) for column, value in zip(columns, row))
        body += f'<tr><th scope="row">{_breakable(name)}</th>{cells}</tr>'
    wide = " wide" if len(columns) > NARROW else ""
    return f'<table class="matrix{wide}"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'


def _breakable(name: str) -> Html:
    return Html(esc(name).replace("_", "_<wbr>").replace(",", ", "))


def _cell(value: float | None, *, own: bool, percent: bool) -> Html:
    strength, colour = 70 * min(abs(value or 0), 1), "--pos" if (value or 0) > 0 else "--neg"
    ground = f"background:color-mix(in srgb,var({colour}) {strength:.0f}%,var(--raised))"
    return Html(
        f'<td{" class=own" if own else ""} style="{ground}">{f"{value:.0%}" if percent and value is not None else signed(value)}</td>'
    )


def signed(value: Any) -> str:
    """'+0.05', '−0.38', '0.00'."""
    given = findings.finite(value)
    if given is None:
        return "–"
    return "0.00" if abs(given) < 0.005 else f"{given:+.2f}".replace("-", "−")


def _percent(value: Any) -> str:
    given = findings.finite(value)
    return "–" if given is None else f"{given:.1%}"


def _interval(score: Score, *, percent: bool = True) -> str:
    if score.low is None or score.high is None:
        return ""
    return f" ({score.low:.1%} to {score.high:.1%})" if percent else f" ({number(score.low)} to {number(score.high)})"
