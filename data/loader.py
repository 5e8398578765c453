"""Source + order + preprocessing -> batches as global jax.Arrays, ahead of the loop.

tf.data works on chunks of examples in parallel and in order; a thread of ours joins them to the
rows of this host and puts them on its devices while the loop computes. Which rows those are, the
sharding says. A batch is computed from its number alone, so starting at any step costs nothing.
"""

import itertools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from data.order import example_at
from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.sources import BadExample, Source
from mm.config import BadInput

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")

Batch = dict[str, jax.Array]
# Rows that are worked on at once: many, since a chunk by itself costs about a millisecond, but not
# more than a cache or a heap likes. 512 pictures of 48 x 48, 55 of 224 x 224.
_CHUNK_ROWS = 512
_CHUNK_BYTES = 8 << 20
_BATCHES_ON_DEVICE = 2  # made ahead: one waits while the next is on its way
_POLL_SECONDS = 0.2  # how soon a thread that waits notices that nobody wants it any more


class Slots(NamedTuple):
    """Which examples are in the rows of a batch: (batch number, rows) -> ids, epochs, valid."""

    at: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    seed: int
    num_batches: int | None = None


def train_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    global_batch_size: int,
    seed: int,
    sharding: jax.sharding.NamedSharding,
    start_step: int = 0,
    num_workers: int | None = None,
    prefetch: int = 2,
) -> "BatchIterator":
    """Endless batches start_step, start_step + 1, ... over `sharding` (of rows, axis 0).

    Holds `image` [b, h, w, 3] (uint8, or float32 after value_range), `text` int32 [b, l] and
    `text_mask` bool [b, l], as far as `preprocess` writes them, `group` int32 [b] (same number:
    same thing) and `id` uint32 [b].
    num_workers: threads that prepare chunks; None is one for two cores, 16 at most: beside a model
    on the same cores, more of them only wait for Python's lock. prefetch: batches ready on the
    host, besides those on the devices. Raises BadInput when the batch does not divide over the
    sharding or the source lacks a field.
    """

    def at(step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = step * global_batch_size + rows
        ids, epochs = example_at(slots, len(source), seed)
        return ids, epochs, np.ones(len(rows), bool)

    rows = host_rows(global_batch_size, sharding)
    chunks = host_batches(
        source,
        preprocess,
        Slots(at, seed),
        rows,
        start=start_step,
        num_workers=num_workers,
        prefetch=prefetch,
    )
    return BatchIterator(chunks, lambda local: _place(local, rows, global_batch_size, sharding))


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    sharding: jax.sharding.NamedSharding,
    num_workers: int | None = None,
    prefetch: int = 2,
) -> "BatchIterator":
    """Once over the source, in order. The last batch is filled up with its last example.

    As `train_batches`, plus `valid` bool [b]: False in the rows that were filled up.
    """
    size = len(source)

    def at(step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = step * batch_size + rows
        ids = np.minimum(slots, size - 1)
        return ids, np.zeros_like(ids), slots < size

    rows = host_rows(batch_size, sharding)
    slots = Slots(at, seed=0, num_batches=-(-size // batch_size))
    chunks = host_batches(
        source, preprocess, slots, rows, num_workers=num_workers, prefetch=prefetch, valid=True
    )
    return BatchIterator(chunks, lambda local: _place(local, rows, batch_size, sharding))


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


def host_batches(
    source: Source,
    preprocess: Preprocess,
    slots: Slots,
    rows: Int64[np.ndarray, " rows"],
    *,
    start: int = 0,
    num_workers: int | None = None,
    prefetch: int = 2,
    valid: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the given rows of batches start, start + 1, ... as numpy arrays."""
    preprocess.check(source.features)
    num_workers = num_workers or min(16, max(1, (os.cpu_count() or 1) // 2))
    failed: dict[int, Exception] = {}  # by the number of the chunk

    def prepare(step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        ids, epochs, real = slots.at(step, rows)
        records = source.read(ids, preprocess.reads)
        columns = {key: [record[key] for record in records] for key in preprocess.reads}
        batch = preprocess.apply(columns, example_keys(slots.seed, ids, epochs))
        batch.setdefault("group", (ids & (2**31 - 1)).astype(np.int32))
        batch["id"] = ids.astype(np.uint32)
        return batch | ({"valid": real} if valid else {})

    def named(step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`prepare`, but an example that is broken is named."""
        try:
            return prepare(step, rows)
        except BadExample as error:
            for row in rows[:, None]:
                try:
                    prepare(step, row)
                except BadExample:
                    raise BadInput(f"example {slots.at(step, row)[0][0]}: {error}") from error
            raise

    # One row now: mistakes in the config show here, and tf.data wants to know what is made.
    example = named(start, rows[:1])
    keys = tuple(example)
    row_bytes = sum(value.nbytes for value in example.values())
    chunk_rows = min(max(_CHUNK_BYTES // row_bytes, 16), _CHUNK_ROWS)
    parts = np.array_split(rows, -(-len(rows) // chunk_rows))
    last = np.iinfo(np.int64).max if slots.num_batches is None else slots.num_batches * len(parts)

    def prepare_chunk(chunk: np.ndarray) -> list[np.ndarray]:
        try:
            step, part = divmod(int(chunk), len(parts))
            batch = named(step, parts[part])
            return [batch[key] for key in keys]
        except Exception as error:  # tf.data would print a traceback and pass on its text only
            failed[int(chunk)] = error
            return [example[key][:0] for key in keys]

    def mapped(chunk: tf.Tensor) -> list[tf.Tensor]:
        return tf.numpy_function(prepare_chunk, [chunk], [example[key].dtype for key in keys])

    chunks = tf.data.Dataset.range(start * len(parts), last)
    chunks = chunks.map(mapped, num_parallel_calls=num_workers, deterministic=True)
    chunks = chunks.prefetch(max(prefetch, 1) * len(parts))
    chunks = chunks.with_options(_options(num_workers))
    return _joined(chunks, keys, len(parts), start, failed)


def _options(num_workers: int) -> tf.data.Options:
    """Threads of its own, so that preparing data takes no more cores than it was given."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.deterministic = True
    return options


def _joined(
    chunks: tf.data.Dataset,
    keys: tuple[str, ...],
    count: int,
    start: int,
    failed: dict[int, Exception],
) -> Iterator[dict[str, np.ndarray]]:
    """Joins `count` chunks to a batch; raises what went wrong when one of them was made."""
    iterator = chunks.as_numpy_iterator()
    for step in itertools.count(start):
        parts = list(itertools.islice(iterator, count))
        if not parts:
            return
        for chunk in range(step * count, (step + 1) * count):
            if chunk in failed:
                raise failed[chunk]
        columns = zip(*parts, strict=True)
        yield {
            key: column[0] if count == 1 else np.concatenate(column)
            for key, column in zip(keys, columns, strict=True)
        }


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


class BatchIterator:
    """Batches made by a thread, a few ahead; `close`, `with` or the end of the program ends it."""

    def __init__(
        self,
        local: Iterator[dict[str, np.ndarray]],
        place: Callable[[dict[str, np.ndarray]], Batch],
    ):
        self._ready: queue.Queue = queue.Queue(_BATCHES_ON_DEVICE - 1)  # one more is in its hands
        stop = threading.Event()
        # It must not hold `self`, or nobody would ever see that the iterator was dropped.
        thread = threading.Thread(
            target=_produce, args=(local, place, self._ready, stop), name="batches", daemon=True
        )
        self.close = weakref.finalize(self, _finish, stop, thread)
        thread.start()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        while self.close.alive:
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:  # look whether a signal's handler has closed it meanwhile
                continue
            if isinstance(item, dict):
                return item
            self.close()
            raise item
        raise StopIteration

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _produce(
    local: Iterator[dict[str, np.ndarray]],
    place: Callable[[dict[str, np.ndarray]], Batch],
    ready: queue.Queue,
    stop: threading.Event,
) -> None:
    """Fills `ready` with batches; its last item is the exception that ended it."""
    end: BaseException = StopIteration()
    try:
        for arrays in local:
            if stop.is_set() or not _offer(place(arrays), ready, stop):
                return
    except BaseException as error:  # the loop, not this thread, is who can do something about it
        end = error
    _offer(end, ready, stop)


def _offer(item: Batch | BaseException, ready: queue.Queue, stop: threading.Event) -> bool:
    """Puts it in the queue as soon as there is room; False if it is no longer wanted."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _finish(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
