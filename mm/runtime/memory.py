"""How much memory this process and its training step take, for the log."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

_GIB = 1 << 30


def memory() -> dict[str, float]:
    """GiB: "memory/host" now; where a device tells, "memory/device_peak" so far and its limit.

    Of devices the fullest of this process; a CPU tells nothing.
    """
    found = {"memory/host": _resident() / _GIB}
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    for name, key in (("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
        if values := [each[key] for each in stats if key in each]:
            found[f"memory/device_{name}"] = max(values) / _GIB
    return found


def step_memory(lowered: Any) -> dict[str, float]:
    """GiB of a device that a lowered step takes, "memory/step"; {} where no compiler tells."""
    analysis = lowered.compile().memory_analysis()
    return {} if analysis is None else {"memory/step": reserved(analysis) / _GIB}


def reserved(analysis: Any) -> int:
    """Bytes by the `memory_analysis` of a compiled step: its arguments, temporaries and outputs.

    An output that takes the place of an argument, as the new state that of the old, counts once.
    """
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return total + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def _resident() -> int:
    """Bytes of the process that are in memory; where only the most so far is known, that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
