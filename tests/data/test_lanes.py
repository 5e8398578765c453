"""The order of files that are read from front to back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.lanes import lane_order
from data.order import make_order
from data.sources import open_source
from mm.config import BadInput

shards = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
small = st.integers(1, 20)


class Files:
    """All that an order reads of a source."""

    features: dict = {}

    def __init__(self, *shards):
        self.shards = np.array(shards)

    def __len__(self):
        return int(self.shards.sum())


@given(shards, small, small, st.integers(0, 9), small)
@settings(max_examples=150, deadline=None)
def test_no_example_is_missed_or_doubled_in_an_epoch(shards, lanes, size, seed, batch_size):
    total = sum(shards)
    order = lane_order(np.array(shards), lanes, size, seed, batch_size)
    ids, epochs = order(np.arange(4 * total + 8 * batch_size * 20))
    pairs = list(zip(epochs.tolist(), ids.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)  # nothing twice
    # Lanes end an epoch at times that differ by few slots: by now all have ended two.
    assert {pair for pair in pairs if pair[0] < 2} == {(e, i) for e in (0, 1) for i in range(total)}


@given(shards, small, small, st.integers(1, 50), st.data())
@settings(max_examples=60, deadline=None)
def test_hosts_and_the_first_step_change_nothing(shards, lanes, size, batch_size, data):
    order = lane_order(np.array(shards), lanes, size, 0, batch_size)
    stream, _ = order(np.arange(6 * batch_size))
    hosts, step = data.draw(st.integers(1, batch_size)), data.draw(st.integers(0, 5))
    again = lane_order(np.array(shards), lanes, size, 0, batch_size)
    rows = np.arange(step * batch_size, (step + 1) * batch_size)
    for host in range(hosts):
        np.testing.assert_array_equal(again(rows[host::hosts])[0], stream[rows[host::hosts]])


@given(shards, small, small, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_window_is_read_in_one_go(shards, lanes, size, seed):
    """Its examples are neighbours in files that follow each other."""
    batch_size = lanes = min(lanes, sum(shards))  # row r is lane r
    order = lane_order(np.array(shards), lanes, size, seed, batch_size)
    lane = order(np.arange(0, lanes * size, lanes))[0][: -(-sum(shards) // lanes)]
    file = np.searchsorted(np.cumsum(shards), lane, side="right")
    pieces = [np.sort(lane[file == number]) for number in np.unique(file)]
    assert all((np.diff(piece) == 1).all() for piece in pieces)
    ends = np.cumsum(shards)
    begin = ends - shards
    whole = sum(
        piece[0] == begin[number] and piece[-1] == ends[number] - 1
        for number, piece in zip(np.unique(file), pieces, strict=True)
    )
    assert whole >= len(pieces) - 2  # all but the first and the last


def test_a_host_reads_its_own_lanes():
    """64 rows a batch, 8 lanes, 4 hosts: each host meets a quarter of the examples in an epoch."""
    order = lane_order(np.full(16, 100), 8, 10, 0, 64)
    seen = []
    for host in range(4):
        rows = np.arange(16 * host, 16 * host + 16)
        steps = np.arange(25)[:, None] * 64
        seen.append(set(order((steps + rows).ravel())[0].tolist()))
    assert [len(ids) for ids in seen] == [400] * 4
    assert len(set.union(*seen)) == 1600


def test_epochs_seeds_and_windows_are_shuffled_differently():
    def orders(seed):
        ids, epochs = lane_order(np.full(8, 64), 4, 32, seed, 4)(np.arange(0, 2048, 4))
        return [tuple(ids[epochs == epoch] % 64) for epoch in range(4)]

    found = orders(0) + orders(1)
    assert len(set(found)) == len(found)
    first, second = np.array(found[0][:32]), np.array(found[0][32:64])
    assert (first - first.min() != second - second.min()).any()


def test_all_places_of_a_window_are_as_likely():
    """Chi-squared over (place, example), as in test_order."""
    n, epochs = 10, 4000
    ids, _ = lane_order(np.array([n]), 1, n, 3, 1)(np.arange(n * epochs))
    counts = np.zeros((n, n))
    np.add.at(counts, (np.tile(np.arange(n), epochs), ids), 1)
    freedom = (n - 1) ** 2
    chi2 = np.sum((counts - epochs / n) ** 2) / (epochs / n)
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_config_chooses_it():
    spec = dict(name="windows", lanes=2, size=5)
    order = make_order(Files(7, 9), spec, seed=0, batch_size=4, where="config.input.order")
    want = lane_order(np.array([7, 9]), 2, 5, 0, 4)
    np.testing.assert_array_equal(order(np.arange(40)), want(np.arange(40)))


def test_a_source_without_files_is_refused():
    source = open_source({"name": "synthetic", "num_examples": 5}, "source")
    with pytest.raises(BadInput, match="config.input.order: the source has no shards"):
        spec = {"name": "windows"}
        make_order(source, spec, seed=0, batch_size=4, where="config.input.order")
