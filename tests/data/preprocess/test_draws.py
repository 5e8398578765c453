import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preprocess.draws import Draws, example_keys


def keys(count, seed=0, epoch=0):
    return example_keys(seed, np.arange(count), np.full(count, epoch))


@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(1, 20), st.data())
@settings(max_examples=50, deadline=None)
def test_draws_do_not_depend_on_the_neighbours(seed, first, count, data):
    ids = first + np.arange(count)
    every = example_keys(seed, ids, ids % 3)
    some = data.draw(st.lists(st.integers(0, count - 1), min_size=1))
    np.testing.assert_array_equal(
        Draws(every, "flip").uniform(3)[:, some], Draws(every[some], "flip").uniform(3)
    )


def test_more_draws_leave_the_first_as_they_were():
    np.testing.assert_array_equal(
        Draws(keys(5), "x").uniform(9)[:4], Draws(keys(5), "x").uniform(4)
    )


def test_seed_epoch_op_and_call_each_change_the_draws():
    draws = Draws(keys(4), "x")
    found = [
        draws.uniform(1),
        draws.uniform(1),
        Draws(keys(4), "y").uniform(1),
        Draws(keys(4, seed=1), "x").uniform(1),
        Draws(keys(4, epoch=1), "x").uniform(1),
    ]
    assert len({value for row in found for value in row[0].tolist()}) == 20


def test_draws_are_uniform_and_uncorrelated():
    u = Draws(keys(50_000), "x").uniform(4)
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 100, (0, 1))[0]
    chi2 = np.sum((counts - 2000.0) ** 2) / 2000
    assert abs(chi2 - 99) < 5 * np.sqrt(2 * 99)
    correlation = np.corrcoef([*u, np.roll(u[0], 1)])
    assert np.abs(correlation - np.eye(5)).max() < 0.03
