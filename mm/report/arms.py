"""What the runs of a sweep reached: read from their files, compared arm by arm."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from mm.config import BadInput, suggest
from mm.report.statistics import Difference, Summary, compare, holm, summarize, verdict
from mm.runtime import metrics

_GIB = 1 << 30


class Run(NamedTuple):
    """One arm on one seed. value: of the metric; failure: why there is none; lines: those of
    metrics.jsonl; seconds: of training steps; step_bytes: of a device that a step takes; revision:
    of the code, "+" after it for changes. nan is what is not known.
    """

    arm: str
    seed: int
    value: float | None
    failure: str | None
    lines: Sequence[Mapping[str, Any]]
    seconds: float
    step_bytes: float
    revision: str


class Row(NamedTuple):
    """One arm. summary is None when no run has a value; difference of the base itself, too.

    trained: how many of the parameters steps change.
    """

    arm: str
    runs: list[Run]
    summary: Summary | None
    difference: Difference | None
    corrected: float
    verdict: str
    parameters: int
    trained: int
    flops: float
    examples: int
    steps: int
    seconds: float
    step_bytes: float


def read_record(workdir: Path) -> dict[str, Any]:
    """What `launch.sweep` left. Raises BadInput when there is none."""
    try:
        return json.loads((workdir / "sweep.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{workdir}: has no sweep.json of a sweep ({error})") from error


def read_runs(record: Mapping[str, Any]) -> list[Run]:
    """All runs, arm by arm. Raises BadInput when no run knows the metric."""
    runs = [_read_run(record, arm, seed) for arm in record["arms"] for seed in record["seeds"]]
    finished = [run for run in runs if run.failure is None]
    if finished and all(run.value is None for run in finished):
        path = epath.Path(record["runs"]) / finished[0].arm / f"seed-{finished[0].seed}"
        known = list(json.loads((path / "results.json").read_text()))
        metric = record["metric"]
        raise BadInput(
            f"metric {metric!r}: is not in {path / 'results.json'}{suggest(metric, known)}"
        )
    return [
        run._replace(failure="has no such metric")
        if run.failure is None and run.value is None
        else run
        for run in runs
    ]


def _read_run(record: Mapping[str, Any], arm: str, seed: int) -> Run:
    name = f"{arm}/seed-{seed}"
    folder = epath.Path(record["runs"]) / name
    lines = metrics.read(folder / "metrics.jsonl")
    value, failure = None, None
    if failed := record["failed"].get(name):
        failure = f"exit code {failed['exit_code']}: {failed['last_line']}"
    elif not (folder / "results.json").exists():
        failure = "is not finished"
    else:
        found = json.loads((folder / "results.json").read_text()).get(record["metric"])
        value = None if found is None else float(found)
        if value is not None and not math.isfinite(value):
            value, failure = None, f"the metric is {value}"
    rates = [line["examples_per_second"] for line in lines if "examples_per_second" in line]
    plan = record["arms"][arm]
    seconds = math.nan
    if rates and "set" in plan:
        seconds = examples_of(plan) / statistics.median(rates)
    size = max((line["memory/step"] for line in lines if "memory/step" in line), default=math.nan)
    revision = _revision(folder / "environment.json")
    return Run(arm, seed, value, failure, lines, seconds, size * _GIB, revision)


def _revision(path: epath.Path) -> str:
    git = json.loads(path.read_text()).get("git") if path.exists() else None
    return f"{git['revision'][:12]}{'+' * git['dirty']}" if git else ""


def examples_of(plan: Mapping[str, Any]) -> int:
    """How many an arm is trained on."""
    return plan["set"]["total_steps"] * plan["global_batch_size"]


def make_rows(record: Mapping[str, Any], runs: Sequence[Run]) -> list[Row]:
    """One an arm, in the order of the sweep."""
    values = {
        arm: {run.seed: run.value for run in runs if run.arm == arm and run.value is not None}
        for arm in record["arms"]
    }
    base = record["base"]
    differences = {
        arm: found
        for arm in values
        if arm != base and (found := compare(values[arm], values[base])) is not None
    }
    corrected = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    rows = []
    for arm, plan in record["arms"].items():
        difference = differences.get(arm)
        if arm == base:
            said = "the base"
        elif difference is None:
            said = "no seed that both have finished"
        else:
            said = verdict(difference, corrected[arm], record["better"])
        mine = [run for run in runs if run.arm == arm]
        times = [run.seconds for run in mine if not math.isnan(run.seconds)]
        sizes = [run.step_bytes for run in mine if not math.isnan(run.step_bytes)]
        steps = plan["set"]["total_steps"] if "set" in plan else 0
        parameters = plan.get("parameters", 0)
        rows.append(
            Row(
                arm=arm,
                runs=mine,
                summary=summarize(list(values[arm].values())) if values[arm] else None,
                difference=difference,
                corrected=corrected.get(arm, math.nan),
                verdict=said,
                parameters=parameters,
                trained=parameters - plan.get("frozen", 0) if steps else 0,
                flops=steps * plan.get("flops_of_a_step", 0.0),
                examples=examples_of(plan) if steps else 0,
                steps=steps,
                seconds=statistics.mean(times) if times else math.nan,
                step_bytes=max(sizes, default=math.nan),
            )
        )
    return rows
