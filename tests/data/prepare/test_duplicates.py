"""Which of several are dropped, against all pairs compared one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepare.duplicates import (
    Entries,
    duplicates,
    near_captions,
    near_pictures,
    picture_keys,
    same,
    spread,
)
from data.prepare.fingerprints import band_keys, band_rows, minhash, ngrams


def flipped(value, bits):
    for bit in bits:
        value ^= 1 << int(bit)
    return value


def dropped(keys, ids, values, compare, references=False, num_partitions=3):
    """Through partitions, as the pipeline does it."""
    met = {}
    for partition, entries in spread(keys, ids, values, num_partitions):
        met.setdefault(partition, []).append(entries)
    found = [duplicates(parts, compare, references) for parts in met.values()]
    return sorted(set(np.concatenate(found).tolist()))


def picture_values(hashes, cells=None):
    hashes = np.array(hashes, np.uint64)
    cells = np.zeros((len(hashes), 48), np.uint8) if cells is None else cells
    return np.concatenate([hashes[:, None].view(np.uint8), cells], axis=1)


def pictures(ids, hashes, cells=None, distance=4, color=32, references=False):
    def compare(group):
        return near_pictures(
            group, max_distance=distance, max_color_difference=color, references=references
        )

    keys = picture_keys(np.array(hashes, np.uint64), distance, len(ids))
    return dropped(keys, np.array(ids), picture_values(hashes, cells), compare, references)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 2**32), st.sampled_from([10, 10**6, 10**9]))
def test_two_hashes_within_the_distance_share_a_key(distance, seed, num_examples):
    rng = np.random.default_rng(seed)
    a = int(rng.integers(0, 2**64, dtype=np.uint64))
    b = flipped(a, rng.choice(64, distance, replace=False))
    keys = picture_keys(np.array([a, b], np.uint64), distance, num_examples)
    assert (keys[0] == keys[1]).any()
    assert len(set(keys[0].tolist())) == keys.shape[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_pictures_are_dropped_if_an_earlier_one_is_near(seed, distance):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, 8, dtype=np.uint64).tolist()
    hashes = [
        flipped(seeds[rng.integers(8)], rng.choice(64, rng.integers(0, 8), replace=False))
        for _ in range(60)
    ]
    cells = rng.integers(0, 60, (60, 48)).astype(np.uint8)
    expected = {
        j
        for i, j in itertools.combinations(range(60), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= distance
        and np.abs(cells[i].astype(int) - cells[j]).max() <= 50
    }
    assert pictures(range(60), hashes, cells, distance, color=50) == sorted(expected)


def test_no_pair_is_missed_when_pairs_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr("data.prepare.duplicates._COMPARED", 7)
    hashes = [flipped(0, [bit]) for bit in range(20)]  # all within 2 of each other
    assert pictures(range(20), hashes, distance=2) == list(range(1, 20))


def test_who_is_near_one_that_goes_goes_too():
    a, b, c = 0, 0b1111, 0b11111111
    assert pictures([5, 6, 7], [a, b, c]) == [6, 7]
    assert pictures([7, 6, 5], [a, b, c]) == [6, 7]
    assert pictures([5, 7, 6], [a, b, c]) == [7]  # 5 and 6 are not near each other: both stay


def test_pictures_of_other_colours_stay():
    cells = np.zeros((2, 48), np.uint8)
    cells[1, 5] = 33
    assert pictures([0, 1], [9, 9], cells) == []
    assert pictures([0, 1], [9, 9], cells, color=33) == [1]


def test_references_drop_others_and_not_each_other():
    far = (1 << 40) - 1
    assert pictures([-2, -1, 0, 1, 2], [3, 3, 2, far, far], references=True) == [0]


def test_without_a_reference_nothing_is_near_one():
    assert pictures([0, 1], [3, 2], references=True) == []


def test_equal_values_are_dropped_and_others_of_the_key_stay():
    values = np.array([[1], [2], [1], [2], [3]], np.uint8)
    keys = np.zeros((5, 1), np.uint64)
    assert dropped(keys, np.array([4, 1, 2, 3, 9]), values, same) == [3, 4]


CAPTIONS = [
    "a red bicycle leans against the old brick wall of a house in the sun",
    "two dogs run along the beach",
    "A red bicycle leans against the old brick wall of the house in the sun!",
    "two dogs run along the beach",
    "a red bicycle stands near a wall",
]


def captions(texts, threshold, ngram=4):
    sets = [ngrams(text, ngram) for text in texts]
    keys = np.stack([band_keys(minhash(s), band_rows(threshold)) for s in sets])
    values = np.array([[hash(s.tobytes()) & (2**63 - 1)] for s in sets]).view(np.uint8)

    def compare(group):
        return near_captions(
            group, captions=lambda ids: [texts[i] for i in ids], ngram=ngram, threshold=threshold
        )

    return dropped(keys, np.arange(len(texts)), values, compare)


def test_captions_that_are_nearly_the_same_are_dropped():
    a, b = (set(ngrams(CAPTIONS[i], 4)) for i in (0, 2))
    jaccard = len(a & b) / len(a | b)
    assert captions(CAPTIONS, jaccard - 0.01) == [2, 3]
    assert captions(CAPTIONS, jaccard + 0.01) == [3]


def test_captions_are_compared_in_parts_too(monkeypatch):
    monkeypatch.setattr("data.prepare.duplicates._COMPARED", 3)
    assert captions(CAPTIONS, 0.6) == [2, 3]


def test_entries_of_a_key_meet_in_one_partition():
    keys = np.random.default_rng(0).integers(0, 50, (400, 3)).astype(np.uint64)
    homes = {}
    count = 0
    for partition, entries in spread(keys, np.arange(400), np.zeros((400, 1), np.uint8), 7):
        assert isinstance(entries, Entries)
        count += len(entries.keys)
        for key in entries.keys.tolist():
            assert homes.setdefault(key, partition) == partition
    assert count == 1200 and len(set(homes.values())) == 7


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_order_of_what_meets_makes_no_difference(order):
    parts = [
        Entries(np.zeros(2, np.uint64), np.array(ids), np.array([[1], [2]], np.uint8))
        for ids in ([3, 8], [1, 9], [4, 2])
    ]
    assert duplicates([parts[i] for i in order], same).tolist() == [3, 4, 8, 9]
