import numpy as np
import pytest

from mm.adapt import fold
from mm.config import BadInput
from tests.adapt.models import arrays, embeddings, make, random, with_arrays

EVERYWHERE = dict(name="lora", at=(".*",), rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def base():
    return make()


@pytest.fixture(scope="module")
def adapted():
    return make({"all": EVERYWHERE})


@pytest.fixture(scope="module")
def trained(adapted):
    """As if training had moved B from zero."""
    return with_arrays(adapted, random(arrays(adapted), "/lora/b"))


def test_it_begins_with_the_outputs_of_the_frozen_model_bit_for_bit(base, adapted):
    for found, want in zip(embeddings(adapted), embeddings(base), strict=True):
        np.testing.assert_array_equal(found, want)


def test_it_adds_rank_times_inputs_and_outputs_of_each_layer_and_moves_no_path(base):
    found = arrays(make({"q": dict(name="lora", at=("model/image/.*/(query|out)",), rank=3)}))
    added = {name: x for name, x in found.items() if name not in arrays(base)}
    # Two blocks and the pooling, queries and outputs of each, 16 wide.
    assert sum(x.size for x in added.values()) == 3 * 2 * 3 * (16 + 16)
    assert len(found) - len(added) == len(arrays(base))
    assert {name.split("/lora/")[1] for name in added} == {"a", "b"}


def test_two_layers_of_other_widths_are_counted_by_the_formula(base, adapted):
    own, found = arrays(base), arrays(adapted)
    kernels = {x: own[x].shape for x in own if x.endswith("/kernel")}
    inputs = {"out": 2}  # dimensions that are inputs, where it is not one
    want = 0
    for name, shape in kernels.items():
        layers, shape = (shape[:1], shape[1:]) if "/blocks/" in name else ((1,), shape)
        cut = inputs.get(name.split("/")[-2], 1)
        want += 3 * layers[0] * int(np.prod(shape[:cut]) + np.prod(shape[cut:]))
    assert sum(x.size for name, x in found.items() if name not in own) == want


def test_folded_it_gives_the_same_outputs_and_leaves_no_trace(base, trained):
    params, left = fold(arrays(trained), {"all": EVERYWHERE})
    assert left == {} and params.keys() == arrays(base).keys()
    merged = embeddings(with_arrays(base, params))
    for found, want, before in zip(merged, embeddings(trained), embeddings(base), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)
        assert np.abs(want - before).max() > 0.01


def test_a_folded_matrix_is_the_sum_of_the_formula(adapted, trained):
    path = "model/image/encoder/blocks/attention/out"
    params = arrays(trained)
    found = fold(params, {"all": EVERYWHERE})[0][f"{path}/kernel"]
    a, b = (params[f"{path}/lora/{part}"].astype(np.float64) for part in "ab")
    for layer in range(2):
        change = 6.0 / 3 * np.einsum("hkr,ro->hko", a[layer], b[layer])
        want = params[f"{path}/kernel"][layer] + change
        np.testing.assert_allclose(found[layer], want, rtol=1e-6)


def test_each_of_two_is_folded_by_its_own_factor(base):
    specs = {
        "query": dict(name="lora", at=(".*/query",), rank=2, alpha=1.0),
        "value": dict(name="lora", at=(".*/value",), rank=2, alpha=8.0),
    }
    model = make(specs)
    model = with_arrays(model, random(arrays(model), "/lora/b"))
    merged = embeddings(with_arrays(base, fold(arrays(model), specs)[0]))
    for found, want in zip(merged, embeddings(model), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize(
    "specs, changes, message",
    [
        (dict(x=dict(name="lora", at=(".*/quary",))), {}, "adapt.x: at: .* matches no Linear"),
        (dict(x=EVERYWHERE, y=EVERYWHERE), {}, "adapt.y: at: .* has a lora already"),
        (dict(x=dict(name="lorra")), {}, "no adaptation 'lorra'; did you mean 'lora'"),
        (
            dict(x=dict(name="lora", at=("model/decoder/.*",))),
            dict(decoder=dict(name="transformer", memory="image", **dict(width=16, depth=1,
                 num_heads=2))),
            "model/decoder/head is a table of words",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(specs, changes, message):
    with pytest.raises(BadInput, match=message):
        make(specs, **changes)
