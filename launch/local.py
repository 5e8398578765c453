"""Several processes on this machine, joined over loopback.

  python -m launch.local --processes=2 --devices_per_process=2 -- python main.py --config=...

Each process writes a log file of its own; that of process 0 is shown as well. The group lives and
dies as one: when a process fails, the others get SIGTERM and after a grace SIGKILL, and the exit
code is that of the first that failed. SIGTERM and Ctrl-C are passed on; a second Ctrl-C kills. On
Linux the kernel kills the processes if this one is killed.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch.processes import signal_group, start

PREEMPTED = os.EX_TEMPFAIL  # what main.py exits with after saving; mm/runtime/preemption.py
_POLL_SECONDS = 0.05
_FAILED_GRACE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", usage="%(prog)s [options] -- command ..."
    )
    parser.add_argument("--processes", type=int, default=2, help="how many to start")
    parser.add_argument(
        "--devices_per_process", type=int, help="simulated CPU devices of each (default: real ones)"
    )
    parser.add_argument("--log_dir", type=Path, help="where logs go (default: a new one in /tmp)")
    parser.add_argument(
        "--grace_seconds", type=float, default=60.0, help="from SIGTERM to SIGKILL when stopping"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    flags = parser.parse_args(arguments)
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    if not command:
        parser.error("no command; put it after --")
    if flags.processes < 1 or (flags.devices_per_process or 1) < 1:
        parser.error("--processes and --devices_per_process must be at least 1")
    log_dir = flags.log_dir or Path(tempfile.mkdtemp(prefix="launch-local-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    print(f"launch.local: {flags.processes} processes, logs in {log_dir}", flush=True)
    return run(command, flags.processes, flags.devices_per_process, log_dir, flags.grace_seconds)


def run(
    command: Sequence[str],
    processes: int,
    devices_per_process: int | None,
    log_dir: Path,
    grace_seconds: float,
) -> int:
    """Runs `command` that many times together; see the top. Returns the exit code."""
    stops: list[int] = []  # signals received, in order
    handlers = {
        number: signal.signal(number, lambda number, frame: stops.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    logs = [log_dir / f"process-{index}.log" for index in range(processes)]
    children: list[subprocess.Popen] = []
    try:
        address = f"127.0.0.1:{free_port()}"
        for index, log in enumerate(logs):
            environment = child_environment(index, processes, address, devices_per_process)
            children.append(start(command, environment, log))
        return _watch(children, logs, stops, grace_seconds)
    finally:
        for child in children:
            signal_group(child, signal.SIGKILL)  # also what a dead child left behind
            child.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def child_environment(
    index: int, processes: int, address: str, devices_per_process: int | None
) -> dict[str, str]:
    """This environment with what mm.runtime.distributed reads."""
    environment = {
        **os.environ,
        "MM_COORDINATOR": address,
        "MM_NUM_PROCESSES": str(processes),
        "MM_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }
    if devices_per_process is not None:
        flag = "--xla_force_host_platform_device_count"
        others = re.sub(rf"{flag}=\S*", "", os.environ.get("XLA_FLAGS", ""))
        environment["XLA_FLAGS"] = f"{others} {flag}={devices_per_process}".strip()
        environment["JAX_PLATFORMS"] = "cpu"
    return environment


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _watch(
    children: list[subprocess.Popen], logs: list[Path], stops: list[int], grace_seconds: float
) -> int:
    """Follows the processes until none is left; returns the exit code of the first failure or 0."""
    failed: int | None = None
    deadline: float | None = None
    passed_on = False
    with open(logs[0], "rb") as log:
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
