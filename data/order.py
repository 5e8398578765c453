"""Which example is where: batch t is a pure function of (seed, t).

Examples stand in the slots of one endless stream; row r of batch t is slot t * batch size + r. An
order maps slots to examples and epochs. By `shuffle`, slot s belongs to epoch s // num_examples, so
that a batch may span two epochs. Within an epoch, positions map to example ids by a permutation
that is computed, not stored: nothing to shuffle, to save or to skip, and neither the number of
hosts nor the batch size changes it. `data.lanes` is the order of files that are best read from
front to back.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

from mm import registry

# slots [b] -> (ids [b], epochs [b]); every (id, epoch) is in one slot, and only one.
Order = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# A Feistel network of four rounds is already a pseudorandom permutation when its round functions
# are (Luby and Rackoff, 1988); more of them make up for domains of a few elements.
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment
_ROUND_KEYS = np.arange(_ROUNDS, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)  # any odd number


def make_order(
    source: Any, spec: Mapping | None, *, seed: int, batch_size: int, where: str
) -> Order:
    """The order that `spec`, {"name": "shuffle"} if None, gives to the examples of a source.

    Each part of a mixture has its own, with its own epochs; where some have no shards, those are
    shuffled whole. batch_size: rows of the global batch.
    """
    importlib.import_module("data.lanes")
    if not hasattr(source, "parts"):
        given = dict(source=source, seed=seed, batch_size=batch_size)
        return registry.build("order", spec or {"name": "shuffle"}, where, **given)
    if any(hasattr(part, "shards") for part in source.parts):
        specs = [spec if hasattr(part, "shards") else None for part in source.parts]
    else:
        specs = [spec] * len(source.parts)
    shares = np.ceil(source.shares * batch_size).clip(1).astype(int).tolist()
    orders = [
        make_order(part, own, seed=seed + number, batch_size=share, where=where)
        for number, (part, own, share) in enumerate(zip(source.parts, specs, shares, strict=True))
    ]
    choose = source.chooser(seed, batch_size)

    def order(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, places = choose(slots)
        ids, epochs = np.empty((2, len(slots)), np.int64)
        for number in np.unique(parts):
            here = parts == number
            ids[here], epochs[here] = orders[number](places[here])
        return ids + source.starts[parts], epochs

    return order


@registry.register("order", "shuffle")
def shuffle(*, source: Any, seed: int, batch_size: int) -> Order:
    """Each epoch is a random permutation of all examples."""
    return lambda slots: example_at(slots, len(source), seed)


def example_at(
    slots: Shaped[np.ndarray, " b"], num_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Returns (ids, epochs) of slots >= 0; each epoch holds every id in [0, num_examples) once."""
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples}: there must be at least one")
    epochs, positions = np.divmod(np.asarray(slots, np.int64), num_examples)
    return permute(positions, num_examples, mix(hash_seed(seed), epochs)), epochs


def permute(
    positions: Int64[np.ndarray, " b"],
    n: int | Int64[np.ndarray, " b"],
    keys: UInt64[np.ndarray, " b"],
) -> Int64[np.ndarray, " b"]:
    """The permutation of [0, n) that `keys` choose, at `positions`; n may differ by position.

    A Feistel network over pairs (left < a, right < b), its additions modulo a and b, permutes the
    a * b >= n numbers; following a number's cycle until it is below n permutes [0, n) (cycle
    walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Since a * b <
    n + 2 sqrt(n) + 1, a second step is rarely needed.
    """
    n = np.broadcast_to(np.asarray(n, np.int64), positions.shape)
    a = np.ceil(np.sqrt(n)).astype(np.int64)
    b = -(-n // a)
    n, a, b = n.astype(np.uint64), a.astype(np.uint64), b.astype(np.uint64)
    ids = positions.astype(np.uint64)
    walking = np.arange(len(ids))
    while len(walking):
        ids[walking] = _feistel(ids[walking], a[walking], b[walking], keys[walking])
        walking = walking[ids[walking] >= n[walking]]
    return ids.astype(np.int64)


def _feistel(
    x: UInt64[np.ndarray, " b"],
    a: UInt64[np.ndarray, " b"],
    b: UInt64[np.ndarray, " b"],
    keys: UInt64[np.ndarray, " b"],
) -> UInt64[np.ndarray, " b"]:
    left, right = np.divmod(x, b)
    for i in range(0, _ROUNDS, 2):
        left = (left + splitmix64((keys + _ROUND_KEYS[i]) ^ right) % a) % a
        right = (right + splitmix64((keys + _ROUND_KEYS[i + 1]) ^ left) % b) % b
    return left * b + right


def hash_seed(seed: int) -> np.uint64:
    """Any Python integer as 64 mixed bits."""
    return splitmix64(np.array([seed & (2**64 - 1)], np.uint64))[0]


def mix(
    key: UInt64[np.ndarray, "..."], value: Shaped[np.ndarray, " b"]
) -> UInt64[np.ndarray, " b"]:
    """64 bits that depend on all bits of both; chain it to hash several numbers."""
    return splitmix64(splitmix64(np.atleast_1d(key)) ^ value.astype(np.uint64))


def splitmix64(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Element x of the sequence of Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
