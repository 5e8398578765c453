"""TPU slices that are not here: devices to compile for, and what one chip can do."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from mm.config import BadInput, suggest

GIB = 2**30


class Chip(NamedTuple):
    """bytes_of_memory: what the compiler lets a program use. flops: of bfloat16, a second.

    compiler_hertz: the clock by which the compiler's cycles are divided.
    """

    bytes_of_memory: float
    flops: float
    bytes_per_second: float
    compiler_hertz: float


# Peak FLOPs and bandwidths: cloud.google.com/tpu/docs/system-architecture. The memory is what
# libtpu 0.0.52 says when it refuses a program.
CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 1.05e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 1.5e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 1.75e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 1.75e9),
}
# What libtpu asks of a machine that has no TPU. The accelerator type only says that it is alone.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """name: as given, "v5e:16x16" or "2*v5e:16x16" for two slices."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]


def open_topology(name: str) -> Topology:
    """The devices of a TPU topology, without any TPU: needs libtpu (requirements-plan.txt).

    Raises BadInput when libtpu is missing, and when there is no such topology.
    """
    slices, kind, shape = parse(name)
    _find_libtpu()
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{kind}:{shape}",
            **({"num_slices": slices} if slices > 1 else {}),
        )
    except Exception as error:  # jaxlib raises several kinds, for one cause
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"topology {name!r}: libtpu knows no such slice ({reason})") from error
    return Topology(name, CHIPS[kind], tuple(found.devices))


def _find_libtpu() -> None:
    """Tells JAX where the compiler is.

    It has a folder of its own, since JAX looks for TPUs wherever it can import libtpu.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    library = Path(sys.prefix) / "plan" / "libtpu" / "libtpu.so"
    if "TPU_LIBRARY_PATH" not in os.environ and library.exists():
        os.environ["TPU_LIBRARY_PATH"] = str(library)
    if "TPU_LIBRARY_PATH" not in os.environ and not importlib.util.find_spec("libtpu"):
        raise BadInput(
            f"planning needs libtpu, the TPU compiler: `make plan-tools` puts it into {library}"
        )


def parse(name: str) -> tuple[int, str, str]:
    """ "2*v5e:16x16" -> (2, "v5e", "16x16"); raises BadInput where it is none of ours."""
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+x\d+(?:x\d+)?)", name)
    if match is None:
        raise BadInput(
            f"topology {name!r}: expected KIND:SHAPE as in v5e:16x16 or v5p:8x8x8, "
            "or 2*v5e:16x16 for two slices"
        )
    slices, kind, shape = match.groups()
    if kind not in CHIPS:
        raise BadInput(
            f"topology {name!r}: unknown TPU {kind!r}{suggest(kind, CHIPS)} (have {sorted(CHIPS)})"
        )
    return int(slices or 1), kind, shape
