"""Running other commands, or printing them: what --dry_run is made of.

The flow of a launcher is the same in a dry run; only Shell differs, which prints each command and
file and takes for the answer what the launcher says it assumes.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

# The exit codes of all launchers; those of main.py (0, 1, 2, 75) are passed on. docs/launch.md.
FAILED = 1  # also of main.py
REFUSED = 2  # wrong input, of main.py too, or a plan that does not fit: nothing was submitted
NO_MACHINES = os.EX_UNAVAILABLE  # 69: quota, stock-out, waited too long
NOT_PREPARED = os.EX_OSERR  # 71: the machines came, but code or packages did not get onto them
EXISTS = os.EX_CANTCREAT  # 73: a run of that name is there, and was left alone
PREEMPTED = os.EX_TEMPFAIL  # 75: saved and stopped; mm/runtime/preemption.py
NOT_FINISHED = (NO_MACHINES, EXISTS, PREEMPTED)  # no fault of the run: the same command, later

_LEFT = "LEFT: "


class Failure(Exception):
    """Ends a launcher: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Interrupted(BaseException):
    """SIGTERM, Ctrl-C, or a terminal that closed.

    Not an Exception, so that nothing takes it for a failure of a command. left: what there is now.
    """

    left = "nothing was started"

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Done(NamedTuple):
    """A command that ended: its exit code and what it wrote."""

    code: int
    output: str = ""
    error: str = ""

    @property
    def reason(self) -> str:
        """The one line of what it wrote that says most."""
        lines = [line.strip() for line in (self.error or self.output).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [f"exit code {self.code}"])[-1]


class Shell:
    """Runs commands for the launcher `name`; with dry_run it prints them."""

    def __init__(self, name: str, dry_run: bool):
        self.name, self.dry_run = name, dry_run

    def say(self, text: str) -> None:
        """A line; nothing if nobody listens any more, since what is left to do matters more."""
        with contextlib.suppress(OSError):
            print(f"# {text}" if self.dry_run else f"launch.{self.name}: {text}", flush=True)

    def show(self, text: str) -> None:
        """A line for the reader to copy; as `say`."""
        with contextlib.suppress(OSError):
            print(text, flush=True)

    def left(self, what: str, *commands: str, file: TextIO | None = None) -> None:
        """Says what goes on or costs money when this program has ended, and what to do about it.

        `what_is_left` finds it in a log.
        """
        with contextlib.suppress(OSError):
            start = "# " if self.dry_run else f"launch.{self.name}: "
            lines = [f"{start}{_LEFT}{what}", *(f"  {command}" for command in commands)]
            print(*lines, sep="\n", file=file, flush=True)

    def run(self, command: Sequence[str], *, assume: str = "", given: str | None = None) -> Done:
        """Runs to the end. assume: what it would write, for a dry run. given: its input."""
        if self.dry_run:
            self._print(command)
            if given is not None:
                print(_indent(given))
            return Done(0, assume)
        # A session of its own: Ctrl-C reaches it through us alone.
        done = subprocess.run(
            self._found(command),
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def stream(self, command: Sequence[str], *, folder: Path | None = None) -> tuple[int, int]:
        """Runs with its output shown as it comes; returns the exit code and bytes of output.

        What it says on standard error is shown too, and not counted.
        """
        if self.dry_run:
            self._print(command, folder)
            return 0, 0
        shown = 0
        process = subprocess.Popen(
            self._found(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            while new := process.stdout.read1(1 << 16):
                shown += len(new)
                with contextlib.suppress(OSError):  # nobody listens: the run goes on
                    sys.stdout.buffer.write(new)
                    sys.stdout.buffer.flush()
            return process.wait(), shown
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.stdout.close()
            process.wait()

    def write(self, path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
        """Writes a file; folders are made."""
        if self.dry_run:
            print(f"write {path}{' (the code)' if isinstance(content, bytes) else ':'}")
            if isinstance(content, str):
                print(_indent(content))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)

    def _print(self, command: Sequence[str], folder: Path | None = None) -> None:
        print(f"{f'cd {folder} && ' if folder else ''}{shlex.join(map(str, command))}", flush=True)

    def _found(self, command: Sequence[str]) -> Sequence[str]:
        if shutil.which(command[0]) is None:
            raise Failure(f"{command[0]} is not installed, or not on PATH", REFUSED)
        return command


def _indent(text: str) -> str:
    return "".join(f"  | {line}".rstrip() + "\n" for line in text.splitlines()).rstrip("\n")


def what_is_left(output: str) -> list[str]:
    """The lines of `Shell.left` in what a launcher wrote."""
    found, inside = [], False
    for line in output.splitlines():
        inside = line.startswith("  ") if inside else False
        inside = inside or re.match(rf"launch\.\w+: {_LEFT}", line) is not None
        found += [line] if inside else []
    return found


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C raise Interrupted in here, the first time; later ones do nothing.

    So cleaning up, which is what follows, is not interrupted in its turn.
    """

    def stop(number: int, frame: object) -> NoReturn:
        _handle(_wait)
        raise Interrupted(number)

    before = _handle(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C do nothing in here: for deleting what costs money."""
    before = _handle(_wait)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Callable[[int, object], None]) -> dict[int, Any]:
    """Sets the handler of the signals; returns those before. nohup's stays as it is."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return {number: signal.signal(number, handler) for number in numbers}


def _wait(number: int, frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"\ncleaning up; wait\n")
