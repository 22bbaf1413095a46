"""The training curves: which scalars share a chart, drawn for one run (with its events) or for several on top of one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mien.reports.charts import Band, Line, Mark, line_chart, marks_legend, smooth
from mien.reports.findings import Columns, columns
from mien.reports.page import Html, folded, join, paragraph

Scalars = Sequence[Mapping[str, Any]]
HEALTHY = (Band(0.6, 0.8, "usual accuracy", 0), Band(0.2, 0.3, "usual fooling rate", 2))  # of a DCGAN that trains well


@dataclass(frozen=True)
class Curve:
    """A chart: scalar -> what it is called there; smoothed: draw the ticks faintly and their running mean on top."""

    title: str
    y_label: str
    scalars: dict[str, str]
    note: str = ""
    smoothed: bool = False
    log: bool = False
    bands: tuple[Band, ...] = ()
    y_range: tuple[float, float] | None = None


CURVES = (
    Curve(
        "Losses",
        "loss",
        {"loss_d": "discriminator", "loss_g": "generator"},
        "Faint: each tick. Strong: running mean (weights halve over 2% of the run).",
        smoothed=True,
    ),
    Curve(
        "Who wins",
        "share of images",
        {"accuracy_real": "D right on reals", "accuracy_fake": "D right on fakes", "fooling_rate": "G fools D"},
        "Shaded: where these lie in DCGAN runs that train well.",
        smoothed=True,
        bands=HEALTHY,
        y_range=(0.0, 1.0),
    ),
    Curve("Logit gap", "E[D(real)] − E[D(fake)]", {"logit_gap": "logit gap"}, "Positive and slowly narrowing is healthy.", smoothed=True),
    Curve(
        "Sign of D(real)",
        "mean sign",
        {"sign_real": "mean sign of D(real)"},
        "Towards 1: D has learnt the training images by heart.",
        smoothed=True,
    ),
    Curve("Gradient norms", "norm before clipping", {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}, smoothed=True, log=True),
    Curve(
        "Weight change",
        "relative, per update",
        {"weight_change_d": "discriminator", "weight_change_g": "generator"},
        smoothed=True,
        log=True,
    ),
    Curve("Learning rates", "learning rate", {"lr_d": "discriminator", "lr_g": "generator"}),
    Curve("Updates a round", "updates", {"d_steps": "discriminator", "g_steps": "generator"}),
    Curve("Augmentation", "probability p", {"augment_p": "augmentation p"}),
    Curve("R1 strength", "gamma", {"r1_gamma": "gamma of R1"}),
    Curve("R1 penalty", "squared gradient norm", {"r1_penalty": "R1 penalty"}, smoothed=True, log=True),
    Curve("EMA half-life", "thousands of images", {"ema_half_life_kimg": "EMA half-life"}),
    Curve("Speed", "images a second", {"images_per_s": "images a second"}),
    Curve("Memory", "MB", {"memory_mb": "memory"}),
)
NOT_CURVES = {"nimg", "time_s", "progress", *(name for curve in CURVES for name in curve.scalars)}
COLOURS = {"discriminator": 0, "generator": 1, "D right on reals": 0, "D right on fakes": 3, "G fools D": 2}


def one_run(scalars: Scalars, marks: Sequence[Mark], x_max: float | None) -> Html:
    """Every curve of one run, with its events marked. Scalars that never moved are said in a line instead of drawn; '' without ticks."""
    of = columns(scalars)
    charts, still = [], []
    for curve in CURVES:
        there = [name for name in curve.scalars if name in of]
        held = {name: value for name in there if (value := _constant(of, name)) is not None}
        if held and len(held) == len(there) and not curve.bands:
            still += [f"{name} {value:g}" for name, value in held.items()]
        else:
            charts.append(_chart(curve, of, marks, x_max))
    others = sorted(name for name in of if name not in NOT_CURVES)
    more = [line_chart(name, [Line(name, *of[name], i % 8)], y_label="", marks=marks, x_max=x_max) for i, name in enumerate(others)]
    if not any(charts) and not any(more):
        return Html("")
    return join(
        [
            marks_legend(marks),
            Html(f'<div class="charts">{join(charts)}</div>'),
            paragraph("Constant throughout: " + ", ".join(still) + ".", css="soft") if still else "",
            folded(f"Further scalars ({len(others)})", Html(f'<div class="charts">{join(more)}</div>')) if any(more) else "",
        ]
    )


def overlaid(runs: Sequence[tuple[str, Scalars]]) -> Html:
    """The same curves, one colour a run; each scalar has a chart of its own. What every run held constant is left to the recipes."""
    of_each = [(name, columns(scalars)) for name, scalars in runs]
    charts = []
    for curve in CURVES:
        for name, what in curve.scalars.items():
            having = [(i, run, of) for i, (run, of) in enumerate(of_each) if name in of]
            if not curve.bands and all(_constant(of, name) is not None for _, _, of in having):
                continue
            lines = []
            for i, run, of in having:
                x, y = of[name]
                lines.append(Line(run, x, smooth(x, y) if curve.smoothed else y, i % 8, "dashed" if i >= 8 else ""))
            heading = curve.title if len(curve.scalars) == 1 else f"{curve.title}: {what}"
            bands = curve.bands[:1] if name.startswith("accuracy") else curve.bands[1:]
            log = curve.log and _wide(lines)
            charts.append(line_chart(heading, lines, y_label=curve.y_label, log=log, bands=bands, y_range=curve.y_range))
    return Html(f'<div class="charts">{join(charts)}</div>') if any(charts) else Html("")


def _chart(curve: Curve, of: Columns, marks: Sequence[Mark], x_max: float | None) -> Html:
    lines: list[Line] = []
    for i, (name, what) in enumerate(curve.scalars.items()):
        if name not in of:
            continue
        x, y = of[name]
        colour = COLOURS.get(what, i)
        if curve.smoothed and len(x) > 20:
            lines.append(Line(what, x, y, colour, "raw"))
            y = smooth(x, y)
        lines.append(Line(what, x, y, colour, "dashed" if i and _same(lines, x, y) else ""))
    note = "" if curve.title == "Losses" and not any(line.style == "raw" for line in lines) else curve.note  # it explains the faint lines
    log = curve.log and _wide(lines)
    return line_chart(
        curve.title, lines, y_label=curve.y_label, note=note, marks=marks, log=log, bands=curve.bands, y_range=curve.y_range, x_max=x_max
    )


def _constant(of: Columns, name: str) -> float | None:
    """The value of a scalar that never moved; None when it moved or is not a number throughout."""
    y = of[name][1]
    return float(y[0]) if np.isfinite(y).all() and float(y.max()) == float(y.min()) else None


def _wide(lines: Sequence[Line]) -> bool:
    """Whether a log scale shows more than a plain one: nearly all values positive, and the large ones many times the small."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
    above = values[values > 0]
    return len(above) > 0.9 * len(values) > 0 and bool(np.percentile(above, 98) > 4 * np.percentile(above, 2))


def _same(lines: Sequence[Line], x: np.ndarray, y: np.ndarray) -> bool:
    """Whether another line hides under this one, as two equal rates do: then this one is dashed so that both show."""
    return any(len(line.x) == len(x) and bool((line.y == y).mean() > 0.3) for line in lines)
