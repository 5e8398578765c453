import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.adapt import fold
from mm.config import BadInput
from tests.adapt.models import IDS, IMAGES, MASK, arrays, embeddings, make, random, with_arrays

FLATTEN = dict(pool="flatten", pool_dim=16)


def prompts(**keys):
    return {"prompts": dict(name="image_prompt", count=3, **keys)}


def context(**keys):
    return {"words": dict(name="text_context", count=3, **keys)}


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("pool", [dict(pool="cls"), FLATTEN])
def test_image_prompts_are_read_and_not_returned(pool, deep):
    model, base = make(prompts(deep=deep), image=pool), make(image=pool)
    assert model.encode_image(IMAGES).tokens.shape == base.encode_image(IMAGES).tokens.shape
    assert np.abs(embeddings(model)[0] - embeddings(base)[0]).max() > 1e-3


def test_every_layer_reads_its_own_prompts():
    model = make(prompts())
    graphdef, state = nnx.split(model)

    def loss(state):
        return nnx.merge(graphdef, state).encode_image(IMAGES).pooled[:, 0].sum()

    slope = jax.grad(loss)(state)["image"]["prompts"]["table"][...]
    assert slope.shape == (2, 3, 16) and (np.abs(slope).max(axis=(1, 2)) > 0).all()


def test_deep_prompts_of_one_block_are_shallow_ones():
    deep, shallow = (make(prompts(deep=deep), image=dict(depth=1)) for deep in (True, False))
    params = arrays(deep)
    params["model/image/prompts/table"] = params["model/image/prompts/table"][0]
    found = embeddings(with_arrays(shallow, params))[0]
    np.testing.assert_allclose(found, embeddings(deep)[0], atol=1e-6)


def test_a_block_drops_what_the_one_before_made_of_its_prompts():
    """So the second block's output depends on the first one's prompts through patches alone."""
    model = make(prompts(), image=dict(pool="mean"))
    params = arrays(model)
    # Values of zero: the first block's patches read nothing of the prompts.
    for name in ("value/kernel", "value/bias"):
        stacked = params[f"model/image/encoder/blocks/attention/{name}"].copy()
        stacked[0] = 0
        params[f"model/image/encoder/blocks/attention/{name}"] = stacked
    before = embeddings(with_arrays(model, params))[0]
    changed = dict(params)
    table = changed["model/image/prompts/table"].copy()
    table[0] += 1
    changed["model/image/prompts/table"] = table
    np.testing.assert_allclose(embeddings(with_arrays(model, changed))[0], before, atol=1e-6)


def test_a_context_is_as_more_words_of_the_vocabulary():
    """A tower with three more words, which stand where the context does, gives the same."""
    model, more = make(context(starts=1)), make(text=dict(vocab_size=67))
    params = arrays(model)
    vectors = params.pop("model/text/context/prompts/table")
    params["model/text/embedding"] = np.concatenate([params["model/text/embedding"], vectors])
    ids, mask = (
        jnp.concatenate([x[:, :1], jnp.broadcast_to(new, (3, 3)), x[:, 1:]], axis=1)
        for x, new in ((IDS, jnp.array([64, 65, 66])), (MASK, True))
    )
    found = embeddings(model)[1]
    np.testing.assert_allclose(
        found, embeddings(with_arrays(more, params), ids, mask)[1], atol=1e-6
    )


def test_a_context_around_stands_before_and_behind_the_words():
    model = make(context(around=True, starts=1, ends=1))
    mask = jnp.array([[True] * 4 + [False], [True] * 5])
    ids = jnp.array([[1, 5, 6, 2, 0], [1, 5, 6, 7, 2]])
    a, b, c = 65, 66, 67
    words, (found, seen, _) = model.text.context.add(ids, mask, None)
    assert found.tolist() == [[1, a, b, 5, 6, c, 2, 0], [1, a, b, 5, 6, 7, c, 2]]
    assert seen.tolist() == [[True] * 7 + [False], [True] * 8]
    assert np.take_along_axis(np.asarray(found), np.asarray(words), 1).tolist() == ids.tolist()


def test_a_tower_with_a_context_returns_its_words_and_reads_shorter_texts():
    model = make(context())
    encoded = model.encode_text(IDS, mask=MASK)
    assert encoded.tokens.shape == (3, 5, 16) and (encoded.mask == MASK).all()
    assert {read.name: read.shape for read in model.reads}["text"] == (5,) == (model.text.length,)
    bag = make(context(), text=dict(depth=0, pool="mean", position="none"))
    assert bag.text.length == 8  # without positions nothing is full
    assert np.abs(embeddings(bag)[1] - embeddings(make(text=dict(depth=0, pool="mean",
        position="none")))[1]).max() > 1e-4  # fmt: skip


@pytest.mark.parametrize("specs", [prompts(hidden=5), context(hidden=5)])
def test_prompts_of_a_small_network_are_folded_into_vectors(specs):
    model = make(specs)
    params = arrays(model)
    model = with_arrays(model, random(params, "prompts/up/bias"))
    params, left = fold(arrays(model), specs)
    (spec,) = left.values()
    assert spec["hidden"] is None and not [x for x in params if "prompts/up" in x]
    for found, want in zip(embeddings(with_arrays(make(left), params)), embeddings(model),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize(
    "specs, changes, message",
    [
        (prompts(), dict(image=dict(depth=0)), "needs blocks that read tokens"),
        ({**prompts(), "more": dict(name="image_prompt")}, {}, "has prompts already"),
        ({**context(), "more": dict(name="text_context")}, {}, "has a context already"),
        (context(), dict(text=dict(pool="first")), "starts=0: .* set it to 1"),
        (context(around=True), {}, "ends=0: .* set it to 1, or around=False"),
        ({"words": dict(name="text_context", count=8)}, {}, "length=8 leaves no words"),
    ],
)
def test_what_cannot_be_is_refused(specs, changes, message):
    with pytest.raises(BadInput, match=message):
        make(specs, **changes)
