"""The HTML around a report: escaping, tables, how numbers are said, and one file that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any


class Html(str):
    """Markup that is already safe. Every other string is escaped by `esc` before it reaches a page."""


def esc(value: Any) -> Html:
    """`value` as text for a page: escaped, unless it is Html already; None and NaN become a dash."""
    if isinstance(value, Html):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Html("–")
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Html:
    return Html(between.join(esc(part) for part in parts))


def number(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it: '21.4', '1,830', '2.0e-04'; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        return f"{value:,.0f}"
    if size and size < 10**-digits:
        return f"{value:.1e}"
    decimals = digits - 1 - (math.floor(math.log10(size)) if size else 0)
    return f"{value:.{max(0, decimals)}f}"


def images(nimg: Any) -> str:
    """A count of images: '640', '64,000', '1.28 million'."""
    if isinstance(nimg, bool) or not isinstance(nimg, (int, float)) or not math.isfinite(nimg):
        return "–"
    return f"{nimg:,.0f}" if nimg < 1e6 else f"{nimg / 1e6:.4g} million"


def kimg(nimg: float) -> str:
    """A count of images in a tight place: '2.05k', '60k', '1.28M'."""
    if nimg >= 1e6:
        return f"{nimg / 1e6:.4g}M"
    return f"{nimg / 1000:.0f}k" if nimg >= 10_000 else f"{nimg / 1000:.3g}k" if nimg else "0"


def duration(seconds: float) -> str:
    """'42 s', '7 min', '3 h 12 min', '2 d 5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str, row_heads: bool = True, numeric: Sequence[int] = ()) -> Html:
    """A table that scrolls sideways where it must. `numeric`: columns set flush right; the first column heads its row."""
    kinds = dict.fromkeys(numeric, ' class="num"')
    top = join(Html(f'<th scope="col"{kinds.get(i, "")}>{esc(cell)}</th>') for i, cell in enumerate(head))
    body = []
    for row in rows:
        cells = [
            Html(f'<th scope="row">{esc(cell)}</th>' if i == 0 and row_heads else f"<td{kinds.get(i, '')}>{esc(cell)}</td>")
            for i, cell in enumerate(row)
        ]
        body.append(f"<tr>{join(cells)}</tr>")
    inside = f'<table><caption class="unseen">{esc(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return scrolling(caption, inside)


def scrolling(label: str, inside: str) -> Html:
    """A region of its own that scrolls sideways, by keyboard too, when the page is narrower than what it holds."""
    return Html(f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}">{inside}</div>')


def facts(pairs: Iterable[tuple[str, Any]], css: str = "facts") -> Html:
    """A list of names and values."""
    return Html(f'<dl class="{css}">' + join(Html(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>") for k, v in pairs) + "</dl>")


def section(anchor: str, title: str, *parts: Any) -> Html:
    name = esc(anchor)
    return Html(f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{esc(title)}</h2>{join(parts)}</section>')


def heading(*parts: Any) -> Html:
    """A heading within a section."""
    return Html(f'<h3 class="sub">{join(parts)}</h3>')


def folded(summary: str, *parts: Any) -> Html:
    return Html(f"<details><summary>{esc(summary)}</summary>{join(parts)}</details>")


def paragraph(*parts: Any, css: str = "") -> Html:
    return Html(f'<p class="{css}">{join(parts)}</p>' if css else f"<p>{join(parts)}</p>")


def document(title: str, *, kind: str, lead: Html, sections: Sequence[tuple[str, str, Html]], foot: str) -> str:
    """The whole page. `sections`: (short name, title, markup); empty ones are left out of the page and of its contents list."""
    there = [(short, name, part) for short, name, part in sections if part]
    contents = join(Html(f'<li><a href="#{esc(short.lower())}">{esc(short)}</a></li>') for short, _, _ in there)
    body = join(section(short.lower(), name, part) for short, name, part in there)
    static = resources.files("mien.reports")
    style, script = ((static / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{esc(title)}</title><style>{style}</style></head>\n'
        f'<body><header><p class="kind">{esc(kind)}</p><h1>{esc(title)}</h1>{lead}</header>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>{body}</main>\n'
        f"<footer><p>{esc(foot)}</p></footer><script>{script}</script></body></html>\n"
    )
