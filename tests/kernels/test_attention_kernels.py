"""The Pallas kernels of attention against numpy in float64, interpreted on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm.kernels.short_attention import examples_of_block, padded_length, short_attention
from mm.kernels.splash_attention import splash_attention, whole_blocks
from mm.models.attention import einsum_attention
from tests.models.test_attention import each_case, inputs, reference, single


def short(q, k, v, mask=None, causal=False):
    """The kernel on arrays [b, n, h, k]."""
    flat = [x.reshape(-1, x.shape[2] * x.shape[3]) for x in (q, k, v)]
    b, _, h, _ = q.shape
    out = short_attention(*flat, mask, batch=b, num_heads=h, causal=causal, interpret=True)
    return out.reshape(q.shape)


@each_case
def test_the_short_kernel_is_the_formula(shape, masked, causal):
    q, k, v, mask = inputs(shape, masked)
    got = short(*single(q, k, v, mask), causal)
    np.testing.assert_allclose(got, reference(q, k, v, mask, causal), rtol=1e-4, atol=1e-5)


@each_case
def test_the_short_kernels_gradients_are_those_of_the_einsum(shape, masked, causal):
    *arrays, mask = single(*inputs(shape, masked))
    target = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)

    def gradients(attention):
        return jax.grad(lambda *a: (attention(*a) * target).sum(), (0, 1, 2))(*arrays)

    got = gradients(lambda *a: short(*a, mask, causal))
    want = gradients(lambda *a: einsum_attention(*a, mask, causal))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Less than a block, more than one, and other numbers of queries than of keys.
LONG = [(2, 40, 40, 2, 64), (1, 300, 300, 2, 8), (1, 16, 600, 1, 72)]


def splash(q, k, v, mask=None, causal=False):
    """The kernel on arrays [b, n, h, k]."""
    flat = [x.reshape(-1, x.shape[2] * x.shape[3]) for x in (q, k, v)]
    b, _, h, _ = q.shape
    out = splash_attention(*flat, mask, batch=b, num_heads=h, causal=causal, interpret=True)
    return out.reshape(q.shape)


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, False), (False, True)])
def test_the_kernel_for_long_sequences_is_the_formula_in_values_and_gradients(
    shape, masked, causal
):
    if causal and shape[1] != shape[2]:
        pytest.skip("causal attention is of a sequence over itself")
    *wide, mask = inputs(shape, masked)
    if masked:
        mask[:, 0] = True
    *arrays, seen = single(*wide, mask)
    np.testing.assert_allclose(
        splash(*arrays, seen, causal), reference(*wide, mask, causal), rtol=1e-3, atol=1e-4
    )
    target = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)

    def gradients(attention):
        return jax.grad(lambda *a: (attention(*a, seen, causal) * target).sum(), (0, 1, 2))(*arrays)

    for a, b in zip(gradients(splash), gradients(einsum_attention), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_kernel_for_long_sequences_makes_no_nan_where_nothing_is_seen():
    *arrays, _ = single(*inputs(LONG[0], False))
    seen = jnp.zeros((2, 40), bool).at[1].set(True)
    gradients = jax.grad(lambda *a: splash(*a, seen).sum(), (0, 1, 2))(*arrays)
    for x in (splash(*arrays, seen), *gradients):
        assert jnp.isfinite(x).all()


@pytest.mark.parametrize(
    ("length", "whole"),
    [(40, (256, 256)), (1025, (1152, 384)), (2304, (2304, 768)), (4097, (4480, 896))],
)
def test_examples_are_filled_up_to_few_large_blocks(length, whole):
    assert whole_blocks(length) == whole


def test_the_short_kernel_in_bfloat16_is_close_to_float32():
    q, k, v, _ = inputs((2, 32, 32, 4, 6), False)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    got = short(*half)
    assert got.dtype == jnp.bfloat16
    want = reference(*(np.asarray(x, np.float64) for x in half), None, False)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("batch", "length", "width", "examples", "padded"),
    [
        (128, 196, 768, 4, 196),  # 4 x 196 rows fill whole registers of 16
        (128, 64, 768, 1, 64),
        (64, 729, 1152, 1, 736),  # 16 examples of 729 are too large for a block
        (128, 197, 768, 0, 198),
        (48, 321, 1408, 0, 328),  # 4 of 324 do not fit a v5p in the backward pass
        (6, 196, 768, 0, 200),  # 6 examples do not divide into blocks of 4
    ],
)
def test_blocks_are_aligned_examples_that_fit(batch, length, width, examples, padded):
    assert padded_length(batch, length, width) == padded
    assert examples_of_block(batch, padded, width) * padded % 16 == 0
    if examples:
        assert examples_of_block(batch, padded, width) == examples
