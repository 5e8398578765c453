"""Memory that is freed and taken again thousands of times a second, as that of pictures is."""

import ctypes
import functools
import math
import sys
import weakref

import numpy as np

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT_BYTES = 1 << 29
_LARGEST_BYTES = 1 << 25  # the most that glibc takes
_LARGE_BYTES = 1 << 20  # less is left to numpy


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc keep up to half a GiB that is free instead of giving it back at once.

    Decoding a JPEG of 500 x 375 takes 0.7 ms; taking 0.5 MB from Linux anew, page by page, as much
    as another 0.4. Elsewhere than on Linux with glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)


class Recycler:
    """Arrays in memory of earlier ones, as soon as nobody holds these any more.

    A batch is larger than what glibc keeps: 64 pictures of 224 x 224 in float32 are 38 MB.
    """

    def __init__(self):
        self._free: dict[int, list[bytearray]] = {}  # by size

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As np.empty."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LARGE_BYTES:
            return np.empty(shape, dtype)
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else bytearray(size)
        # Whatever shows a part of it holds this array, not only the memory.
        flat = np.frombuffer(memory, dtype)
        weakref.finalize(flat, free.append, memory).atexit = False
        return flat.reshape(shape)
