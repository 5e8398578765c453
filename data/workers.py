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
    # By the number of the chunk, past TensorFlow, which would copy each.
    made: dict[int, tuple[Chunk, dict[int, Fault]] | Exception] = {}

    def make(number: np.ndarray) -> np.ndarray:
        try:
            with profile.counting():
                made[int(number)] = span.make(int(number))
        except Exception as error:  # tf.data would print a traceback and pass on its text only
            made[int(number)] = error
        return number

    numbers = tf.data.Dataset.range(span.start, span.stop)
    numbers = numbers.map(
        lambda number: tf.numpy_function(make, [number], tf.int64),
        # One more than threads: what is made before its turn keeps none from going on.
        num_parallel_calls=num_workers + 1,
        deterministic=True,
    )
    numbers = numbers.prefetch(prefetch * len(span.parts))
    for number in numbers.with_options(_options(num_workers)).as_numpy_iterator():
        found = made.pop(int(number))
        if isinstance(found, Exception):
            raise found
        yield found


def _options(num_workers: int) -> tf.data.Options:
    """Threads of its own, so that preparing data takes no more cores than it was given."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.deterministic = True
    return options
