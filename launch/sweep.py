"""Compares variants of a recipe: runs each arm of a sweep file on each seed, then makes a table.

  python -m launch.sweep configs/ablations/fusion.py --parallel=2

Runs are in <workdir>/ARM/seed-S, the table beside them (table.md, table.csv, report.html). The same
command goes on after a kill: a finished run is not repeated, another continues from its checkpoint.
A run that fails is shown in the table; the others go on, and the exit code is 1; it is 75 when
runs are not finished, by a launcher that does not wait for instance. --launcher is a command to
which the flags of main.py are appended, instead of running here:

  --launcher="python -m launch.slurm --nodes=2 --accelerator=h100 --wait --" --runs=/shared/sweep

docs/ablations.md says more. Nothing of JAX, TensorFlow or numpy is loaded.
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import launch.installed  # noqa: F401
from launch.arms import Arm, Sweep, as_text, read_sweep
from launch.budget import (
    Run,
    check_evaluations,
    check_results,
    is_finished,
    make_plan,
    make_run,
    probe,
    step_seconds,
)
from launch.pool import Failure, Job, Pool, cores, describe, shown
from launch.revision import ROOT
from launch.shell import FAILED, NOT_FINISHED, PREEMPTED, REFUSED
from mm.config import BadInput
from mm.runtime.workdir import is_remote, lock, write_json

COST = (sys.executable, "-m", "mm.planning.cost")
TABLE = (sys.executable, "-m", "mm.report.sweep")
LOCK_SECONDS = 60.0  # for what a killed owner started to be gone
GRACE_SECONDS = 120.0  # for a run to save when told to stop; a launcher has as long as it takes


class Place(NamedTuple):
    """workdir: of tables and logs; runs: of the runs, maybe far away; command: takes the flags."""

    workdir: Path
    runs: str
    command: list[str]

    def job(self, run: Run) -> Job:
        """What starts a run."""
        return Job(run.name, [*self.command, *run.flags], self.workdir / run.name / "run.log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, returns the exit code: 0, 1 if a run failed, 2 wrong input, 75 unfinished."""
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
        if "--" not in command and any(word.startswith("launch.") for word in command):
            raise BadInput(f"--launcher={flags.launcher!r}: ends without --, as '... --wait --'")
        place = Place(workdir, flags.runs or str(workdir), command)
        with contextlib.nullcontext() if flags.dry_run else lock(workdir, LOCK_SECONDS) as held:
            pool = None
            if not flags.dry_run:
                far = place.runs if flags.launcher and is_remote(place.runs) else None
                environment = {**os.environ, **missing_environment(far)}
                pool = Pool(
                    flags.parallel,
                    pin=not flags.launcher,
                    environment=environment,
                    lock=held,
                    grace_seconds=None if flags.launcher else GRACE_SECONDS,
                )
            try:
                return run(sweep, flags.sweep, place, pool)
            finally:
                if pool is not None and pool.left:
                    names = ", ".join(pool.left)
                    print(f"launch.sweep: LEFT by {names}: see above, or run.log", flush=True)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED


def missing_environment(far: str | None) -> dict[str, str]:
    """What lets runs share compiled programs, unless it is set. far: where the runs are."""
    folder = f"{far.rstrip('/')}/.cache/jax" if far else str(ROOT / ".cache/jax")
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": folder,  # no arm's name begins with a dot
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def run(sweep: Sweep, file: str, place: Place, pool: Pool | None) -> int:
    """What `main` does with the flags; returns the exit code. Without a pool it prints commands."""
    arms, seeds = sweep.arms, sweep.seed_list
    print(f"# {sweep.name}: {len(arms)} arms x {len(seeds)} seeds in {place.runs}", flush=True)
    costs = dict(zip([arm.name for arm in arms], ask_costs(arms), strict=True))
    for arm in arms:
        check_evaluations(sweep.metric, arm, costs[arm.name]["config"])
    failed: dict[str, Failure] = {}
    waiting: list[str] = []  # runs whose probe is not finished, so that there is no plan for them
    steps: Mapping[str, float | None] = {arm.name: None for arm in arms}
    if "seconds" in sweep.budget:
        probes = {
            arm.name: probe(arm, costs[arm.name]["config"], seeds[0], place.runs) for arm in arms
        }
        todo = missing(probes.values(), place)
        if pool is None and todo:
            show(todo, place)
            print("# then runs of as many steps as these say")
            return 0
        if todo and pool.run([place.job(one) for one in todo], recorder(todo, place, failed)):
            return stopped()
        todo, steps = missing(todo, place), {}
        for name, one in probes.items():
            runs = [f"{name}/seed-{seed}" for seed in seeds]
            if one.name in failed:
                failed |= dict.fromkeys(runs, failed[one.name])
            elif one in todo:
                waiting += runs
            else:
                steps[name] = step_seconds(one, place.runs)
    plans = {
        arm.name: make_plan(sweep, arm, costs[arm.name], steps[arm.name])
        for arm in arms
        if arm.name in steps
    }
    # Seed by seed: an arm compiles in its first run, and all arms have as many.
    wanted = [
        make_run(arm, costs[arm.name]["config"], plans[arm.name], seed, place.runs)
        for seed in seeds
        for arm in arms
        if arm.name in plans
    ]
    todo = missing(wanted, place)
    if pool is None:
        show(todo, place)
        return 0

    for one in wanted:
        if one not in todo:
            check_results(one, place.runs, sweep.metric)

    def write() -> None:
        record = sweep_record(sweep, file, place, plans)
        record["failed"] = {name: failure._asdict() for name, failure in failed.items()}
        write_json(place.workdir / "sweep.json", record)

    write()
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are finished", flush=True)
    ended = recorder(todo, place, failed, sweep.metric, write)
    if pool.run([place.job(one) for one in todo], ended):
        return stopped()
    if subprocess.run([*TABLE, str(place.workdir)]).returncode:
        print("error: the table could not be made; see above", file=sys.stderr)
        return FAILED
    left = [one.name for one in missing(wanted, place) if one.name not in failed] + waiting
    code = unfinished(left, len(arms) * len(seeds)) if left else 0
    return FAILED if failed else code


def missing(runs: Iterable[Run], place: Place) -> list[Run]:
    """Those that have no results yet."""
    return [one for one in runs if not is_finished(one, place.runs)]


def show(runs: Sequence[Run], place: Place) -> None:
    """Prints the commands."""
    for one in runs:
        print(shown(place.job(one)))


def recorder(
    runs: Sequence[Run],
    place: Place,
    failed: dict[str, Failure],
    metric: str | None = None,
    then: Callable[[], None] = lambda: None,
) -> Callable[[Job, Failure | None], str]:
    """Says what came of a job of `runs`, and puts its failure among the others.

    It raises BadInput when there are results without the metric.
    """
    by_name = {one.name: one for one in runs}

    def ended(job: Job, failure: Failure | None) -> str:
        if failure is not None and failure.exit_code not in NOT_FINISHED:
            failed[job.name] = failure
            then()
            return f"FAILED with {describe(failure)}"
        # A launcher may say that all is well when it has only submitted.
        if not is_finished(by_name[job.name], place.runs):
            why = describe(failure) if failure else "exit code 0"
            return f"NOT FINISHED, there are no results: {why}"
        if metric is not None:
            check_results(by_name[job.name], place.runs, metric)
        return "finished"

    return ended


def unfinished(left: Sequence[str], number: int) -> int:
    """Says which, of so many, and how to go on."""
    names = ", ".join(left[:3]) + ", ..." * (len(left) > 3)
    print(
        f"launch.sweep: {len(left)} of {number} runs are not finished ({names}); the same command "
        "continues",
        flush=True,
    )
    return PREEMPTED


def stopped() -> int:
    """Says how to go on."""
    print("launch.sweep: stopped; the same command continues", flush=True)
    return PREEMPTED


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
    if done.returncode == REFUSED:
        raise BadInput(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{shlex.join(COST)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
