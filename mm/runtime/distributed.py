"""The start of a process: find the others, if there are any, before JAX makes its backend."""

import glob
import importlib.util
import os
import sys
from typing import NoReturn

import jax

from mm.config import BadInput
from mm.runtime.preemption import PREEMPTED

# set by launch.local, or by hand
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "MM_COORDINATOR", "MM_NUM_PROCESSES", "MM_PROCESS_ID"


def start() -> None:
    """Joins the cluster that the environment names; does nothing on one machine.

    In this order: our own three variables, a SLURM step of several tasks, a TPU machine (whose
    metadata JAX reads). Call it first: afterwards jax.devices() are those of all processes.
    Raises BadInput when our variables are incomplete or no numbers.
    """
    given = {name: os.environ.get(name) for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)}
    if any(given.values()):
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise BadInput(f"{', '.join(missing)} not set; set all of {list(given)} or none")
        try:
            count, index = int(given[NUM_PROCESSES]), int(given[PROCESS_ID])
        except ValueError:
            raise BadInput(
                f"{NUM_PROCESSES}={given[NUM_PROCESSES]!r}, {PROCESS_ID}={given[PROCESS_ID]!r}: "
                "expected integers"
            ) from None
        if not 0 <= index < count:
            raise BadInput(f"{PROCESS_ID}={index}: expected 0 to {NUM_PROCESSES} - 1 = {count - 1}")
        jax.distributed.initialize(given[COORDINATOR], count, index)
    elif _is_slurm_step() or _is_tpu_machine():
        jax.distributed.initialize()
    else:
        return
    sys.excepthook = _leave_on_exception


def leave(code: int) -> NoReturn:
    """Exits with `code`: the end of every program that called `start`.

    With other processes, success (0, PREEMPTED) waits for them, since the first one serves the
    rest; a failure goes at once, since they may be waiting for us in a collective, and a normal
    exit would wait for them in turn, for five minutes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and code not in (0, PREEMPTED):
        os._exit(code)
    jax.distributed.shutdown()
    sys.exit(code)


def _leave_on_exception(kind, error, trace) -> NoReturn:
    sys.__excepthook__(kind, error, trace)
    leave(1)


def _is_slurm_step() -> bool:
    """True inside `srun` with several tasks; a shell on a login or compute node is no step."""
    step = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    return all(name in os.environ for name in step) and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _is_tpu_machine() -> bool:
    """True where JAX will use TPU chips of this host (a lone libtpu, for planning, is no chip)."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    wanted = not platforms or "tpu" in platforms.split(",")
    return wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None
