"""What objectives lose on held-out examples: how many are counted, and what shuffling moves."""

import jax
import numpy as np
import pytest

from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.losses import Losses, shuffle


@pytest.fixture
def broken():
    """The numbers of the examples that are broken."""
    return set()


@pytest.fixture
def evaluator(monkeypatch, broken):
    """21 examples in batches of 8 behind data.loader.eval_batches, the last one filled up."""

    def eval_batches(source, preprocess, *, batch_size, sharding, max_bad_share):
        for start in range(0, len(source), batch_size):
            ids = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
            valid = ~np.isin(ids, list(broken))
            arrays = {"id": ids.astype(np.float32), "valid": valid}
            yield jax.device_put(arrays, sharding)

    monkeypatch.setattr("data.loader.eval_batches", eval_batches)
    return Losses(source=range(21), preprocess=None, batch_size=8)


def test_whole_batches_are_counted_and_it_is_said_how_many_are_left(evaluator):
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = evaluator.run(
        Model(None, lambda batch: {"c/loss": batch["id"].mean()}, None, everywhere)
    )
    assert found == {"c/loss": np.arange(16).mean(), "examples": 16, "left_out": 5}


@pytest.mark.parametrize("numbers, first", [({3}, 8), ({9, 15}, 0)])
def test_a_batch_with_a_broken_example_is_left_out(evaluator, broken, numbers, first):
    broken |= numbers
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = Model(None, lambda batch: {"c/loss": batch["id"].mean()}, None, everywhere)
    want = {"c/loss": np.arange(first, first + 8).mean(), "examples": 8, "left_out": 13}
    assert evaluator.run(model) == want


def test_batches_that_are_all_broken_are_refused(evaluator, broken):
    broken |= {0, 8}
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(BadInput, match="no batch of 8 is without a broken example"):
        evaluator.run(Model(None, None, None, everywhere))


def test_shuffling_moves_texts_and_nothing_else():
    rows = {name: np.arange(4) for name in ("id", "image", "text", "text_mask", "text_first")}
    moved = {name for name, x in shuffle(rows).items() if not np.array_equal(x, rows[name])}
    assert moved == {"text", "text_mask"}
