"""Tables of weights: what has no place is refused, in both directions."""

import numpy as np
import pytest

from mm.config import BadInput
from mm.interop.tables import fused, join, linear, their_shapes, to_ours, to_theirs


def test_a_weight_without_a_place_and_a_place_without_a_weight_are_refused():
    x, table = np.ones((2, 2)), linear("theirs", "ours", bias=False)
    shapes = {"ours/kernel": (2, 2)}
    with pytest.raises(BadInput, match="differ in .'more'"):
        to_ours({"theirs.weight": x, "more": x}, table, shapes)
    with pytest.raises(BadInput, match="nothing fills .'ours/bias'"):
        to_ours({"theirs.weight": x}, table, shapes | {"ours/bias": (2,)})
    with pytest.raises(BadInput, match="of 3 layers has .0, 1."):
        stacked = join(*(linear(f"x{i}", "ours", i, bias=False) for i in range(2)))
        to_ours({f"x{i}.weight": x for i in range(2)}, stacked, {"ours/kernel": (3, 2, 2)})


def test_a_parameter_that_would_stay_behind_is_refused():
    with pytest.raises(BadInput, match="differ in .'ours/more'"):
        x = np.ones((2, 2))
        to_theirs({"ours/kernel": x, "ours/more": x}, linear("theirs", "ours", bias=False))


def test_shapes_of_theirs_are_known_without_an_array():
    table = fused("qkv", "attention")
    parts = ("query", "key", "value")
    shapes = {f"attention/{part}/kernel": (1 << 20, 1 << 10, 1 << 10) for part in parts}
    shapes |= {f"attention/{part}/bias": (1 << 10, 1 << 10) for part in parts}
    assert their_shapes(shapes, table) == {
        "qkv.weight": (3 << 20, 1 << 20),
        "qkv.bias": (3 << 20,),
    }
