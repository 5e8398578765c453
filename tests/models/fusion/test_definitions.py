"""Fusions against their equations, in numpy and float64, or against what these exclude."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.block import Draw, EncoderSpec, Reads
from mm.models.encoder import Encoded
from mm.models.fusion.base import Context
from tests.tiny import IMAGE, TEXT, Sizes, model

MODEL = Sizes(  # the widths of its towers
    image=Sizes(width=8, pooled_width=10), text=Sizes(width=8, pooled_width=6)
)
RNG = np.random.default_rng(0)
STACK = dict(width=8, depth=1, num_heads=2, unroll=2)


def build(name, **spec):
    spec = dict(name=name, **spec)
    return registry.build("fusion", spec, "config.model.fusion", model=MODEL, rngs=nnx.Rngs(0))


def encoded(side, length):
    tower = getattr(MODEL, side)
    shapes = (3, length, tower.width), (3, tower.pooled_width)
    return Encoded(*(jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in shapes), None)


IMAGE_SIDE, TEXT_SIDE = encoded("image", 5), encoded("text", 4)


def wide(x):
    return np.asarray(x[...], np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def kernels(fusion):
    v, w = wide(IMAGE_SIDE.pooled), wide(TEXT_SIDE.pooled)
    return v, w, v @ wide(fusion.image.kernel), w @ wide(fusion.text.kernel)


@pytest.mark.parametrize("kind", ["concatenate", "sum", "gated", "bilinear"])
def test_late_kinds_equal_their_equations(kind):
    fusion = build("late", kind=kind, **({} if kind == "concatenate" else dict(width=8)))
    got = fusion(IMAGE_SIDE, TEXT_SIDE).pooled
    both = np.concatenate([wide(IMAGE_SIDE.pooled), wide(TEXT_SIDE.pooled)], -1)
    if kind == "concatenate":
        want = both
    else:
        *_, x, y = kernels(fusion)
        if kind == "gated":
            z = sigmoid(both @ wide(fusion.gate.kernel))
            want = z * np.tanh(x) + (1 - z) * np.tanh(y)
        else:
            want = x + y if kind == "sum" else x * y
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_sum_of_bilinear_fusion_is_the_bilinear_score():
    fusion = build("late", kind="bilinear", width=8)
    v, w, *_ = kernels(fusion)
    matrix = wide(fusion.image.kernel) @ wide(fusion.text.kernel).T
    want = np.einsum("bi,ij,bj->b", v, matrix, w)
    got = fusion(IMAGE_SIDE, TEXT_SIDE).pooled.sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [dict(kind="sum"), dict(kind="concatenate", width=8)])
def test_a_width_that_late_fusion_lacks_or_ignores_is_refused(spec):
    with pytest.raises(BadInput, match="all but 'concatenate' need a width"):
        build("late", **spec)


def test_weighted_fusion_equals_its_equation():
    fusion = build("late", kind="weighted", width=8)
    *_, x, y = kernels(fusion)
    h = np.stack([x, y], 1)
    hidden = np.tanh(h @ wide(fusion.hidden.kernel) + wide(fusion.hidden.bias))
    weights = softmax((hidden @ wide(fusion.score.kernel))[..., 0])
    assert np.ptp(weights) > 0.05
    want = np.einsum("bm,bmd->bd", weights, h)
    np.testing.assert_allclose(fusion(IMAGE_SIDE, TEXT_SIDE).pooled, want, rtol=1e-5, atol=1e-6)


def test_guided_attention_weighs_tokens_by_what_the_guide_attends_to():
    fusion = build("guided", **STACK)
    block = fusion.encoder.blocks
    block.attention.query.kernel[...] *= 0  # its own scores are zero: the guide's weights are left
    block.mlp.down.kernel[...] *= 0
    p, x = wide(TEXT_SIDE.pooled), wide(IMAGE_SIDE.tokens)
    q, k = p @ wide(fusion.query.kernel), x @ wide(fusion.key.kernel)
    weights = softmax(np.einsum("bd,bnd->bn", q, k) / np.sqrt(8))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    value, out = (
        wide(m.kernel)[0].reshape(8, 8) for m in (block.attention.value, block.attention.out)
    )
    seen = np.einsum("bn,bnd->bd", weights, norm(x) @ value) @ out
    want = norm(x + seen[:, None])
    np.testing.assert_allclose(fusion(IMAGE_SIDE, TEXT_SIDE).image, want, rtol=1e-4, atol=1e-5)


def test_bottlenecks_are_averaged_and_modalities_meet_only_through_them():
    fusion = build("bottleneck", **STACK | dict(depth=2))
    layer = nnx.Dict(fusion.layer(EncoderSpec(**STACK), MODEL, nnx.Rngs(0)))
    bottleneck = jnp.asarray(RNG.standard_normal((3, 2, 8)), jnp.float32)
    tokens = {"image": IMAGE_SIDE.tokens, "text": TEXT_SIDE.tokens}
    streams = {n: x.reshape(-1, 8) for n, x in {**tokens, "bottleneck": bottleneck}.items()}
    found = fusion.step(layer, streams, Context({"image": None, "text": None}, Draw(3)))
    seen = []
    for name, x in tokens.items():
        joined = jnp.concatenate([x, bottleneck], 1)
        alone = layer.blocks[name](joined.reshape(-1, 8), Reads(), Draw(3)).reshape(joined.shape)
        own = alone[:, :-2].reshape(-1, 8)
        np.testing.assert_allclose(found[name], own, rtol=1e-5, atol=1e-5)
        seen.append(np.asarray(alone[:, -2:]).reshape(-1, 8))
    np.testing.assert_allclose(found["bottleneck"], (seen[0] + seen[1]) / 2, rtol=1e-5, atol=1e-5)


def test_one_layer_of_bottlenecks_fuses_nothing_and_is_refused():
    with pytest.raises(BadInput, match="at depth=2 first"):
        build("bottleneck", **STACK)


def changes(fusion, kernel):
    """Which fused tokens change when a kernel turns round."""
    before = fusion(IMAGE_SIDE, TEXT_SIDE)
    kernel[...] = -kernel[...]
    after = fusion(IMAGE_SIDE, TEXT_SIDE)
    pairs = {n: (getattr(before, n), getattr(after, n)) for n in before._fields[1:]}
    return [n for n, (a, b) in pairs.items() if a is not None and not np.allclose(a, b)]


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_modalitys_mlp_is_its_own_and_attention_is_shared(side):
    fusion = build("multiway", **STACK)
    # In the last layer nothing reads what an MLP makes but its own stream.
    assert changes(fusion, fusion.stack.blocks.mlps[side].down.kernel) == [side]
    assert changes(fusion, fusion.stack.blocks.attention.value.kernel) == ["image", "text"]


@pytest.mark.parametrize("side", ["image", "text"])
def test_both_directions_of_coattention_read_what_the_layer_is_given(side):
    fusion = build("coattention", **STACK)
    assert changes(fusion, fusion.stack.blocks.crosses[side].value.kernel) == [side]


def test_a_shared_cross_attention_is_one_with_fewer_parameters():
    def size(**spec):
        params = nnx.to_pure_dict(
            nnx.split(build("coattention", cross_mlp=False, **spec, **STACK))[1]
        )
        return sum(x.size for x in jax.tree.leaves(params))

    attention, norm = 4 * (8 * 8 + 8), 2 * 8
    assert size() - size(shared_cross=True) == attention + norm
    shared = build("coattention", shared_cross=True, **STACK)
    kernel = shared.stack.blocks.crosses["shared"].value.kernel
    assert changes(shared, kernel) == ["image", "text"]


def test_lxmerts_layer_equals_its_definition():
    spec = dict(shared_cross=True, cross_mlp=False, norm_placement="post", **STACK)
    fusion = build("coattention", **spec)
    layer = jax.tree.map(lambda x: x[0], nnx.to_pure_dict(nnx.split(fusion.stack.blocks)[1]))
    layer = jax.tree.map(partial(np.asarray, dtype=np.float64), layer)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def attend(p, x, y):
        q, k, v = (
            np.einsum("bnd,dhk->bhnk", z, p[n]["kernel"])
            for z, n in ((x, "query"), (y, "key"), (y, "value"))
        )
        weights = softmax(np.einsum("bhnk,bhmk->bhnm", q, k) / 2)
        return np.einsum("bhnm,bhmk,hkd->bnd", weights, v, p["out"]["kernel"])

    def gelu(x):
        return np.asarray(jax.nn.gelu(jnp.asarray(x), approximate=False), np.float64)

    x, y = wide(IMAGE_SIDE.tokens), wide(TEXT_SIDE.tokens)
    cross = layer["crosses"]["shared"]
    streams = {"image": norm(x + attend(cross, x, y)), "text": norm(y + attend(cross, y, x))}
    got = fusion(IMAGE_SIDE, TEXT_SIDE)
    for name, z in streams.items():
        block = layer["blocks"][name]
        z = norm(z + attend(block["attention"], z, z))
        z = norm(z + gelu(z @ block["mlp"]["up"]["kernel"]) @ block["mlp"]["down"]["kernel"])
        np.testing.assert_allclose(getattr(got, name), z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1])
def test_hierarchical_fusion_reads_every_level(level):
    fusion = build("hierarchical", **STACK | dict(depth=2))

    def fused(x):
        levels = [IMAGE_SIDE.tokens, IMAGE_SIDE.tokens + 1]
        levels[level] = levels[level] + x
        text = TEXT_SIDE._replace(levels=(TEXT_SIDE.tokens,) * 2)
        return fusion(IMAGE_SIDE._replace(levels=tuple(levels)), text)

    noise = jnp.asarray(RNG.standard_normal(IMAGE_SIDE.tokens.shape), jnp.float32)
    for a, b in zip(fused(0 * noise), fused(noise), strict=True):
        assert np.abs(a - b).max() > 1e-3


def test_hierarchical_fusion_has_the_towers_read_at_its_depths():
    def encode(image_depth):
        towers = dict(image=IMAGE | dict(depth=image_depth), text=TEXT | dict(depth=2))
        fusion = dict(name="hierarchical", width=16, depth=2, num_heads=2)
        built = model(**towers, fusion=fusion)
        assert built.levels == 2
        return built.encode_image(jnp.zeros((2, 16, 16, 3)))

    assert len(jax.eval_shape(lambda: encode(4)).levels) == 2
    with pytest.raises(BadInput, match="fusion: depth=2 .* divide config.model.image.depth=3"):
        jax.eval_shape(lambda: encode(3))


def test_a_plain_resampler_reads_the_image_before_the_joint_stream_alone():
    fusion = build("resampler", queries=2, cross=False, resampler_depth=1, **STACK)
    assert "cross" not in fusion.stack.blocks
    assert changes(fusion, fusion.resampler.blocks.cross.value.kernel) == ["text"]


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(cross=False), "nothing reads the image"),
        (dict(queries=0), "queries=0"),
        (dict(), "at depth=2 first"),  # the queries read the image after the text read them
    ],
)
def test_a_resampler_that_fuses_nothing_is_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        build("resampler", **spec, **STACK)
