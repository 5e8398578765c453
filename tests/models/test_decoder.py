import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models.fusion import Fused, Fusion
from mm.models.inputs import batch_spec
from mm.models.keys import example_keys
from mm.models.multimodal import Multimodal
from mm.objectives import Views
from mm.objectives.views import view
from tests.tiny import IMAGE, TEXT, TOWER

INPUTS = ("words", "shared_words", "text_tower")
MEMORIES = ("image", "text", "fused", "none")
OTHER = view("text", "source")  # what the memory reads
LENGTHS = np.array([3, 8, 5, 1])


CROSS = dict(name="cross", **TOWER)


def model(text=None, fusion=CROSS, embed_dim=None, **decoder):
    """Two blocks, a causal text tower, a fusion."""
    return Multimodal(
        image=IMAGE,
        text=dict(TEXT, causal=True) | (text or {}),
        fusion=fusion,
        embed_dim=embed_dim,
        decoder=dict(name="transformer", **TOWER | dict(depth=2)) | decoder,
        rngs=nnx.Rngs(0),
    )


def batch(seed=0, rows=4):
    rng = np.random.default_rng(seed)
    lengths = LENGTHS[np.arange(rows) % 4][:, None]
    return {
        "image": jnp.asarray(rng.standard_normal((rows, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(3, 64, (rows, 8)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(8) < lengths),
        "text_source": jnp.asarray(rng.integers(3, 64, (rows, 8)), jnp.int32),
        "text_source_mask": jnp.asarray(np.arange(8) < lengths[::-1]),
    }


def views(a_model, **changes):
    arrays = batch() | changes
    keys = example_keys(jax.random.key(0), len(arrays["image"]))
    return Views(a_model, arrays, keys, training=False)


def decode(a_model, how=None, **changes):
    return np.asarray(run(*nnx.split(a_model), batch() | changes, how or {}))


@partial(jax.jit, static_argnums=0)
def run(graphdef, params, arrays, how):
    a_model = nnx.merge(graphdef, params)
    return Views(a_model, arrays, None).decode(source=OTHER, **how).whole()


def other_word(row, place, key="text"):
    text = batch()[key]
    return {key: text.at[row, place].set(text[row, place] % 60 + 3)}


def same(a, b):
    return np.abs(a - b).max(-1) < 1e-6


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_token_changes_the_logits_after_it_and_no_others(inputs):
    a_model = model(inputs=inputs)
    got = same(decode(a_model, **other_word(1, 4)), decode(a_model))
    assert got[1].tolist() == [True] * 5 + [False] * 3 and got[[0, 2, 3]].all()


@pytest.mark.parametrize("inputs", INPUTS)
def test_padding_changes_no_logits_of_real_tokens(inputs):
    a_model = model(inputs=inputs)
    real = np.asarray(batch()["text_mask"])
    text = jnp.where(real, batch()["text"], 17)
    assert same(decode(a_model, text=text), decode(a_model))[real].all()


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_memory_is_read_and_nothing_else(memory):
    a_model = model(memory=memory)
    changes = {"image": {"image": -batch()["image"]}, "text": other_word(0, 0, "text_source")}
    for name, change in changes.items():
        got = same(decode(a_model, **change), decode(a_model))
        assert (not got[0].any()) == (memory in (name, "fused")) and got.all() == got[0].all()


@pytest.mark.parametrize("memory", ["text", "fused"])
def test_padding_of_the_memory_changes_nothing(memory):
    a_model = model(memory=memory)
    source = jnp.where(batch()["text_source_mask"], batch()["text_source"], 17)
    assert same(decode(a_model, text_source=source), decode(a_model)).all()


def test_fused_tokens_are_those_of_both_modalities():
    a_model = model(memory="fused")
    memory = jax.jit(lambda: views(a_model).memory(source=OTHER))
    fused = memory()
    assert fused.tokens.shape == (4, 8, 16)  # this fusion returns text alone
    np.testing.assert_array_equal(fused.mask, batch()["text_source_mask"])
    a_model.fusion = Both()
    both = jax.jit(lambda: views(a_model).memory(source=OTHER))()
    assert both.tokens.shape == (4, 4 + 8, 16)
    np.testing.assert_array_equal(both.mask[:, :4], True)
    np.testing.assert_array_equal(both.mask[:, 4:], batch()["text_source_mask"])


class Both(Fusion):
    """Returns what it is given."""

    def __call__(self, image, text, rng=None):
        return Fused(image.pooled, image.tokens, text.tokens)


def test_a_prefix_sees_itself_and_no_more():
    a_model = model()
    how = {"reach": jnp.array([0, 3, 3, 3])}
    before = decode(a_model, how)
    # Place i reads token i - 1: of row 1, places 0 .. 3 see tokens 0 .. 2.
    inside = same(decode(a_model, how, **other_word(1, 2)), before)
    assert not inside[1].any()
    after = same(decode(a_model, how, **other_word(1, 3)), before)
    assert after[1].tolist() == [True] * 4 + [False] * 4
    causal = same(decode(a_model, how, **other_word(0, 2)), before)  # row 0 has no prefix
    assert causal[0].tolist() == [True] * 3 + [False] * 5


def test_hidden_inputs_tell_nothing_of_the_text():
    a_model = model(mask_token=True)
    hidden = jnp.array([True, True, False, False])
    how = {"hidden": hidden, "reach": jnp.where(hidden, 7, 0)}
    change = {"text": batch(1)["text"], "text_mask": batch()["text_mask"][::-1]}
    before, got = decode(a_model, how), decode(a_model, how, **change)
    assert same(got, before)[:2].all() and not same(got, before)[2:, 1:].any()
    assert not same(got[0, :1], got[0, 1:]).any()  # but places are told apart
    image = batch()["image"].at[0].multiply(-1)
    assert not same(decode(a_model, how, image=image), before)[0].any()


def test_logits_equal_a_reference_in_numpy():
    a_model = model(memory="image", inputs="words", depth=1)
    decoder, arrays = a_model.decoder, batch()
    memory = np.asarray(views(a_model).image().tokens, np.float64)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(decoder)))
    block = jax.tree.map(lambda x: x[0], p["encoder"]["blocks"])

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attend(p, x, memory, causal):
        q, k, v = (
            np.einsum("bnd,dhk->bnhk", y, p[name]["kernel"]) + p[name]["bias"]
            for name, y in (("query", x), ("key", memory), ("value", memory))
        )
        scores = np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(q.shape[-1])
        if causal:
            scores += np.triu(np.full(scores.shape[2:], -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("bhnm,bmhk->bnhk", weights, v)
        return np.einsum("bnhk,hkd->bnd", out, p["out"]["kernel"]) + p["out"]["bias"]

    words = p["embedding"][np.asarray(arrays["text"])]
    x = np.concatenate([np.broadcast_to(p["start"], (4, 1, 16)), words[:, :-1]], 1)
    x = x + p["position_embedding"]
    y = norm(x, block["attention_branch"]["norm"])
    x = x + attend(block["attention"], y, y, True)
    x = x + attend(block["cross"], norm(x, block["cross_branch"]["norm"]), memory, False)
    y = norm(x, block["mlp_branch"]["norm"]) @ block["mlp"]["up"]["kernel"]
    y = y + block["mlp"]["up"]["bias"]
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / np.sqrt(2)))
    x = x + y @ block["mlp"]["down"]["kernel"] + block["mlp"]["down"]["bias"]
    want = norm(x, p["encoder"]["final_norm"]) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(decode(a_model), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_tied_head_scores_by_the_words_that_are_read(inputs):
    a_model = model(inputs=inputs, head="tied")
    owner = a_model.decoder if inputs == "words" else a_model.text
    table = np.asarray(owner.embedding[...])
    x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    got = a_model.decoder.logits(jnp.asarray(x), a_model.words).whole()
    np.testing.assert_allclose(got, x @ table.T, rtol=1e-5, atol=1e-6)
    own = nnx.to_pure_dict(nnx.state(a_model.decoder))
    assert ("embedding" in own) == (inputs == "words") and "head" not in own


def test_a_decoder_wider_than_the_tower_reads_its_tokens_through_a_layer():
    a_model = model(inputs="text_tower", width=24)
    assert decode(a_model).shape == (4, 8, 64)


def test_a_language_model_needs_no_tower():
    spec = dict(name="transformer", memory="none", vocab_size=64, length=8, **TOWER)
    a_model = Multimodal(decoder=spec, rngs=nnx.Rngs(0))
    arrays = batch_spec(a_model.reads, 4)
    assert set(arrays) == {"text", "text_mask"} and arrays["text"].shape == (4, 8)
    assert Views(a_model, batch(), None).decode().whole().shape == (4, 8, 64)


def test_logits_are_float32_of_bfloat16_blocks():
    rounded, exact = decode(model(dtype="bfloat16")), decode(model())
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.15)


def test_dropout_is_keyed_by_row_and_off_in_evaluation():
    a_model = model(dropout=0.5)
    keys = example_keys(jax.random.key(0), 8)
    dropped = jax.jit(lambda arrays, keys: Views(a_model, arrays, keys).decode().whole())
    whole = dropped(batch(rows=8), keys)
    part = dropped({k: x[2:5] for k, x in batch(rows=8).items()}, keys[2:5])
    np.testing.assert_allclose(part, whole[2:5], rtol=1e-4, atol=1e-5)
    still = decode(a_model, **batch(rows=8))
    assert not np.allclose(whole, still, atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(memory="fused", fusion=None), "memory='fused': needs config.model.fusion"),
        (dict(inputs="text_tower", text=dict(causal=False)), "causal=True"),
        (dict(inputs="text_tower", text=dict(depth=0)), "causal blocks"),
        (dict(inputs="text_tower", mask_token=True), "mask_token=True stands for words"),
        (dict(vocab_size=64), "vocab_size=64: give it where there is no text tower"),
        (dict(inputs="shared_words", head="tied", width=24), "width=24 is not the words' 16"),
        (dict(depth=0), "depth=0: expected at least one"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        model(**changes)


def test_hiding_needs_a_mask_token():
    with pytest.raises(BadInput, match="set mask_token=True"):
        decode(model(), {"hidden": jnp.ones(4, bool)})
