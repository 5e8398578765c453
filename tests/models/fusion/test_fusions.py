"""What holds for every registered fusion; a new one is covered as soon as it has a name."""

import importlib
import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.fusion import Fused
from mm.models.keys import example_keys
from tests.tiny import IMAGE, TEXT, Sizes, model

BATCH, PATCHES, LENGTH, DEPTH = 4, 6, 6, 2  # as many tokens: the same ops, compiled once
MODEL = Sizes(  # the widths of its towers
    image=Sizes(width=12, pooled_width=10), text=Sizes(width=8, pooled_width=6)
)
MASK = np.arange(LENGTH) < np.array([[3], [6], [2], [4]])
SEEN = np.arange(PATCHES) < np.array([[6], [2], [4], [3]])
STACK = dict(width=8, depth=DEPTH, num_heads=2, dropout=0.3, drop_path=0.3)
POOLED = {"late": dict(kind="gated", width=8)}  # without a stack
VARIANTS = [
    dict(name="cross", queries="image", **STACK),
    dict(name="early", cls_token=True, **STACK),
    dict(name="late", kind="concatenate"),
    dict(name="late", kind="sum", width=8),
    dict(name="late", kind="bilinear", width=8),
    dict(name="late", kind="weighted", width=8),
    dict(name="coattention", shared_cross=True, cross_mlp=False, norm_placement="post", **STACK),
    dict(name="guided", guide="image", **STACK),
    dict(name="resampler", queries=3, shared=True, **STACK),
    dict(name="resampler", queries=3, cross=False, resampler_depth=1, **STACK),
]
CASES = [dict(name=n, **POOLED.get(n, STACK)) for n in registry.names("fusion")] + VARIANTS
STACKED = [name for name in registry.names("fusion") if name not in POOLED]
FILLED = "early", "cross", "coattention", "multiway"
every = pytest.mark.parametrize(
    "case", range(len(CASES)), ids=[" ".join(map(str, c.values())) for c in CASES]
)


@pytest.mark.parametrize("name", registry.names("fusion"))
def test_a_fusion_is_one_class_of_its_file(name):
    """So that a new one is a class and a line of a config."""
    kind = registry.find("fusion", name, "fusion")
    module = importlib.import_module(kind.__module__)
    classes = [x for x in vars(module).values() if inspect.isclass(x)]
    assert [x for x in classes if x.__module__ == kind.__module__] == [kind]


def build(**spec):
    return registry.build("fusion", spec, "config.model.fusion", model=MODEL, rngs=nnx.Rngs(0))


@cache
def made(case, **changes):
    """A fusion's description, parameters at random (no zeros), and run(params, *arguments).

    Op by op, without a scan: all fusions compile the same few ops.
    """
    laid_out = dict(unroll=DEPTH) if "depth" in CASES[case] else {}
    fusion = nnx.eval_shape(partial(build, **CASES[case] | laid_out | changes))
    graphdef, state = nnx.split(fusion)
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(state)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), shapes)
    return fusion, params, lambda params, *args: nnx.merge(graphdef, params)(*args)


@cache
def plain(case):
    """What the fusion makes of the first image and text."""
    _, params, run = made(case)
    return run(params, IMAGE_A, TEXT_A)


def gradients(case, **changes):
    """Of a loss in which each entry of what is fused counts differently."""
    _, params, run = made(case, **changes)
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(x.shape).astype("f") for x in jax.tree.leaves(plain(case))]

    def loss(params):
        return sum(map(jnp.vdot, weights, jax.tree.leaves(run(params, IMAGE_A, TEXT_A))))

    return jax.grad(loss)(params)


def encoded(side, seed):
    """A tower's output at random."""
    rng = np.random.default_rng(seed)
    length, mask = (PATCHES, SEEN) if side == "image" else (LENGTH, MASK)
    shape = BATCH, length, getattr(MODEL, side).width
    levels = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(DEPTH)]
    pooled = jnp.asarray(
        rng.standard_normal((BATCH, getattr(MODEL, side).pooled_width)), jnp.float32
    )
    return Encoded(levels[-1], pooled, jnp.asarray(mask), levels=tuple(levels))


IMAGE_A, IMAGE_B = (encoded("image", seed) for seed in (1, 2))
TEXT_A, TEXT_B = (encoded("text", seed) for seed in (3, 4))


def where(which, other, one):
    """Row by row, or token by token: one's arrays where `which`, else the other's."""
    which = jnp.asarray(which)

    def choose(a, b):
        shape = which.shape + (1,) * (a.ndim - which.ndim)
        return jnp.where(which.reshape(shape), b, a)

    return jax.tree.map(choose, other, one)


@every
@pytest.mark.parametrize("masked", [True, False])
def test_tokens_that_fill_up_for_a_kernel_change_nothing(case, masked, monkeypatch):
    _, params, run = made(case)
    pair = [x if masked else x._replace(mask=None) for x in (IMAGE_A, TEXT_A)]
    want = plain(case) if masked else run(params, *pair)
    filled = []

    def longer(kernel, batch, length, width, dtype):
        filled.append(length)
        return -(-length // 8) * 8

    monkeypatch.setattr("mm.models.encoder.aligned_length", longer)
    found = run(params, *pair)
    assert filled or CASES[case]["name"] not in FILLED
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, want)


@every
def test_shapes_are_those_it_tells(case):
    fusion, params, run = made(case)
    fused = jax.eval_shape(run, params, encoded("image", 1)._replace(mask=None), TEXT_A)
    assert fused.pooled.shape == (BATCH, fusion.pooled_width)
    for side, tokens, length in zip(("image", "text"), fused[1:], (PATCHES, LENGTH), strict=True):
        assert (tokens is not None) == (side in fusion.fuses)
        assert tokens is None or tokens.shape == (BATCH, length, fusion.width)


@every
@pytest.mark.parametrize("side", ["image", "text"])
def test_padding_changes_nothing(case, side):
    _, params, run = made(case)
    sides, others = dict(image=IMAGE_A, text=TEXT_A), dict(image=IMAGE_B, text=TEXT_B)
    own = sides[side]
    padded = where(own.mask, others[side][:1] + others[side].levels, own[:1] + own.levels)
    sides_padded = dict(sides, **{side: own._replace(tokens=padded[0], levels=padded[1:])})
    want, got = plain(case), run(params, *sides_padded.values())
    for a, b, mask in zip(got, want, (np.ones(BATCH, bool), SEEN, MASK), strict=True):
        if a is not None:
            np.testing.assert_allclose(a[mask], b[mask], rtol=1e-4, atol=1e-5)


@every
def test_what_is_fused_depends_on_the_other_modality(case):
    fusion, params, run = made(case)
    want = plain(case)
    other = Fused(None, run(params, IMAGE_A, TEXT_B), run(params, IMAGE_B, TEXT_A))
    for side, mask in dict(image=SEEN, text=MASK).items():
        got = getattr(other, side)
        assert (np.abs(got.pooled - want.pooled).max(-1) > 1e-4).all()
        if side in fusion.fuses:
            changed = np.abs(getattr(got, side) - getattr(want, side)).max(-1)
            assert (changed[mask] > 1e-5).all()


@every
def test_rows_do_not_leak(case):
    _, params, run = made(case)
    row, want = np.arange(BATCH) == 1, plain(case)
    got = run(params, where(row, IMAGE_A, IMAGE_B), where(row, TEXT_A, TEXT_B))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[~row], b[~row], rtol=1e-5, atol=1e-6)
        assert not np.allclose(a[row], b[row])


@every
def test_gradients_reach_every_parameter(case):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(case)):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if not path.endswith("key/bias"):  # the same for all keys: softmax does not see it
            layers = leaf if "stack" in path or "blocks" in path else leaf[None]
            assert (np.abs(layers).max(tuple(range(1, layers.ndim))) > 1e-6).all(), path


@pytest.mark.parametrize("name", STACKED)
def test_a_scan_changes_nothing_and_rows_draw_for_themselves(name):
    case = next(i for i, spec in enumerate(CASES) if spec["name"] == name)
    (_, params, run), (*_, scanned) = made(case), made(case, unroll=1)
    row = np.arange(BATCH) == 1
    keys = [example_keys(jax.random.key(seed), BATCH) for seed in (0, 1)]
    mixed = jnp.where(row, keys[1], keys[0])
    want, got = run(params, IMAGE_A, TEXT_A, keys[0]), scanned(params, IMAGE_A, TEXT_A, mixed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[~row], b[~row], rtol=1e-4, atol=1e-5)
        assert not np.allclose(a[row], b[row])


def test_remat_and_a_scan_change_no_gradient():
    case = next(i for i, spec in enumerate(CASES) if spec["name"] == "hierarchical")
    got, want = gradients(case, remat="cheap", unroll=1), gradients(case)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_too_shallow_to_fuse_is_refused(name):
    with pytest.raises(BadInput, match="depth=0: .* see the other modality"):
        build(name=name, **STACK | dict(depth=0))


@pytest.mark.parametrize("name", registry.names("fusion"))
def test_towers_are_fused_in_bfloat16_with_dropped_patches(name):
    fusion = dict(name=name, **POOLED.get(name, STACK))
    image, text = (dict(tower, depth=DEPTH) for tower in (IMAGE, TEXT))
    spec = dict(image=image | dict(pool="cls", width=32), text=text, fusion=fusion)

    def fuse():
        built = model(**spec, dtype="bfloat16")
        keys = example_keys(jax.random.key(0), 2)
        words = jnp.ones((2, 8), jnp.int32)
        image = built.encode_image(jnp.zeros((2, 16, 16, 3), jnp.uint8), keep=0.5, draw=keys)
        return built.fuse(image, built.encode_text(words, mask=words > 0), rng=keys)

    fused = jax.eval_shape(fuse)
    assert {x.dtype for x in jax.tree.leaves(fused)} == {jnp.dtype("bfloat16")}
    assert fused.image is None or fused.image.shape == (2, 3, 8)
