"""What launch.tpu_vm decides: one run, from asking for machines to deleting them.

A launcher that was killed is followed by another, with the same flags or by `attach`, which takes
up the machines in whatever state they are.
"""

import contextlib
import fcntl
import json
import shlex
import sys
from collections.abc import Iterator

from launch.accelerators import topology
from launch.request import Run, check_plan, folder_of
from launch.revision import ARCHIVE, ROOT, Code, snapshot
from launch.shell import (
    EXISTS,
    FAILED,
    NO_MACHINES,
    PREEMPTED,
    REFUSED,
    Failure,
    Interrupted,
    uninterrupted,
)
from launch.tpu_machine import ACTIVE, DELETED, NOT_FOUND, UNKNOWN, Gone, Machine, Silent

NAME = "tpu_vm"
LAUNCH = "launch.json"  # what `attach` goes on with, beside the code
# Not of the run, or said anew by whoever attaches.
_NOT_KEPT = ("verb", "name", "dry_run", "force", "code")


class Supervision:
    """One run. found: its machines are there from before; started: main.py was, so it may be left
    alone.
    """

    def __init__(self, machine: Machine, run: Run):
        self.machine, self.run = machine, run
        self.shell, self.flags = machine.shell, machine.flags
        self.folder = folder_of(machine.flags)
        self.found = self.created = self.started = False
        self.attempt = self.failures = self.preemptions = 0

    def launch(self) -> int:
        """All of it; takes up what the same command has left. Returns the exit code."""
        code = snapshot(self.flags.code)
        self.shell.say(code.describe())
        with self._alone():
            state, message = self.machine.state(assume=NOT_FOUND)
            if state == UNKNOWN:
                raise Failure(f"gcloud does not answer: {message}", NO_MACHINES)
            if state == NOT_FOUND:
                slice_ = topology(self.machine.slice, self.flags.slices)
                check_plan(self.shell, self.flags, self.run, code, slice_)
                self._keep(code)
                return self._guarded()
            path = self.folder / LAUNCH
            if not path.exists() or json.loads(path.read_text()) != self._record(code):
                raise Failure(
                    f"{self.flags.name} exists already and is {state}, launched elsewhere or with "
                    "other flags or code; see it with status, go on with attach, end it with "
                    "stop, or give another --name",
                    EXISTS,
                )
            self.shell.say(f"{self.flags.name} exists already and is {state}; going on with it")
            return self._take_up(state)

    def attach(self) -> int:
        """Takes up again what an interrupted launcher left."""
        with self._alone():
            if (state := self.machine.settled_state()) in DELETED:
                raise Failure(f"there is no {self.flags.name} to attach to", NO_MACHINES)
            if not (self.folder / ARCHIVE).exists():
                code = snapshot(self.flags.code)
                self.shell.say(f"launched elsewhere; after a preemption it gets {code.describe()}")
                self._keep(code)
            return self._take_up(state)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other launcher on this machine is at work on that run; or raises Failure."""
        if self.shell.dry_run:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wrong = f"another launcher is at work on {self.flags.name}, on this machine"
                raise Failure(wrong, EXISTS) from None
            yield

    def _take_up(self, state: str) -> int:
        if state == ACTIVE:
            answer = self.machine.insist_on_answer()
            if answer is None:
                wrong = f"{self.flags.name} is {state}, and worker 0 does not answer"
                raise Failure(f"{wrong}; nothing was changed", NO_MACHINES)
            self.attempt, self.started = answer.attempt, answer.state != "prepared"
        self.found = self.created = True
        return self._guarded()

    def _record(self, code: Code) -> dict[str, object]:
        kept = {key: value for key, value in vars(self.flags).items() if key not in _NOT_KEPT}
        return {**code.record(), "flags": kept, "run": list(self.run.flags)}

    def _keep(self, code: Code) -> None:
        """Writes what `attach` needs, and what machines get after a preemption."""
        self.shell.write(self.folder / LAUNCH, json.dumps(self._record(code), indent=2) + "\n")
        self.shell.write(self.folder / ARCHIVE, code.archive)

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
            delete = False
            wrong = "nothing was heard of main.py for an hour; it may go on without me"
            raise Failure(wrong, code := NO_MACHINES) from None
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
                if self.found:
                    self.found = False
                    self.machine.check_present()
                if not self.created:
                    self._create()
                if not self.started:
                    self._begin()
                answer = self.machine.follow()
                if answer.code is None:  # a host was put in the place of worker 0
                    self._count_preemption("worker 0 has nothing of main.py")
                    self.started = False
                elif self._again(answer.code, answer.state == "stopped"):
                    self._start()
                else:
                    return answer.code
            except Gone as error:
                if error.state in DELETED:
                    raise Failure(f"somebody deleted {self.flags.name}", PREEMPTED) from None
                self._count_preemption(f"the machines are {error.state}")
                with uninterrupted():
                    if not self.machine.delete():
                        raise Failure(f"{self.flags.name} cannot be deleted", NO_MACHINES) from None
                self.created = self.started = False

    def _create(self) -> None:
        self.created = True  # even if create fails, something may be there
        try:
            self.machine.create()
        except Failure as error:
            self.created = error.code != EXISTS  # somebody else's
            raise

    def _begin(self) -> None:
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
        if code in (0, REFUSED) or stopped:
            return False
        if code == PREEMPTED or self.machine.was_stopped():
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
            self.shell.left(
                f"{name} costs money. To see its log, to go on, to end it:",
                *(
                    f"python -m launch.{NAME} {verb} --name={name} {place}"
                    for verb in ("logs", "attach", "stop")
                ),
            )
            return code
        with uninterrupted():
            self.shell.say(f"deleting {name}")
            if self.machine.delete():
                self.shell.say(f"{name} is deleted; exit code {code}")
                return code
        self.shell.left(
            f"{name} could NOT be deleted and may cost money; run",
            self.machine.delete_command(),
            file=sys.stderr,
        )
        return code or FAILED
