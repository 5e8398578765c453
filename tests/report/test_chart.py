import math
import re

import pytest

from mm.report import chart
from mm.report.colors import SERIES_LIGHT

LOSS = {"train": [(1, 2.5), (2, math.nan), (3, math.inf), (4, 1.0)], "held out": [(4, 1.5)]}


def test_svg_takes_the_colours_of_the_page():
    text = chart.svg(chart.lines(LOSS, x="step", y="loss"))
    assert "var(--line-0)" in text and "var(--line-1)" in text and "currentColor" in text
    assert not any(color in text for color in (*SERIES_LIGHT, "#000000", "black"))
    assert "font-family" not in text and "<style" not in text and "http" not in text


def test_the_same_series_give_the_same_text_and_bytes():
    first, second = (chart.lines(LOSS, x="step", y="loss") for _ in range(2))
    assert chart.svg(first) == chart.svg(second) == chart.svg(first)
    assert chart.svg_file(first) == chart.svg_file(second)
    assert chart.png(first) == chart.png(second) and chart.png(first).startswith(b"\x89PNG")


def test_two_charts_of_a_page_share_no_names():
    def names(text):
        found = set(re.findall(r' id="([^"]*)"', text))
        assert {"#" + name for name in found} >= set(re.findall(r"#\w{18,}", text))
        return found

    one = names(chart.svg(chart.lines({"a": [(1, 1), (2, 2)]}, x="step", y="loss")))
    other = names(chart.svg(chart.lines({"a": [(1, 1), (2, 3)]}, x="step", y="loss")))
    assert one and other and not one & other


def test_text_is_escaped_and_shown_as_it_is():
    text = chart.svg(chart.lines({"<b>$x$": [(1, 1)], "y": [(1, 2)]}, x="a & b", y="</svg>"))
    assert "&lt;b&gt;$x$" in text and "a &amp; b" in text and text.count("</svg>") == 1


def test_points_have_bars_and_their_fit_has_their_color():
    found = {"small": [(1e6, 0.3, 0.25, 0.35), (1e7, 0.5, math.nan, math.nan)]}
    fits = {"small": [(1e6, 0.3), (1e8, 0.7)], "other": [(1e6, 0.1), (1e8, 0.2)]}
    figure = chart.points(
        found, x="FLOPs", y="recall", log_x=True, fits=fits, band={"small": [(1e6, 0.2, 0.4)] * 2}
    )
    [axes] = figure.axes
    colors = {line.get_label(): line.get_color() for line in axes.lines}
    assert colors["small"] == SERIES_LIGHT[0] and colors["other"] == SERIES_LIGHT[1]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [list(bar[:, 1]) for bar in bars] == [[0.25, 0.35], [0.5, 0.5]]


def test_numbers_of_ticks_are_short():
    shown = [chart._tick(x) for x in (0.05, 2.5, 1200, 12_000, 3e6, 1e18)]
    assert shown == ["0.05", "2.5", "1200", "12k", "3M", "1E"]


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="give it a series"):
        chart.lines({}, x="step", y="loss")
