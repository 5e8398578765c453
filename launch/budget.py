"""How long each arm of a sweep is trained, and the runs of main.py that follow from it."""

import json
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from launch.arms import Arm, Sweep, as_text, filled
from mm.config import BadInput, differences, override, plain, suggest

PROBE_STEPS = 30  # of them the first compiles; the median of the others says how long one takes
# What may differ between a run that is there and the arm: no result depends on it.
_MAY_DIFFER = ("log", "checkpoint", "pod", "input.num_workers", "input.prefetch")


class Run(NamedTuple):
    """name: ARM/seed-S, which is also the folder; flags: those of main.py; config: all its keys."""

    name: str
    flags: list[str]
    config: dict[str, Any]


def make_plan(
    sweep: Sweep, arm: Arm, cost: Mapping[str, Any], seconds: float | None
) -> dict[str, Any]:
    """How long the arm is trained, and what it is.

    seconds: of a step, for that budget. An arm whose recipe makes no step, total_steps=0, makes
    none: it shows where others begin. Raises BadInput when the budget is less than one step.
    """
    config = cost["config"]
    batch = config["global_batch_size"]
    [(kind, amount)] = sweep.budget.items()
    of_a_step = {"examples": batch, "flops": cost["flops"], "seconds": seconds}[kind]
    steps = round(amount / of_a_step) if config["total_steps"] else 0
    if steps < 1 and config["total_steps"]:
        raise BadInput(
            f"budget {kind}={amount:g}: a step of arm {arm.name!r} takes {of_a_step:g}; give more"
        )
    schedule = config["optimizer"].get("schedule") or {}
    overrides = {"total_steps": steps}
    for key in ("warmup_steps", "cooldown_steps"):
        name = f"optimizer.schedule.{key}"
        if schedule.get(key) and name not in arm.overrides:
            # Their share of the run stays that of the recipe.
            overrides[name] = max(1, round(schedule[key] * steps / config["total_steps"]))
    return {
        "parameters": cost["parameters"],
        "frozen": cost["frozen"],
        "flops_of_a_step": cost["flops"],
        "global_batch_size": batch,
        "set": overrides,
    }


def make_run(
    arm: Arm, config: Mapping[str, Any], plan: Mapping[str, Any], seed: int, runs: str
) -> Run:
    """The run of an arm on a seed, whose number stands where the arm has "{seed}"."""
    arm, config = arm.on(seed), filled(config, seed)
    return _run(arm, config, f"{arm.name}/seed-{seed}", {**plan["set"], "seed": seed}, runs)


def probe(arm: Arm, config: Mapping[str, Any], seed: int, runs: str) -> Run:
    """A run that tells how long a step takes; seed: as in `make_run`."""
    arm, config = arm.on(seed), filled(config, seed)
    schedule = config["optimizer"].get("schedule") or {}
    short = {
        f"optimizer.schedule.{key}": 0
        for key in ("warmup_steps", "cooldown_steps")
        if schedule.get(key)
    }
    more = {"total_steps": PROBE_STEPS, "evals": {}, "log.every_steps": 1, **short}
    if config["checkpoint"].get("keep_best") is not None:
        # By a metric that there is none of; the group, as a text cannot be set to None.
        more["checkpoint"] = config["checkpoint"] | {"keep_best": None}
    return _run(arm, config, f"{arm.name}/probe", more, runs)


def _run(arm: Arm, config: Mapping[str, Any], name: str, more: Mapping[str, Any], runs: str) -> Run:
    changes = {key: as_text(value) for key, value in {**arm.overrides, **more}.items()}
    whole = ConfigDict(config)
    override(whole, [(key, as_text(value)) for key, value in more.items()])
    flags = [f"--config={arm.config}", f"--workdir={epath.Path(runs) / name}"]
    flags += [f"--config.{key}={text}" for key, text in changes.items()]
    return Run(name, flags, json.loads(json.dumps(plain(whole))))


def is_finished(run: Run, runs: str) -> bool:
    """Whether main.py has written the results of its last step.

    Raises BadInput when the folder is that of another config, which begun runs go on with.
    """
    folder = epath.Path(runs) / run.name
    begun = any((folder / name).exists() for name in ("results.json", "metrics.jsonl"))
    if begun and (folder / "config.json").exists():
        found = json.loads((folder / "config.json").read_text())
        if changed := differences(run.config, found, _MAY_DIFFER):
            raise BadInput(
                f"{folder} was run with another config: {changed}; the sweep or a recipe has "
                "changed: take another --workdir, or delete that folder"
            )
    return (folder / "results.json").exists()


def check_evaluations(metric: str, arm: Arm, config: Mapping[str, Any]) -> None:
    """Raises BadInput when no evaluation of the arm can give the metric, "NAME/..."."""
    names = config["evals"]
    if not any(metric.startswith(f"{name}/") for name in names):
        first = metric.partition("/")[0]
        raise BadInput(
            f"metric {metric!r}: config.evals of arm {arm.name!r} has no {first!r}"
            f"{suggest(first, names)} (have {sorted(names)})"
        )


def check_results(run: Run, runs: str, metric: str) -> None:
    """Raises BadInput when the results of a finished run have no such metric."""
    path = epath.Path(runs) / run.name / "results.json"
    known = json.loads(path.read_text())
    if metric not in known:
        raise BadInput(
            f"metric {metric!r}: is not in {path}; give one of its keys (what is finished is not "
            f"repeated){suggest(metric, known)}"
        )


def step_seconds(run: Run, runs: str) -> float:
    """The median time of a step of a finished probe."""
    path = epath.Path(runs) / run.name / "metrics.jsonl"
    examples = run.config["global_batch_size"]
    times, first, end = [], 0, 0.0
    for line in map(json.loads, path.read_text().splitlines()):
        # The first step of a start, which compiles, has no rate. That at a later step is of those
        # from the first on, so a probe that was killed and continued has two clocks.
        if "examples_per_second" not in line:
            first, end = line["step"], 0.0
            continue
        before, end = end, examples * (line["step"] - first) / line["examples_per_second"]
        times.append(end - before)
    if not times:
        raise BadInput(f"{path}: has no rates of steps; delete its folder for another probe")
    return statistics.median(times)
