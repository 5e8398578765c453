import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models.attention import rotate
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoder
from mm.models.keys import example_keys
from mm.models.layers import LayerNorm, Linear, RMSNorm, layer_norm
from mm.models.stem import contrast
from mm.models.text import TextTransformer
from mm.models.vit import ViT, drawn, resample, rotary2d, sincos2d


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
    want = normalized(x, scale, bias)  # at depth 0 that is all
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


@pytest.mark.parametrize("position", ["learned", "sincos2d", "rotary"])
def test_an_image_of_another_size_has_its_own_grid(position):
    model = vit(position=position, pool="mean")
    assert model(images(size=24)).tokens.shape == (3, 36, 16)


def test_positions_are_resampled_to_the_grid_of_the_image():
    """Halving a table that is linear over the grid keeps it linear."""
    rows = np.mgrid[:4, :4][0].reshape(-1, 1) + 0.5
    table = jnp.asarray(np.tile(rows, (1, 8)), jnp.float32)
    found = np.asarray(resample(table, (4, 4), (2, 2))).reshape(2, 2, 8)
    np.testing.assert_allclose(found[0], 1.0, atol=0.1)
    np.testing.assert_allclose(found[1], 3.0, atol=0.1)
    np.testing.assert_allclose(resample(table, (4, 4), (4, 4)), table, atol=1e-5)


def test_a_table_of_another_size_keeps_its_shape():
    model = vit(position_size=8)
    assert model.position_embedding.shape == (4, 16)
    assert model(images()).tokens.shape == (3, 16, 16)


def test_rotary_scores_depend_on_the_distance_alone():
    angles = jnp.asarray(rotary2d((4, 4), 8))
    q, k = np.random.default_rng(0).standard_normal((2, 1, 8))
    turned = [
        np.asarray(rotate(jnp.asarray(np.tile(x, (16, 1)), jnp.float32), angles, 1, 1))
        for x in (q, k)
    ]
    scores = (turned[0] @ turned[1].T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(scores[0, 0, 1, 2], scores[2, 1, 3, 3], rtol=1e-4)
    assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3
    np.testing.assert_allclose(scores[1, 1, 1, 1], (q * k).sum(), rtol=1e-4)


def test_dropped_patches_keep_their_rotary_positions():
    """With a share of patches, the kept ones' order does not matter, their places do."""
    model, keys = vit(position="rotary", pool="mean", depth=1), example_keys(jax.random.key(0), 3)
    encoded = model(images(), keep=0.5, draw=keys)
    places = np.asarray(encoded.kept)
    angles = np.asarray(rotary2d((4, 4), 8))
    found = np.asarray(model._angles((4, 4), 0, encoded.kept))
    np.testing.assert_array_equal(found, angles[places])


def test_registers_are_read_and_not_returned():
    model = vit(registers=2, pool="cls")
    before = model(images())
    assert before.tokens.shape == (3, 17, 16) and model.prefix == 1
    model.registers[...] = jnp.eye(2, 16)
    assert not np.allclose(model(images()).tokens, before.tokens, atol=1e-4)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_window_hides_what_is_far(keep):
    """With one block, a patch knows of those at most a row and a column away, and of no other."""
    model = vit(window=1, depth=1, pool="mean")
    keys = example_keys(jax.random.key(0), 3)
    how = dict(keep=keep, draw=keys) if keep < 1 else {}
    before = model(images(), **how)
    changed = images().at[:, :4, :4].add(1.0)  # the first patch
    moved = np.abs(np.asarray(model(changed, **how).tokens - before.tokens)).max(-1) > 1e-6
    places = np.tile(np.arange(16), (3, 1)) if before.kept is None else np.asarray(before.kept)
    for row, place in zip(moved, places, strict=True):
        near = {0, 1, 4, 5} & set(place.tolist()) if 0 in place else set()
        assert set(place[row].tolist()) == near


def test_the_mask_token_hides_a_patch():
    model = vit(mask_token=True, pool="mean", depth=0)
    keys = example_keys(jax.random.key(0), 3)
    first, second = (model(images(seed=s), replace=0.25, draw=keys) for s in (0, 1))
    assert (first.replaced.sum(1) == 4).all()
    same = np.abs(np.asarray(first.tokens - second.tokens)).max(-1) < 1e-6
    np.testing.assert_array_equal(same, first.replaced)
    with pytest.raises(BadInput, match="set mask_token=True"):
        vit()(images(), replace=0.25, draw=keys)


def block_output(**changes):
    """One block's output and its input, of an encoder without a final norm's help."""
    spec = EncoderSpec(width=8, depth=1, num_heads=2, **changes)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3, 8)), jnp.float32)
    encoder = Encoder(spec, rngs=nnx.Rngs(0))
    encoder.final_norm = None
    return encoder, x


def test_layer_scale_of_zero_leaves_the_tokens_as_they_are():
    encoder, x = block_output(layer_scale=0.0)
    np.testing.assert_array_equal(encoder(x), x)
    assert encoder.blocks.mlp_branch.scale.get_metadata("axes") == ("layers", "embed")


def test_norms_of_queries_and_keys_take_their_size_away():
    encoder, x = block_output(qk_norm=True)
    before = encoder(x)
    attention = encoder.blocks.attention
    attention.query.kernel[...] = 7.0 * attention.query.kernel[...]
    np.testing.assert_allclose(encoder(x), before, rtol=1e-4, atol=1e-5)


def test_post_norm_norms_every_sum():
    encoder, x = block_output(norm_placement="post")
    y = np.asarray(encoder(x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def test_stochastic_depth_skips_whole_branches_of_an_example():
    """The last block's branches with the full rate; the first block's never."""
    spec = EncoderSpec(width=8, depth=2, num_heads=2, drop_path=0.5)
    encoder = Encoder(spec, rngs=nnx.Rngs(0))
    encoder.final_norm = None
    for name in ("attention", "mlp"):  # the first block does nothing, the last adds constants
        layer = getattr(encoder.blocks, name)
        out = layer.out if name == "attention" else layer.down
        out.kernel[...] = jnp.zeros_like(out.kernel[...])
        out.bias[...] = jnp.stack([jnp.zeros(8), jnp.full(8, 1.0 if name == "mlp" else 10.0)])
    x = jnp.zeros((400, 3, 8))
    y = np.asarray(encoder(x, None, example_keys(jax.random.key(0), 400)))
    assert (y == y[:, :1, :1]).all()  # whole examples
    values, counts = np.unique(y[:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(values, [0, 2, 20, 22])  # kept ones count twice: 1 / (1 - 0.5)
    assert (np.abs(counts / 400 - 0.25) < 0.1).all()
    np.testing.assert_array_equal(encoder(x)[0, 0, 0], 11)


def test_segments_tell_the_first_sentence_from_the_second():
    model = text(segments=2, pool="mean")
    segments = jnp.zeros_like(TOKENS).at[:, 3:].set(1)
    assert not np.allclose(model(TOKENS, MASK, segments=segments).pooled[1],
                           model(TOKENS, MASK).pooled[1], atol=1e-4)  # fmt: skip


def test_levels_are_the_tokens_at_evenly_spaced_depths():
    found = vit(depth=2)(images(), levels=2)
    whole = vit(depth=2)(images())
    assert len(found.levels) == 2 and found.levels[0].shape == whole.tokens.shape
    np.testing.assert_allclose(found.levels[1], whole.tokens, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadInput, match="levels=3: does not divide depth=2"):
        vit(depth=2)(images(), levels=3)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_clip_of_one_frame_is_a_picture():
    """With the same weights: `frames` changes neither them nor the order of their draws."""
    found, want = vit(frames=1)(images()[:, None]), vit()(images())
    np.testing.assert_array_equal(found.tokens, want.tokens)


@pytest.mark.parametrize(
    "spec, shape, split, order",
    [
        (dict(image_size=(8, 12), channels=1), (8, 12, 1), (2, 4, 3, 4, 1), (0, 1, 3, 2, 4, 5)),
        (
            dict(image_size=(8, 12), frames=4, tubelet_size=2),
            (4, 8, 12, 3),
            (2, 2, 2, 4, 3, 4, 3),
            (0, 1, 3, 5, 2, 4, 6, 7),
        ),
    ],
    ids=["spectrogram", "clip"],
)
def test_patches_of_any_shape_equal_their_definition(spec, shape, split, order):
    model = vit(depth=0, pool="mean", **spec)
    image = numbers(2, *shape)
    patches = image.astype(np.float64).reshape(2, *split).transpose(order)
    patches = patches.reshape(2, math.prod(model.grid), -1)
    want = patches @ np.asarray(model.stem.embedding.kernel[...], np.float64)
    want += np.asarray(model.position_embedding[...])  # at depth 0 that is all
    found = model(jnp.asarray(image)).tokens
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_tubelets_of_a_clip_are_dropped_and_hidden_as_patches_are():
    model = vit(frames=4, tubelet_size=2, pool="mean", mask_token=True)
    keys, clips = example_keys(jax.random.key(0), 3), jnp.asarray(numbers(3, 4, 16, 16, 3))
    encoded = model(clips, keep=0.25, draw=keys)
    assert encoded.tokens.shape == (3, 8, 16) and np.asarray(encoded.kept).max() > 15
    assert model(clips, replace=0.25, draw=keys).replaced.sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_a_longer_or_larger_clip_has_its_own_grid(position):
    model = vit(frames=4, tubelet_size=2, position=position, pool="mean")
    assert model(jnp.asarray(numbers(1, 8, 16, 24, 3))).tokens.shape == (1, 4 * 4 * 6, 16)


def test_positions_of_a_clip_are_those_of_its_time_and_place():
    found = sincos2d((3, 2, 4), 32).reshape(3, 2, 4, 32)
    place = sincos2d((2, 4), 24).reshape(2, 4, 24)
    np.testing.assert_array_equal(found[..., 8:], np.broadcast_to(place, (3, 2, 4, 24)))
    angles = np.arange(3)[:, None] * 10_000.0 ** -(np.arange(4) / 4)
    time = np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, None, None]
    np.testing.assert_allclose(found[..., :8], np.broadcast_to(time, (3, 2, 4, 8)), atol=1e-6)


def test_a_window_of_a_clip_reaches_over_time_as_over_space():
    model = vit(frames=3, window=1)
    near = np.asarray(model._near(model.grid, 0, None))[0].reshape(3, 4, 4, 3, 4, 4)
    assert near[0, 0, 0, 1, 1, 1] and not near[0, 0, 0, 2, 0, 0] and not near[0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(image_size=(16, 18)), "image_size=18 does not divide by patch_size=4"),
        (dict(image_size=(16, 16, 16)), r"expected a side of at least 1, or \(height, width\)"),
        (dict(image_size=0), "image_size=0: expected a side"),
        (dict(frames=5, tubelet_size=2), "frames=5 does not divide by tubelet_size=2; .* 4"),
        (dict(tubelet_size=2), "tubelet_size=2 is of clips: set frames"),
        (dict(frames=4, position="rotary"), "position='rotary' is of pictures"),
        (dict(frames=4, position="sincos2d", width=24), "must be a multiple of 16"),
        (dict(channels=1, stem=dict(name="cells", cell_size=2)), "cells are of pictures in colour"),
    ],
)
def test_clips_and_spectrograms_that_cannot_work_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        vit(**changes)


@pytest.mark.parametrize("shape", [(1, 16, 16, 1), (1, 4, 16, 16, 3)])
def test_an_image_that_is_none_for_the_tower_is_refused(shape):
    with pytest.raises(BadInput, match=r"config.model.image: reads \[16, 16, 3\], got"):
        vit()(jnp.asarray(numbers(*shape)))
