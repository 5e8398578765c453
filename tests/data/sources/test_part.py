import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import Feature, open_source
from data.sources.part import part
from mm.config import BadInput


class Numbers:
    """Example i is the number i; `sizes` of its shards."""

    features = {"number": Feature("int64")}

    def __init__(self, sizes):
        self.shards = np.array(sizes)

    def __len__(self):
        return int(self.shards.sum())

    def read(self, ids, keys=None):
        return [{"number": i} for i in ids.tolist()]


def numbers(source):
    return [record["number"] for record in source.read(np.arange(len(source)))]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=9),
    share=st.floats(0.3, 0.7),
)
def test_two_parts_make_the_whole_and_so_do_their_shards(sizes, share):
    whole = Numbers(sizes)
    parts = [part(whole, 0.0, share), part(whole, share, 1.0)]
    assert [i for p in parts for i in numbers(p)] == list(range(len(whole)))
    ends = [int(end) for p, start in zip(parts, (0, len(parts[0])), strict=True)
            for end in np.cumsum(p.shards) + start]  # fmt: skip
    assert ends == sorted({*np.cumsum(sizes).tolist(), len(parts[0])})


def test_a_source_without_shards_gives_a_part_without():
    synthetic = open_source({"name": "synthetic", "num_examples": 4}, "source")
    assert not hasattr(part(synthetic, 0.5, 1.0), "shards")


@pytest.mark.parametrize(
    "first, last, message",
    [
        (0.99, 1.0, "none of the 4 examples is between first=0.99 and last=1.0"),
        (0.5, 0.5, "expected 0 <= first < last <= 1"),
        (0.0, 99.0, "expected 0 <= first < last <= 1"),
        (float("nan"), 1.0, "expected 0 <= first < last <= 1"),
    ],
)
def test_a_share_of_nothing_is_refused(first, last, message):
    with pytest.raises(BadInput, match=message):
        part(Numbers([4]), first, last)
