"""Several processes on this machine, joined over loopback.

  python -m launch.local --processes=2 --devices_per_process=2 -- python main.py --config=...

Each process writes a log file of its own; that of process 0 is shown as well. The group lives and
dies as one: when a process fails, the others get SIGTERM and after a grace SIGKILL, and the exit
code is that of the first that failed. With --restarts or --preemptions the group is then started
again, but after exit code 2 (wrong input) and after a signal to this program. SIGTERM and Ctrl-C
are passed on; a second Ctrl-C kills. On Linux the kernel kills the processes if this one is killed.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch.processes import signal_group, start
from launch.request import count, positive, read_run
from launch.revision import ROOT
from launch.shell import PREEMPTED, REFUSED, Failure

_POLL_SECONDS = 0.05
_FAILED_GRACE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", usage="%(prog)s [options] -- command ..."
    )
    parser.add_argument("--processes", type=positive, default=2, help="how many (default 2)")
    parser.add_argument(
        "--devices_per_process",
        type=positive,
        help="simulated CPU devices of each (default: real ones)",
    )
    parser.add_argument("--log_dir", type=Path, help="where logs go (default: a new one in /tmp)")
    parser.add_argument(
        "--grace_seconds", type=float, default=60.0, help="from SIGTERM to SIGKILL when stopping"
    )
    parser.add_argument(
        "--restarts", type=count, default=0, help="after a failure, at most (default 0)"
    )
    parser.add_argument(
        "--preemptions",
        type=count,
        default=0,
        help=f"to go on after exit code {PREEMPTED} (saved and stopped), at most (default 0)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands, start nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    flags = parser.parse_args(arguments)
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not command:
        parser.error("no command; put it after --")
    if shutil.which(command[0]) is None:
        parser.error(f"{command[0]} is not installed, or not on PATH")
    if len(command) > 1 and Path(command[1]).resolve() == ROOT / "main.py":
        try:
            read_run(command)
        except Failure as error:
            parser.error(str(error))
    if flags.dry_run:
        log_dir = flags.log_dir or Path(tempfile.gettempdir(), "launch-local-...")
        show(command, flags.processes, flags.devices_per_process, log_dir)
        return 0
    log_dir = flags.log_dir or Path(tempfile.mkdtemp(prefix="launch-local-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    print(f"launch.local: {flags.processes} processes, logs in {log_dir}", flush=True)
    return run(
        command,
        flags.processes,
        flags.devices_per_process,
        log_dir,
        flags.grace_seconds,
        flags.restarts,
        flags.preemptions,
    )


def show(
    command: Sequence[str], processes: int, devices_per_process: int | None, log_dir: Path
) -> None:
    """Prints what `run` would start, as commands of a shell."""
    for index in range(processes):
        names = variables(index, processes, "127.0.0.1:PORT", devices_per_process)
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in names.items())
        print(f"{given} {shlex.join(command)} > {_log(log_dir, index)} 2>&1 &")


def run(
    command: Sequence[str],
    processes: int,
    devices_per_process: int | None,
    log_dir: Path,
    grace_seconds: float,
    restarts: int = 0,
    preemptions: int = 0,
) -> int:
    """Runs `command` that many times together; see the top. Returns the exit code."""
    stops: list[int] = []  # signals received, in order
    handlers = {
        number: signal.signal(number, lambda number, frame: stops.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    logs = [_log(log_dir, index) for index in range(processes)]
    for log in logs:
        log.write_bytes(b"")
    left = {"restart": restarts, "preemption": preemptions}
    try:
        while True:
            code = _run_once(command, logs, devices_per_process, stops, grace_seconds)
            if stops or code in (0, REFUSED):
                return code
            kind = "preemption" if code == PREEMPTED else "restart"
            if not left[kind]:
                return code
            left[kind] -= 1
            print(f"launch.local: starting again; {left[kind]} more {kind}s", flush=True)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _log(log_dir: Path, index: int) -> Path:
    return log_dir / f"process-{index}.log"


def _run_once(
    command: Sequence[str],
    logs: list[Path],
    devices_per_process: int | None,
    stops: list[int],
    grace_seconds: float,
) -> int:
    """One start of the group, to its end; the logs grow."""
    children: list[subprocess.Popen] = []
    try:
        address = f"127.0.0.1:{free_port()}"
        shown = logs[0].stat().st_size
        for index, log in enumerate(logs):
            environment = child_environment(index, len(logs), address, devices_per_process)
            children.append(start(command, environment, log))
        return _watch(children, logs, shown, stops, grace_seconds)
    finally:
        for child in children:
            signal_group(child, signal.SIGKILL)  # also what a dead child left behind
            child.wait()


def child_environment(
    index: int, processes: int, address: str, devices_per_process: int | None
) -> dict[str, str]:
    """This environment with what mm.runtime.distributed reads."""
    return {**os.environ, **variables(index, processes, address, devices_per_process)}


def variables(
    index: int, processes: int, address: str, devices_per_process: int | None
) -> dict[str, str]:
    """What is new in the environment of a process."""
    found = {
        "MM_COORDINATOR": address,
        "MM_NUM_PROCESSES": str(processes),
        "MM_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if devices_per_process is not None:
        flag = "--xla_force_host_platform_device_count"
        others = re.sub(rf"{flag}=\S*", "", os.environ.get("XLA_FLAGS", ""))
        found["XLA_FLAGS"] = f"{others} {flag}={devices_per_process}".strip()
        found["JAX_PLATFORMS"] = "cpu"
    return found


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _watch(
    children: list[subprocess.Popen],
    logs: list[Path],
    shown: int,
    stops: list[int],
    grace_seconds: float,
) -> int:
    """Follows the processes until none is left; returns the exit code of the first failure or 0.

    shown: bytes of the first log that are there from an earlier start.
    """
    failed: int | None = None
    deadline: float | None = None
    passed_on = False
    with open(logs[0], "rb") as log:
        log.seek(shown)
        while True:
            running = [child for child in children if child.poll() is None]
            _show(log)
            failures = [i for i, child in enumerate(children) if child.returncode]
            if failed is None and failures:
                # a crash of one makes JAX abort the others: a plain exit code is the cause
                failed = min(failures, key=lambda i: (children[i].returncode < 0, i))
                if not stops:
                    _report(failed, children[failed].returncode, logs[failed])
            if not running:
                break
            if (stops or failed is not None) and not passed_on:
                passed_on = True
                orderly = bool(stops) or children[failed].returncode == PREEMPTED
                deadline = time.monotonic() + (grace_seconds if orderly else _FAILED_GRACE_SECONDS)
                for child in running:
                    signal_group(child, signal.SIGTERM)
            if stops.count(signal.SIGINT) > 1 or (deadline and time.monotonic() > deadline):
                for child in running:
                    signal_group(child, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
    if failed is None:
        return 0
    code = children[failed].returncode
    return code if code > 0 else 128 - code


def _show(log) -> None:
    """Copies what process 0 has written since the last call to our output."""
    if new := log.read():
        sys.stdout.buffer.write(new)
        sys.stdout.buffer.flush()


def _report(index: int, code: int, log: Path) -> None:
    if code == PREEMPTED:
        print(f"launch.local: process {index} saved and stopped (exit code {code})", flush=True)
        return
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:])
    print(f"launch.local: process {index} ended with {how}; the end of {log}:", file=sys.stderr)
    print(tail, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
