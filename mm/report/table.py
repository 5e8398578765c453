"""The table of a sweep as text: for people (Markdown), and for programs (CSV)."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mm.report.arms import Row, Run
from mm.report.measures import is_share
from mm.report.statistics import detectable

HEADER = (
    "arm", "runs", "mean ± sd", "difference", "bootstrap 95%", "paired t 95%", "verdict",
    "parameters", "trained", "FLOPs", "examples", "steps", "memory", "time",
)  # fmt: skip
_MIB = 1 << 20


def lines(
    record: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The header, and the cells of each row below it, as a person reads them.

    Without what is trained where that is everything, and the memory of a step where all are alike.
    """
    every = [cells(record, row) for row in rows]
    columns = dict(zip(HEADER, zip(*every, strict=True), strict=True))
    hidden = set()
    if columns["trained"] == columns["parameters"]:
        hidden.add("trained")
    if len(set(columns["memory"])) == 1:
        hidden.add("memory")
    kept = [i for i, name in enumerate(HEADER) if name not in hidden]
    header, *shown = ([row[i] for i in kept] for row in (HEADER, *every))
    return header, shown


def cells(record: Mapping[str, Any], row: Row) -> list[str]:
    """Of HEADER."""
    show = shower(record["metric"])
    count = sum(run.value is not None for run in row.runs)
    parts = [row.arm, f"{count}/{len(row.runs)}", "", "", "", "", row.verdict]
    if row.summary is not None:
        parts[2] = show(row.summary.mean)
        if not math.isnan(row.summary.spread):
            parts[2] += f" ± {show(row.summary.spread, digits=2)}"
    if row.difference is not None:
        parts[3] = show(row.difference.mean, signed=True)
        for i, (low, high) in ((4, row.difference.bootstrap), (5, row.difference.interval)):
            if not math.isnan(low):
                parts[i] = f"{show(low, signed=True)} to {show(high, signed=True)}"
    seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.0f} s"
    memory = "" if math.isnan(row.step_bytes) else f"{row.step_bytes / _MIB:,.0f} MiB"
    sizes = f"{row.parameters:,}", f"{row.trained:,}", f"{row.flops:.3g}"
    return [*parts, *sizes, f"{row.examples:,}", f"{row.steps:,}", memory, seconds]


def shower(metric: str) -> Callable[..., str]:
    """How its values are written: shares as percentages, others with so many digits."""

    def show(value: float, signed: bool = False, digits: int = 4) -> str:
        sign = "+" if signed else ""
        if is_share(metric):
            return f"{100 * value:{sign}.1f}"
        return f"{value:{sign}.{digits}g}"

    return show


def notes(record: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What has to be known to read the table; one line each."""
    show = shower(record["metric"])
    [(kind, amount)] = record["budget"].items()
    percent = ", in percent" if show(0.5) == "50.0" else ""
    found = [
        f"{record['metric']}{percent} ({record['better']} is better) after {amount:,g} {kind} of "
        f"training for each arm. Differences are to {record['base']}, seed by seed."
    ]
    compared = [row for row in rows if row.difference is not None]
    differences = [row.difference for row in compared]
    smallest = detectable(differences)
    if not math.isnan(smallest):
        count = max(d.count for d in differences)
        found.append(
            f"With {count} seeds, a single difference is told from seed noise from about "
            f"{show(smallest, digits=2)} on (95%, paired t)."
            + (
                " The bootstrap interval is that of all resamples of these seeds: of 3 it is their"
                " range and covers no more than 75%, so the verdict is by the t test."
                if count == 3
                else f" The bootstrap of {count} seeds is too narrow; the verdict is by the t test."
                if count < 10
                else ""
            )
        )
    if len(compared) > 1:
        found.append(f"Verdicts are corrected for {len(compared)} comparisons (Holm).")
    for row in rows:
        found += [
            f"FAILED {run.arm}/seed-{run.seed}: {run.failure}" for run in row.runs if run.failure
        ]
    revisions = sorted({run.revision for row in rows for run in row.runs if run.revision})
    if revisions:
        found.append(
            f"Code: {', '.join(revisions)}"
            + (" (+: with changes)" * any(r.endswith("+") for r in revisions))
            + "."
        )
    return found


def sentences(record: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """One for each arm that is compared."""
    show = shower(record["metric"])
    return [
        f"{row.arm}: {show(row.difference.mean, signed=True)}, {row.verdict}"
        + (f" (p = {row.corrected:.2g})" if not math.isnan(row.corrected) else "")
        for row in rows
        if row.difference is not None
    ]


def markdown(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """table.md."""

    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"

    header, shown = lines(record, rows)
    found = [line(header), "|" + "---|" * len(header), *map(line, shown)]
    return "\n".join([*found, "", *(f"- {note}" for note in notes(record, rows)), ""])


def comma_separated(rows: Sequence[Row]) -> str:
    """table.csv, with all digits."""
    none = math.nan, math.nan
    return _csv(
        {
            "arm": row.arm,
            "runs": row.summary.count if row.summary else 0,
            "mean": row.summary.mean if row.summary else math.nan,
            "sd": row.summary.spread if row.summary else math.nan,
            "difference": row.difference.mean if row.difference else math.nan,
            **_ends("bootstrap", row.difference.bootstrap if row.difference else none),
            **_ends("t", row.difference.interval if row.difference else none),
            "p": row.difference.p if row.difference else math.nan,
            "p_holm": row.corrected,
            "verdict": row.verdict,
            "parameters": row.parameters,
            "trained": row.trained,
            "flops": row.flops,
            "examples": row.examples,
            "steps": row.steps,
            "step_bytes": row.step_bytes,
            "seconds": row.seconds,
        }
        for row in rows
    )


def _ends(name: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def runs_csv(runs: Sequence[Run]) -> str:
    """runs.csv."""
    return _csv(
        {
            "arm": run.arm,
            "seed": run.seed,
            "value": math.nan if run.value is None else run.value,
            "failure": run.failure or "",
            "seconds": run.seconds,
        }
        for run in runs
    )


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:  # what is not known is empty
        writer.writerow({k: "" if v != v else v for k, v in row.items()})
    return buffer.getvalue()
