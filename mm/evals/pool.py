"""Rows of a whole source, or any others, computed over the devices, gathered on every host."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int, Shaped

from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.sources import BadExample, Source, read_each
from mm.config import BadInput
from mm.evals.base import Model

_AT_ONCE = 1024  # records read


def pool_of(
    evaluator: Any,
    model: Model,
    function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    *,
    source: Source | None = None,
    preprocess: Preprocess | None = None,
) -> dict[str, np.ndarray]:
    """`pool_rows` of all examples of an evaluator, or of another source or by other ops.

    Raises BadInput if none is whole.
    """
    from data.loader import eval_batches  # here, since it loads TensorFlow

    source = evaluator.source if source is None else source
    batches = eval_batches(
        source,
        evaluator.preprocess if preprocess is None else preprocess,
        batch_size=evaluator.batch_size,
        sharding=model.sharding,
        max_bad_share=evaluator.max_bad_share,
    )
    with contextlib.closing(batches):
        pool = pool_rows(function, batches, model.sharding.mesh)
    if not len(pool["id"]):
        raise BadInput(f"none of {len(source):,} examples is whole")
    return pool


def pool_rows(
    function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterator[Mapping[str, Array]],
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """function(batch) of all batches, on every host, without rows that are not `valid`.

    And "id", int64, the examples' numbers. Floats are float32; the arrays may be split over the
    devices. Every process calls it, and closes the batches.
    """
    running = ({**function(batch), "valid": batch["valid"], "id": batch["id"]} for batch in batches)
    parts = []
    for found in fetched(running, mesh):
        valid = found.pop("valid")
        parts.append({name: rows[valid] for name, rows in found.items()})
    pool = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: floats(rows) for name, rows in pool.items()} | {"id": pool["id"].astype(np.int64)}


def embedded(
    embed: Callable[[Mapping[str, Array]], tuple[Array, Array]], keep: bool = False
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """For `pool_rows`: "zimg" and "ztxt" of a batch; to `keep`, also the arrays they are of."""

    def function(batch: Mapping[str, Array]) -> dict[str, Array]:
        zimg, ztxt = embed(batch)
        return {"zimg": zimg, "ztxt": ztxt, **(of_pairs(batch) if keep else {})}

    return function


def of_pairs(batch: Mapping[str, Array]) -> dict[str, Array]:
    """What of a batch is of an image or of a text."""
    return {name: x for name, x in batch.items() if name.startswith(("image", "text", "entities"))}


def in_batches(
    function: Callable[[Mapping[str, Array]], Any],
    take: Callable[[Int[np.ndarray, " b"]], Mapping[str, np.ndarray]],
    count: int,
    sharding: NamedSharding,
    batch_size: int,
) -> Any:
    """function(take(rows)) of rows 0 .. count - 1, batch_size of them at a time, on every host.

    `take` gives arrays that every host has; batches are filled up with the last row, so that one
    shape is compiled. Floats are float32.
    """
    running = (
        function({name: place(x, sharding) for name, x in take(rows).items()})
        for start in range(0, count, batch_size)
        for rows in [np.minimum(np.arange(start, start + batch_size), count - 1)]
    )
    parts = list(fetched(running, sharding.mesh))
    return jax.tree.map(lambda *x: floats(np.concatenate(x)[:count]), *parts)


def fetched(running: Iterator[Any], mesh: Mesh) -> Iterator[Any]:
    """Each tree of arrays on every host; one behind, so that the devices always have work."""
    waiting = None
    for arrays in running:
        arrays = _replicate(mesh)(arrays)
        if waiting is not None:
            yield jax.device_get(waiting)
        waiting = arrays
    if waiting is not None:
        yield jax.device_get(waiting)


@functools.cache
def _replicate(mesh: Mesh) -> Callable:
    """One for all, so that it compiles once for arrays of a shape."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def place(array: np.ndarray, sharding: NamedSharding) -> Array:
    """The same array of every host, split over the devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def floats(rows: np.ndarray) -> np.ndarray:
    """In float32, if they are floats of any kind."""
    return rows.astype(np.float32, copy=False) if jnp.issubdtype(rows.dtype, jnp.floating) else rows


def read_labels(source: Source, preprocess: Preprocess, what: str) -> Int[np.ndarray, " n"]:
    """The class of each example as the op `label` numbers it, -1 where the record is broken.

    Raises BadInput, which `what` begins, without that op, for a value that is no class, and if no
    example has one.
    """
    if not preprocess.only("label").ops:
        raise BadInput(f"{what}: needs the op label(FIELD, classes=...) in {preprocess.where}")
    labels, whole = read_column(source, preprocess, "label")
    if not whole.any():
        raise BadInput(f"{what}: no example has a label that can be read")
    return np.where(whole, labels, -1)


def read_column(
    source: Source, preprocess: Preprocess, name: str
) -> tuple[Shaped[np.ndarray, "n ..."], Bool[np.ndarray, " n"]]:
    """What the op `name` writes under its name, of all examples; and which of them are whole.

    Reads its field alone, so that what is wrong shows before anything is computed. Raises as the op
    does.
    """
    ops = preprocess.only(name)
    (op,) = ops.ops[:1]
    found, whole = [], np.ones(len(source), bool)
    for start in range(0, len(source), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(source)))
        records = read_each(source, ids, op.reads)
        kept: list[dict[str, Any]] = [r for r in records if not isinstance(r, BadExample)]
        whole[ids] = [not isinstance(record, BadExample) for record in records]
        if kept:
            columns = {key: [record[key] for record in kept] for key in op.reads}
            here = ids[whole[ids]]
            found.append(ops.apply(columns, example_keys(0, here, here * 0))[name])
    made = np.concatenate(found) if found else np.zeros(0, np.int32)
    every = np.zeros((len(source), *made.shape[1:]), made.dtype)
    every[whole] = made
    return every, whole
