from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models.encoder import Encoder, EncoderSpec
from mm.models.keys import example_keys
from mm.models.layers import LayerNorm, Linear, RMSNorm, layer_norm
from mm.models.stem import contrast
from mm.models.text import TextTransformer
from mm.models.vit import ViT, drawn, sincos2d


def vit(**changes):
    spec = dict(image_size=16, patch_size=4, width=16, depth=2, num_heads=2)
    return ViT(**{**spec, **changes}, rngs=nnx.Rngs(0))


def text(**changes):
    spec = dict(vocab_size=20, length=6, width=16, depth=2, num_heads=2)
    return TextTransformer(**{**spec, **changes}, rngs=nnx.Rngs(0))


def images(n=3, size=16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, size, size, 3)), jnp.float32)


TOKENS = jnp.array([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 11]])
MASK = TOKENS > 0


def test_linear_equals_an_einsum_over_heads():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 4)), jnp.float32)
    layer = Linear((3, 4), (6,), ("heads", "kv", "embed"), rngs=nnx.Rngs(0))
    want = jnp.einsum("bnhk,hkd->bnd", x, layer.kernel[...])
    np.testing.assert_allclose(layer(x.reshape(2, 5, 12)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module, center", [(LayerNorm, True), (RMSNorm, False)])
def test_norms_equal_their_definitions(module, center):
    x = np.random.default_rng(0).standard_normal((2, 3, 8)) * 3 + 1
    mean = x.mean(-1, keepdims=True) if center else 0.0
    want = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    got = module(8, rngs=nnx.Rngs(0))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_layer_norms_gradients_are_those_of_its_definition():
    rng = np.random.default_rng(0)
    x, gradient = rng.standard_normal((2, 2, 3, 8))
    scale, bias = rng.standard_normal((2, 8))

    def definition(x, scale, bias):
        y = x - x.mean(-1, keepdims=True)
        return y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6) * scale + bias

    with jax.enable_x64(True):
        arrays = [jnp.asarray(a) for a in (x, scale, bias)]
        want = jax.vjp(definition, *arrays)[1](jnp.asarray(gradient))
        got = jax.vjp(partial(layer_norm, 1e-6), *arrays)[1](jnp.asarray(gradient))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_layer_norm_loses_no_digits_where_the_mean_is_large():
    x = np.random.default_rng(0).standard_normal((4, 64)) + 3000
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    got = layer_norm(1e-6, jnp.asarray(x), jnp.ones(64), jnp.zeros(64))
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("remat", ["none", "cheap", "hidden", "full"])
@pytest.mark.parametrize("unroll", [1, 3])
def test_remat_and_unroll_change_no_gradient(remat, unroll):
    def gradients(remat, unroll):
        spec = EncoderSpec(width=8, depth=3, num_heads=2, remat=remat, unroll=unroll)
        encoder = Encoder(spec, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(encoder)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 8)), jnp.float32)
        return jax.grad(lambda p: (nnx.merge(graphdef, p)(x)[-1] ** 3).sum())(
            nnx.to_pure_dict(params)
        )

    got, want = gradients(remat, unroll), gradients("none", 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), got, want)


def test_stacked_blocks_start_different_from_each_other():
    kernel = vit().encoder.blocks.mlp.up.kernel
    assert kernel.get_metadata("axes") == ("layers", "embed", "mlp")
    assert not jnp.allclose(kernel[...][0], kernel[...][1])


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_vit_returns_tokens_and_one_vector(pool, position):
    encoded = vit(pool=pool, position=position)(images())
    assert encoded.tokens.shape == (3, 17 if pool == "cls" else 16, 16)
    assert encoded.pooled.shape == (3, 16)


@pytest.mark.parametrize("stem", [None, dict(name="cells", cell_size=2, cell_width=8, hidden=16)])
def test_patches_are_embedded_in_row_order(stem):
    model = vit(depth=0, position="sincos2d", pool="mean", stem=stem)
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[0, 0:4, 4:8] = 1.0  # the second patch of the first row
    changed = model(jnp.asarray(image)).tokens - model(jnp.zeros_like(image)).tokens
    assert np.flatnonzero(np.abs(changed[0]).sum(-1) > 1e-6).tolist() == [1]


def test_contrast_splits_a_cell_into_pattern_mean_and_deviation():
    cell = np.random.default_rng(0).standard_normal((1, 1, 1, 4, 3))
    mean = cell.mean(3)
    deviation = np.sqrt(((cell - mean[..., None, :]) ** 2).mean((3, 4)) + 1e-6)
    want = np.concatenate(
        [
            ((cell - mean[..., None, :]) / (deviation[..., None, None] + 0.1)).reshape(1, 1, 1, 12),
            mean,
            deviation[..., None],
        ],
        -1,
    )
    got = contrast(jnp.asarray(cell.reshape(1, 1, 1, 12), jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_flatten_pool_tells_places_apart():
    model = vit(depth=0, pool="flatten", pool_dim=24)
    image = np.zeros((2, 16, 16, 3), np.float32)
    image[0, :4, :4], image[1, 4:8, :4] = 1.0, 1.0
    pooled = model(jnp.asarray(image)).pooled
    assert pooled.shape == (2, 24) and not jnp.allclose(pooled[0], pooled[1])


def test_pre_norm_normalizes_what_the_blocks_read():
    def normalized(x, scale, bias):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * scale + bias

    model = vit(depth=0, pool="cls", pre_norm=True)
    scale, bias = np.random.default_rng(0).standard_normal((2, 16))
    model.pre_norm.scale[...], model.pre_norm.bias[...] = jnp.array(scale), jnp.array(bias)
    model.cls[...] = jnp.ones((1, 16))
    patches = np.asarray(images(), np.float64).reshape(3, 4, 4, 4, 4, 3).swapaxes(2, 3)
    kernel = np.asarray(model.stem.embedding.kernel[...], np.float64)
    x = patches.reshape(3, 16, 48) @ kernel + np.asarray(model.position_embedding[...])
    x = np.concatenate([np.ones((3, 1, 16)), x], axis=1)
    want = normalized(normalized(x, scale, bias), 1.0, 0.0)  # the encoder's final norm follows
    np.testing.assert_allclose(model(images()).tokens, want, rtol=1e-4, atol=1e-4)


def test_sincos_positions_are_distinct_and_unit_bounded():
    positions = sincos2d((4, 4), 16)
    assert positions.shape == (16, 16) and np.abs(positions).max() <= 1
    assert len(np.unique(positions.round(5), axis=0)) == 16


def test_dropped_tokens_differ_between_examples():
    kept = drawn(16, 0.5, example_keys(jax.random.key(0), 8))
    assert kept.shape == (8, 8)
    assert len({tuple(row) for row in np.asarray(kept).tolist()}) > 1
    assert all(len(set(row)) == 8 for row in np.asarray(kept).tolist())


def test_evaluation_cannot_drop_tokens():
    with pytest.raises(ValueError, match="needs `draw` keys"):
        vit()(images(), keep=0.5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pool", ["last", "mean", "map"])
def test_padding_changes_nothing(causal, pool):
    model = text(causal=causal, pool=pool)
    other = TOKENS.at[0, 3:].set(17)
    got, want = model(other, MASK).pooled, model(TOKENS, MASK).pooled
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_a_causal_tower_does_not_look_ahead():
    other = TOKENS.at[1, 5].set(2)
    for causal, same in ((True, True), (False, False)):
        model = text(causal=causal)
        a, b = (model(tokens, MASK).tokens[1, :5] for tokens in (TOKENS, other))
        assert np.allclose(a, b, atol=1e-6) == same


def test_depth_zero_without_positions_is_a_bag_of_words():
    model = text(depth=0, pool="mean", position="none")
    mixed = TOKENS[:, jnp.array([2, 1, 0, 3, 4, 5])]
    np.testing.assert_allclose(
        model(TOKENS, MASK).pooled, model(mixed, MASK).pooled, rtol=1e-5, atol=1e-6
    )


def test_dropout_is_off_without_a_key_and_keyed_with_one():
    model = vit(dropout=0.5)
    keys = [example_keys(jax.random.key(seed), 3) for seed in (0, 0, 1)]
    a, b, c = (model(images(), rng=rng).pooled for rng in keys)
    assert (a == b).all() and not (a == c).all()
    assert (model(images()).pooled == model(images()).pooled).all()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_dropout_of_an_example_does_not_depend_on_its_neighbours(tower):
    keys = example_keys(jax.random.key(0), 8)
    if tower == "image":
        model, inputs, how = vit(dropout=0.5), (images(8),), {"keep": 0.5, "draw": keys}
    else:
        model, inputs, how = text(dropout=0.5), (TOKENS.repeat(4, 0), MASK.repeat(4, 0)), {}
    whole = model(*inputs, rng=keys, **how).pooled
    how = {key: value[3:6] if key == "draw" else value for key, value in how.items()}
    part = model(*(x[3:6] for x in inputs), rng=keys[3:6], **how).pooled
    np.testing.assert_allclose(part, whole[3:6], rtol=1e-5, atol=1e-6)
    assert tower == "image" or not np.allclose(whole[0], whole[1])  # the same text, other masks


def test_bfloat16_compute_stays_near_float32():
    exact, rounded = vit()(images()).pooled, vit(dtype="bfloat16")(images()).pooled
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.15)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=3), "width=16 does not divide by num_heads=3"),
        (dict(patch_size=5), "image_size=16 does not divide by patch_size=5; .* 15"),
        (dict(pool="flatten"), "pool_dim=None goes with pool='flatten'"),
        (dict(stem=dict(name="cells", cell_size=3)), "patch_size=4 does not divide by cell_size=3"),
        (dict(stem=dict(name="cell")), "did you mean 'cells'"),
        (dict(width=18, num_heads=2, position="sincos2d"), "multiple of 4"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        vit(**changes)
