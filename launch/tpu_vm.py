"""Runs main.py on a slice of TPUs of Google Cloud, from asking for it to deleting it.

  python -m launch.tpu_vm --accelerator=v5litepod-256 --zone=us-west4-a --spot \
    -- --config=configs/siglip.py --workdir=gs://bucket/run

Plan, queued resource, code, packages, start, log of worker 0; after a preemption the same anew in
the same workdir. In the end, whatever happens, the machines are deleted, but with --keep, and
when this program is interrupted while main.py runs. docs/launch.md has flags and exit codes.
"""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Sequence

from launch.accelerators import find_slice, topology
from launch.request import (
    Parser,
    Run,
    check_plan,
    count,
    entry,
    folder_of,
    positive,
    read_run,
    telling,
)
from launch.revision import ARCHIVE, ROOT, Code, snapshot
from launch.shell import (
    FAILED,
    NO_MACHINES,
    PREEMPTED,
    REFUSED,
    Failure,
    Interrupted,
    Shell,
    uninterrupted,
)
from launch.tpu_machine import ACTIVE, DELETED, NOT_FOUND, UNKNOWN, Gone, Machine, Silent

NAME = "tpu_vm"
LAUNCH = "launch.json"  # what `attach` goes on with, beside the code
_BAD_INPUT = 2  # of main.py: wrong again if started again
# Not of the run, or said anew by whoever attaches.
_NOT_KEPT = ("verb", "name", "dry_run", "force", "code")


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
    if flags.verb == "attach":
        return Supervision(machine, run).attach()
    code = snapshot(flags.code)
    shell.say(code.describe())
    check_plan(shell, flags, run, topology(slice_, flags.slices))
    return Supervision(machine, run).launch(code)


def read_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Run]:
    parser = Parser(NAME, ("attach", "status", "logs", "stop"), __doc__.splitlines()[0])
    parser.add_argument("--zone", required=True, help="as us-west4-a")
    parser.add_argument("--project", help="(default: gcloud's)")
    parser.add_argument("--accelerator", help="as v5litepod-256")
    parser.add_argument("--slices", type=positive, default=1, help="of that kind (default 1)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    kind.add_argument("--reserved", action="store_true", help="from your reservation")
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
    parser.add_argument("--keep", action="store_true", help="do not delete the machines at the end")
    flags, run = parser.parse(arguments)
    if flags.verb == "attach" and (path := folder_of(flags) / LAUNCH).exists():
        kept = json.loads(path.read_text())
        parser.set_defaults(**kept["flags"])
        flags, given = parser.parse(arguments)
        run = given if given.flags else read_run(kept["run"])
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


class Supervision:
    """One run from creation to deletion. started: main.py was, so it may be left alone."""

    def __init__(self, machine: Machine, run: Run):
        self.machine, self.run = machine, run
        self.shell, self.flags = machine.shell, machine.flags
        self.created = self.started = False
        self.attempt = self.failures = self.preemptions = 0

    def launch(self, code: Code) -> int:
        state, message = self.machine.state(assume=NOT_FOUND)
        if state == UNKNOWN:
            raise Failure(f"gcloud does not answer: {message}", NO_MACHINES)
        if state != NOT_FOUND:
            raise Failure(
                f"{self.flags.name} exists already and is {state}; see it with status, go on with "
                "attach, end it with stop, or give another --name",
                REFUSED,
            )
        self._keep(code)
        return self._guarded()

    def attach(self) -> int:
        """Takes up again what an interrupted launcher left."""
        answer = self.machine.insist_on_answer()
        if answer is None or answer.state == "prepared":
            state, _ = self.machine.state()
            raise Failure(f"{self.flags.name} ({state}) has no run to attach to", NO_MACHINES)
        self.attempt, self.created, self.started = answer.attempt, True, True
        if not (folder_of(self.flags) / ARCHIVE).exists():
            code = snapshot(self.flags.code)
            self.shell.say(f"launched elsewhere; after a preemption it gets {code.describe()}")
            self._keep(code)
        return self._guarded()

    def _keep(self, code: Code) -> None:
        """Writes what `attach` needs, and what machines get after a preemption."""
        kept = {key: value for key, value in vars(self.flags).items() if key not in _NOT_KEPT}
        record = {**code.record(), "flags": kept, "run": list(self.run.flags)}
        folder = folder_of(self.flags)
        self.shell.write(folder / LAUNCH, json.dumps(record, indent=2) + "\n")
        self.shell.write(folder / ARCHIVE, code.archive)

    def _guarded(self) -> int:
        """All of it, and the machines deleted in the end."""
        delete, code = True, FAILED
        try:
            code = self._live()
            delete = not self.flags.keep
        except Failure as error:
            code = error.code
            raise
        except Silent:
            delete, code = False, NO_MACHINES
            self.shell.say("nothing was heard of main.py for an hour; it may go on without me")
        except Interrupted as error:
            delete, code = not self.started, error.code
            self.shell.say(f"{error}{'; main.py goes on without me' if self.started else ''}")
        except Exception:  # of this machine, a full disk say: no reason to end a run elsewhere
            delete = not self.started
            raise
        finally:
            if self.created:
                code = self._end(delete, code)
        return code

    def _live(self) -> int:
        """Until main.py has ended and is not to be started again; returns its exit code."""
        while True:
            try:
                if not self.created:
                    self._begin()
                answer = self.machine.follow()
                if not self._again(answer.code, answer.state == "stopped"):
                    return answer.code
                self._start()
            except Gone as error:
                if error.state in DELETED:
                    raise Failure(f"somebody deleted {self.flags.name}", PREEMPTED) from None
                self._count_preemption(f"the machines are {error.state}")
                with uninterrupted():
                    if not self.machine.delete():
                        raise Failure(f"{self.flags.name} cannot be deleted", NO_MACHINES) from None
                self.created = self.started = False

    def _begin(self) -> None:
        self.created = True  # even if create fails, something may be there
        try:
            self.machine.create()
        except Failure as error:
            self.created = error.code != REFUSED  # somebody else's
            raise
        self.machine.wait()
        self.machine.shown = 0
        self.machine.prepare()
        self._start()

    def _start(self) -> None:
        self.attempt += 1
        self.machine.start(self.attempt, self.run.flags)
        self.started = True

    def _again(self, code: int, stopped: bool) -> bool:
        """Whether to start main.py again on the same machines."""
        if code in (0, _BAD_INPUT) or stopped:
            return False
        if code == PREEMPTED:
            self._count_preemption("main.py was stopped, by SIGTERM or with its host")
            return True
        if self.failures >= self.flags.restarts:
            return False
        self.failures += 1
        self.shell.say(f"exit code {code}; restart {self.failures} of {self.flags.restarts}")
        return True

    def _count_preemption(self, what: str) -> None:
        self.preemptions += 1
        if self.preemptions > self.flags.preemptions:
            raise Failure(
                f"{what}; gave up after {self.flags.preemptions} preemptions (--preemptions). "
                "The same command continues the run from its checkpoint",
                PREEMPTED,
            )
        self.shell.say(f"{what}: preemption {self.preemptions}; the run continues")

    def _end(self, delete: bool, code: int) -> int:
        """Deletes the machines, or says that they are left; returns the exit code."""
        name, place = self.flags.name, " ".join(self.machine.place)
        if self.flags.code != ROOT:
            place += f" --code={shlex.quote(str(self.flags.code))}"
        if not delete:
            self.shell.say(f"{name} is LEFT and costs money. To see its log, to go on, to end it:")
            for verb in ("logs", "attach", "stop"):
                self.shell.show(f"  python -m launch.{NAME} {verb} --name={name} {place}")
            return code
        with uninterrupted():
            self.shell.say(f"deleting {name}")
            if self.machine.delete():
                self.shell.say(f"{name} is deleted; exit code {code}")
                return code
        with contextlib.suppress(OSError):  # as Shell.say
            print(
                f"launch.{NAME}: error: {name} could NOT be deleted and may cost money; run\n"
                f"  {self.machine.delete_command()}",
                file=sys.stderr,
                flush=True,
            )
        return code or FAILED


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
        return machine.follow().code or 0
    except Gone as error:
        raise Failure(f"the machines are {error.state}", NO_MACHINES) from None
    except Silent:
        raise Failure("nothing was heard of main.py for an hour", NO_MACHINES) from None


def stop(machine: Machine) -> int:
    """Lets main.py save, then deletes the machines."""
    flags, shell = machine.flags, machine.shell
    if machine.settled_state() == ACTIVE:
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
