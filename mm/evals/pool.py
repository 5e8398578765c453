"""The rows of a whole source, computed over the devices and gathered on every host."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.sources import BadExample, Source, read_each
from mm.config import BadInput

_AT_ONCE = 1024  # labels read


def pool_rows(
    function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    batches: Iterator[Mapping[str, Array]],
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """function(batch) of all batches, on every host, without rows that are not `valid`; and `id`.

    The arrays may be split over the devices. Every process calls it, and closes the batches.
    """
    replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    parts = []

    def fetch(arrays: Mapping[str, Array]) -> None:
        found = jax.device_get(dict(arrays))
        valid = found.pop("valid")
        parts.append({name: rows[valid] for name, rows in found.items()})

    waiting = None
    for batch in batches:
        running = replicate({**function(batch), "valid": batch["valid"], "id": batch["id"]})
        if waiting is not None:  # one behind, so that the devices always have work
            fetch(waiting)
        waiting = running
    fetch(waiting)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pool_of(
    function: Callable[[Mapping[str, Array]], Array],
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    sharding: NamedSharding,
    max_bad_share: float,
) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    """function(the images of a batch) of a whole source, float32, and the examples' numbers.

    Broken examples are left out; raises BadInput if none is whole.
    """
    from data.loader import eval_batches  # here, since it loads TensorFlow

    batches = eval_batches(
        source, preprocess, batch_size=batch_size, sharding=sharding, max_bad_share=max_bad_share
    )
    with contextlib.closing(batches):
        found = pool_rows(
            lambda batch: {"found": function({"image": batch["image"]})}, batches, sharding.mesh
        )
    if not len(found["id"]):
        raise BadInput(f"none of {len(source):,} examples is whole")
    return found["found"].astype(np.float32), found["id"].astype(np.int64)


def read_labels(source: Source, preprocess: Preprocess, what: str) -> Int[np.ndarray, " n"]:
    """The class of each example as the op `label` numbers it, -1 where the record is broken.

    Reads that field alone, of all examples: so what is wrong shows before anything is computed.
    Raises BadInput, which `what` begins, without that op, for a value that is no class, and if
    there is no example.
    """
    numbering = preprocess.only("label")
    if not numbering.ops:
        raise BadInput(f"{what}: needs the op label(FIELD, classes=...) in {preprocess.where}")
    if not len(source):
        raise BadInput(f"{what}: the source is empty")
    (op,) = numbering.ops[:1]
    found = np.full(len(source), -1, np.int32)
    for start in range(0, len(source), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(source)))
        records = read_each(source, ids, op.reads)
        whole = np.array([not isinstance(record, BadExample) for record in records])
        if whole.any():
            kept: list[dict[str, Any]] = [r for r in records if not isinstance(r, BadExample)]
            columns = {key: [record[key] for record in kept] for key in op.reads}
            keys = example_keys(0, ids[whole], np.zeros(int(whole.sum()), np.int64))
            found[ids[whole]] = numbering.apply(columns, keys)["label"]
    if not (found >= 0).any():
        raise BadInput(f"{what}: no example has a label that can be read")
    return found
