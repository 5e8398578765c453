"""Which source each slot takes, and the examples of several sources under one numbering."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import make_order
from data.sources import Feature, open_source
from data.sources.mixture import Mixture, _counts
from mm.config import BadInput


class Numbers:
    """Examples that say who and which they are."""

    features = {"part": Feature("text"), "number": Feature("int64")}

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def read(self, ids, keys=None):
        return [{"part": self.name, "number": int(i)} for i in ids]


def mixed(sizes, weights):
    names = [f"p{i}" for i in range(len(sizes))]
    phases = [(0, weights)] if not isinstance(weights[0], tuple) else weights
    phases = [(step, dict(zip(names, values, strict=True))) for step, values in phases]
    parts = [Numbers(name, size) for name, size in zip(names, sizes, strict=True)]
    return Mixture(parts, names, _counts(phases, names))


def order_of(source, seed=0, batch_size=8, spec=None):
    return make_order(source, spec, seed=seed, batch_size=batch_size, where="config.input.order")


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@given(SIZES, st.data())
@settings(max_examples=40, deadline=None)
def test_no_example_is_missed_or_doubled_in_an_epoch_of_its_part(sizes, data):
    """Also where weights change at steps, and a part rests for a while."""
    steps = [0, *sorted(data.draw(st.sets(st.integers(1, 300), max_size=2)))]
    each = st.tuples(*[st.integers(0, 9)] * len(sizes)).filter(any)
    source = mixed(sizes, tuple((step, data.draw(each)) for step in steps))
    ids, epochs = order_of(source, seed=data.draw(st.integers(0, 9)))(np.arange(3000))
    pairs = list(zip(ids.tolist(), epochs.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for part, size in enumerate(sizes):
        own = (ids >= source.starts[part]) & (ids < source.starts[part] + size)
        whole = np.arange(int(own.sum() // size) * size)
        want = sorted(
            (i + source.starts[part], e) for e in range(len(whole) // size) for i in range(size)
        )
        assert sorted(zip(ids[own][whole], epochs[own][whole], strict=True)) == want


@given(SIZES, st.integers(1, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_hosts_and_the_first_step_change_nothing(sizes, batch_size, data):
    weights = ((0, (1,) * len(sizes)), (3, tuple(range(1, len(sizes) + 1))))
    stream, _ = order_of(mixed(sizes, weights), batch_size=batch_size)(np.arange(8 * batch_size))
    hosts, step = data.draw(st.integers(1, batch_size)), data.draw(st.integers(0, 7))
    again = order_of(mixed(sizes, weights), batch_size=batch_size)
    rows = np.arange(step * batch_size, (step + 1) * batch_size)
    for host in range(hosts):
        np.testing.assert_array_equal(again(rows[host::hosts])[0], stream[rows[host::hosts]])


def shares(source, slots, batch_size=8):
    parts, _ = source.chooser(0, batch_size)(slots)
    return np.bincount(parts, minlength=len(source.parts)) / len(slots)


def test_a_block_has_each_part_in_its_share():
    source = mixed((5, 50, 500), (6, 3, 1))
    np.testing.assert_allclose(shares(source, np.arange(1 << 16)), (0.6, 0.3, 0.1), atol=2e-5)
    np.testing.assert_allclose(shares(source, np.arange(4096) + 99), (0.6, 0.3, 0.1), atol=0.03)


def test_weights_change_at_a_step():
    source = mixed((9, 9), ((0, (1, 0)), (100, (1, 3))))
    assert shares(source, np.arange(800)).tolist() == [1, 0]
    np.testing.assert_allclose(shares(source, 800 + np.arange(1 << 16)), (0.25, 0.75))
    # A part goes on where it was: nothing is skipped and nothing comes twice.
    ids, epochs = order_of(source)(np.arange(5000))
    assert len(set(zip(ids.tolist(), epochs.tolist(), strict=True))) == 5000


@pytest.mark.parametrize(
    "temperature, want", [(1.0, (0.1, 0.9)), (2.0, (0.25, 0.75)), (1e6, (0.5, 0.5))]
)
def test_temperature_flattens_the_sizes(temperature, want):
    part = {"name": "synthetic", "image_size": 8}
    parts = {"a": part | {"num_examples": 10}, "b": part | {"num_examples": 90}}
    spec = {"name": "mixture", "parts": parts, "temperature": temperature}
    np.testing.assert_allclose(open_source(spec, "source").shares, want, atol=1e-5)


def test_records_come_from_the_part_that_has_them():
    source = mixed((3, 2), (1, 1))
    found = source.read(np.array([4, 0, 3, 2, 4]))
    assert [(r["part"], r["number"]) for r in found] == [
        ("p1", 1), ("p0", 0), ("p1", 0), ("p0", 2), ("p1", 1),
    ]  # fmt: skip
    assert len(source) == 5


def test_it_has_the_fields_that_all_parts_have():
    other = Numbers("b", 2)
    other.features = {"number": Feature("text"), "part": Feature("text"), "more": Feature("text")}
    source = Mixture([Numbers("a", 1), other], ["a", "b"], _counts([(0, {"a": 1, "b": 1})], "ab"))
    assert dict(source.features) == {"part": Feature("text")}


def test_each_part_may_be_read_by_windows():
    source = mixed((40, 60), (1, 1))
    for part in source.parts:
        part.shards = np.array([part.size // 2] * 2)
    order = order_of(source, spec={"name": "windows", "lanes": 2, "size": 4})
    ids, epochs = order(np.arange(1000))
    assert len(set(zip(ids.tolist(), epochs.tolist(), strict=True))) == 1000


def test_windows_are_of_the_parts_that_have_shards():
    source = mixed((40, 60), (1, 1))
    source.parts[0].shards = np.array([20, 20])
    spec = {"name": "windows", "lanes": 2, "size": 4}
    ids, epochs = order_of(source, spec=spec)(np.arange(1000))
    whole, _ = order_of(source)(np.arange(1000))
    np.testing.assert_array_equal(ids[ids >= 40], whole[whole >= 40])
    assert (ids[ids < 40] != whole[whole < 40]).any()
    del source.parts[0].shards
    with pytest.raises(BadInput, match="has no shards"):
        order_of(source, spec=spec)


PART = {"name": "synthetic", "num_examples": 4, "image_size": 8}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(parts={}), "parts={}: expected sources by name"),
        (dict(weights={"a": 1}), r"weights: none for \['b'\]"),
        (dict(weights={"a": 1, "b": 1, "bb": 1}), "no part 'bb'; did you mean 'b'"),
        (dict(weights={"a": 1, "b": -1}), "b=-1: expected a number of at least 0"),
        (dict(weights={"a": 0, "b": 0}), "all are 0"),
        (dict(weights={"a": 1, "b": 1e-9}), r"\['b'\] would have less than 1 of 65,536"),
        (dict(weights=((5, {"a": 1, "b": 1}),)), "from step 5: expected 0 first"),
        (dict(weights=("a", "b")), "'a' is no"),
        (dict(weights={"a": 1, "b": 1}, temperature=2.0), "temperature=2.0: says nothing beside"),
        (dict(parts={"a": {"name": "mixture", "parts": {"b": PART}}}), r"\['a'\] are mixtures"),
        (
            dict(parts={"a": PART | {"num_examples": 0}}),
            "source.parts.a: num_examples=0",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(changes, message):
    spec = {"name": "mixture", "parts": {"a": PART, "b": PART}} | changes
    with pytest.raises(BadInput, match=message):
        open_source(spec, "config.input.source")
