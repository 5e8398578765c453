import numpy as np
import pytest

from data.sources import open_source
from data.sources.pictures import decode
from mm.config import BadInput


def synthetic(**kwargs):
    return open_source(
        {"name": "synthetic", "num_examples": 40, "image_size": 16} | kwargs, "source"
    )


def test_an_example_is_a_function_of_seed_and_id():
    ids = np.array([7, 0, 7])
    first, again = synthetic().read(ids), synthetic().read(ids)
    assert first == again and first[0] == first[2]
    assert first[0] != synthetic(seed=1).read(ids)[0]


def test_pictures_have_the_size_asked_for():
    assert decode(synthetic().read(np.array([3]))[0]["image"]).shape == (16, 16, 3)


def test_the_same_concept_comes_in_different_pictures():
    records = synthetic().read(np.arange(40))
    assert len({r["image"] for r in records}) == 40
    assert 1 < len({r["concept"] for r in records}) < 40


def test_an_impossible_size_is_refused():
    with pytest.raises(BadInput, match="num_examples=0"):
        synthetic(num_examples=0)
