"""The part of a run's page with curves, and where its time went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mm.report import chart, html
from mm.report.html import Html, element
from mm.runtime import goodput
from mm.runtime.progress import duration

STYLE = """
.bar { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; margin: .5rem 0; }
.bar i { display: block; min-width: 2px; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; }
"""
_POINTS = 300  # of a curve; of more lines the mean of some
_MOST = 60  # curves that are folded
_HIDDEN = ("step", "batch_hash", "memory/device_limit", "memory/step")
_TIMES = "examples_per_second", "data_wait_fraction", "memory/host", "memory/device_peak"
KINDS = {
    "train": "training steps",
    "data": "waiting for data",
    "compile": "first step of each start (compiling)",
    "evaluate": "evaluations",
    "save": "checkpoints",
    "start": "starting: imports, restoring",
    "repeated": "steps made again after a kill",
    "between": "between one start and the next",
}

Lines = Sequence[Mapping[str, Any]]


def curve(lines: Lines, key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have the key; of very many, means of neighbours."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    each = -(-len(found) // _POINTS)
    if each <= 1:
        return found
    groups = [found[start : start + each] for start in range(0, len(found), each)]
    return [(group[-1][0], float(np.mean([y for _, y in group]))) for group in groups]


def drawn(lines: Lines, keys: Mapping[str, str], y: str) -> Html | None:
    """A chart of some keys, {key: its name}; None if no line has one."""
    series = {name: found for key, name in keys.items() if (found := curve(lines, key))}
    if not series:
        return None
    return html.figure(chart.svg(chart.lines(series, x="step", y=y)))


def training(lines: Lines, objectives: Sequence[str], evals: Sequence[str]) -> Html:
    """Loss, evaluations and learning rate; all else folded."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    losses = ["loss", *(f"{name}/loss" for name in objectives if len(objectives) > 1)]
    # Reranked recalls are of the same pool: they are among the others.
    recalls = [k for k in keys if k.split("/")[0] in evals and k.count("/") == 2]
    recalls = [key for key in recalls if key.endswith("/recall@1")]
    held_out = [k for k in keys if k.split("/")[0] in evals and k.endswith("/loss")]
    shown = [
        drawn(lines, dict.fromkeys(losses) | {k: k.replace("/loss", "") for k in losses}, "loss"),
        drawn(lines, {key: key.replace("/recall@1", "") for key in recalls}, "recall@1"),
        drawn(lines, {key: key.replace("/loss", "") for key in held_out}, "loss, evaluations"),
        drawn(lines, {"learning_rate": "learning rate"}, "learning rate"),
        drawn(lines, {"gradient_norm": "gradient norm"}, "gradient norm"),
    ]
    taken = {*losses, *recalls, *held_out, *_TIMES, *_HIDDEN, "learning_rate", "gradient_norm"}
    others = [key for key in keys if key not in taken]
    folded = [drawn(lines, {key: key}, key) for key in others[:_MOST]]
    parts = [html.grid(part for part in shown if part is not None)]
    if folded:
        left = f" (of {len(others)}; all are in metrics.jsonl)" if len(others) > _MOST else ""
        title = f"{len(folded)} more curves{left}"
        parts.append(html.details(title, html.grid(part for part in folded if part is not None)))
    return html.join(parts)


def times(lines: Lines, starts: Sequence[Mapping[str, Any]], missing: str) -> Html:
    """Throughput, goodput and memory."""
    shown = [
        drawn(lines, {"examples_per_second": "examples/s"}, "examples a second"),
        drawn(lines, {"data_wait_fraction": "waiting"}, "share of time waiting for data"),
        drawn(
            lines,
            {"memory/host": "host", "memory/device_peak": "device, peak"},
            "memory, GiB",
        ),
    ]
    parts = [spent(starts) if starts else html.paragraph(missing)]
    parts.append(html.grid(part for part in shown if part is not None))
    if lines and "memory/device_peak" not in lines[-1]:
        note = "Devices of this kind do not tell how much of their memory is used."
        parts.append(html.paragraph(note, quiet=True))
    elif lines and (limit := lines[-1].get("memory/device_limit")):
        parts.append(html.paragraph(f"A device has {limit:.1f} GiB.", quiet=True))
    if lines and (size := lines[-1].get("memory/step")):
        parts.append(html.paragraph(f"The compiled step takes {size:.3g} GiB of it.", quiet=True))
    return html.join(parts)


def spent(starts: Sequence[Mapping[str, Any]]) -> Html:
    """Where the wall time went, as a bar and a table."""
    found = goodput.summary(starts)
    total = sum(found.values())
    bar, rows = [], []
    for i, (kind, name) in enumerate(KINDS.items()):
        if kind not in found:
            continue
        share, color = found[kind] / total, f"background: var(--line-{i})"
        bar.append(element("i", style=f"width: {100 * share:.2f}%; {color}", title=name))
        swatch = element("i", class_="swatch", style=color)
        cells = html.join([swatch, " ", name], "")
        rows.append([cells, duration(found[kind]), f"{100 * share:.1f}%"])
    rows.append(["in all", duration(total), ""])
    times = "one start" if len(starts) == 1 else f"{len(starts)} starts"
    words = f"Goodput {good(starts):.1%}: the share of wall time in training steps ({times})."
    return html.join(
        [
            html.paragraph(words),
            element("div", *bar, class_="bar"),
            html.table(rows, ["", "time", "share"]),
        ]
    )


def good(starts: Sequence[Mapping[str, Any]]) -> float:
    """The share of wall time in training steps that counted."""
    found = goodput.summary(starts)
    total = sum(found.values())
    return found.get("train", 0.0) / total if total else math.nan
