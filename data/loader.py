"""Source + order + preprocessing -> batches as global jax.Arrays, ahead of the loop.

Chunks of examples are made in parallel (`data.workers`, or on other machines: `data.service`); a
thread (`data.iterator`) joins them to the rows of this host and puts them on its devices while the
loop computes. Which rows those are, the sharding says. A batch is computed from its number alone,
so starting at any step costs nothing.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from data.chunks import Maker, Room, Slots, Span, in_order
from data.faults import FaultCount
from data.heap import keep_freed_memory
from data.iterator import Batch, BatchIterator, HostBatch
from data.order import hash_seed, make_order, mix
from data.preprocess import Preprocess
from data.profile import Profile
from data.service import remote_chunks
from data.sources import BadExample, Source, read_each
from data.workers import local_chunks
from mm.config import BadInput, Count, Positive, Share, plain

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")

# Rows that are worked on at once: many, since a chunk by itself costs about a millisecond, but not
# more than a cache likes. 512 pictures of 48 x 48, 55 of 224 x 224.
_CHUNK_ROWS = 512
_CHUNK_NUMBERS = 8 << 20


def train_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    global_batch_size: int,
    seed: int,
    sharding: jax.sharding.NamedSharding,
    start_step: int = 0,
    bad_examples: Mapping[str, int] = {},
    phases: tuple | list = (),
    order: Mapping | None = None,
    max_bad_share: Share = 0.01,
    num_workers: Positive | None = None,
    prefetch: Positive = 2,
    profile: Count = 0,
    service: str | None = None,
) -> BatchIterator:
    """Endless batches start_step, start_step + 1, ... over `sharding` (of rows, axis 0).

    Holds `image` [b, h, w, 3] (uint8, or float32 after value_range), `text` int32 [b, l] and
    `text_mask` bool [b, l], as far as `preprocess` writes them, `group` int32 [b] (same number:
    same thing) and `id` uint32 [b].
    phases: ((step, ops), ...), the ops that take over from `preprocess` at a step, growing.
    order: {"name": "shuffle"} (the default) or "windows", see `data.lanes`. max_bad_share: an
    example that is broken is counted and replaced, as long as they are no larger share than this;
    bad_examples: the counts of a run that goes on.
    num_workers: threads that prepare chunks; None is one for two cores, 16 at most: beside a model
    on the same cores, more of them only wait for Python's lock. prefetch: batches ready on the
    host, besides those on the devices. profile: 1 has the time of each stage logged. service:
    grpc://HOST:PORT of machines that prepare the chunks with all of their cores, see
    `data.service`. Raises BadInput when
    the batch does not divide over the sharding, the source lacks a field or nobody serves there.
    """
    makers = train_makers(
        source,
        preprocess,
        global_batch_size=global_batch_size,
        seed=seed,
        phases=phases,
        order=order,
    )
    rows = host_rows(global_batch_size, sharding)
    times = Profile(workers(num_workers), shown=bool(profile))
    parts = [
        host_batches(
            maker,
            rows,
            start=max(first, start_step),
            profile=times,
            num_workers=workers(num_workers),
            prefetch=prefetch,
            service=service,
            name=name,
        )
        for first, maker, name in makers
        if maker.slots.stop is None or start_step < maker.slots.stop
    ]
    return BatchIterator(
        itertools.chain.from_iterable(parts),
        lambda local: _place(local, rows, global_batch_size, sharding),
        own_rows(global_batch_size, sharding),
        FaultCount(preprocess.group, max_bad_share, bad_examples, jax.process_count()),
        times,
    )


def train_makers(
    source: Source,
    preprocess: Preprocess,
    *,
    global_batch_size: int,
    seed: int,
    phases: Sequence[tuple[int, Preprocess]] = (),
    order: Mapping | None = None,
) -> list[tuple[int, Maker, Callable[[], str]]]:
    """Of each phase, the first batch, what makes its chunks, and a name of what is in them.

    See `train_batches`. The name is a hash of all that decides what is in a chunk, and of three
    examples for the rest; it is only made when it is called for.
    """
    where = f"{preprocess.group}.order"
    find = make_order(source, order, seed=seed, batch_size=global_batch_size, where=where)
    starts = getattr(source, "starts", np.zeros(1, np.int64))
    sizes = np.diff(starts, append=len(source))
    key = hash_seed(~seed)

    def at(step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, epochs = find(step * global_batch_size + rows)
        return ids, epochs, np.ones(len(rows), bool)

    def instead(step: int, row: int, number: int) -> int:
        """Any example of the part of a mixture that the slot belongs to."""
        slot = np.array([step * global_batch_size + row])
        part = np.searchsorted(starts, find(slot)[0][0], side="right") - 1
        drawn = mix(mix(key, slot), np.array([number]))[0]
        return int(starts[part] + drawn % np.uint64(sizes[part]))

    def name(ops: Preprocess) -> str:
        tokenizer = ops.tokenizer and ops.tokenizer.manifest()["sha256"]
        dealt = [(step, counts.tolist()) for step, counts in getattr(source, "phases", ())]
        what = [len(source), ops.text, tokenizer, plain(order), dealt, seed, global_batch_size]
        digest = hashlib.sha256(json.dumps(what).encode())
        some = np.unique([0, len(source) // 2, len(source) - 1])
        for record in read_each(source, some, ops.reads):
            broken = isinstance(record, BadExample)
            for value in [record.reason] if broken else [record[key] for key in ops.reads]:
                digest.update(value if isinstance(value, bytes) else np.asarray(value).tobytes())
        return digest.hexdigest()[:16]

    spans = [(0, preprocess), *phases]
    stops = [*(step for step, _ in phases), None]
    every = [Slots(at, instead, seed, stop) for stop in stops]
    return [
        (first, Maker(source, ops, slots, valid=False), functools.partial(name, ops))
        for (first, ops), slots in zip(spans, every, strict=True)
    ]


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    start_step: int = 0,
    max_bad_share: float = 0.01,
    num_workers: int | None = None,
    prefetch: int = 2,
) -> BatchIterator:
    """Once over the source, in order. The last batch is filled up with its last example.

    As `train_batches`, plus `valid` bool [b]: False in the rows that were filled up, or whose
    example is broken.
    """
    size = len(source)
    rows = host_rows(batch_size, sharding)
    slots = in_order(size, batch_size)
    profile = Profile(workers(num_workers))
    batches = host_batches(
        Maker(source, preprocess, slots, valid=True),
        rows,
        start=start_step,
        profile=profile,
        num_workers=workers(num_workers),
        prefetch=prefetch,
    )
    return BatchIterator(
        batches,
        lambda local: _place(local, rows, batch_size, sharding),
        own_rows(batch_size, sharding),
        FaultCount(preprocess.group, max_bad_share, processes=jax.process_count(), size=size),
        profile,
        tell=True,
    )


def workers(num_workers: int | None) -> int:
    """How many threads prepare chunks when so many are asked for."""
    return num_workers or min(16, max(1, (os.cpu_count() or 1) // 2))


def host_rows(batch_size: int, sharding: jax.sharding.NamedSharding) -> Int64[np.ndarray, " rows"]:
    """The rows of the global batch that this process's devices hold, ascending, each once."""
    try:
        slices = sharding.addressable_devices_indices_map((batch_size,))
    except ValueError as error:
        shards = sharding.num_devices
        raise BadInput(
            f"batch size {batch_size}: does not divide over the mesh {dict(sharding.mesh.shape)} "
            f"as {sharding.spec}; expected a multiple of {shards}"
        ) from error
    every = np.arange(batch_size)
    return np.unique(np.concatenate([every[index] for index in slices.values()]))


def own_rows(batch_size: int, sharding: jax.sharding.NamedSharding) -> set[int]:
    """Those of `host_rows` that no process before this one holds: each row is in one process."""
    owner = np.full(batch_size, jax.process_count())
    for device, index in sharding.devices_indices_map((batch_size,)).items():
        owner[index] = np.minimum(owner[index], device.process_index)
    return set(np.flatnonzero(owner == jax.process_index()).tolist())


def host_batches(
    maker: Maker,
    rows: Int64[np.ndarray, " rows"],
    *,
    profile: Profile,
    start: int = 0,
    num_workers: int = 1,
    prefetch: int = 2,
    service: str | None = None,
    name: Callable[[], str] = str,
) -> Iterator[HostBatch]:
    """Yields the given rows of batches start, start + 1, ... as numpy arrays.

    Made by threads here, or by the workers of `service`, who know the maker by that name.
    """
    maker.preprocess.check(maker.source.features)
    keep_freed_memory()
    # One row now: mistakes in the config show here, and tf.data wants to know what is made.
    example, _ = maker(start, rows[:1])
    row_numbers = sum(value.size for value in example.values())
    chunk_rows = min(max(_CHUNK_NUMBERS // row_numbers, 16), _CHUNK_ROWS)
    parts = np.array_split(rows, -(-len(rows) // chunk_rows))
    stop = np.iinfo(np.int64).max // len(parts) if maker.slots.stop is None else maker.slots.stop
    room = Room([*map(len, parts)], example)
    span = Span(maker, parts, start * len(parts), stop * len(parts), example, room)
    if service is None:
        chunks = local_chunks(span, profile, num_workers, prefetch)
    else:
        chunks = remote_chunks(span, profile, service, name(), prefetch)

    def joined() -> Iterator[HostBatch]:
        for step in itertools.count(start):
            if step == maker.slots.stop:
                return
            made = [found for _, found in itertools.islice(chunks, len(parts))]
            faults = {row: fault for found in made for row, fault in found.items()}
            yield HostBatch(room.take(step), faults)

    return joined()


def _place(
    local: dict[str, np.ndarray],
    rows: Int64[np.ndarray, " rows"],
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
) -> Batch:
    """Rows of this host -> arrays over all hosts; a device gets the rows that the sharding says."""
    batch = {}
    for key, values in local.items():
        shape = (batch_size, *values.shape[1:])
        shards = []
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            first, stop, _ = index[0].indices(batch_size)
            here = slice(*np.searchsorted(rows, (first, stop)))  # `rows` holds all of first..stop
            shards.append(jax.device_put(values[here], device))
        batch[key] = jax.make_array_from_single_device_arrays(shape, sharding, shards)
    return batch
