"""Runs main.py on a slice of TPUs of Google Cloud, from asking for it to deleting it.

  python -m launch.tpu_vm --accelerator=v5litepod-256 --zone=us-west4-a --spot \
    -- --config=configs/siglip.py --workdir=gs://bucket/run

Plan, queued resource, code, packages, start, log of worker 0; after a preemption the same anew in
the same workdir. In the end, whatever happens, the machines are deleted, but with --keep, and
when this program is interrupted while main.py runs. docs/launch.md has flags and exit codes.
"""

import argparse
import json
import time
from collections.abc import Sequence

from launch.accelerators import find_slice
from launch.request import Parser, Run, count, entry, folder_of, positive, read_run, telling
from launch.shell import FAILED, NO_MACHINES, Failure, Shell, uninterrupted
from launch.tpu_machine import ACTIVE, DELETED, NOT_FOUND, UNKNOWN, Gone, Machine, Silent
from launch.tpu_run import LAUNCH, NAME, Supervision


def work(arguments: Sequence[str] | None = None) -> int:
    """Parses, does what the verb says, returns the exit code."""
    flags, run = read_flags(arguments)
    with telling(flags):
        return do(flags, run)


def do(flags: argparse.Namespace, run: Run) -> int:
    """What the verb says; returns the exit code."""
    shell = Shell(NAME, flags.dry_run)
    slice_ = find_slice(flags.accelerator) if flags.accelerator else None
    machine = Machine(shell, flags, slice_)
    if flags.verb == "status":
        return status(machine)
    if flags.verb == "logs":
        return logs(machine)
    if flags.verb == "stop":
        return stop(machine)
    supervision = Supervision(machine, run)
    return supervision.attach() if flags.verb == "attach" else supervision.launch()


def read_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Run]:
    parser = Parser(NAME, ("attach", "status", "logs", "stop"), __doc__.splitlines()[0])
    parser.add_argument("--zone", required=True, help="as us-west4-a")
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument("--accelerator", help="as v5litepod-256")
    parser.add_argument("--slices", type=positive, default=1, help="of that kind (default 1)")
    # `attach` takes back with --no-... what the launch had.
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    parser.add_argument("--spot", **switch, help="cheaper, and may be taken away")
    parser.add_argument("--reserved", **switch, help="from your reservation")
    parser.add_argument("--runtime_version", help="of the machines (default: by accelerator)")
    parser.add_argument(
        "--create_flag", action="append", default=[], help="more for gcloud's create; repeatable"
    )
    parser.add_argument(
        "--wait_minutes", type=positive, default=24 * 60, help="for machines (default: a day)"
    )
    parser.add_argument(
        "--preemptions", type=count, default=100, help="to go on after, at most (default 100)"
    )
    parser.add_argument(
        "--grace_minutes", type=positive, default=10, help="for `stop` to save in (default 10)"
    )
    parser.add_argument("--keep", **switch, help="do not delete the machines at the end")
    flags, run = parser.parse(arguments)
    if flags.verb == "attach" and (path := folder_of(flags) / LAUNCH).exists():
        kept = json.loads(path.read_text())
        anew = {"create_flag": []} if flags.create_flag else {}  # these add to a default
        parser.set_defaults(**kept["flags"] | anew)
        flags, given = parser.parse(arguments)
        run = given if given.flags else read_run(kept["run"])
    if flags.spot and flags.reserved:
        parser.error("--spot and --reserved exclude each other (attach: --no-spot, --no-reserved)")
    if flags.verb in ("run", "attach"):
        if not flags.accelerator:
            parser.error("--accelerator=NAME is missing, as v5litepod-256")
        if run.config is None:
            parser.error("no --config; put the flags of main.py after --, as -- --config=...")
        if "://" not in (run.workdir or "") and not flags.keep:
            parser.error(
                f"--workdir={run.workdir} is on machines that are deleted: expected gs://... "
                "(or --keep)"
            )
    return flags, run


def status(machine: Machine) -> int:
    """The state of the machines and of main.py; 0 if they are there."""
    state, message = machine.state()
    answer = machine.ask() if state == "ACTIVE" else None
    if machine.shell.dry_run:
        return 0
    line = f"{machine.flags.name}: {state}{f' ({message})' if message else ''}"
    if answer is not None:
        ended = "" if answer.code is None else f" with exit code {answer.code}"
        line += f", main.py {answer.state}{ended}, attempt {answer.attempt}"
    print(line)
    return NO_MACHINES if state in (NOT_FOUND, UNKNOWN) else 0


def logs(machine: Machine) -> int:
    """Follows the log of worker 0 until main.py has ended; its exit code."""
    try:
        if (code := machine.follow().code) is None:
            raise Failure("main.py was not started yet", NO_MACHINES)
        return code
    except Gone as error:
        raise Failure(f"the machines are {error.state}", NO_MACHINES) from None
    except Silent:
        raise Failure("nothing was heard of main.py for an hour", NO_MACHINES) from None


def stop(machine: Machine) -> int:
    """Lets main.py save, then deletes the machines."""
    flags, shell = machine.flags, machine.shell
    state = machine.settled_state()
    if state == NOT_FOUND:
        raise Failure(f"there is no {flags.name} in {flags.zone}", NO_MACHINES)
    if state == ACTIVE:
        answer = machine.insist_on_answer()
        if answer is None and not flags.force:
            raise Failure(
                "worker 0 does not answer, so main.py cannot save; nothing was deleted (--force "
                "deletes all the same)",
                NO_MACHINES,
            )
        if shell.dry_run or (answer is not None and answer.state == "running"):
            machine.stop()
            deadline = time.monotonic() + 60 * flags.grace_minutes
            while (answer := machine.ask()) is None or answer.state == "running":
                if time.monotonic() > deadline:
                    shell.say(f"main.py did not save in {flags.grace_minutes} minutes")
                    break
                if answer is None and machine.state()[0] in DELETED:
                    break  # by a launcher that follows it
                time.sleep(flags.poll_seconds)
        if answer is not None and answer.code is not None:
            shell.say(f"main.py ended with exit code {answer.code}")
    with uninterrupted():
        if not machine.delete():
            raise Failure(f"could NOT be deleted: {machine.delete_command()}", FAILED)
    shell.say(f"{flags.name} is deleted")
    return 0


if __name__ == "__main__":
    entry(NAME, work)
