"""Which example is where: batch t is a pure function of (seed, t).

Examples stand in the slots of one endless stream; row r of batch t is slot t * batch size + r. Slot
s belongs to epoch s // num_examples, so that a batch may span two epochs. Within an epoch,
positions map to example ids by a permutation that is computed, not stored: nothing to shuffle, to
save or to skip, and neither the number of hosts nor the batch size changes it.
"""

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

# A Feistel network of four rounds is already a pseudorandom permutation when its round functions
# are (Luby and Rackoff, 1988); more of them make up for domains of a few elements.
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment
_ROUND_KEYS = np.arange(_ROUNDS, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)  # any odd number


def example_at(
    slots: Shaped[np.ndarray, " b"], num_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Returns (ids, epochs) of slots >= 0; each epoch holds every id in [0, num_examples) once."""
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples}: there must be at least one")
    epochs, positions = np.divmod(np.asarray(slots, np.int64), num_examples)
    return _permute(positions, num_examples, mix(hash_seed(seed), epochs)), epochs


def _permute(
    positions: Int64[np.ndarray, " b"], n: int, keys: UInt64[np.ndarray, " b"]
) -> Int64[np.ndarray, " b"]:
    """The permutation of [0, n) that `keys` choose, at `positions`.

    A Feistel network over pairs (left < a, right < b), its additions modulo a and b, permutes the
    a * b >= n numbers; following a number's cycle until it is below n permutes [0, n) (cycle
    walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Since a * b <
    n + 2 sqrt(n) + 1, a second step is rarely needed.
    """
    a = int(np.ceil(np.sqrt(n)))
    b = -(-n // a)
    ids = positions.astype(np.uint64)
    walking = np.arange(len(ids))
    while len(walking):
        ids[walking] = _feistel(ids[walking], np.uint64(a), np.uint64(b), keys[walking])
        walking = walking[ids[walking] >= n]
    return ids.astype(np.int64)


def _feistel(
    x: UInt64[np.ndarray, " b"], a: np.uint64, b: np.uint64, keys: UInt64[np.ndarray, " b"]
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
