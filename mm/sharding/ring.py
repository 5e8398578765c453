"""Every pair of the global batch, a tile at a time, in memory that does not grow with the devices.

Each device keeps its rows; columns, and what is summed up over them, travel once around the ring of
devices that split the batch, and come home. The idea is that of ring attention (Liu et al. 2023)
and of SigLIP's chunked loss (Zhai et al. 2023, section 3.3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from mm.sharding.mesh import BATCH_AXES, batch_parts
from mm.sharding.rules import active_mesh

BLOCK = 128  # rows of a tile, at most

Tile = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def over_batch(function: Callable, arrays: Any, scalars: Any) -> Any:
    """function(arrays, scalars) on each device's rows -> (rows, scalars), two pytrees.

    Leaves of `arrays` and of the returned rows are [b, ...], split over the batch's mesh axes;
    scalars are the same everywhere: sum them with `total`. Without a mesh in use, on the whole
    batch.
    """
    mesh = active_mesh()
    if mesh is None:
        return function(arrays, scalars)
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(BATCH_AXES), P()),
        out_specs=(P(BATCH_AXES), P()),
        check_vma=False,
    )
    return run(arrays, scalars)


def total(x: Array) -> Array:
    """The sum over all devices' rows, inside of `over_batch`."""
    return x.sum() if active_mesh() is None else jax.lax.psum(x.sum(), BATCH_AXES)


def ring(tile: Tile, rows: Any, row_sums: Any, columns: Any, column_sums: Any) -> tuple[Any, Any]:
    """Visits every tile; returns the final (row_sums, column_sums). Inside of `over_batch`.

    All four are pytrees of [b, ...]. tile(rows, row_sums, columns, column_sums) -> the two sums,
    for a block of rows against all columns of one device.
    """
    mesh = active_mesh()
    devices = 1 if mesh is None else batch_parts(mesh)
    length = len(jax.tree.leaves(rows)[0])
    blocks = next(k for k in range(-(-length // BLOCK), length + 1) if length % k == 0)
    cut = partial(jax.tree.map, lambda x: x.reshape(blocks, length // blocks, *x.shape[1:]))
    rows = cut(rows)

    def visit(columns: Any, column_sums: Any, row_sums: Any) -> tuple[Any, Any]:
        def one(column_sums, block):
            row_sums, column_sums = tile(*block, columns, column_sums)
            return column_sums, row_sums

        return jax.lax.scan(one, column_sums, (rows, row_sums))

    def turn(carry, _):
        columns, column_sums, row_sums = carry
        column_sums, row_sums = visit(columns, column_sums, row_sums)
        if devices > 1:
            around = [(i, (i + 1) % devices) for i in range(devices)]
            move = partial(jax.lax.ppermute, axis_name=BATCH_AXES, perm=around)
            columns, column_sums = jax.tree.map(move, (columns, column_sums))
        return (columns, column_sums, row_sums), None

    start = columns, column_sums, cut(row_sums)
    (_, column_sums, row_sums), _ = jax.lax.scan(turn, start, None, length=devices)
    return jax.tree.map(lambda x: x.reshape(length, *x.shape[2:]), row_sums), column_sums


def pick(tree: Any, rows: Array) -> Any:
    """Rows of the global batch by their numbers, each to the device that asks for it.

    `tree` holds arrays [b, ...]; their rows travel around the ring, so that no device holds more
    than its own and those that pass.
    """
    mesh = active_mesh()
    devices = 1 if mesh is None else batch_parts(mesh)
    if devices == 1:
        return jax.tree.map(lambda x: x[rows], tree)

    def local(arrays: Any, _: Any) -> tuple[Any, tuple]:
        columns, rows = arrays
        owner, place = rows // len(rows), rows % len(rows)
        here = jax.lax.axis_index(BATCH_AXES)
        around = [(i, (i + 1) % devices) for i in range(devices)]
        move = partial(jax.lax.ppermute, axis_name=BATCH_AXES, perm=around)

        def take(found: Array, column: Array, theirs: Array) -> Array:
            wanted = theirs.reshape(-1, *(1,) * (column.ndim - 1))
            return jnp.where(wanted, column[place], found)

        def turn(carry: Any, step: Array) -> tuple[Any, None]:
            columns, found = carry
            theirs = owner == (here - step) % devices
            found = jax.tree.map(partial(take, theirs=theirs), found, columns)
            return (jax.tree.map(move, columns), found), None

        start = columns, jax.tree.map(jnp.zeros_like, columns)
        return jax.lax.scan(turn, start, jnp.arange(devices))[0][1], ()

    return over_batch(local, (tree, rows), ())[0]
