"""Where parameters are computed with, and where their gradients go.

Left to itself, the compiler splits matmuls in other ways, and moves activations or whole gradients;
a TPU's makes loops of small matmuls of them. Here a layer says what moves: its weights in the
computing dtype, whole to each device that has a part of the batch, and gradients in parts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm.sharding.mesh import BATCH_AXES
from mm.sharding.rules import active_mesh, active_rules, axes_of, axis_size


def gather(x: Array, axes: tuple) -> Array:
    """A parameter, stored in parts, as it is computed with: whole on devices that share the batch.

    `axes` are its logical names. Whoever uses it states the gradient by `sum_rows`.
    """
    mesh = active_mesh()
    if mesh is None:
        return x
    spec, inner = _layer_specs(mesh, x.shape, axes)
    if spec == inner:
        return x

    def local(x: Array) -> Array:
        for dimension, entry in enumerate(spec):
            if over := _over_batch(entry):
                x = jax.lax.all_gather(x, over, axis=dimension, tiled=True)
        return x

    return _by_batch(mesh, local, spec, inner)(x)


def sum_rows(
    function: Callable,
    shape: tuple[int, ...],
    axes: tuple,
    *arrays: Array,
    by_rows: bool = False,
) -> Array:
    """function(*arrays), of `shape`, a sum over rows: the gradient of the parameter `axes`.

    Each device sums up its own rows of `arrays`, [rows, ...] each; then the sums are added up, each
    device receiving the part that it stores. by_rows: for what is no matmul. A matmul can write its
    result turned, so that the parts are rows, which is all that libtpu adds up in parts.
    """
    mesh = active_mesh()
    if mesh is None:
        return function(*arrays)
    spec, _ = _layer_specs(mesh, shape, axes)
    stored = NamedSharding(mesh, spec)
    parts = axis_size(mesh, BATCH_AXES)
    if parts == 1 or len(arrays[0]) % parts:  # alone, or no batch: the compiler's choice
        return jax.lax.with_sharding_constraint(function(*arrays), stored)

    def local(*arrays: Array) -> Array:
        return _add_up(function(*arrays), spec, _scatter_rows if by_rows else _scatter)

    result = _by_batch(mesh, local, P(BATCH_AXES), spec)(*arrays)
    return jax.lax.with_sharding_constraint(result, stored)


def gather_and_sum(
    function: Callable, parameters: Sequence[Array], axes: Sequence[tuple], *arrays: Array
) -> tuple[Any, list[Array]]:
    """function(parameters, *arrays) -> (rows, sums), both passes of a layer in one.

    Each device calls it once, with whole parameters, as `gather` makes them, and its own rows of
    `arrays`. It returns a tree of arrays [rows, ...], and sums over its rows: the gradients of the
    parameters, in their order. Devices add these up as in `sum_rows`.
    """
    whole = [gather(x, names) for x, names in zip(parameters, axes, strict=True)]
    mesh = active_mesh()
    if mesh is None:
        return function(whole, *arrays)
    specs = [
        _layer_specs(mesh, x.shape, names)[0] for x, names in zip(parameters, axes, strict=True)
    ]

    def local(whole: list[Array], *arrays: Array) -> tuple[Any, list[Array]]:
        rows, sums = function(whole, *arrays)
        return rows, [_add_up(*pair, _scatter) for pair in zip(sums, specs, strict=True)]

    parts = axis_size(mesh, BATCH_AXES)
    if parts == 1 or len(arrays[0]) % parts:
        run = function
    else:
        split = P(BATCH_AXES)
        run = _by_batch(mesh, local, (P(), *(split for _ in arrays)), (split, specs))
    rows, sums = run(whole, *arrays)
    stored = [NamedSharding(mesh, spec) for spec in specs]
    return rows, jax.lax.with_sharding_constraint(sums, stored)


def _add_up(x: Array, spec: P, scatter: Callable) -> Array:
    """The sum of the devices' x; of what `spec` splits over the batch's axes each gets its part."""
    rest = set(BATCH_AXES)
    for dimension, entry in enumerate(spec):
        if over := _over_batch(entry):
            x, rest = scatter(x, over, dimension), rest - set(over)
    return jax.lax.psum(x, tuple(sorted(rest))) if rest else x


def _scatter(x: Array, over: tuple[str, ...], dimension: int) -> Array:
    """The sum over devices, each with its part of a dimension: by the rows of a matrix."""
    if dimension == x.ndim - 1:  # one matrix turned, and not one of each head
        matrix = x.reshape(-1, x.shape[-1]).T
        rows = jax.lax.psum_scatter(matrix, over, scatter_dimension=0, tiled=True)
        return rows.T.reshape(*x.shape[:-1], -1)
    x = jnp.moveaxis(x, dimension, 0)
    rows = x.reshape(len(x), -1)
    rows = jax.lax.psum_scatter(rows, over, scatter_dimension=0, tiled=True)
    return jnp.moveaxis(rows.reshape(-1, *x.shape[1:]), 0, dimension)


def _scatter_rows(x: Array, over: tuple[str, ...], dimension: int) -> Array:
    """The same: each device gets rows, and trades them for its part of the dimension."""
    length, devices = len(x), jax.lax.axis_size(over)
    x = jnp.pad(x, ((0, -length % devices), *((0, 0),) * (x.ndim - 1)))
    x = jax.lax.psum_scatter(x, over, scatter_dimension=0, tiled=True)
    return jax.lax.all_to_all(x, over, dimension, 0, tiled=True)[:length] if dimension else x


def _layer_specs(mesh: Mesh, shape: tuple[int, ...], axes: tuple) -> tuple[P, P]:
    """Of a parameter, or of one layer of a stack: as it is stored, and as it is computed with."""
    rules = dataclasses.replace(active_rules(), replicate=True)  # the whole stack was checked
    spec = rules.parameter_spec("a layer", shape, axes, mesh)
    inner = [tuple(axis for axis in axes_of(e) if axis not in BATCH_AXES) or None for e in spec]
    while inner and inner[-1] is None:
        inner.pop()
    return spec, P(*inner)


def _over_batch(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(axis for axis in axes_of(entry) if axis in BATCH_AXES)


def _by_batch(mesh: Mesh, function: Callable, specs: Any, out: Any) -> Callable:
    """A function of each device's part; the compiler goes on splitting over the other axes."""

    def inner(specs: Any) -> Any:
        def one(spec: P) -> P:
            return P(*(_over_batch(entry) or None for entry in spec))

        return jax.tree.map(one, specs, is_leaf=lambda x: isinstance(x, P))

    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=inner(specs),
        out_specs=inner(out),
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
