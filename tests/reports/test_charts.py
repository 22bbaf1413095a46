"""Charts: what is drawn is where its value is, spikes survive thinning, and missing numbers leave gaps rather than nonsense."""

import re

import numpy as np
import pytest

from mien.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, Mark, line_chart, log_ticks, smooth, thin, ticks
from mien.reports.curves import one_run, overlaid
from mien.reports.drawings import network, stages, totals
from mien.reports.page import Html, duration, esc, images, number


def places(chart: str) -> np.ndarray:
    path = re.search(r'data-name[^>]* d="([^"]*)"', chart)[1]
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)])


def test_points_stand_at_their_values():
    chart = line_chart("t", [Line("a", np.array([0.0, 50, 100]), np.array([0.0, 1, 0.5]))], y_label="", y_range=(0, 1))
    middle = (LEFT + WIDTH - RIGHT) / 2
    expected = [[LEFT, HEIGHT - BOTTOM], [middle, TOP], [WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2]]
    assert places(chart) == pytest.approx(np.array(expected), abs=0.06)


def test_a_log_scale_is_logarithmic():
    chart = line_chart("t", [Line("a", np.array([0.0, 1, 2]), np.array([1e-2, 1, 1e2]))], y_label="", log=True)
    y = places(chart)[:, 1]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.11)
    assert "log scale" in chart


def test_thinning_keeps_every_spike():
    y = np.random.default_rng(0).normal(size=20_000)
    y[777], y[15_000] = 1e6, -1e6
    x, kept = thin(np.arange(20_000.0), y)
    assert len(x) <= 400 and {1e6, -1e6} <= set(kept) and (x[0], x[-1]) == (0, 19_999)
    assert (np.diff(x) > 0).all()
    assert all(y[int(a)] == b for a, b in zip(x, kept))


def test_gaps_stay_gaps():
    y = np.array([1.0, 1, np.nan, 2, 2, np.inf, 3])
    chart = line_chart("t", [Line("a", np.arange(7.0), y)], y_label="")
    assert re.search(r'data-name="a" d="([^"]*)"', chart)[1].count("M") == 3
    assert "2 values are not finite" in chart and "<circle" in chart  # the lone last number is drawn as a point


def test_a_line_that_goes_back_is_broken():
    """After a rollback nimg falls: the line must not run back across the chart."""
    chart = line_chart("t", [Line("a", np.array([1.0, 2, 3, 2, 3, 4]), np.ones(6))], y_label="")
    assert re.search(r'data-name="a" d="([^"]*)"', chart)[1].count("M") == 2


def test_one_outlier_does_not_flatten_the_rest():
    y = np.random.default_rng(0).normal(1, 0.1, 500)
    y[250] = 1e5
    chart = line_chart("t", [Line("a", np.arange(500.0), y)], y_label="")
    assert np.ptp(np.sort(places(chart)[:, 1])[5:-5]) > 50
    assert "Outside the frame: one point" in chart and "100,000" in chart


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("huge", [1e308, 3.4e38, 5e-324])
def test_values_at_the_ends_of_the_scale_are_drawn_or_told(huge, log):
    chart = line_chart("c", [Line("a", np.arange(32.0), np.array([huge, 1.0] * 16) * (-1.0) ** (np.arange(32) // 2))], y_label="y", log=log)
    assert "<svg" in chart and "nan" not in chart and "inf" not in chart
    assert huge != 1e308 or log or "Outside the frame: 16 points" in chart


def test_nothing_to_draw_draws_nothing():
    assert line_chart("t", [], y_label="") == ""
    assert line_chart("t", [Line("a", np.arange(2.0), np.full(2, np.nan))], y_label="") == ""
    assert one_run([], [], None) == "" and overlaid([("a", []), ("b", [])]) == ""


def test_a_constant_line_and_a_single_point_have_a_frame():
    for y in (np.full(5, 3.0), np.zeros(5), np.full(1, -2.0)):
        chart = line_chart("t", [Line("a", np.arange(float(len(y))), y)], y_label="")
        assert "nan" not in chart and "inf" not in chart


def test_close_marks_share_one_letter():
    marks = [Mark(10.0 + i / 1000, "decision", f"d{i}") for i in range(50)] + [Mark(10.01, "rollback", "back")]
    chart = line_chart("t", [Line("a", np.array([0.0, 100]), np.ones(2))], y_label="", marks=marks)
    assert chart.count('<g class="event') == 1 and '<g class="event rollback">' in chart and "and 45 more" in chart


def test_smoothing_keeps_constants_slopes_and_place():
    x = np.arange(1000.0)
    assert smooth(x, np.full(1000, 2.0)) == pytest.approx(2.0)
    assert smooth(x, x)[300:700] == pytest.approx(x[300:700], abs=0.5)  # no lag
    step = smooth(x, (x >= 500).astype(float))
    assert 0.4 < step[500] < 0.6
    holes = np.where(x % 3 == 0, np.nan, 5.0)
    assert smooth(x, holes) == pytest.approx(5.0)
    assert np.isnan(smooth(x, np.full(1000, np.nan))).all()


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 17), (0.101, 0.102), (1e-9, 3e-9), (0, 6e5)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 11 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)


@pytest.mark.parametrize("low, high", [(1e-6, 1e6), (0.2, 3), (0.31, 0.37), (5, 4000)])
def test_log_ticks_are_inside(low, high):
    found = log_ticks(low, high)
    assert 1 < len(found) < 12 and all(low * 0.99 <= value <= high * 1.01 for value in found)


def test_constant_scalars_are_said_not_drawn():
    still = {"loss_g": 1.0, "lr_g": 2e-4, "lr_d": 2e-4}
    page = one_run([{"nimg": 1000 * i, "loss_d": float(i), "novel": float(i), **still} for i in range(1, 6)], [], 5)
    assert "lr_d 0.0002, lr_g 0.0002" in page and "<h3>Learning rates</h3>" not in page
    assert "<h3>Losses</h3>" in page and "Further scalars (1)" in page


def test_a_projection_stands_beside_the_logit():
    rows = [
        {"name": name, "output": output, "parameters": 1, "macs": 1}
        for name, output in (("conv", [8, 4, 4]), ("logit", [1]), ("embed", [8]))
    ]
    drawn = network("Discriminator", rows)
    assert drawn.count('class="arrow"') == 1 and drawn.count(">+</text>") == 1 and ">embed</text>" in drawn


def test_layers_of_one_shape_share_a_box():
    rows = [{"name": "conv", "kind": "Conv2d", "output": [8, 4, 4], "parameters": 100, "macs": 1000},
            {"name": "norm", "kind": "BatchNorm2d", "output": [8, 4, 4], "parameters": 16, "macs": 0},
            {"name": "head", "kind": "Linear", "output": [1], "parameters": 9, "macs": 8}]  # fmt: skip
    assert [(stage.output, stage.parameters) for stage in stages(rows)] == [([8, 4, 4], 116), ([1], 9)]
    assert totals(rows) == (125, 1008)
    drawn = network("Discriminator", rows)
    assert drawn.count('<g class="box">') == 2 and "125 parameters, 1,008 multiply-accumulates" in drawn and "BatchNorm2d" in drawn


def test_bigger_maps_are_taller_and_more_channels_longer():
    rows = [
        {"name": str(side), "kind": "Conv2d", "output": [512 // side, side, side], "parameters": 1, "macs": 1} for side in (4, 8, 16, 32)
    ]
    drawn = network("Generator", rows)
    tall = [float(v) for v in re.findall(r'class="front" d="M\S+ \S+l\S+ \S+v([\d.]+)', drawn)]
    long = [float(v) for v in re.findall(r'class="side" d="M\S+ \S+h([\d.]+)', drawn)]
    assert tall == sorted(tall) and long == sorted(long, reverse=True) and len(set(tall)) == len(set(long)) == 4


SAID = [(21.4321, "21.4"), (0.013249, "0.0132"), (1830.4, "1,830"), (2e-4, "2.0e-04"), (0, "0"), (0.0, "0.00"), (-0.5, "-0.500")]


@pytest.mark.parametrize("value, said", [*SAID, (None, "–"), (float("nan"), "–"), ("x", "–"), (True, "–")])
def test_numbers_are_said_with_three_figures(value, said):
    assert number(value) == said


def test_words_for_time_and_counts():
    assert [duration(s) for s in (42, 89.7, 600, 7260, 200_000)] == ["42 s", "90 s", "10 min", "2 h 1 min", "2 d 7 h"]
    assert [images(n) for n in (640, 64_000, 1_280_000, 25_000_000, None)] == ["640", "64,000", "1.28 million", "25 million", "–"]


def test_escaping():
    assert esc("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;" and esc(Html("<b>")) == "<b>" and esc(None) == "–"
