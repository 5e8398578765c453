"""Commands run a few at a time, each on cores of its own; they end when this process does."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.processes import signal_group, start

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 120.0  # for a run to save when told to stop


class Job(NamedTuple):
    """One command; its output goes to `log`."""

    name: str
    command: Sequence[str]
    log: Path


class Failure(NamedTuple):
    """exit_code: negative for a signal, as `subprocess` has it; last_line: of the log."""

    exit_code: int
    last_line: str


class Pool:
    """So many jobs at once. pin: give each an equal part of the cores; lock: what jobs hold too."""

    def __init__(
        self, parallel: int, *, pin: bool, environment: Mapping[str, str], lock: int | None = None
    ):
        self._slots = [cores()[i::parallel] if pin else cores() for i in range(parallel)]
        self._environment = environment
        self._keep = [] if lock is None else [lock]

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
        todo, running = list(jobs), {}
        try:
            while (todo or running) and not stops:
                for slot in range(len(self._slots)):
                    if slot not in running and todo:
                        job = todo.pop(0)
                        print(f"{job.name}: starts, {len(todo)} to go", flush=True)
                        running[slot] = job, self._start(job, slot)
                time.sleep(_POLL_SECONDS)
                for slot, (job, child) in list(running.items()):
                    if child.poll() is not None:
                        del running[slot]
                        signal_group(child, signal.SIGKILL)  # what it left behind
                        said = ended(job, _failure(job, child.returncode))
                        print(f"{job.name}: {said}", flush=True)
            return bool(stops)
        finally:
            _stop([child for _, child in running.values()], stops)
            for _, child in running.values():
                signal_group(child, signal.SIGKILL)
                child.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start(self, job: Job, slot: int) -> subprocess.Popen:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")  # its last line is that of this start
        if not hasattr(os, "sched_setaffinity"):
            return start(job.command, self._environment, job.log, self._keep)
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._slots[slot])  # a child inherits it, before JAX counts cores
        try:
            return start(job.command, self._environment, job.log, self._keep)
        finally:
            os.sched_setaffinity(0, mine)


def cores() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shown(job: Job) -> str:
    """As one types it."""
    return shlex.join(job.command)


def _failure(job: Job, code: int) -> Failure | None:
    if code == 0:
        return None
    lines = job.log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return Failure(code, last)


def describe(failure: Failure) -> str:
    """How it ended, and the last line."""
    code = failure.exit_code
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return f"{how}: {failure.last_line}"


def _stop(children: Sequence[subprocess.Popen], stops: Sequence[int]) -> None:
    """Tells them to end and waits for it."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        signal_group(child, signal.SIGTERM)
    while any(child.poll() is None for child in children):
        if stops.count(signal.SIGINT) > 1 or time.monotonic() > deadline:
            return  # the caller kills
        time.sleep(_POLL_SECONDS)
