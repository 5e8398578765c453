"""What objectives lose on held-out examples: how many are counted, and what shuffling moves."""

import jax
import numpy as np
import pytest

from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.losses import Losses, shuffle
from tests.evals import given

EVERYWHERE = given.model().sharding


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
            valid = ~np.isin(ids, list(broken)) & (np.arange(start, start + batch_size) < 21)
            arrays = {"id": ids.astype(np.float32), "valid": valid}
            yield jax.device_put(arrays, sharding)

    monkeypatch.setattr("data.loader.eval_batches", eval_batches)
    return Losses(source=range(21), preprocess=None, batch_size=8)


def test_whole_batches_are_counted_and_it_is_said_how_many_are_left(evaluator):
    model = Model(None, lambda batch: {"c/loss": batch["id"].mean()}, None, EVERYWHERE)
    found = evaluator.run(model)
    assert found == {"c/loss": np.arange(16).mean(), "examples": 16, "left_out": 5}


@pytest.mark.parametrize(
    "numbers, counted",
    [
        ({3}, [*range(8, 16), 0, 1, 2, 4, 5, 6, 7, 16]),
        ({9, 15}, [*range(8), 8, *range(10, 15), 16, 17]),
        ({1, 8, 20}, [0, *range(2, 8), 9, *range(10, 18)]),
    ],
)
def test_what_a_batch_with_a_broken_example_has_left_waits_for_the_next(
    evaluator, broken, numbers, counted
):
    broken |= numbers
    seen = []

    def losses(batch):
        assert batch["valid"].all()
        seen.extend(np.asarray(batch["id"]).astype(int).tolist())
        return {"c/loss": batch["id"].mean()}

    found = evaluator.run(Model(None, losses, None, EVERYWHERE))
    assert seen == counted
    assert found == {"c/loss": np.mean(counted), "examples": 16, "left_out": 5}


def test_fewer_whole_examples_than_a_batch_are_refused(evaluator, broken):
    broken |= set(range(14))
    with pytest.raises(BadInput, match="fewer than batch_size=8 examples are whole"):
        evaluator.run(Model(None, None, None, EVERYWHERE))


def test_shuffling_moves_texts_and_nothing_else():
    rows = {name: np.arange(4) for name in ("id", "image", "text", "text_mask", "text_first")}
    moved = {name for name, x in shuffle(rows).items() if not np.array_equal(x, rows[name])}
    assert moved == {"text", "text_mask"}
