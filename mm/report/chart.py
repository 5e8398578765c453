"""Line and scatter charts: SVG for a page, whose colours it takes, and SVG or PNG for a file.

`lines` and `points` make a figure, `svg`, `svg_file` and `png` what is shown of it.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from mm.report.colors import LIGHT, SERIES_LIGHT
from mm.report.html import Html

Series = Mapping[str, Sequence[tuple[float, float]]]  # name -> (x, y)
Bands = Mapping[str, Sequence[tuple[float, float, float]]]  # name -> (x, low, high)
Points = Mapping[str, Sequence[tuple[float, float, float, float]]]  # name -> (x, y, low, high)

_SIZE = 4.2, 2.7  # inches; on a phone that is scaled down little, so that text stays readable
_ROW = 0.19  # inches of a line of the legend
_INK, _RULE = LIGHT["ink"], "#808080"
_DASHES = "-", "--", ":", "-."
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.color": _INK,
    "text.parse_math": False,  # a "$" in a name is one
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.4,
}


def lines(
    series: Series,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    band: Bands | None = None,
) -> Figure:
    """A line a series, with gaps where it is not finite. band: shaded around that of its name."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(series, x, y, log_x, log_y)
        _draw_lines(axes, series, series, band)
        return _finished(figure, axes)


def points(
    series: Points,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    fits: Series | None = None,
    band: Bands | None = None,
) -> Figure:
    """Dots with bars from low to high (NaN: none). fits: lines, in the colour of their name's dots.

    A line or band of a name that has no dots gets a colour of its own.
    """
    names = dict.fromkeys([*series, *(fits or {})])
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(names, x, y, log_x, log_y)
        order = list(names)
        for name, found in series.items():
            color = SERIES_LIGHT[order.index(name) % len(SERIES_LIGHT)]
            xs, ys, low, high = (_finite(column) for column in zip(*found, strict=True))
            bars = [
                [0.0 if math.isnan(a - b) else abs(a - b) for a, b in zip(ys, ends, strict=True)]
                for ends in (low, high)
            ]
            label = name if name not in (fits or {}) else None
            axes.errorbar(
                xs, ys, bars, fmt="o", color=color, ms=4, elinewidth=1, capsize=2, label=label
            )
        _draw_lines(axes, fits or {}, order, band)
        return _finished(figure, axes)


def svg(figure: Figure) -> Html:
    """For a page, whose colours it takes. The same figure gives the same text."""
    text = svg_file(figure)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = text[text.index("<svg") :]
    # The page says how wide it is, and its own style must not change.
    [axes] = figure.axes
    label = escape(f"{axes.get_ylabel()} by {axes.get_xlabel()}")
    size = re.search(r'viewBox="([^"]*)"', text)[1]
    start = f'<svg viewBox="{size}" role="img" aria-label="{label}">'
    text = start + text[text.index(">") + 1 :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Two charts of a page share no names; those of groups serve nobody.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(id="|#)(?=[a-z][0-9a-f]{10}\b)', rf"\g<1>{digest}", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = text.replace(_INK, "currentColor")
    for i, color in enumerate(SERIES_LIGHT):
        text = text.replace(color, f"var(--line-{i})")
    return Html(re.sub(r"\s*\n\s*", "\n", text))


def svg_file(figure: Figure) -> str:
    """A file of its own, on nothing."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": "mm"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def png(figure: Figure, dpi: int = 160) -> bytes:
    """A picture on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _axes(
    names: Mapping[str, object], x: str, y: str, log_x: bool, log_y: bool
) -> tuple[Figure, Axes]:
    """Axes with room for a legend below, when there is more than one name."""
    if not names:
        raise ValueError("a chart of nothing: give it a series")
    rows = -(-len(names) // _columns(names)) if len(names) > 1 else 0
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] + _ROW * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=8 / 72, h_pad=3 / 72)  # inches: half of a label at the end
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    axes.grid(color=_RULE, alpha=0.25, linewidth=0.6)
    return figure, axes


def _draw_lines(axes: Axes, series: Series, order: Sequence[str], band: Bands | None) -> None:
    order = list(order)
    for name in dict.fromkeys([*series, *(band or {})]):
        place = order.index(name) if name in order else len(order)
        color = SERIES_LIGHT[place % len(SERIES_LIGHT)]
        if band and name in band:
            axes.fill_between(
                *(_finite(column) for column in zip(*band[name], strict=True)),
                color=color, alpha=0.2, linewidth=0,
            )  # fmt: skip
        if series.get(name):
            xs, ys = (_finite(column) for column in zip(*series[name], strict=True))
            dash = _DASHES[place // len(SERIES_LIGHT) % len(_DASHES)]
            marker = "o" if len(xs) == 1 else None  # a line of one point would be nothing
            axes.plot(xs, ys, color=color, linestyle=dash, marker=marker, ms=3, label=name)


def _finished(figure: Figure, axes: Axes) -> Figure:
    """With ticks that fit, and a legend below if there is more than one name."""
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log":
            wide = limits[1] >= 100 * limits[0]
            axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 3, 5)))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10), min_n_ticks=3))
        axis.set_major_formatter(_tick)
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(
            handles, names, loc="outside lower center", ncols=_columns(names), frameon=False,
            fontsize=8,
        )  # fmt: skip
    return figure


def _tick(value: float, _: object = None) -> str:
    """ "0.05", "2.5", "1200", "12k", "3M", "1E" (10^18)."""
    return EngFormatter(sep="")(value) if abs(value) >= 10_000 else f"{value:.6g}"


def _columns(names: Iterable[str]) -> int:
    """Of the legend."""
    return 1 if max(map(len, names)) > 22 else 2


def _finite(values: Sequence[float]) -> list[float]:
    return [float(value) if math.isfinite(value) else math.nan for value in values]
