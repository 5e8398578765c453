"""Commands run a few at a time, each on cores of its own; they end when this process does.

What a launcher among them says is LEFT when it has ended is said here, too.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.processes import signal_group, start
from launch.shell import what_is_left

_POLL_SECONDS = 0.2
_CHATTER = re.compile(r"launch(\.\w+)?: (?!error)")  # of a launcher that goes well


class Job(NamedTuple):
    """One command; its output goes to the end of `log`."""

    name: str
    command: Sequence[str]
    log: Path


class Failure(NamedTuple):
    """exit_code: negative for a signal, as `subprocess` has it; last_line: that says why."""

    exit_code: int
    last_line: str


class _Running(NamedTuple):
    """begin: where its output begins in the log, after that of starts before."""

    job: Job
    child: subprocess.Popen
    begin: int

    def output(self) -> str:
        return self.job.log.read_bytes()[self.begin :].decode(errors="replace")


class Pool:
    """So many jobs at once.

    pin: give each an equal part of the cores. lock: what jobs hold, too. grace_seconds: for a job
    to save, or to give back its machines, when told to stop (None: as long as it takes).
    """

    def __init__(
        self,
        parallel: int,
        *,
        pin: bool,
        environment: Mapping[str, str],
        lock: int | None = None,
        grace_seconds: float | None,
    ):
        self._slots = [cores()[i::parallel] if pin else cores() for i in range(parallel)]
        self._environment = environment
        self._keep = [] if lock is None else [lock]
        self._grace_seconds = grace_seconds
        self.left: list[str] = []  # names of jobs that said so

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, Failure | None], str]) -> bool:
        """Runs all, in order; ended(job, failure) is called after each and says what came of it.

        A failure stops no other. Returns whether it was told to stop, by SIGTERM or Ctrl-C: then
        what ran was told so and given time to save, and `ended` was not called for it; so, too,
        when `ended` raises. A second Ctrl-C kills.
        """
        stops: list[int] = []
        handlers = {
            number: signal.signal(number, lambda number, frame: stops.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        todo: list[Job] = list(jobs)
        running: dict[int, _Running] = {}
        try:
            while (todo or running) and not stops:
                for slot in range(len(self._slots)):
                    if slot not in running and todo:
                        job = todo.pop(0)
                        print(f"{job.name}: starts, {len(todo)} to go", flush=True)
                        running[slot] = self._start(job, slot)
                time.sleep(_POLL_SECONDS)
                for slot, one in list(running.items()):
                    if one.child.poll() is not None:
                        del running[slot]
                        signal_group(one.child, signal.SIGKILL)  # what it left behind
                        output = one.output()
                        try:
                            said = ended(one.job, _failure(one.child.returncode, output))
                            print(f"{one.job.name}: {said}", flush=True)
                        finally:
                            self._tell_left(one.job, output)
            return bool(stops)
        finally:
            self._stop([one.child for one in running.values()], stops)
            for one in running.values():
                signal_group(one.child, signal.SIGKILL)
                one.child.wait()
                self._tell_left(one.job, one.output())
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _tell_left(self, job: Job, output: str) -> None:
        if lines := what_is_left(output):
            self.left.append(job.name)
            print(*(f"  {line}" for line in lines), sep="\n", flush=True)

    def _start(self, job: Job, slot: int) -> _Running:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        begin = job.log.stat().st_size if job.log.exists() else 0
        return _Running(job, self._start_on(slot, job), begin)

    def _start_on(self, slot: int, job: Job) -> subprocess.Popen:
        if not hasattr(os, "sched_setaffinity"):
            return start(job.command, self._environment, job.log, self._keep)
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._slots[slot])  # a child inherits it, before JAX counts cores
        try:
            return start(job.command, self._environment, job.log, self._keep)
        finally:
            os.sched_setaffinity(0, mine)

    def _stop(self, children: Sequence[subprocess.Popen], stops: Sequence[int]) -> None:
        """Tells them to end and waits for it."""
        grace = float("inf") if self._grace_seconds is None else self._grace_seconds
        deadline = time.monotonic() + grace
        if children:
            print("waiting for what runs to save or clean up; Ctrl-C again kills it", flush=True)
        for child in children:
            signal_group(child, signal.SIGTERM)
        while any(child.poll() is None for child in children):
            if stops.count(signal.SIGINT) > 1 or time.monotonic() > deadline:
                return  # the caller kills
            time.sleep(_POLL_SECONDS)


def cores() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shown(job: Job) -> str:
    """As one types it."""
    return shlex.join(job.command)


def _failure(code: int, output: str) -> Failure | None:
    if code == 0:
        return None
    lines = [line for line in output.splitlines() if line.strip()]
    # A launcher's last words are that the machines are deleted, or what is left; the run's, why.
    left = set(what_is_left(output))
    telling = [line for line in lines if not (line in left or _CHATTER.match(line))]
    return Failure(code, (telling or lines or [""])[-1].strip())


def describe(failure: Failure) -> str:
    """How it ended, and the last line."""
    code = failure.exit_code
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return f"{how}: {failure.last_line}"
