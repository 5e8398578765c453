"""Makes chunks by the threads of this process, through tf.data: in parallel and in order."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data.chunks import Chunk, Span
from data.faults import Fault
from data.profile import Profile

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")


def local_chunks(
    span: Span, profile: Profile, num_workers: int, prefetch: int
) -> Iterator[tuple[Chunk, dict[int, Fault]]]:
    """The chunks of a span, `prefetch` batches ahead; raises what went wrong making one."""
    failed: dict[int, Exception] = {}  # by the number of the chunk
    faults: dict[int, dict[int, Fault]] = {}
    example = span.example

    def make(number: np.ndarray) -> list[np.ndarray]:
        number = int(number)
        try:
            with profile.counting():
                chunk, found = span.make(number)
            if found:
                faults[number] = found
            return [chunk[key] for key in example]
        except Exception as error:  # tf.data would print a traceback and pass on its text only
            failed[number] = error
            return [value[:0] for value in example.values()]

    def mapped(number: tf.Tensor) -> list[tf.Tensor]:
        return tf.numpy_function(make, [number], [value.dtype for value in example.values()])

    chunks = tf.data.Dataset.range(span.start, span.stop)
    chunks = chunks.map(mapped, num_parallel_calls=num_workers, deterministic=True)
    chunks = chunks.prefetch(max(prefetch, 1) * len(span.parts))
    arriving = chunks.with_options(_options(num_workers)).as_numpy_iterator()
    for number, columns in enumerate(arriving, span.start):
        if number in failed:
            raise failed[number]
        yield dict(zip(example, columns, strict=True)), faults.pop(number, {})


def _options(num_workers: int) -> tf.data.Options:
    """Threads of its own, so that preparing data takes no more cores than it was given."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.deterministic = True
    return options
