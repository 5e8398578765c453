"""The result of a sweep, from what `launch.sweep` and its runs wrote: tables, plots and a page.

  python -m mm.report.sweep workdirs/sweeps/fusion

Writes table.md, table.csv, runs.csv, report.html and the plots beside sweep.json.
With --metric=KEY, another key of the runs' results.json, it only prints that table.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mm.config import BadInput
from mm.report import chart
from mm.report import html as h
from mm.report.arms import Row, Run, make_rows, read_record, read_runs
from mm.report.table import comma_separated, lines, markdown, notes, runs_csv, sentences
from mm.runtime.workdir import write_atomic


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, writes, shows the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mm.report.sweep")
    parser.add_argument("workdir", type=Path, help="that of the sweep, with its sweep.json")
    parser.add_argument("--metric", help="print the table of this key of results.json instead")
    flags = parser.parse_args(arguments)
    try:
        record = read_record(flags.workdir)
        if flags.metric:
            record["metric"] = flags.metric
            rows = make_rows(record, read_runs(record))
        else:
            rows = write_report(flags.workdir)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + markdown(record, rows))
    print("\n".join(sentences(record, rows)))
    if not flags.metric:
        print(f"written to {flags.workdir}: table.md, table.csv, report.html")
    return 0


def write_report(workdir: Path) -> list[Row]:
    """Writes all files, each whole or not at all; returns the rows of the table."""
    record = read_record(workdir)
    runs = read_runs(record)
    rows = make_rows(record, runs)
    figures = plots(record, rows)
    for name, (figure, _) in figures.items():
        write_atomic(workdir / f"{name}.svg", chart.svg_file(figure))
        write_atomic(workdir / f"{name}.png", chart.png(figure))
    write_atomic(workdir / "table.md", markdown(record, rows))
    write_atomic(workdir / "table.csv", comma_separated(rows))
    write_atomic(workdir / "runs.csv", runs_csv(runs))
    write_atomic(workdir / "report.html", page(workdir, record, rows, figures))
    return rows


def plots(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, tuple[Figure, str]]:
    """File name -> (figure, what it shows); without those that nothing is there for."""
    found = {}
    metric = record["metric"]
    points = {
        row.arm: [
            (
                row.flops,
                row.summary.mean,
                row.summary.mean - row.summary.spread,
                row.summary.mean + row.summary.spread,
            )
        ]
        for row in rows
        if row.summary is not None and row.flops > 0
    }
    if points:
        compute = [values[0][0] for values in points.values()]
        figure = chart.points(
            points,
            x="FLOPs of training",
            y=metric.rpartition("/")[2],
            log_x=max(compute) >= 10 * min(compute),
        )
        text = f"{metric}, mean and standard deviation over the seeds"
        found["metric_by_compute"] = figure, text
    key = curve_key(metric, [run for row in rows for run in row.runs])
    curves = {row.arm: curve(row, key) for row in rows}
    curves = {arm: values for arm, values in curves.items() if values}
    if curves:
        means = {arm: [(x, mean) for x, mean, _, _ in values] for arm, values in curves.items()}
        band = {arm: [(x, a, b) for x, _, a, b in values] for arm, values in curves.items()}
        figure = chart.lines(means, x="examples", y=key.rpartition("/")[2], band=band)
        found["curves"] = figure, f"{key}, mean over the seeds and from the least to the greatest"
    return found


def curve_key(metric: str, runs: Sequence[Run]) -> str:
    """The metric if every run that has lines was evaluated twice or more, else the loss."""
    counts = [sum(metric in line for line in run.lines) for run in runs if run.lines]
    return metric if counts and min(counts) > 1 else "loss"


def curve(row: Row, key: str) -> list[tuple[float, float, float, float]]:
    """(examples, mean, least, greatest) over the seeds, at steps that all of them logged."""
    if not row.steps:
        return []
    found = [
        {line["step"]: line[key] for line in run.lines if key in line}
        for run in row.runs
        if run.value is not None
    ]
    if not found:
        return []
    batch = row.examples / row.steps
    values = {
        step: [lines[step] for lines in found]
        for step in sorted(set.intersection(*map(set, found)))
    }
    return [(step * batch, statistics.mean(v), min(v), max(v)) for step, v in values.items()]


def page(
    workdir: Path,
    record: Mapping[str, Any],
    rows: Sequence[Row],
    figures: Mapping[str, tuple[Figure, str]],
) -> str:
    """report.html."""
    header, shown = lines(record, rows)
    table = h.table(shown, header)
    charts = h.grid(h.figure(chart.svg(figure), text) for figure, text in figures.values())
    runs = [
        [
            _link(workdir, record, run),
            "" if run.value is None else f"{run.value:.6g}",
            "" if math.isnan(run.seconds) else f"{run.seconds:.0f} s",
            run.failure or "",
        ]
        for row in rows
        for run in row.runs
    ]
    arms = [
        [name, arm["config"], json.dumps({**arm["overrides"], **arm.get("set", {})})]
        for name, arm in record["arms"].items()
    ]
    result = [h.paragraph(text) for text in sentences(record, rows)]
    sections = [
        (
            "Result",
            h.join([table, *result, *(h.paragraph(n, quiet=True) for n in notes(record, rows))]),
        ),
        ("Plots", charts),
        ("Runs", h.table(runs, ("run", record["metric"], "time", "failure"))),
        ("Arms", h.table(arms, ("arm", "config", "set"))),
    ]
    command = f"python -m launch.sweep {record['file']}"
    return h.page(f"Sweep {record['sweep']}", sections, below=h.paragraph(command, quiet=True))


def _link(workdir: Path, record: Mapping[str, Any], run: Run) -> h.Html:
    """The name of a run; of one with a page of its own, near this one, a link to that."""
    name = f"{run.arm}/seed-{run.seed}"
    if (
        "://" in record["runs"]
        or not (other := Path(record["runs"]) / name / "report.html").exists()
    ):
        return h.html(name)
    return h.element("a", name, href=os.path.relpath(other, workdir))


if __name__ == "__main__":
    sys.exit(main())
