"""Child processes that live no longer than this one."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, keep: Sequence[int] = ()
) -> subprocess.Popen:
    """Starts `command` in a session of its own, its output at the end of `log`.

    On Linux the kernel kills it when the thread that called this ends, however that ends. keep:
    file descriptors that it inherits.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def before_exec() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    with open(log, "ab") as output:
        # a session of its own: Ctrl-C reaches it through us alone
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before_exec,
            pass_fds=keep,
        )


def signal_group(child: subprocess.Popen, number: int) -> None:
    """To the child and all that it started."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return  # already gone
