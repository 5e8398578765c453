"""Weights of others by our names: tables, theirs <-> ours, and what is done to them on the way.

A table is {their name: [Target, ...]}. One weight of theirs may be several of ours (a fused
query-key-value), and two of theirs one (the class token and its position are added up). All is
reordering, so ours -> theirs -> ours gives the same bits, and `to_ours` is differentiable, so that
gradients compare by their names, too.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm.config import BadInput

Array = Any  # of numpy or JAX


class Transform(NamedTuple):
    """Their array to ours, but for a last reshape, and ours to theirs."""

    ours: Callable[[Array], Array]
    theirs: Callable[[Array], Array]


SAME = Transform(lambda x: x, lambda x: x)
FLAT = Transform(lambda x: x, lambda x: x.reshape(-1))  # ours has more axes: [heads, kv], [1, d]
# [out, in] and [in, out], where ours may cut one side: [in, heads, kv] and [heads, kv, out].
MATRIX = Transform(lambda x: x.T, lambda x: x.reshape(x.shape[0], -1).T)
MATRIX_OUT = Transform(lambda x: x.T, lambda x: x.reshape(-1, x.shape[-1]).T)
CONVOLUTION = Transform(  # [o, i, h, w] and [h, w, i, o]
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def patch_matrix(size: int, channels: int = 3) -> Transform:
    """A convolution of patches [o, i, h, w] and our matrix [h * w * i, o]."""
    return Transform(
        CONVOLUTION.ours,
        lambda x: CONVOLUTION.theirs(x.reshape(size, size, channels, x.shape[-1])),
    )


def whole(count: int) -> slice:
    """All rows."""
    return slice(0, count)


def first(count: int) -> slice:
    """The first of the rows."""
    return slice(0, 1)


def rest(count: int) -> slice:
    """All rows but the first."""
    return slice(1, count)


def third(i: int) -> Callable[[int], slice]:
    """One of three equal parts."""
    return lambda count: slice(i * count // 3, (i + 1) * count // 3)


class Target(NamedTuple):
    """A parameter of ours, one layer of it if it is a stack, and what of theirs it is.

    lead: how many axes of length 1 theirs has first. rows: which of its rows, after those. added:
    these rows are added to what another weight gives; on the way out they are zeros.
    """

    path: str
    transform: Transform = SAME
    layer: int | None = None
    lead: int = 0
    rows: Callable[[int], slice] = whole
    added: bool = False


Table = dict[str, list[Target]]  # a weight without a target is read by nobody (a fixed table)


def paths(table: Table) -> set[str]:
    """Of our parameters that it has a place for."""
    return {target.path for targets in table.values() for target in targets}


def to_ours(
    weights: Mapping[str, Array], table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Our parameters, by path. Raises BadInput unless each weight and each of ours is used."""
    if weights.keys() != table.keys():
        raise BadInput(f"weights and table differ in {sorted(weights.keys() ^ table.keys())}")
    parts: dict[str, dict[int | None, Array]] = {}
    for name, targets in table.items():
        for target in targets:
            x = weights[name].reshape(weights[name].shape[target.lead :])
            x = x[target.rows(len(x))] if x.ndim else x
            shape = shapes[target.path]
            x = target.transform.ours(x).reshape(shape if target.layer is None else shape[1:])
            layers = parts.setdefault(target.path, {})
            layers[target.layer] = layers[target.layer] + x if target.layer in layers else x
    if parts.keys() != shapes.keys():
        raise BadInput(f"nothing fills {sorted(shapes.keys() - parts.keys())}")
    for path, layers in parts.items():
        if None not in layers and set(layers) != set(range(shapes[path][0])):
            raise BadInput(f"{path}: of {shapes[path][0]} layers has {sorted(layers)}")
    return {
        path: layers[None] if None in layers else _stack([layers[i] for i in sorted(layers)])
        for path, layers in parts.items()
    }


def to_theirs(params: Mapping[str, Array], table: Table) -> dict[str, Array]:
    """Their weights, by name, but for those that nobody reads. Raises BadInput if one of ours stays
    behind."""
    used = paths(table)
    if used != params.keys():
        raise BadInput(f"parameters and table differ in {sorted(used ^ params.keys())}")
    weights = {}
    for name, targets in table.items():
        parts = []
        for target in targets:
            x = params[target.path]
            x = target.transform.theirs(x if target.layer is None else x[target.layer])
            # x + -0.0 is x to the last bit, of x = -0.0 too.
            parts.append(_module(x).full_like(x, -0.0) if target.added else x)
        if parts:
            x = parts[0] if len(parts) == 1 else _module(parts[0]).concatenate(parts)
            weights[name] = x.reshape((1,) * targets[0].lead + x.shape)
    return weights


def their_shapes(shapes: Mapping[str, tuple[int, ...]], table: Table) -> dict[str, tuple[int, ...]]:
    """The shapes of their weights for these of ours; nothing is allocated."""
    ours = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    theirs = jax.eval_shape(lambda params: to_theirs(params, table), ours)
    return {name: tuple(x.shape) for name, x in theirs.items()}


def _module(x: Array) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _stack(arrays: list[Array]) -> Array:
    return _module(arrays[0]).stack(arrays)


def join(*tables: Table) -> Table:
    """All of them; a weight that is in several goes to the targets of each."""
    joined: Table = {}
    for table in tables:
        for name, targets in table.items():
            joined[name] = joined.get(name, []) + targets
    return joined


def without(table: Table, absent: Collection[str]) -> Table:
    """What is left of it for a file that lacks weights: no part of a parameter that needs one."""
    lost = {target.path for name in absent for target in table[name]}
    left = {name: [t for t in targets if t.path not in lost] for name, targets in table.items()}
    return {name: targets for name, targets in left.items() if targets}


def under(prefix: str, table: Table) -> Table:
    """The same weights for a model that is a part of another."""
    return {
        name: [target._replace(path=f"{prefix}/{target.path}") for target in targets]
        for name, targets in table.items()
    }


def same(theirs: str, ours: str, lead: int = 0, transform: Transform = SAME) -> Table:
    """One array."""
    return {theirs: [Target(ours, transform, lead=lead)]}


def linear(
    theirs: str, ours: str, layer: int | None = None, bias: bool = True, kernel: Transform = MATRIX
) -> Table:
    """A linear layer, or a convolution; their weight [out, in] is our kernel [in, out]."""
    table = {f"{theirs}.weight": [Target(f"{ours}/kernel", kernel, layer)]}
    if bias:
        table[f"{theirs}.bias"] = [Target(f"{ours}/bias", FLAT, layer)]
    return table


def norm(theirs: str, ours: str, layer: int | None = None, bias: bool = True) -> Table:
    """Layer norm or group norm; without a bias, RMS norm."""
    table = {f"{theirs}.weight": [Target(f"{ours}/scale", layer=layer)]}
    return table | ({f"{theirs}.bias": [Target(f"{ours}/bias", layer=layer)]} if bias else {})


def fused(
    theirs: str, ours: str, layer: int | None = None, weight: str = ".weight", bias: str = ".bias"
) -> Table:
    """Query, key and value in one matrix, one below the other."""
    parts = list(enumerate(("query", "key", "value")))
    return {
        theirs + weight: [
            Target(f"{ours}/{part}/kernel", MATRIX, layer, rows=third(i)) for i, part in parts
        ],
        theirs + bias: [
            Target(f"{ours}/{part}/bias", FLAT, layer, rows=third(i)) for i, part in parts
        ],
    }


def attention_out(theirs: str, ours: str, layer: int | None = None) -> Table:
    """The last layer of attention, whose inputs are [heads, kv]."""
    return linear(theirs, ours, layer, kernel=MATRIX_OUT)


def blocks(theirs: str, ours: str, depth: int, parts: Mapping[str, str]) -> Table:
    """A stack of blocks, `theirs.0`, `theirs.1`, ...; `parts` are ours, and theirs."""
    tables = []
    for layer in range(depth):
        for part, name in parts.items():
            kind = linear
            if part.endswith("norm"):
                kind = norm
            elif part.endswith("/out"):
                kind = attention_out
            elif part == "attention":
                kind = fused
            tables.append(kind(f"{theirs}.{layer}.{name}", f"{ours}/{part}", layer))
    return join(*tables)


def patches(
    patch: str,
    position: str,
    cls: str | None = None,
    *,
    size: int,
    channels: int = 3,
    bias: bool = True,
    lead: int = 0,
    cls_axes: int = 1,
) -> Table:
    """What comes before the blocks of a ViT. Our class token has no position: theirs is added.

    Their table of positions has `lead` axes of 1 first, their class token `cls_axes` axes.
    """
    table = linear(patch, "stem/embedding", bias=bias, kernel=patch_matrix(size, channels))
    if cls is None:
        return table | same(position, "position_embedding", lead)
    return table | {
        cls: [Target("cls", FLAT, lead=cls_axes - 1)],
        position: [
            Target("cls", lead=lead, rows=first, added=True),
            Target("position_embedding", lead=lead, rows=rest),
        ],
    }
