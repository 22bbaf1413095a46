"""Drawings of the networks from architecture.json, after figure 1 of the DCGAN paper: a box for each output,
as tall as its map is large and as long as it has channels, with its shape below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mien.reports.page import Html, esc, folded, number, scrolling, table

TALL, DEEP = 140.0, 124.0  # of the largest map, of the most channels
LEAST_TALL, LEAST_DEEP = 7.0, 4.0
SLANT = 0.42  # how far a face leans back: half its height, foreshortened
GAP, MIDDLE, BASE, HEIGHT = 40.0, 86.0, 160.0, 206.0


@dataclass
class Stage:
    """Consecutive layers with one output shape."""

    output: list[int]
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parameters: int = 0
    label: str = ""  # in place of the shape's own words

    @property
    def is_map(self) -> bool:
        return len(self.output) == 3

    @property
    def shape(self) -> str:
        return " × ".join(f"{side:,}" for side in self.output) or "1"


def stages(rows: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """Layers merged while the output's shape stays; a norm or an activation does not get a box of its own."""
    out: list[Stage] = []
    for row in rows:
        output = [int(side) for side in row.get("output") or []]
        if not out or out[-1].output != output:
            out.append(Stage(output))
        out[-1].kinds.append(str(row.get("kind", "")))
        out[-1].names.append(str(row.get("name", "")))
        out[-1].parameters += int(row.get("parameters") or 0)
    return out


def totals(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(parameters, multiply-accumulates for one image)."""
    return sum(int(row.get("parameters") or 0) for row in rows), sum(int(row.get("macs") or 0) for row in rows)


def network(title: str, rows: Sequence[Mapping[str, Any]], *, start: Stage | None = None) -> Html:
    """A figure of one network with its totals and, folded away, every layer. `start`: what goes in. '' without rows."""
    drawn = [*filter(None, [start]), *stages(rows)]
    if not rows:
        return Html("")
    parameters, macs = totals(rows)
    layers = table(
        ["Layer", "Kind", "Output", "Parameters", "MACs"],
        [
            [
                row.get("name"),
                row.get("kind"),
                " × ".join(map(str, row.get("output") or [])),
                f"{int(row.get('parameters') or 0):,}",
                f"{int(row.get('macs') or 0):,}",
            ]
            for row in rows
        ],
        caption=f"Layers of the {title.lower()}",
        numeric=(3, 4),
    )
    note = f"{in_millions(parameters)} parameters, {in_millions(macs)} multiply-accumulates (MACs) for one image"
    return Html(
        f'<figure class="network"><figcaption><h3>{esc(title)}</h3><p>{esc(note)}</p></figcaption>'
        f"{scrolling(f'Drawing of the {title.lower()}', _drawing(title, drawn))}{folded(f'All {len(rows)} layers', layers)}</figure>"
    )


def in_millions(count: float) -> str:
    """'3.68 million', '52,100', '1.2 billion'."""
    if count >= 1e9:
        return f"{number(count / 1e9)} billion"
    return f"{number(count / 1e6)} million" if count >= 1e6 else f"{count:,.0f}"


def _drawing(title: str, drawn: Sequence[Stage]) -> Html:
    largest = max([max(stage.output[1:]) for stage in drawn if stage.is_map], default=1)
    most = max([stage.output[0] for stage in drawn if stage.output], default=1)
    parts, x = [], 14 + 2.6 * len(drawn[0].label)  # a label is wider than the bar it stands under
    for i, stage in enumerate(drawn):
        if i and drawn[i - 1].output == [1]:  # after a logit nothing follows: what is listed then is added to it, as a projection is
            stage.label = stage.names[0]
            parts.append(f'<text class="shape" x="{x + GAP / 2:.0f}" y="{MIDDLE + 5:.0f}" text-anchor="middle">+</text>')
            x += GAP
        elif i:
            parts.append(_arrow(x + 5, x + GAP - 7))
            x += GAP
        box, width = _map(stage, x, largest, most) if stage.is_map else _vector(stage, x)
        parts.append(box)
        x += width
    words = f"{title}: " + ", then ".join(stage.shape for stage in drawn)
    width = math.ceil(x + 40)
    return Html(
        f'<svg class="drawing" viewBox="0 0 {width} {HEIGHT:.0f}" width="{width}" height="{HEIGHT:.0f}" role="img" '
        f'aria-label="{esc(words)}">{"".join(parts)}</svg>'
    )


def _map(stage: Stage, x: float, largest: int, most: int) -> tuple[str, float]:
    """A box for a [C, H, W] output: its front is the map seen aslant, its length the channels; both to scale along a square root."""
    tall = max(LEAST_TALL, TALL * math.sqrt(stage.output[1] / largest))
    deep = max(LEAST_DEEP, DEEP * math.sqrt(stage.output[0] / most))
    lean = tall * SLANT
    rise = lean / 2
    top = MIDDLE - tall / 2
    side = f"M{x:.1f} {top + rise:.1f}h{deep:.1f}v{tall - rise:.1f}h{-deep:.1f}z"
    lid = f"M{x:.1f} {top + rise:.1f}l{lean:.1f} {-rise:.1f}h{deep:.1f}l{-lean:.1f} {rise:.1f}z"
    front = f"M{x + deep:.1f} {top + rise:.1f}l{lean:.1f} {-rise:.1f}v{tall - rise:.1f}l{-lean:.1f} {rise:.1f}z"
    middle = x + (deep + lean) / 2
    label = (
        f'<text class="shape" x="{middle:.1f}" y="{BASE + 22:.0f}" text-anchor="middle">{stage.output[0]:,}</text>'
        f'<text class="side" x="{middle:.1f}" y="{BASE + 38:.0f}" text-anchor="middle">{stage.output[1]} × {stage.output[2]}</text>'
    )
    faces = f'<path class="lid" d="{lid}"/><path class="side" d="{side}"/><path class="front" d="{front}"/>'
    return f'<g class="box">{_hover(stage)}{faces}{label}</g>', deep + lean


def _vector(stage: Stage, x: float) -> tuple[str, float]:
    """A bar for a flat output, taller for more numbers."""
    size = math.prod(stage.output or [1])
    tall = 10 + 12 * math.log2(max(size, 1)) if size > 1 else 10
    tall = min(tall, TALL)
    return (
        f'<g class="box">{_hover(stage)}<rect class="flat" x="{x:.1f}" y="{MIDDLE - tall / 2:.1f}" width="10" height="{tall:.1f}"/>'
        f'<text class="shape" x="{x + 5:.1f}" y="{BASE + 22:.0f}" text-anchor="middle">{esc(stage.shape)}</text>'
        f'<text class="side" x="{x + 5:.1f}" y="{BASE + 38:.0f}" text-anchor="middle">{esc(stage.label)}</text></g>'
    ), 10.0


def _hover(stage: Stage) -> str:
    return f"<title>{esc(stage.shape)}: {esc(', '.join(filter(None, stage.kinds)))} ({stage.parameters:,} parameters)</title>"


def _arrow(x0: float, x1: float) -> str:
    return f'<path class="arrow" d="M{x0:.1f} {MIDDLE:.1f}H{x1:.1f}m-5 -3.5l5 3.5l-5 3.5"/>'
