"""Random numbers that belong to an example: a function of (seed, id, epoch, op, index) only."""

import hashlib

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from data.order import hash_seed, mix, splitmix64


def example_keys(
    seed: int, ids: Int64[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"]
) -> UInt64[np.ndarray, " b"]:
    """One key an example; the salt keeps them apart from the keys of `data.order`."""
    return mix(mix(hash_seed(seed ^ _salt("example")), ids), epochs)


class Draws:
    """The numbers one op draws for the examples of a chunk. Each call opens a new stream."""

    def __init__(self, keys: UInt64[np.ndarray, " b"], salt: str):
        self._keys = keys ^ np.uint64(_salt(salt))
        self._calls = 0

    def keys(self) -> UInt64[np.ndarray, " b"]:
        """Keys of the examples for ops of their own."""
        return splitmix64(self._keys)

    def uniform(self, n: int) -> Float32[np.ndarray, "n b"]:
        """Uniform in [0, 1). A larger n adds rows, it does not change the first ones."""
        self._calls += 1
        streams = splitmix64(self._keys + np.uint64(self._calls))
        index = np.arange(n, dtype=np.uint64) << np.uint64(32)
        bits = splitmix64(streams ^ index[:, None])
        # The upper 24 bits: all that a float32 holds exactly.
        return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _salt(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
