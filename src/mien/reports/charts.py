"""Charts as hand-written SVG: they follow the page's colours (light, dark, print), weigh little and need no plotting library.

x is thousands of real images shown to D throughout. A line has at most 400 points, extremes kept, so a spike is never averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mien.reports.page import Html, esc, join, kimg, number

WIDTH, HEIGHT = 480, 244  # of the drawing, in its own units; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 34, 40  # margins: y numbers, air, event marks, x numbers and label
POINTS = 400
HUGE = 1e100  # what is beyond, or on a log scale below its inverse, is not drawn: float64 could not span the axis
EVENTS = {  # letter and meaning, the gravest first: of events too close to tell apart, the gravest gives the letter
    "error": ("E", "error"),
    "rollback": ("B", "rolled back"),
    "diagnosis": ("!", "diagnosis"),
    "resume": ("R", "resumed"),
    "stop": ("S", "stopped"),
    "control": ("C", "knob turned by hand"),
    "decision": ("D", "decision of the controller"),
    "score": ("▴", "scored"),
}
NAMED = 6  # events of one mark that its hover text spells out


@dataclass(frozen=True)
class Line:
    """x: thousands of images; y: values, NaN where there is none. low, high: an interval a point. colour: 0..7."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    style: str = ""  # "", "raw" (faint), "dashed", "points"
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Mark:
    """An event on the x axis (thousands of images)."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Band:
    """A healthy range, shaded."""

    low: float
    high: float
    name: str
    colour: int = 0


def smooth(x: np.ndarray, y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Running mean of y along x: weights halve with every `share` of the range of x, to both sides, so that it does not lag."""
    half_life = share * float(np.ptp(x)) if len(x) > 1 else 0.0
    if half_life <= 0:
        return y.copy()
    keep = 0.5 ** (np.abs(np.diff(x)) / half_life)
    there = np.isfinite(y)
    value = np.where(there, y, 0.0)
    ahead, back = _decayed(value, there, keep), _decayed(value[::-1], there[::-1], keep[::-1])[::-1]
    total, weight = (ahead + back - np.stack([value, there], axis=1)).T  # the point itself is in both sums
    return np.divide(total, weight, out=np.full(len(y), np.nan), where=weight > 0)


def _decayed(value: np.ndarray, there: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """[N, 2]: at each point the sum of the values so far, and of their weights, both faded by `keep` from point to point."""
    total, weight, out = 0.0, 0.0, []
    for one, is_there, fade in zip(value.tolist(), there.tolist(), [0.0, *keep.tolist()]):
        total, weight = fade * total + one, fade * weight + is_there
        out.append((total, weight))
    return np.array(out)


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of the points: least and greatest of each stretch, in order; a stretch without a number keeps a NaN (a gap)."""
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), (points - 2) // 2 + 1).astype(int)
    keep = {0, len(x) - 1}
    for start, stop in zip(edges, edges[1:]):
        part = y[start:stop]
        keep |= {start} if np.isnan(part).all() else {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    y_label: str,
    note: str = "",
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    x_max: float | None = None,
) -> Html:
    """A figure of lines over thousands of images; '' when no line has a number. It says so when values lie outside its frame."""
    lines = [line for line in lines if len(line.x) and _drawable(line.y, log).any()]
    if not lines:
        return Html("")
    low, high = y_range or _y_range(lines, log, bands)
    frame = _Frame(min(0.0, *(float(line.x.min()) for line in lines)), x_max or max(float(line.x.max()) for line in lines), low, high, log)
    raw = {line.name for line in lines if line.style == "raw"}
    seen = [line for line in lines if line.style == "raw" or line.name not in raw]  # the values themselves, not their running means
    cut = np.concatenate([line.y[np.isfinite(line.y) & ((line.y > high) | (line.y < low))] for line in seen])
    missing = sum(int((~np.isfinite(line.y)).sum()) for line in seen)
    remarks = [
        note,
        f"Outside the frame: {_span(cut)}." if len(cut) else "",
        f"{missing:,} values are not finite numbers; the line has gaps there." if missing else "",
    ]
    shades, names = [_band(frame, band) for band in bands], [_band_name(frame, band) for band in bands]
    drawn = join([*shades, frame.axes(y_label), *_marks(frame, marks), *(_line(frame, line) for line in lines), *names])
    named = [line for line in lines if line.style != "raw"] or lines
    legend = join(Html(f'<li><i class="key c{line.colour} {line.style}"></i>{esc(line.name)}</li>') for line in named)
    caption = join(Html(f"<span>{esc(text)}</span> ") for text in remarks if text)
    return Html(
        f'<figure class="chart"><figcaption><h3>{esc(title)}</h3>'
        + (f'<ul class="legend">{legend}</ul>' if len(named) > 1 or bands else "")
        + f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(_in_words(title, named))}" '
        + f"{frame.for_script()}>{drawn}</svg>"
        + (f'<p class="note">{caption}</p>' if caption else "")
        + "</figure>"
    )


def interval_bars(rows: Sequence[tuple[str, float, float | None, float | None, int]], *, label: str) -> Html:
    """Values with intervals side by side, one row each: (name, value, low, high, colour). Used to compare a handful of scores."""
    ends = [v for _, value, low, high, _ in rows for v in (value, low, high) if v is not None and math.isfinite(v)]
    if not ends:
        return Html("")
    least, most = min(ends), max(ends)
    pad = (most - least or abs(most) or 1.0) * 0.08

    def place(value: float) -> float:
        return 100 * (value - least + pad) / (most - least + 2 * pad)

    out = []
    for name, value, low, high, colour in rows:
        bar = (
            f'<i class="span" style="left:{place(low):.2f}%;width:{place(high) - place(low):.2f}%"></i>'
            if low is not None and high is not None
            else ""
        )
        out.append(
            f'<div class="bar c{colour}"><span>{esc(name)}</span>'
            f'<span class="track">{bar}<i class="dot" style="left:{place(value):.2f}%"></i></span>'
            f"<b>{number(value)}</b></div>"
        )
    return Html(f'<div class="bars" role="img" aria-label="{esc(label)}">{"".join(out)}</div>')


def marks_legend(marks: Sequence[Mark]) -> Html:
    """What the letters on the charts mean: only those that occur."""
    kinds = [kind for kind in EVENTS if any(mark.kind == kind for mark in marks)]
    keys = join(Html(f'<li><i class="event {kind}">{EVENTS[kind][0]}</i>{esc(EVENTS[kind][1])}</li>') for kind in kinds)
    if any(a.kind != b.kind and a.x == b.x for a, b in zip(marks, marks[1:])):
        keys = join([keys, Html("<li>+ with others beside it</li>")])
    return Html(f'<ul class="legend events" aria-label="Events marked on the charts">{keys}</ul>') if kinds else Html("")


class _Frame:
    """From values to places in the drawing, and the axes."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float, log: bool):
        self.x0, self.x1, self.y0, self.y1, self.log = x0, x1 if x1 > x0 else x0 + 1, y0, y1, log

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (self.y0, self.y1, max(value, self.y0))) if self.log else (self.y0, self.y1, value)
        share = (value - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def for_script(self) -> str:
        """What page.js needs to turn a place back into a value."""
        return f'data-x="{self.x0:g} {self.x1:g} {LEFT} {WIDTH - RIGHT}" data-y="{self.y0:g} {self.y1:g} {HEIGHT - BOTTOM} {TOP}"' + (
            ' data-log="1"' if self.log else ""
        )

    def axes(self, y_label: str) -> Html:
        out = []
        for value in log_ticks(self.y0, self.y1) if self.log else ticks(self.y0, self.y1, 5):
            y = self.y(value)
            out.append(
                f'<path class="grid{" zero" if value == 0 and self.y0 < 0 else ""}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
            )
        for value in ticks(self.x0, self.x1, 6):
            x = self.x(value)
            out.append(
                f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>'
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_tick(value)}</text>'
            )
        out.append(
            f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
            f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">thousands of real images</text>'
            f'<text class="label" x="2" y="12">{esc(y_label)}{" (log scale)" if self.log else ""}</text>'
        )
        return Html("".join(out))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about `about` of them: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    if high / low < 5:
        return [value for value in ticks(low, high, 4) if value > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    every = max(1, len(decades) // 6)
    return [f * 10.0**d for d in decades if d % every == 0 for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(power)}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def _drawable(y: np.ndarray, log: bool) -> np.ndarray:
    inside = np.abs(y) < HUGE  # and not NaN
    return inside & (y > 1 / HUGE) if log else inside


def _y_range(lines: Sequence[Line], log: bool, bands: Sequence[Band]) -> tuple[float, float]:
    """All the values, unless a few of them dwarf the rest: then the middle 98 % decide, and line_chart says what was cut."""
    values = np.concatenate([line.y[_drawable(line.y, log)] for line in lines])
    ends = [end[_drawable(end, False)] for line in lines for end in (line.low, line.high) if end is not None]
    values = np.log10(values) if log else np.concatenate([values, *ends])
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(v) for v in np.percentile(values, (1, 99)))
    if not ends and high - low > 4 * (inner_high - inner_low) > 0:
        low, high = max(low, inner_low - (inner_high - inner_low) / 2), min(high, inner_high + (inner_high - inner_low) / 2)
    low, high = min([low, *(band.low for band in bands)]), max([high, *(band.high for band in bands)])
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    if log:
        return 10 ** (low - max(pad, 0.05)), 10 ** (high + max(pad, 0.05))
    return (0.0 if 0 <= low < pad * 6 else low - pad), high + pad


def _line(frame: _Frame, line: Line) -> Html:
    """A line (or its points) with its intervals; it breaks where there is no number and where a rollback takes x back."""
    x, y = (line.x, line.y) if line.low is not None else thin(line.x, line.y)
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b, drawable in zip(x, y, _drawable(y, frame.log)):
        if pieces[-1] and (not drawable or a < pieces[-1][-1][0]):
            pieces.append([])
        if drawable:
            pieces[-1].append((a, b))
    pieces = [piece for piece in pieces if piece]
    steps = "".join("M" + "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in piece) for piece in pieces)
    path = Html(f'<path class="line c{line.colour} {line.style}" data-name="{esc(line.name)}" d="{steps}"/>')
    with_interval = line.low is not None and line.high is not None
    dots = [point for piece in pieces for point in piece if with_interval or len(piece) == 1]  # a number alone does not show as a line
    circles = join(Html(f'<circle class="c{line.colour}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3"/>') for a, b in dots)
    if line.low is None or line.high is None:
        return join([path, circles])
    ends = [(a, low, high) for a, low, high in zip(x, line.low, line.high) if math.isfinite(low) and math.isfinite(high)]
    whiskers = "".join(f"M{frame.x(a):.1f} {frame.y(low):.1f}V{frame.y(high):.1f}" for a, low, high in ends)
    return join([Html(f'<path class="whisker c{line.colour}" d="{whiskers}"/>'), path, circles])


def _band(frame: _Frame, band: Band) -> Html:
    top, bottom, width = frame.y(band.high), frame.y(band.low), WIDTH - LEFT - RIGHT
    return Html(f'<rect class="band c{band.colour}" x="{LEFT}" y="{top:.1f}" width="{width}" height="{bottom - top:.1f}"/>')


def _band_name(frame: _Frame, band: Band) -> Html:
    """Drawn last, with a rim of the page's colour, so that lines do not run through it."""
    y = frame.y(band.low) - 4
    return Html(f'<text class="bandname c{band.colour}" x="{WIDTH - RIGHT - 4}" y="{y:.1f}" text-anchor="end">{esc(band.name)}</text>')


def _marks(frame: _Frame, marks: Sequence[Mark]) -> list[Html]:
    """Letters above the frame with a fine line down; neighbours too close to tell apart share one mark that names them all."""
    out: list[Html] = []
    letters = sorted((mark for mark in marks if mark.kind in EVENTS and mark.kind != "score"), key=lambda mark: mark.x)
    groups: list[list[Mark]] = []
    for mark in letters:
        if groups and frame.x(mark.x) - frame.x(groups[-1][0].x) < 15:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    for group in groups:
        kinds, x = {mark.kind for mark in group}, frame.x(group[0].x)
        gravest = next(kind for kind in EVENTS if kind in kinds)
        said = [f"{kimg(mark.x * 1000)}: {mark.text}" for mark in group[:NAMED]] + [f"and {len(group) - NAMED} more"] * (len(group) > NAMED)
        lines = "".join(f"M{place} {TOP}V{HEIGHT - BOTTOM}" for place in sorted({round(frame.x(mark.x)) for mark in group}))
        more = f'<text x="{x + 12:.1f}" y="{TOP - 3}" text-anchor="middle">+</text>' if len(kinds) > 1 else ""
        circle = (
            f'<circle cx="{x:.1f}" cy="{TOP - 1}" r="7.5"/><text x="{x:.1f}" y="{TOP + 3}" text-anchor="middle">{EVENTS[gravest][0]}</text>'
        )
        title = esc("\n".join(said))
        out.append(Html(f'<g class="event {gravest}"><title>{title}</title><path d="{lines}"/>{circle}{more}</g>'))
    for mark in marks:
        if mark.kind == "score":
            out.append(
                Html(
                    f'<path class="scored" d="M{frame.x(mark.x):.1f} {HEIGHT - BOTTOM}l-3 5h6z">'
                    f"<title>{esc(kimg(mark.x * 1000) + ': ' + mark.text)}</title></path>"
                )
            )
    return out


def _span(values: np.ndarray) -> str:
    """'3 points, 12.0 to 1,000,000'."""
    low, high = (number(float(value)) for value in (values.min(), values.max()))
    return f"one point, {low}" if len(values) == 1 else f"{len(values):,} points, {low} to {high}"


def _in_words(title: str, lines: Sequence[Line]) -> str:
    """The chart for someone who does not see it: where each line starts and ends."""
    said = []
    for line in lines:
        seen = line.y[np.isfinite(line.y)]
        if len(seen):
            said.append(
                "{} from {} to {}, least {}, greatest {}".format(
                    line.name, *(number(float(value)) for value in (seen[0], seen[-1], seen.min(), seen.max()))
                )
            )
    return f"{title} over thousands of real images: " + "; ".join(said)
