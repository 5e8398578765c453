import numpy as np

from mm.adapt import fold
from tests.adapt.models import arrays, embeddings, make, random, with_arrays

SPECS = {"small": dict(name="adapter", at=("model/text/.*/mlp_branch",), size=4)}


def test_it_begins_as_the_identity():
    for found, want in zip(embeddings(make({"all": dict(name="adapter")})), embeddings(make()),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_it_stands_where_a_regex_says_and_in_each_layer():
    model = make(SPECS)
    added = {name: x for name, x in arrays(model).items() if name not in arrays(make())}
    path = "model/text/encoder/blocks/mlp_branch/adapter"
    assert {name: x.shape for name, x in added.items()} == {
        f"{path}/down/kernel": (2, 16, 4),
        f"{path}/down/bias": (2, 4),
        f"{path}/up/kernel": (2, 4, 16),
        f"{path}/up/bias": (2, 16),
    }
    moved = embeddings(with_arrays(model, random(arrays(model), "adapter/up/kernel")))
    same = [np.array_equal(a, b) for a, b in zip(moved, embeddings(model), strict=True)]
    assert same == [True, False]


def test_it_cannot_be_folded_and_is_left():
    model = make(SPECS)
    params, left = fold(arrays(model), SPECS)
    assert left == SPECS and params.keys() == arrays(model).keys()
