import numpy as np
import pytest
import tensorflow as tf

from data.sources import BadExample, Feature
from data.sources.memory import InMemory
from mm.config import BadInput


class Counting:
    """Pictures of which number 3 is larger; counts what is read."""

    features = {"image": Feature("image"), "label": Feature("text")}

    def __init__(self):
        self.read_ids = []

    def __len__(self):
        return 4

    def read(self, ids, keys=None):
        self.read_ids += ids.tolist()
        size = {i: 6 if i == 3 else 4 for i in ids.tolist()}
        records = [
            {
                "image": tf.io.encode_png(np.full((size[i], 4, 3), i, np.uint8)).numpy(),
                "label": str(i),
            }
            for i in ids.tolist()
        ]
        return [{key: record[key] for key in keys} for record in records]


def test_each_record_is_read_once():
    source = Counting()
    memory = InMemory(source)
    source.read_ids.clear()
    memory.read(np.array([1, 2]), ["label"])
    memory.read(np.array([2, 1, 0]), ["label"])
    assert source.read_ids == [1, 2, 0]


def test_the_first_pictures_may_be_broken():
    class Broken(Counting):
        def read(self, ids, keys=None):
            records = super().read(ids, keys)
            return [r | {"image": b"no"} if i < 2 else r for i, r in zip(ids, records, strict=True)]

    memory = InMemory(Broken())
    assert memory.features["image"].shape == (4, 4, 3)
    assert memory.read(np.array([2]), ["image"])[0]["image"][0, 0, 0] == 2
    with pytest.raises(BadExample):
        memory.read(np.array([1]), ["image"])
    with pytest.raises(BadInput, match=r"is \[6, 4, 3\], that of example 2"):
        memory.read(np.array([3]), ["image"])


def test_pictures_of_which_none_is_whole_are_refused():
    class Broken(Counting):
        def read(self, ids, keys=None):
            return [{"image": b"no"} for _ in ids]

    with pytest.raises(
        BadInput,
        match="none of 4 examples .* is whole; .* a picture of 2 bytes",
    ):
        InMemory(Broken())


def test_pictures_of_several_sizes_are_refused():
    memory = InMemory(Counting())
    with pytest.raises(BadInput, match=r"example 3 is \[6, 4, 3\].*set cache=False"):
        memory.read(np.array([0, 3]), ["image"])
