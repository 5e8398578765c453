"""Compares variants of a recipe: runs each arm of a sweep file on each seed, then makes a table.

  python -m launch.sweep configs/ablations/fusion.py --parallel=2

Runs are in <workdir>/ARM/seed-S, the table beside them (table.md, table.csv, report.html). The same
command goes on after a kill: a finished run is not repeated, another continues from its checkpoint.
A run that fails is shown in the table; the others go on, and the exit code is 1. --launcher is a
command to which the flags of main.py are appended, instead of running here:

  --launcher="python -m launch.local --processes=2 -- python main.py"

docs/ablations.md says more. Nothing of JAX, TensorFlow or numpy is loaded.
"""

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from launch.arms import Arm, Sweep, as_text, read_sweep
from launch.pool import Failure, Job, Pool, cores, lock, shown
from mm.config import BadInput, differences, override, plain
from mm.runtime.workdir import write_json

ROOT = Path(__file__).resolve().parents[1]
COST = (sys.executable, "-m", "mm.planning.cost")
TABLE = (sys.executable, "-m", "mm.report.sweep")
STOPPED = os.EX_TEMPFAIL  # told to stop: the same command continues
PROBE_STEPS = 30  # of them the first compiles; the median of the others says how long one takes
# What may differ between a run that is there and the arm: no result depends on it.
_MAY_DIFFER = ("log", "checkpoint", "pod", "input.num_workers", "input.prefetch")


class Run(NamedTuple):
    """name: ARM/seed-S, which is also the folder; flags: those of main.py; config: all its keys."""

    name: str
    flags: list[str]
    config: dict[str, Any]


class Place(NamedTuple):
    """workdir: of tables and logs; runs: of the runs, maybe far away; command: takes the flags."""

    workdir: Path
    runs: str
    command: list[str]

    def job(self, run: Run) -> Job:
        """What starts a run."""
        return Job(run.name, [*self.command, *run.flags], self.workdir / run.name / "run.log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, returns the exit code: 0, 1 if a run failed, 2 for wrong input, 75 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument("sweep", help="a sweep file, as configs/ablations/fusion.py")
    parser.add_argument(
        "--workdir", type=Path, help="for tables and logs (default: workdirs/sweeps/NAME)"
    )
    parser.add_argument("--runs", help="where runs live, gs:// works too (default: --workdir)")
    parser.add_argument("--launcher", help="a command to which main.py's flags are appended")
    parser.add_argument("--parallel", type=int, default=1, help="how many runs at once")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, start nothing")
    flags = parser.parse_args(arguments)
    try:
        if flags.parallel < 1 or (flags.parallel > len(cores()) and not flags.launcher):
            raise BadInput(f"--parallel={flags.parallel}: expected 1 to {len(cores())}, the cores")
        sweep = read_sweep(flags.sweep)
        workdir = flags.workdir or Path("workdirs/sweeps") / sweep.name
        command = shlex.split(flags.launcher or "") or [sys.executable, "main.py"]
        place = Place(workdir, flags.runs or str(workdir), command)
        with contextlib.nullcontext() if flags.dry_run else lock(workdir) as held:
            pool = None
            if not flags.dry_run:
                environment = {**os.environ, **missing_environment()}
                pool = Pool(
                    flags.parallel, pin=not flags.launcher, environment=environment, lock=held
                )
            return run(sweep, flags.sweep, place, pool)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def missing_environment() -> dict[str, str]:
    """What lets the runs share compiled programs, unless it is set."""
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def run(sweep: Sweep, file: str, place: Place, pool: Pool | None) -> int:
    """What `main` does with the flags; returns the exit code. Without a pool it prints commands."""
    arms, seeds = sweep.arms, sweep.seed_list
    print(f"# {sweep.name}: {len(arms)} arms x {len(seeds)} seeds in {place.runs}", flush=True)
    costs = dict(zip([arm.name for arm in arms], ask_costs(arms), strict=True))
    failed: dict[str, Failure] = {}
    seconds: dict[str, float] = {}
    if "seconds" in sweep.budget:
        probes = [probe(arm, costs[arm.name]["config"], place.runs) for arm in arms]
        todo = [one for one in probes if not is_finished(one, place.runs)]
        if pool is None and todo:
            print(
                *(shown(place.job(one)) for one in todo),
                "# then as many steps as these say",
                sep="\n",
            )
            return 0
        if todo and pool.run([place.job(one) for one in todo], recorder(failed, lambda: None)):
            return stopped()
        for arm, one in zip(arms, probes, strict=True):
            if one.name not in failed:
                seconds[arm.name] = step_seconds(one, place.runs)
            else:
                failed |= {f"{arm.name}/seed-{seed}": failed[one.name] for seed in seeds}
    arms_to_run = [arm for arm in arms if "seconds" not in sweep.budget or arm.name in seconds]
    plans = {
        arm.name: plan(sweep, arm, costs[arm.name], seconds.get(arm.name)) for arm in arms_to_run
    }
    # Seed by seed: an arm compiles in its first run, and all arms have as many.
    wanted = [
        make_run(arm, costs[arm.name]["config"], plans[arm.name], seed, place.runs)
        for seed in seeds
        for arm in arms_to_run
    ]
    todo = [one for one in wanted if not is_finished(one, place.runs)]
    if pool is None:
        print(*(shown(place.job(one)) for one in todo), sep="\n")
        return 0

    def write() -> None:
        record = sweep_record(sweep, file, place, plans)
        record["failed"] = {name: failure._asdict() for name, failure in failed.items()}
        write_json(place.workdir / "sweep.json", record)

    write()
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are finished", flush=True)
    if pool.run([place.job(one) for one in todo], recorder(failed, write)):
        return stopped()
    if subprocess.run([*TABLE, str(place.workdir)]).returncode:
        print("error: the table could not be made; see above", file=sys.stderr)
        return 1
    return 1 if failed else 0


def recorder(failed: dict[str, Failure], then: Callable[[], None]) -> Callable:
    """Puts the failure of a job among the others."""

    def ended(job: Job, failure: Failure | None) -> None:
        if failure is not None:
            failed[job.name] = failure
            then()

    return ended


def stopped() -> int:
    """Says how to go on."""
    print("launch.sweep: stopped; the same command continues", flush=True)
    return STOPPED


def sweep_record(
    sweep: Sweep, file: str, place: Place, plans: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the table is made from, beside the runs."""
    return {
        "sweep": sweep.name,
        "file": file,
        "metric": sweep.metric,
        "better": sweep.better,
        "budget": dict(sweep.budget),
        "base": sweep.base_name,
        "seeds": sweep.seed_list,
        "runs": place.runs,
        "arms": {
            arm.name: {"config": arm.config, "overrides": dict(arm.overrides)}
            | plans.get(arm.name, {})
            for arm in sweep.arms
        },
    }


def ask_costs(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """What `mm.planning.cost` says of each arm. Raises BadInput with what it refuses."""
    asked = [
        {
            "name": arm.name,
            "config": arm.config,
            "overrides": [(key, as_text(value)) for key, value in arm.overrides.items()],
        }
        for arm in arms
    ]
    done = subprocess.run(COST, input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode == 2:
        raise BadInput(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{shlex.join(COST)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def plan(sweep: Sweep, arm: Arm, cost: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """How long the arm is trained, and what it is.

    seconds: of a step, for that budget. Raises BadInput when the budget is less than one step.
    """
    config = cost["config"]
    batch = config["global_batch_size"]
    [(kind, amount)] = sweep.budget.items()
    of_a_step = {"examples": batch, "flops": cost["flops"], "seconds": seconds}[kind]
    steps = round(amount / of_a_step)
    if steps < 1:
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
    """The run of an arm on a seed."""
    return _run(arm, config, f"{arm.name}/seed-{seed}", {**plan["set"], "seed": seed}, runs)


def probe(arm: Arm, config: Mapping[str, Any], runs: str) -> Run:
    """A run that tells how long a step takes."""
    schedule = config["optimizer"].get("schedule") or {}
    short = {
        f"optimizer.schedule.{key}": 0
        for key in ("warmup_steps", "cooldown_steps")
        if schedule.get(key)
    }
    more = {"total_steps": PROBE_STEPS, "evals": {}, "log.every_steps": 1, **short}
    if config["checkpoint"].get("keep_best") is not None:
        more["checkpoint.keep_best"] = None
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


def step_seconds(run: Run, runs: str) -> float:
    """The median time of a step of a finished probe."""
    path = epath.Path(runs) / run.name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # The rate at step t is that of steps 2 to t: the first, which compiles, does not count.
    examples = run.config["global_batch_size"]
    ends = [
        examples * (line["step"] - 1) / line["examples_per_second"]
        for line in lines
        if "examples_per_second" in line
    ]
    if len(ends) < 2:
        raise BadInput(f"{path}: has no rates of steps; delete its folder for another probe")
    return statistics.median(later - ends[i] for i, later in enumerate(ends[1:]))


if __name__ == "__main__":
    sys.exit(main())
