import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import example_at

seeds = st.integers(-(2**63), 2**64)


@given(st.integers(1, 700), seeds, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_every_id_once(n, seed, epoch):
    ids, epochs = example_at(np.arange(epoch * n, (epoch + 1) * n), n, seed)
    assert np.all(epochs == epoch)
    np.testing.assert_array_equal(np.sort(ids), np.arange(n))


@given(st.integers(1, 2**40), seeds, st.lists(st.integers(0, 2**45), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_ids_are_in_range_and_distinct_within_an_epoch_at_any_size(n, seed, slots):
    slots = np.unique(slots)
    ids, epochs = example_at(slots, n, seed)
    assert ids.dtype == np.int64 and np.all((ids >= 0) & (ids < n))
    assert len(set(zip(ids.tolist(), epochs.tolist(), strict=True))) == len(slots)


@given(st.integers(1, 300), seeds, st.integers(1, 50), st.data())
@settings(max_examples=40, deadline=None)
def test_order_depends_on_neither_batch_size_nor_hosts(n, seed, batch_size, data):
    total = 3 * n + 1
    stream, _ = example_at(np.arange(total), n, seed)
    hosts = data.draw(st.integers(1, batch_size))
    for start in range(0, total, batch_size):
        rows = np.arange(start, min(start + batch_size, total))
        for host in range(hosts):
            ids, _ = example_at(rows[host::hosts], n, seed)
            np.testing.assert_array_equal(ids, stream[rows[host::hosts]])


def test_a_batch_may_span_two_epochs():
    ids, epochs = example_at(np.arange(8, 12), 10, seed=0)
    assert epochs.tolist() == [0, 0, 1, 1] and len(ids) == 4


def test_epochs_and_seeds_differ():
    orders = [
        tuple(example_at(np.arange(epoch * 1000, epoch * 1000 + 1000), 1000, seed)[0])
        for epoch in range(4)
        for seed in (0, 1, 2**32, -1)
    ]
    assert len(set(orders)) == len(orders)
    agree = np.mean(np.array(orders[0]) == np.array(orders[1]))
    assert agree < 0.01  # two random orders agree at 1 place in 1000


@pytest.mark.parametrize("n", [5, 10, 64, 101])
def test_every_position_gets_every_id_equally_often(n):
    """Chi-squared over (position, id): its mean is (n - 1)^2, its variance twice that."""
    epochs = 4000
    ids, _ = example_at(np.arange(epochs * n), n, seed=7)
    counts = np.zeros((n, n))
    np.add.at(counts, (np.tile(np.arange(n), epochs), ids), 1)
    chi2 = np.sum((counts - epochs / n) ** 2) / (epochs / n)
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_are_spread_like_chance():
    """Mean distance of the ids at neighbouring positions is n / 3 in a random order."""
    n = 100_003
    ids, _ = example_at(np.arange(n), n, seed=3)
    assert abs(np.mean(np.abs(np.diff(ids))) / n - 1 / 3) < 0.005
    assert abs(np.corrcoef(np.arange(n), ids)[0, 1]) < 0.02


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="num_examples=0"):
        example_at(np.arange(2), 0, seed=0)
