"""Which examples are there twice: locality-sensitive hashing, as a sort of hashes.

Each example gives some keys, and two that are near share at least one. All with one key meet in one
partition, where they are compared. An example is dropped if one with a smaller number is near it,
whether that one stays or not: the answer does not depend on any order, and no two of those that
stay are near each other.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from scipy import sparse

from data.order import mix, splitmix64
from data.prepare.fingerprints import cells_near, hamming, ngrams

_HASH_BITS = 64
_ENTRY_COST = 1000  # of making, sending and sorting an entry, in comparisons of two hashes
_COMPARED = 1 << 22  # pairs at a time: memory is bounded however many share a key


class Entries(NamedTuple):
    """Keys of examples, one a row; values: what they are compared by.

    An example has several rows with different keys. References, which others are dropped for and
    which never are themselves, have negative numbers.
    """

    keys: UInt64[np.ndarray, " n"]
    ids: Int64[np.ndarray, " n"]
    values: UInt8[np.ndarray, "n w"]


Compare = Callable[[Entries], Int64[np.ndarray, " dropped"]]


def spread(
    keys: UInt64[np.ndarray, "n t"],
    ids: Int64[np.ndarray, " n"],
    values: UInt8[np.ndarray, "n w"],
    num_partitions: int,
) -> Iterator[tuple[int, Entries]]:
    """Entries of n examples with t keys each, by the partition where each has to be."""
    rows = np.repeat(np.arange(len(keys)), keys.shape[1])
    keys = keys.reshape(-1)
    partitions = (splitmix64(keys) % np.uint64(num_partitions)).astype(int)
    order = np.argsort(partitions, kind="stable")
    bounds = np.searchsorted(partitions[order], np.arange(num_partitions + 1))
    for partition, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        if start < stop:
            here = order[start:stop]
            yield partition, Entries(keys[here], ids[rows[here]], values[rows[here]])


def duplicates(
    parts: Iterable[Entries], compare: Compare, references: bool = False
) -> Int64[np.ndarray, " dropped"]:
    """The examples of one partition that are dropped, ascending.

    compare: is given those of one key, sorted by number, of each value the first, since the others
    are near it. references: all, since that may be near no reference.
    """
    entries = Entries(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.lexsort((entries.ids, entries.keys))
    entries = Entries(*(column[order] for column in entries))
    dropped = []
    starts = np.flatnonzero(np.r_[True, entries.keys[1:] != entries.keys[:-1], True])
    for start, stop in itertools.pairwise(starts.tolist()):
        if stop - start == 1:
            continue
        group = Entries(*(column[start:stop] for column in entries))
        first = np.arange(stop - start) if references else _first_of_each(group.values)
        dropped.append(np.delete(group.ids, first))
        if len(first) > 1:
            dropped.append(compare(Entries(*(column[first] for column in group))))
    found = np.unique(np.concatenate([np.zeros(0, np.int64), *dropped]))
    return found[found >= 0]


def _first_of_each(values: UInt8[np.ndarray, "n w"]) -> Int64[np.ndarray, " m"]:
    rows = np.ascontiguousarray(values).view(f"V{values.shape[1]}")[:, 0]
    return np.sort(np.unique(rows, return_index=True)[1])


def same(group: Entries) -> Int64[np.ndarray, " dropped"]:
    """For what is a duplicate only if equal: all that differ, stay."""
    return group.ids[:0]


def near_pictures(
    group: Entries, *, max_distance: int, max_color_difference: int, references: bool = False
) -> Int64[np.ndarray, " dropped"]:
    """Those whose hashes differ in few bits, and whose cells in colour, from a smaller's.

    values: 8 bytes of `phash`, 48 of `color_cells`. references: only from a reference's.
    """
    hashes = np.ascontiguousarray(group.values[:, :8]).view(np.uint64)[:, 0]
    cells = group.values[:, 8:]
    earlier = np.count_nonzero(group.ids < 0) if references else len(hashes)
    if not earlier:
        return group.ids[:0]
    dropped = np.zeros(len(hashes), bool)
    step = max(_COMPARED // earlier, 1)
    for start in range(0, len(hashes), step):
        distance = hamming(hashes[start : start + step, None], hashes[None, :earlier])
        later, first = np.nonzero(distance <= max_distance)
        later += start
        pairs = first < later
        later, first = later[pairs], first[pairs]
        for part in range(0, len(later), _COMPARED):
            i, j = later[part : part + _COMPARED], first[part : part + _COMPARED]
            dropped[i[cells_near(cells[i], cells[j], max_color_difference)]] = True
    return group.ids[dropped]


def picture_keys(
    hashes: UInt64[np.ndarray, " n"], max_distance: int, num_examples: int
) -> UInt64[np.ndarray, "n t"]:
    """Keys of which two hashes share one whenever they differ in `max_distance` bits or fewer.

    The bits are cut into max_distance + k blocks, of which k must then be equal; a key is k of them
    (Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", 2007).
    """
    masks = _masks(max_distance, num_examples)
    return mix(np.arange(len(masks), dtype=np.uint64), hashes[:, None] & masks)


@functools.cache
def _masks(max_distance: int, num_examples: int) -> UInt64[np.ndarray, " t"]:
    """The tables with the least work: many of few examples that share a key, or few of many."""

    def work(k: int) -> float:
        alike = num_examples * 2.0 ** (-_HASH_BITS * k / (max_distance + k))
        return math.comb(max_distance + k, k) * (_ENTRY_COST + alike)

    k = min(range(1, 5), key=work)
    bounds = np.linspace(0, _HASH_BITS, max_distance + k + 1).astype(int).tolist()
    blocks = [(1 << stop) - (1 << start) for start, stop in itertools.pairwise(bounds)]
    return np.array([sum(chosen) for chosen in itertools.combinations(blocks, k)], np.uint64)


def near_captions(
    group: Entries,
    *,
    captions: Callable[[Int64[np.ndarray, " n"]], list[str]],
    ngram: int,
    threshold: float,
) -> Int64[np.ndarray, " dropped"]:
    """Those whose n-grams have a Jaccard index of the threshold or more with those of a smaller's.

    captions: reads them; hashes of them all would be longer than they are.
    """
    sets = [ngrams(caption, ngram) for caption in captions(group.ids)]
    lengths = np.array([len(items) for items in sets])
    known, columns = np.unique(np.concatenate(sets), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(len(columns), np.int32)
    matrix = sparse.csr_array((ones, columns, starts), shape=(len(sets), len(known)))
    across, dropped = matrix.T.tocsr(), np.zeros(len(sets), bool)
    step = max(_COMPARED // len(sets), 1)
    for start in range(0, len(sets), step):
        common = (matrix[start : start + step] @ across).tocoo()
        later, first = common.row + start, common.col
        jaccard = common.data / (lengths[later] + lengths[first] - common.data)
        dropped[later[(jaccard >= threshold) & (first < later)]] = True
    return group.ids[dropped]
