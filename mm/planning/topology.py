"""TPU slices and GPUs that are not here: devices to plan for, and what one chip can do."""

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import topologies

from mm.config import BadInput, suggest

GIB = 2**30


class Chip(NamedTuple):
    """bytes_of_memory: what the compiler lets a program use. flops: of bfloat16, a second.

    compiler_hertz: the clock by which the compiler's cycles are divided; None where there is no
    compiler to ask.
    """

    bytes_of_memory: float
    flops: float
    bytes_per_second: float
    compiler_hertz: float | None = None


# Peak FLOPs and bandwidths: cloud.google.com/tpu/docs/system-architecture. The memory is what
# libtpu 0.0.52 says when it refuses a program.
CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 1.05e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 1.5e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 1.75e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 1.75e9),
}
# The two cores of a v4 are one device, as they are on its machines; libtpu alone would make two of
# them. Those of a v5p are one anyway, others have one.
CORES_AS_ONE = {"v4": "megacore"}
# NVIDIA's data sheets: memory (in 1e9 bytes), dense bfloat16, bandwidth.
GPUS = {
    "a100": Chip(80e9, 312e12, 2039e9),
    "h100": Chip(80e9, 989e12, 3350e9),
    "h200": Chip(141e9, 989e12, 4800e9),
    "b200": Chip(180e9, 2250e12, 8000e9),
}
# What libtpu asks of a machine that has no TPU. The accelerator type only says that it is alone.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """name: as given, "v5e:16x16", "2*v5e:16x16" for two slices, or "h100:64" for 64 GPUs."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, order=True)
class StandIn:
    """In the place of a GPU: enough for a mesh and for tracing, not for compiling.

    It traces as a CPU does, with two einsums: cuDNN's attention cannot be traced without a GPU. Its
    backward pass computes the scores again, one product of five that is not counted then.
    """

    id: int
    platform: str = "cpu"
    device_kind: str = "a GPU that is not here"
    process_index: int = 0


def open_topology(name: str) -> Topology:
    """The devices of a topology, without any of them; TPUs need libtpu (requirements-plan.txt).

    Raises BadInput when libtpu is missing, and when there is no such topology.
    """
    slices, kind, shape = parse(name)
    if kind in GPUS:
        return Topology(name, GPUS[kind], tuple(map(StandIn, range(slices * int(shape)))))
    _find_libtpu()
    options = {"chip_config_name": CORES_AS_ONE[kind]} if kind in CORES_AS_ONE else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
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
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name)
    if match is None:
        raise BadInput(
            f"topology {name!r}: expected KIND:SHAPE as in v5e:16x16 or v5p:8x8x8, "
            "2*v5e:16x16 for two slices, or KIND:COUNT for GPUs as in h100:64"
        )
    slices, kind, shape = match.groups()
    known = {**CHIPS, **GPUS}
    if kind not in known:
        raise BadInput(
            f"topology {name!r}: unknown chip {kind!r}{suggest(kind, known)} (have {sorted(known)})"
        )
    if ("x" in shape) == (kind in GPUS) or 0 in map(int, (slices or 1, *shape.split("x"))):
        kinds = "a number of GPUs, as h100:64" if kind in GPUS else "a shape, as v5e:16x16"
        raise BadInput(f"topology {name!r}: expected {kinds}")
    return int(slices or 1), kind, shape
