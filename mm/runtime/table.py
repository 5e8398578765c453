"""The parameter and sharding table: what each array is, how it is split, what it costs a device."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from mm.runtime.checkpoint import names_of


class Row(NamedTuple):
    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    bytes_per_device: int
    moment_bytes_per_device: int
    frozen: bool


def rows(params: Any, opt_state: Any = (), frozen: Collection[str] = ()) -> list[Row]:
    """One row a parameter; arrays of `opt_state` that mirror one are counted with it.

    frozen: the paths of parameters that are not trained.

    Leaves are jax.Arrays or ShapeDtypeStructs with shardings. An array of the optimizer belongs
    to the parameter whose path its own path ends with (optax: .../mu/<path>). If it is split
    unlike the parameter, the spec column shows both.
    """
    moments = [
        (names_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
    ]
    by_path: dict[tuple[str, ...], list] = {}
    for names, leaf in moments:
        for start in range(len(names)):
            by_path.setdefault(tuple(names[start:]), []).append(leaf)
    result = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(names_of(path))
        mine = [moment for moment in by_path.get(names, []) if moment.shape == leaf.shape]
        others = sorted({_spec(moment) for moment in mine} - {_spec(leaf)})
        result.append(
            Row(
                path="/".join(names),
                shape=tuple(leaf.shape),
                dtype=str(leaf.dtype),
                spec=" != moments ".join([_spec(leaf), *others]),
                bytes_per_device=device_bytes(leaf),
                moment_bytes_per_device=sum(map(device_bytes, mine)),
                frozen="/".join(names) in frozen,
            )
        )
    return result


def device_bytes(leaf: Any) -> int:
    """Bytes of this array on one device."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(tuple(leaf.shape))
    return math.prod(shape) * leaf.dtype.itemsize


def text(table: Sequence[Row]) -> str:
    """The whole table with totals, for `parameters.txt`."""
    head = ("parameter", "shape", "dtype", "spec", "bytes/device", "moments/device")
    cells = [
        (
            row.path,
            "x".join(map(str, row.shape)) or "scalar",
            row.dtype,
            row.spec,
            f"{row.bytes_per_device:,}",
            "frozen" if row.frozen else f"{row.moment_bytes_per_device:,}",
        )
        for row in table
    ]
    total = (
        f"total ({len(table)} arrays)",
        f"{parameter_count(table):,}",
        "",
        "",
        f"{sum(row.bytes_per_device for row in table):,}",
        f"{sum(row.moment_bytes_per_device for row in table):,}",
    )
    widths = [max(len(line[i]) for line in [head, *cells, total]) for i in range(len(head))]

    def show(line: Sequence[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(line[:4], widths[:4], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[4:], widths[4:], strict=True)]
        return "  ".join([*left, *right]).rstrip()

    rule = "-" * len(show(head))
    return "\n".join([show(head), rule, *map(show, cells), rule, show(total), ""])


def summary(table: Sequence[Row]) -> str:
    """One line for the console."""
    parameters = sum(row.bytes_per_device for row in table)
    moments = sum(row.moment_bytes_per_device for row in table)
    frozen = parameter_count([row for row in table if row.frozen])
    return (
        f"{parameter_count(table):,} parameters in {len(table)} arrays"
        f"{f', {frozen:,} of them frozen' if frozen else ''}; a device holds "
        f"{parameters / 2**20:,.1f} MiB of them and {moments / 2**20:,.1f} MiB of moments"
    )


def parameter_count(table: Sequence[Row]) -> int:
    """How many numbers the parameters are, over all devices, each once."""
    return sum(math.prod(row.shape) for row in table)


def _spec(leaf: Any) -> str:
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return str(sharding.spec).replace("PartitionSpec", "P")
    return "one device"
