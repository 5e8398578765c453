from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, logsumexp

from mm import registry
from mm.config import BadInput
from mm.models.keys import example_keys
from mm.models.text import TextTransformer
from mm.objectives import Views
from mm.objectives.masked_text import MaskedText, TextMask
from mm.objectives.tokens import TokenHead, predict
from tests import tiny
from tests.fit import fit

VOCAB = 61  # the size of nothing else
TEXT = dict(tiny.TEXT, vocab_size=VOCAB, mask_token=True)
CROSS = dict(name="cross", width=16, depth=1, num_heads=2)


def model(**changes):
    return tiny.model(**(dict(text=TEXT, embed_dim=None) | changes))


def objective(a_model, **changes):
    return registry.call(MaskedText, changes, "text", model=a_model, rngs=nnx.Rngs(1))


def texts(words):
    """A batch of random words, with the word of each token as given."""
    words = np.asarray(words, np.int32)
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.standard_normal((len(words), 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(3, VOCAB, words.shape), jnp.int32),
        "text_mask": jnp.asarray(words >= -1),
        "text_words": jnp.asarray(np.maximum(words, -1)),  # -2 is padding
    }


def views(batch, seed=0, rows=slice(None), a_model=None):
    keys = example_keys(jax.random.key(seed), len(batch["text"]))[rows]
    batch = {name: x[rows] for name, x in batch.items()}
    return Views(a_model or SMALL, batch, keys)


def run(an_objective, batch, **how):
    """Its loss and metrics."""
    return jax.jit(lambda batch: an_objective(views(batch, **how), jax.random.key(0)))(batch)


@partial(jax.jit, static_argnums=(0, 1))
def _masked(mask, rows, batch, seed):
    seen = views(batch, seed, slice(*rows))
    name = f"text_{mask.view(seen).name}"
    return [seen.batch[name + part] for part in ("", "_chosen", "_mask")]


def masked(batch, seed=0, rows=(None, None), **mask):
    """The masked text and which tokens were chosen."""
    text, chosen, real = _masked(TextMask(**mask), rows, batch, seed)
    assert (real == batch["text_mask"][slice(*rows)]).all()
    return np.asarray(text), np.asarray(chosen)


SMALL = model()


@st.composite
def rows_of_words(draw):
    """Words of 1 to 4 tokens, sometimes a mark before, a mark after if it fits, then padding."""
    rows = []
    for _ in range(4):
        sizes = draw(st.lists(st.integers(1, 4), max_size=5))
        row = [-1] * draw(st.integers(0, 1)) + [w for w, n in enumerate(sizes) for _ in range(n)]
        row = [*row, -1][:12]
        rows.append(row + [-2] * (12 - len(row)))
    return rows


@given(rows_of_words(), st.booleans(), st.sampled_from([0.15, 0.5]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_neither_marks_nor_padding_are_chosen_and_as_many_as_are_said(rows, whole, ratio, seed):
    batch = texts(rows)
    text, chosen = masked(batch, seed, ratio=ratio, whole_word=whole)
    words = np.asarray(batch["text_words"])
    assert not chosen[words < 0].any()
    np.testing.assert_array_equal(text[~chosen], np.asarray(batch["text"])[~chosen])
    for row, (of, picked) in enumerate(zip(words, chosen, strict=True)):
        real = (of >= 0).sum()
        want = min(real, max(1, round(ratio * real)))
        if whole:
            found = set(of[picked])
            assert all(picked[of == word].all() for word in found), row
            assert picked.sum() <= want or len(found) == 1
            assert bool(found) == bool(real)
        else:
            assert picked.sum() == want


@given(rows_of_words(), st.booleans(), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_mask_does_not_depend_on_the_neighbours(rows, whole, row):
    batch, mask = texts(rows), dict(ratio=0.4, whole_word=whole)
    whole_batch = masked(batch, **mask)
    alone = masked(batch, rows=(row, row + 1), **mask)
    for a, b in zip(whole_batch, alone, strict=True):
        np.testing.assert_array_equal(a[row], b[0])


def test_masks_differ_between_examples_and_steps():
    batch = texts([list(range(12))] * 64)
    first, second = (masked(batch, seed, ratio=0.25)[1] for seed in (0, 1))
    assert len({tuple(row) for row in first.tolist()}) > 40
    assert (first != second).any(1).mean() > 0.9


@pytest.mark.parametrize("mask_id", [None, 2])
def test_eight_tenths_are_masked_one_random_one_left(mask_id):
    batch = texts([[-1, *range(100), -1]] * 100)
    text, chosen = masked(batch, ratio=0.5, mask_id=mask_id)
    text, was = text[chosen], np.asarray(batch["text"])[chosen]
    n, mask = len(text), VOCAB if mask_id is None else mask_id
    assert n == 5000

    def near(found, share):  # within five deviations of a binomial
        return abs(found - n * share) < 5 * np.sqrt(n * share * (1 - share))

    random = text[(text != mask) & (text != was)]
    assert near((text == mask).sum(), 0.8 + 0.1 / VOCAB * (mask_id is not None))
    assert near((text == was).sum(), 0.1 + 0.1 / VOCAB)
    assert near(len(random), 0.1 * (1 - 1 / VOCAB - (mask_id is not None) / VOCAB))
    assert random.min() == 0 and random.max() == VOCAB - 1
    counts = np.bincount(random, minlength=VOCAB)
    assert counts.max() < 7 * n * 0.1 / VOCAB  # no id is favoured


def test_all_chosen_words_may_become_the_mask():
    batch = texts([[-1, *range(100), -1]] * 20)
    text, chosen = masked(batch, ratio=0.75, random=0.0, stay=0.0)
    assert (text[chosen] == VOCAB).all() and chosen.sum() == 1500


def test_every_place_is_as_likely():
    batch = texts([list(range(10))] * 2000)
    share = masked(batch, ratio=0.3)[1].mean(0)
    assert np.abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_the_mask_token_stands_for_one_id_more_than_the_vocabulary():
    tower = TextTransformer(
        vocab_size=5, length=3, width=8, depth=0, num_heads=2, position="none",
        mask_token=True, rngs=nnx.Rngs(0),
    )  # fmt: skip
    tokens = tower(jnp.array([[4, 5, 0]]), jnp.ones((1, 3), bool)).tokens[0]
    np.testing.assert_array_equal(tokens[1], tower.mask_token[...][0])
    np.testing.assert_array_equal(tokens[::2], tower.embedding[...][jnp.array([4, 0])])


def reference(head, table, tokens, labels, chosen):
    """(loss, accuracy) in float64, place by place."""
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(head)))
    table, tokens = (np.asarray(x, np.float64) for x in (table, tokens))
    losses, hits = [], []
    for row, place in zip(*np.nonzero(chosen), strict=True):
        x = tokens[row, place] @ head["transform"]["kernel"] + head["transform"]["bias"]
        x = x * (1 + erf(x / np.sqrt(2))) / 2
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        logits = table @ (x * head["norm"]["scale"] + head["norm"]["bias"]) + head["bias"]
        losses.append(logsumexp(logits) - logits[labels[row, place]])
        hits.append(logits.argmax() == labels[row, place])
    return np.mean(losses), np.mean(hits)


@pytest.mark.parametrize("whole_word", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_what_stood_at_the_masked_places(whole_word):
    batch = texts([[-1, 0, 0, 1, 2, -1, -2, -2], [0, 1, 1, 1, 1, 2, 3, -1], [-1] * 8])
    an_objective = objective(SMALL, ratio=0.4, whole_word=whole_word)
    an_objective.head.bias[...] = jnp.linspace(-1, 1, VOCAB)
    found = run(an_objective, batch)
    text, chosen = masked(batch, ratio=0.4, whole_word=whole_word)
    assert set(chosen.sum(1)) == {0, chosen[0].sum(), chosen[1].sum()} and chosen[1].any()
    encode = jax.jit(lambda text, mask: SMALL.encode_text(text, mask=mask).tokens)
    tokens = encode(jnp.asarray(text), batch["text_mask"])
    table = SMALL.text.embedding[...]
    want = reference(an_objective.head, table, tokens, np.asarray(batch["text"]), chosen)
    np.testing.assert_allclose(found.value, want[0], rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"], want[1], rtol=1e-6)
    np.testing.assert_allclose(found.metrics["perplexity"], np.exp(want[0]), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["share_masked"], chosen.sum() / 11, rtol=1e-6)


def test_a_head_of_its_own_predicts_codes_at_the_first_chosen_places():
    head = TokenHead(16, 7, dtype="float32", rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    tokens, labels = rng.standard_normal((3, 5, 16)), rng.integers(0, 7, (3, 5))
    chosen = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0] * 5], bool)
    arrays = jnp.asarray(tokens, jnp.float32), jnp.asarray(labels), jnp.asarray(chosen)
    loss, _ = jax.jit(lambda arrays: predict(head, *arrays, count=2))(arrays)
    chosen[0, 4] = False  # the third
    want = reference(head, head.table[...], tokens, labels, chosen)
    np.testing.assert_allclose(loss, want[0], rtol=1e-5)


def test_without_a_word_to_mask_the_loss_is_zero():
    batch = texts([[-1] * 8] * 2)
    assert run(objective(SMALL), batch).value == 0


def test_logits_are_made_at_few_places_only():
    batch, an_objective = texts([list(range(8))] * 4), objective(SMALL, ratio=0.25)

    def loss(text):
        seen = views(batch | {"text": text})
        return an_objective(seen, jax.random.key(0)).value

    traced = str(jax.make_jaxpr(loss)(batch["text"]))
    assert f"f32[8,{VOCAB}]" in traced  # 4 examples, 2 places
    assert f"f32[4,8,{VOCAB}]" not in traced and f"f32[32,{VOCAB}]" not in traced


def test_equal_masks_are_encoded_once():
    seen = views(texts([list(range(8))] * 4))
    calls = []
    encode = SMALL.encode_text
    seen.model = nnx.clone(SMALL)
    seen.model.encode_text = lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    masks = dict(ratio=0.2), dict(ratio=0.2), dict(ratio=0.2, whole_word=True)
    several = [objective(SMALL, **mask) for mask in masks]
    jax.make_jaxpr(lambda: [one(seen, jax.random.key(0)).value for one in several])()
    assert len(calls) == 2


def test_the_fused_words_know_of_the_image():
    batch = texts([list(range(8))] * 4)
    other = batch | {"image": batch["image"][::-1]}
    a_model = model(fusion=CROSS)
    for context, same in (("none", True), ("fused", False)):
        an_objective = objective(a_model, context=context)
        a, b = (run(an_objective, x, a_model=a_model).value for x in (batch, other))
        assert (a == b) == same


def test_of_the_image_a_part_can_be_kept():
    batch, a_model = texts([list(range(8))] * 4), model(fusion=CROSS)
    seen = views(batch, a_model=a_model)
    an_objective = objective(a_model, context="fused", image_keep=0.5)
    jax.make_jaxpr(lambda: an_objective(seen, jax.random.key(0)).value)()
    assert [v.how for v in seen._encoded if v.tower == "image"] == [(("keep", 0.5),)]


@pytest.mark.parametrize("context", ["none", "fused"])
def test_words_that_the_others_or_the_image_tell_are_learned(context):
    """One of eight words an example; the others are the same, or the only one is the colour's."""
    n, length = 32, 8
    words = np.arange(n) % 8
    colours = np.stack([words & 1, words >> 1 & 1, words >> 2], -1) * 2.0 - 1
    there = np.tile(np.arange(length) < (length if context == "none" else 1), (n, 1))
    batch = {
        "image": jnp.asarray(np.tile(colours[:, None, None], (1, 16, 16, 1)), jnp.float32),
        "text": jnp.asarray(np.tile(words[:, None] + 3, (1, length)), jnp.int32),
        "text_mask": jnp.asarray(there),
        "text_words": jnp.asarray(np.where(there, np.arange(length), -1), jnp.int32),
    }
    a_model = model(fusion=CROSS) if context == "fused" else model(image=None)
    an_objective = objective(a_model, context=context, ratio=0.3)
    found = fit(a_model, an_objective, batch, steps=200, learning_rate=1e-2)
    assert found.metrics["accuracy"] == 1 and found.value < 0.1  # the optimum is 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(ratio=0.0), "ratio=0.0: expected more than 0"),
        (dict(mask_id=61), "mask_id=61: expected less than config.model.text.vocab_size=61"),
        (dict(image_keep=0.5), "no image is read; set context='fused'"),
        (dict(random=0.6, stay=0.5), "random=0.6, stay=0.5: expected 1 together at most"),
        (dict(context="fused", image_keep=0.0), "image_keep=0.0: expected more than 0, at most 1"),
        (dict(context="fused", image_keep=0.5, image_replace=0.5), "drop patches or hide them"),
        (dict(context="fused"), "fusion.*does not have"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    a_model = model(fusion=CROSS) if "image_keep" in changes else SMALL
    with pytest.raises(BadInput, match=message):
        objective(a_model, **changes)


def test_an_image_without_patches_has_none_to_hide():
    resnet = dict(name="resnet", image_size=32, depth=18, base_width=8, groups=4)
    a_model = nnx.eval_shape(lambda: model(image=resnet, fusion=CROSS))
    with pytest.raises(BadInput, match="patch_mask: the image tower has no patches to hide"):
        objective(a_model, context="fused", image_replace="patch_mask")


def test_where_no_word_sees_those_behind_it_none_is_hidden():
    with pytest.raises(BadInput, match="config.model.text is causal: .*set causal=False"):
        objective(model(text=dict(TEXT, causal=True, mask_token=True)))
    with pytest.raises(BadInput, match="config.model.fusion is causal"):
        objective(model(fusion=CROSS | {"causal": True}), context="fused")


def test_a_tower_without_a_mask_token_needs_the_id_of_one():
    with pytest.raises(BadInput, match="mask_token=True"):
        objective(tiny.model())
    assert objective(tiny.model(), mask_id=4).mask.mask_id == 4


def test_a_fusion_whose_words_do_not_see_the_image_is_refused():
    with pytest.raises(BadInput, match="masked_text: needs text tokens that have seen the image"):
        objective(model(fusion=CROSS | {"queries": "image"}), context="fused")
