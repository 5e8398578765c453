from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mm import registry
from mm.config import BadInput
from mm.models.keys import example_keys
from mm.models.stem import contrast, cut
from mm.models.vit import sincos2d
from mm.objectives import Buffer, Views
from mm.objectives.codes import KMeans, RandomProjection
from mm.objectives.masked_image import MAE, BEiT
from mm.objectives.masked_text import MaskedText
from tests import tiny
from tests.fit import fit

IMAGE = dict(tiny.IMAGE, patch_size=4, mask_token=True)
TEXT = dict(tiny.TEXT, mask_token=True)
CROSS = dict(name="cross", queries="image", width=16, depth=1, num_heads=2)
DECODER = dict(width=8, depth=1, num_heads=2)


def model(**changes):
    return tiny.model(**(dict(image=IMAGE, text=TEXT, embed_dim=None) | changes))


def mae(a_model, **changes):
    spec = dict(decoder=DECODER, ratio=0.5) | changes
    return registry.call(MAE, spec, "mae", model=a_model, rngs=nnx.Rngs(1))


def beit(a_model, **changes):
    return registry.call(BEiT, dict(num_codes=8) | changes, "beit", model=a_model, rngs=nnx.Rngs(1))


def batch(n=4, seed=0):
    rng = np.random.default_rng(seed)
    words = np.where(np.arange(8) < 6, np.arange(8), -1)
    return {
        "image": jnp.asarray(rng.standard_normal((n, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(3, 64, (n, 8)), jnp.int32),
        "text_mask": jnp.ones((n, 8), bool),
        "text_words": jnp.asarray(words[None].repeat(n, 0), jnp.int32),
    }


def views(a_model, a_batch, seed=0, rows=slice(None)):
    keys = example_keys(jax.random.key(seed), len(a_batch["image"]))[rows]
    return Views(a_model, {name: x[rows] for name, x in a_batch.items()}, keys)


def run(an_objective, a_model, a_batch, seed=0):
    """Its loss and metrics, and the buffers after it."""
    graphdef, state = nnx.split(an_objective)

    @jax.jit
    def apply(state, a_batch):
        an_objective = nnx.merge(graphdef, state)
        found = an_objective(views(a_model, a_batch, seed), jax.random.key(seed))
        return found, nnx.to_pure_dict(nnx.state(an_objective, Buffer))

    return apply(state, a_batch)


def patches(image):
    """[b, n, p], row by row, in float64."""
    blocks = np.asarray(image, np.float64).reshape(-1, 4, 4, 4, 4, 3).swapaxes(2, 3)
    return blocks.reshape(len(image), 16, 48)


SMALL = model()


def test_what_is_dropped_changes_no_token():
    a_batch = batch()
    encode = jax.jit(
        lambda a_batch, **how: views(SMALL, a_batch).image(**how), static_argnames="keep"
    )
    kept = np.asarray(encode(a_batch, keep=0.5).kept)
    image = patches(a_batch["image"])
    hidden = np.ones(image.shape[:2], bool)
    np.put_along_axis(hidden, kept, False, axis=1)
    image[hidden] = 9.0
    image = image.reshape(4, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(4, 16, 16, 3)
    other = a_batch | {"image": jnp.asarray(image, jnp.float32)}
    a, b = (encode(x, keep=0.5).tokens for x in (a_batch, other))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(encode(a_batch).tokens, encode(other).tokens)


@partial(jax.jit, static_argnums=(0, 1))
def masks(ratio, rows, seed):
    """The patches that are kept of some rows of a batch, and those that are replaced."""
    seen = views(SMALL, batch(), seed, slice(*rows))
    kept = seen.image(keep=1 - ratio).kept
    replaced = seen.image(replace=ratio).replaced
    return jax.vmap(lambda kept: jnp.ones(16, bool).at[kept].set(False))(kept), replaced


@given(st.sampled_from([0.25, 0.75]), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_masks_differ_between_examples_and_do_not_depend_on_them(ratio, row, seed):
    wholes, alones = masks(ratio, (0, 4), seed), masks(ratio, (row, row + 1), seed)
    for whole, alone in zip(wholes, alones, strict=True):
        np.testing.assert_array_equal(alone[0], whole[row])
        assert (whole.sum(1) == 16 * ratio).all()
        assert len({tuple(r) for r in np.asarray(whole).tolist()}) > 1


@pytest.mark.parametrize("pool, normalize", [("cls", True), ("mean", True), ("mean", False)])
def test_the_loss_is_the_squared_error_of_masked_patches(pool, normalize):
    a_model, a_batch = model(image=dict(IMAGE, pool=pool)), batch()
    an_objective = mae(a_model, normalize=normalize)
    found, _ = run(an_objective, a_model, a_batch)

    @jax.jit
    def predict(a_batch):
        encoded = views(a_model, a_batch).image(keep=0.5)
        return encoded.kept, an_objective.decode(encoded.tokens, encoded.kept, (4, 4))

    kept, predicted = (np.asarray(x) for x in predict(a_batch))
    want = patches(a_batch["image"])
    if normalize:
        deviation = np.sqrt(want.var(-1, ddof=1, keepdims=True) + 1e-6)
        want = (want - want.mean(-1, keepdims=True)) / deviation
    errors = [
        ((predicted[i, j] - want[i, j]) ** 2).mean()
        for i in range(4)
        for j in range(16)
        if j not in kept[i]
    ]
    assert len(errors) == 4 * 8
    np.testing.assert_allclose(found.value, np.mean(errors), rtol=1e-5)


@pytest.mark.parametrize(
    "spec, patch_shape",
    [(dict(channels=1), (4, 4, 1)), (dict(frames=4, tubelet_size=2), (2, 4, 4, 3))],
    ids=["spectrogram", "clip"],
)
def test_what_is_no_picture_is_masked_and_told_as_one(spec, patch_shape):
    a_model, shape = model(image=dict(IMAGE, **spec)), (*[4][: "frames" in spec], 16, 16)
    image = np.random.default_rng(0).standard_normal((4, *shape, patch_shape[-1]))
    a_batch = batch() | {"image": jnp.asarray(image, jnp.float32)}
    an_objective = mae(a_model, normalize=False, decoder=dict(width=16, depth=1, num_heads=2))
    found, _ = run(an_objective, a_model, a_batch)
    encoded = views(a_model, a_batch).image(keep=0.5)
    grid = tuple(a // b for a, b in zip(shape, patch_shape[:-1], strict=True))
    predicted = np.asarray(an_objective.decode(encoded.tokens, encoded.kept, grid))
    assert predicted.shape == (4, np.prod(grid), np.prod(patch_shape))
    want = np.asarray(cut(a_batch["image"], patch_shape[:-1])).reshape(predicted.shape)
    hidden = np.ones(predicted.shape[:2], bool)
    np.put_along_axis(hidden, np.asarray(encoded.kept), False, axis=1)
    np.testing.assert_allclose(found.value, ((predicted - want) ** 2)[hidden].mean(), rtol=1e-4)


def test_kept_tokens_return_to_their_places_before_the_decoder():
    an_objective = mae(model(image=dict(IMAGE, pool="cls")))
    # An identity but for its final norm: what goes in is what comes out, at the same place.
    an_objective.decoder.blocks, an_objective.decoder.depth = None, 0
    an_objective.decoder.final_norm = None
    an_objective.out = lambda x: x
    kept = jnp.array([[7, 0, 12, 3]])
    tokens = jnp.concatenate([jnp.full((1, 1, 16), 99.0), kept[..., None] * jnp.ones(16)], 1)
    an_objective.embed = lambda x: x[..., :8]
    found = an_objective.decode(tokens, kept, (4, 4)) - sincos2d((4, 4), 8)
    want = np.broadcast_to(an_objective.mask_token[...], (16, 8)).copy()
    want[[0, 3, 7, 12]] = np.array([0, 3, 7, 12])[:, None]
    np.testing.assert_allclose(found[0], want, atol=1e-6)


def test_fixed_positions_are_those_of_mae():
    found = sincos2d((2, 3), 8)
    omega = np.array([1, 1e-2])
    for place in range(6):
        row, column = divmod(place, 3)
        want = [f(x * omega) for x in (column, row) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(found[place], np.concatenate(want), atol=1e-6)


def test_the_decoder_sees_the_class_token():
    a_model = model(image=dict(IMAGE, pool="cls"))
    an_objective = mae(a_model)
    tokens, kept = jnp.ones((4, 9, 16)), jnp.tile(jnp.arange(8), (4, 1))
    decode = jax.jit(lambda tokens: an_objective.decode(tokens, kept, (4, 4)))
    a, b = (decode(x) for x in (tokens, tokens.at[:, 0, 3].add(1.0)))
    assert a.shape == (4, 16, 48) and not np.allclose(a, b)


def test_a_frozen_tokenizer_takes_the_nearest_random_code():
    codes = RandomProjection(10, 32, code_dim=4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((3, 5, 10))
    projected = x @ np.asarray(codes.projection[...], np.float64)
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    book = np.asarray(codes.codebook[...], np.float64)
    np.testing.assert_allclose(np.linalg.norm(book, axis=1), 1, rtol=1e-6)
    want = np.linalg.norm(book - projected[:, :, None], axis=-1).argmin(-1)
    found = jax.jit(codes)(jnp.asarray(x, jnp.float32), jax.random.key(0))
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(found)) > 5
    assert not nnx.state(codes, nnx.Param).flat_state()  # nothing to train


def test_a_learned_codebook_follows_the_means_of_its_patches():
    rng = np.random.default_rng(0)
    book, counts = rng.standard_normal((4, 6)), np.array([3.0, 5.0, 4.0, 8.0])
    x = rng.standard_normal((2, 7, 6))
    codes = KMeans(6, 4, decay=0.9)
    codes.codebook[...], codes.counts[...] = jnp.array(book), jnp.array(counts)
    found = codes(jnp.asarray(x, jnp.float32), jax.random.key(0))
    want = ((x[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(found, want)
    for i in range(4):
        mine = x[want == i]
        number = 0.9 * counts[i] + 0.1 * len(mine)
        mean = (0.9 * counts[i] * book[i] + 0.1 * mine.sum(0)) / number
        np.testing.assert_allclose(codes.counts[...][i], number, rtol=1e-6)
        np.testing.assert_allclose(codes.codebook[...][i], mean, rtol=1e-5, atol=1e-6)


def test_a_dead_code_becomes_a_patch_of_the_batch_and_others_stay():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 6)), jnp.float32)
    codes = KMeans(6, 4, decay=1.0)  # nothing moves
    book = jnp.arange(24.0).reshape(4, 6) + 10
    codes.codebook[...], codes.counts[...] = book, jnp.array([4.0, 0.039, 0.041, 4.0])
    codes(x, jax.random.key(0))
    others = jnp.array([0, 2, 3])
    np.testing.assert_allclose(codes.codebook[...][others], book[others])
    distance = np.abs(np.asarray(x).reshape(16, 6) - np.asarray(codes.codebook[...][1])).max(1)
    assert distance.min() == 0 and codes.counts[...][1] == np.float32(0.08)


def test_codes_begin_with_patches_and_no_second_one_stands_for_what_is_alike():
    kinds = np.random.default_rng(0).standard_normal((3, 6))
    x = jnp.asarray(kinds[[[0, 0, 0, 0, 0, 0, 1, 2]] * 4], jnp.float32)
    codes, call = (
        KMeans(6, 8, decay=0.5),
        jax.jit(lambda state, key: _step(graphdef, state, x, key)),
    )
    graphdef, state = nnx.split(codes)
    history = []
    for key in jax.random.split(jax.random.key(0), 60):
        found, state = call(nnx.to_pure_dict(state), key)
        history.append(np.asarray(found))
    assert len(np.unique(history[-1])) == 3  # each kind has one
    for found in history[-30:]:
        np.testing.assert_array_equal(found, history[-1])  # and keeps it


def _step(graphdef, state, x, key):
    codes = nnx.merge(graphdef, state)
    return codes(x, key), nnx.state(codes)


def test_beit_predicts_the_codes_of_replaced_patches():
    a_batch, an_objective = batch(), beit(SMALL)
    found, _ = run(an_objective, SMALL, a_batch)
    encoded = jax.jit(lambda x: views(SMALL, x).image(replace=0.4))(a_batch)
    features = contrast(cut(a_batch["image"], (4, 4))).reshape(4, 16, -1)
    codes = np.asarray(an_objective.codes(features, jax.random.key(0)))
    assert (np.asarray(encoded.replaced).sum(1) == 6).all()
    logits = np.asarray(jax.jit(lambda x: an_objective.head(x).whole())(encoded.tokens), np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    true = np.take_along_axis(logits, codes[..., None], -1)[..., 0]
    replaced = np.asarray(encoded.replaced)
    np.testing.assert_allclose(found.value, -true[replaced].mean(), rtol=1e-5)
    hits = (logits.argmax(-1) == codes)[replaced].mean()
    np.testing.assert_allclose(found.metrics["accuracy"], hits, rtol=1e-6)
    share = np.bincount(codes.ravel(), minlength=8) / codes.size
    want = np.exp(-sum(p * np.log(p) for p in share if p))
    np.testing.assert_allclose(found.metrics["code_perplexity"], want, rtol=1e-5)


def test_beit_and_masked_text_hide_the_patches_that_the_input_names():
    """The loss is that of masks drawn, where they are the same; and both read one encoding."""
    a_batch = batch()
    hidden = jax.jit(lambda x: views(SMALL, x).image(replace=0.4).replaced)(a_batch)
    drawn, _ = run(beit(SMALL), SMALL, a_batch)
    an_objective = beit(SMALL, masks="patch_mask")
    assert an_objective.reads == (("patch_mask", (16,), "bool"),)
    named, _ = run(an_objective, SMALL, a_batch | {"patch_mask": hidden})
    other, _ = run(an_objective, SMALL, a_batch | {"patch_mask": hidden[::-1]})
    assert named.value == drawn.value != other.value
    fused = model(fusion=CROSS | dict(queries="text"))
    spec = dict(context="fused", image_replace="patch_mask")
    masked_text = registry.call(MaskedText, spec, "", model=fused, rngs=nnx.Rngs(0))
    assert masked_text.image == an_objective.image
    assert masked_text.reads[-1] == an_objective.reads[0]
    a, b = (
        run(masked_text, fused, a_batch | {"patch_mask": x})[0].value
        for x in (hidden, hidden[::-1])
    )
    assert a != b


def test_codes_tell_more_than_light_from_dark():
    """Of patches of few colours and edges, as pictures have, many codes are used."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(-1, 1, (64, 2, 3))
    steps = rng.integers(0, 17, 64)
    image = np.where(np.arange(16) < steps[:, None], 0, 1)[:, None, :, None].repeat(16, 1)
    image = np.take_along_axis(colours[:, None], image, axis=2)
    a_batch = batch(64) | {"image": jnp.asarray(image, jnp.float32)}
    found, _ = run(beit(SMALL, num_codes=64), SMALL, a_batch)
    assert found.metrics["code_perplexity"] > 16


def test_a_learned_codebook_moves_with_steps_and_a_frozen_one_does_not():
    for targets, moves in (("learned", True), ("frozen", False)):
        an_objective = beit(SMALL, targets=targets)
        before = np.asarray(an_objective.codes.codebook[...])
        _, buffers = run(an_objective, SMALL, batch())
        assert np.array_equal(before, buffers["codes"]["codebook"]) != moves


@pytest.mark.parametrize("kind", [mae, beit])
def test_the_fused_patches_know_of_the_text(kind):
    a_model, a_batch = model(fusion=CROSS), batch()
    other = a_batch | {"text": a_batch["text"][::-1]}
    for context, same in (("none", True), ("fused", False)):
        a, b = (run(kind(a_model, context=context), a_model, x)[0].value for x in (a_batch, other))
        assert (a == b) == same


def test_masked_text_and_image_share_one_fusion():
    """As M3AE, where a fusion fuses both: here one that fuses images, asked twice."""
    a_model, text_mask = model(fusion=CROSS), dict(ratio=0.5, whole_word=True)
    seen, calls = views(a_model, batch()), []
    fuse = a_model.fuse
    seen.model = nnx.clone(a_model)
    seen.model.fuse = lambda *args, **kwargs: calls.append(1) or fuse(*args, **kwargs)
    several = [mae(a_model, context="fused", text_mask=text_mask, ratio=0.7) for _ in range(2)]
    jax.make_jaxpr(lambda: [one(seen, jax.random.key(0)).value for one in several])()
    want = MaskedText(**text_mask, model=a_model, rngs=nnx.Rngs(0)).mask.view(seen)
    assert len(calls) == 1
    [(image, text)] = seen._fused
    assert text == want and dict(image.how) == {"keep": 0.3}
    assert several[0].reads == (("text_words", (8,), "int32"),)


def pictures(n=32):
    """Stripes of one of four periods a picture, so that a few patches tell the others."""
    kind = np.arange(n) % 4
    x = np.arange(16)
    waves = [np.sin(2 * np.pi * x / 4 + k * np.pi / 2) + (x % 4 - 1.5) * (k % 2) for k in range(4)]
    image = np.stack(waves)[kind][:, None, :, None] * np.ones((1, 16, 1, 3))
    return {"image": jnp.asarray(image, jnp.float32)}


ALONE = dict(text=None, embed_dim=None)


def test_mae_learns_pictures_that_their_parts_tell():
    a_model = tiny.model(image=IMAGE, **ALONE)
    found = fit(a_model, mae(a_model), pictures(), steps=300, learning_rate=1e-2)
    assert found.value < 0.1  # 1 without learning
    assert found.metrics["explained_variance"] > 0.9
    assert found.metrics["prediction_variance"] > 0.3


@pytest.mark.parametrize("targets", ["frozen", "learned"])
def test_beit_learns_pictures_that_their_parts_tell(targets):
    a_model = tiny.model(image=IMAGE, **ALONE)
    an_objective = beit(a_model, targets=targets, num_codes=16)
    found = fit(a_model, an_objective, pictures(), steps=200, learning_rate=1e-2)
    assert found.metrics["accuracy"] > 0.95
    assert found.metrics["code_perplexity"] > 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mae(SMALL, ratio=1.0), "ratio=1.0: expected more than 0"),
        (lambda: mae(SMALL, decoder=dict(DECODER, width=10)), "decoder.width=10 must be"),
        (lambda: mae(SMALL, decoder=dict(DECODER, heads=2)), "unknown key 'heads'"),
        (lambda: mae(SMALL, text_mask=dict(ratio=0.5)), "no text is read; set context='fused'"),
        (lambda: mae(SMALL, context="fused"), "fusion, which the config does not have"),
        (lambda: mae(tiny.model(image=None, embed_dim=None)), "mae: needs config.model.image"),
        (lambda: beit(tiny.model()), "set mask_token=True"),
        (lambda: beit(SMALL, num_codes=1), "num_codes=1: expected at least 2"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
