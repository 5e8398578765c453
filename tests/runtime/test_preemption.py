import os
import signal
import subprocess
import sys

import pytest

from mm.runtime import preemption

_RUN = """
import os, sys, time
import jax.numpy as jnp
from mm.runtime.checkpoint import Checkpointer
from mm.runtime.preemption import PREEMPTED, StopSignals
stop = StopSignals()
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, {"w": jnp.ones(3)}, {})  # brings an event loop of its own
print("ready", flush=True)
for step in range(2, 10**6):
    time.sleep(0.01)
    if sys.argv[2] == "stuck":
        time.sleep(60)
    if stop.stop_requested(step):
        checkpointer.save(step, {"w": jnp.ones(3)}, {})
        checkpointer.close()
        sys.exit(PREEMPTED)
"""

_STUCK_IN_C = """
import ctypes
from mm.runtime.preemption import StopSignals
stop = StopSignals()
print("ready", flush=True)
sleep = ctypes.CDLL(None).sleep  # like a compilation: no bytecode runs, the GIL is free
for _ in range(60):
    while sleep(60): pass
"""


def _start(*arguments):
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_the_code(tmp_path, number):
    process = _start(_RUN, tmp_path, "run")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == preemption.PREEMPTED == 75
    assert "stopping after this step, then saving" in errors
    assert len([name for name in os.listdir(tmp_path) if name.isdigit()]) == 1


def test_a_second_interrupt_kills_at_once_even_inside_c_code():
    process = _start(_STUCK_IN_C)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "Ctrl-C again kills at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=55) == preemption.INTERRUPTED == 130  # C code sleeps for 60 s


def test_repeated_sigterm_is_one_request():
    stop = preemption.StopSignals()
    try:
        assert not stop.stop_requested(1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.stop_requested(2)
    finally:
        stop.close()


def test_close_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    preemption.StopSignals().close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
