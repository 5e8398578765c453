"""Names of accelerators: Google's for slices of TPUs, ours for GPUs, and what they are elsewhere.

Shapes, cores and hosts: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and, for node pools,
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import difflib
import math
from collections.abc import Collection
from typing import NamedTuple

from launch.shell import REFUSED, Failure


class Slice(NamedTuple):
    """A slice of TPUs. topology: as main.py --mode=plan knows it, "v5e:16x16"."""

    accelerator: str
    kind: str
    shape: str
    hosts: int
    chips_per_host: int
    runtime_version: str
    node_pool: str

    @property
    def topology(self) -> str:
        return f"{self.kind}:{self.shape}"


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    *("8x16x16", "16x16x16"),
)


class _Family(NamedTuple):
    kind: str
    shapes: tuple[str, ...]
    count_per_chip: int  # what the number in the name counts: chips, or cores (two a chip)
    runtime_version: str
    node_pool: str


_FAMILIES = {
    "v4": _Family("v4", _CUBES[:-1], 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5litepod": _Family("v5e", _FLAT, 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": _Family("v5p", (*_CUBES, "16x16x24"), 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": _Family("v6e", _FLAT, 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
}
# name here and in a plan's topology -> GKE's label of the node pool
GPUS = {
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}


def _slices() -> dict[str, Slice]:
    found = {}
    for prefix, family in _FAMILIES.items():
        for shape in family.shapes:
            chips = math.prod(map(int, shape.split("x")))
            # flat kinds also have machines with 8 chips, which larger slices do not take
            whole = 8 if family.shapes is _FLAT else 4
            chips_per_host = chips if chips <= whole else 4
            name = f"{prefix}-{chips * family.count_per_chip}"
            hosts = chips // chips_per_host
            found[name] = Slice(name, family.kind, shape, hosts, chips_per_host, *family[3:])
    return found


SLICES = _slices()


def find_slice(name: str, others: Collection[str] = ()) -> Slice:
    """The slice of that name; raises Failure with the nearest names, also of `others`."""
    if name in SLICES:
        return SLICES[name]
    near = difflib.get_close_matches(name, [*SLICES, *others], 3) or ["v5litepod-256"]
    gpus = f" or a GPU ({', '.join(others)})" if others else ""
    raise Failure(
        f"--accelerator={name}: expected a TPU slice by Google's name (kinds: "
        f"{', '.join(_FAMILIES)}){gpus}, as {', '.join(near)}",
        REFUSED,
    )


def topology(slice_: Slice, slices: int) -> str:
    """ "v5e:16x16", or "2*v5e:16x16" for two slices."""
    return slice_.topology if slices == 1 else f"{slices}*{slice_.topology}"
