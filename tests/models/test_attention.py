"""Attention against numpy in float64, and what chooses its kernel and what it keeps."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.kernels.short_attention import padded_length
from mm.models import attention
from mm.models.attention import attend, choose, einsum_attention, library_attention
from mm.models.block import Attention, EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.remat import RESIDUALS
from mm.planning.flops import count_flops

# b n m h k: one head, few, heads that share a register (64 of 128 lanes) and loop over registers;
# blocks of one example and of four.
SHAPES = [(2, 16, 16, 2, 4), (1, 16, 48, 3, 8), (3, 32, 16, 1, 16), (4, 12, 12, 4, 6),
          (4, 4, 20, 4, 64)]  # fmt: skip


def reference(q, k, v, mask, causal):
    """Value in float64. A query that sees nothing gets the mean."""
    scores = np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(q.shape[-1])
    seen = np.ones_like(scores, bool)
    if mask is not None:
        seen &= mask[:, None, None]
    if causal:
        seen &= np.tril(np.ones(scores.shape[2:], bool))
    scores = np.where(seen, scores, -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhk->bnhk", weights, v)


def inputs(shape, masked):
    b, n, m, h, k = shape
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((b, length, h, k)) for length in (n, m, m))
    mask = rng.random((b, m)) > 0.4 if masked else None
    if masked:
        mask[0] = False
    return q, k, v, mask


def single(*arrays):
    return [None if a is None else jnp.asarray(a, a.dtype if a.dtype == bool else jnp.float32)
            for a in arrays]  # fmt: skip


each_case = pytest.mark.parametrize(
    ("shape", "masked", "causal"),
    [(s, masked, causal) for s in SHAPES for masked in (False, True) for causal in (False, True)
     if not causal or s[1] == s[2]],
)  # fmt: skip


@each_case
def test_einsum_attention_is_the_formula(shape, masked, causal):
    q, k, v, mask = inputs(shape, masked)
    got = einsum_attention(*single(q, k, v, mask), causal)
    np.testing.assert_allclose(got, reference(q, k, v, mask, causal), rtol=1e-4, atol=1e-5)


@each_case
def test_library_attention_takes_our_masks(shape, masked, causal):
    """With the implementation that a CPU has; cuDNN's takes the same arguments."""
    q, k, v, mask = inputs(shape, masked)
    if masked:
        mask[:, 0] = True  # it says nothing of a query that sees nothing
    got = library_attention(*single(q, k, v, mask), causal, implementation="xla")
    np.testing.assert_allclose(got, reference(q, k, v, mask, causal), rtol=1e-4, atol=1e-5)


def test_an_encoder_with_the_kernel_is_the_encoder_with_einsums(monkeypatch):
    """Tokens that fill up an example to the kernel's blocks are masked, then cut off."""
    spec = dict(width=16, depth=2, num_heads=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 19, 16)), jnp.float32)
    mask = jnp.arange(19) < jnp.asarray([[19], [7]])
    want = Encoder(EncoderSpec(**spec, attention="einsum"), rngs=nnx.Rngs(0))(x, mask)
    monkeypatch.setattr(attention, "_on_tpus", interpreted)
    assert padded_length(2, 19, 16) == 24
    for kernel in ("short", "splash"):
        encoder = Encoder(EncoderSpec(**spec, attention=kernel), rngs=nnx.Rngs(0))
        np.testing.assert_allclose(encoder(x, mask), want, rtol=1e-4, atol=1e-5)


def interpreted(kernel, function, q, k, v, mask, batch, num_heads, causal):
    return function(q, k, v, mask, batch=batch, num_heads=num_heads, causal=causal, interpret=True)


def test_no_remat_preset_that_keeps_attention_computes_it_again(monkeypatch):
    monkeypatch.setattr(attention, "_on_tpus", interpreted)

    def flops(remat, kernel):
        spec = EncoderSpec(width=16, depth=2, num_heads=2, attention=kernel, remat=remat)
        graphdef, params = nnx.split(Encoder(spec, rngs=nnx.Rngs(0)))
        x = jnp.zeros((2, 16, 16))
        loss = jax.grad(lambda params: nnx.merge(graphdef, params)(x).sum())
        return count_flops(jax.make_jaxpr(loss)(nnx.to_pure_dict(params)))

    for kernel in ("short", "splash"):
        assert flops("cheap", kernel) == flops("none", kernel) < flops("full", kernel)


def test_a_kernel_is_chosen_by_platform_length_and_type():
    bf16 = jnp.bfloat16
    assert choose("tpu", 196, 196, 768, bf16) == "short"
    assert choose("tpu", 729, 729, 1152, bf16) == "short"
    assert choose("tpu", 4096, 4096, 768, bf16) == "splash"
    assert choose("tpu", 1, 196, 768, bf16) == "einsum"  # the probe of attention pooling
    assert choose("cpu", 196, 196, 768, bf16) == "einsum"
    assert choose("gpu", 196, 196, 768, bf16) == "cudnn"
    assert choose("gpu", 196, 196, 768, jnp.float32) == "einsum"


def test_the_choice_of_a_kernel_is_logged_once(caplog):
    q = jnp.zeros((3, 40))
    with caplog.at_level(logging.INFO, "mm.attention"):
        attend(q, q, q, batch=1, num_heads=5)
        attend(q, q, q, batch=1, num_heads=5)
    assert caplog.messages == ["einsum on cpu: 3 queries, 3 keys, heads of 8"]


@pytest.mark.parametrize("kernel", ["short", "splash"])
def test_a_tpu_kernel_is_refused_on_another_platform(kernel):
    q = jnp.zeros((16, 8))
    with pytest.raises(BadInput, match=f"'{kernel}' runs on TPUs"):
        attend(q, q, q, batch=1, num_heads=2, kernel=kernel)


def test_heads_side_by_side_give_what_separate_heads_give():
    layer = Attention(EncoderSpec(width=8, depth=1, num_heads=2), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 8))
    weights = {name: np.asarray(getattr(layer, name).kernel[...], np.float64)
               for name in ("query", "key", "value", "out")}  # fmt: skip
    q, k, v = (np.einsum("bnd,dhk->bnhk", x, weights[name]) for name in ("query", "key", "value"))
    want = np.einsum("bnhk,hkd->bnd", reference(q, k, v, None, False), weights["out"])
    flat = jnp.asarray(x.reshape(6, 8), jnp.float32)
    got = layer(flat, flat, batch=2)
    np.testing.assert_allclose(got, want.reshape(6, 8), rtol=1e-4, atol=1e-5)


def saved_bytes(remat):
    """What the backward pass of an encoder keeps beside its arguments."""
    encoder = Encoder(EncoderSpec(width=16, depth=2, num_heads=2, remat=remat), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(encoder)
    x = jnp.zeros((4, 8, 16))

    def residuals(params, x):
        return jax.vjp(lambda x: nnx.merge(graphdef, params)(x), x)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, nnx.to_pure_dict(params), x))
    return sum(leaf.size for leaf in kept if leaf.shape[:2] == (2, 4 * 8))


def test_presets_of_remat_keep_less_and_less():
    sizes = [saved_bytes(remat) for remat in ("none", "cheap", "hidden", "full")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    tokens, width, moments = 2 * 4 * 8, 16, 2 * 2
    want = [(1 + 5 + 4) * width + moments, (1 + 5) * width + moments, width]
    assert sizes[1:] == [tokens * numbers for numbers in want]


def test_lists_of_residuals_say_what_is_kept():
    rest = [name for name in RESIDUALS if name != "query"]
    assert saved_bytes(dict(save=["query"], recompute=rest)) == 2 * 2 * 4 * 8 * 16


@pytest.mark.parametrize(
    ("remat", "says"),
    [
        (dict(save=["querry"]), "no residual 'querry'; did you mean 'query'?"),
        (dict(save=["query"], recompute=RESIDUALS), "'query' is in two"),
        (dict(save=RESIDUALS[1:]), "does not say what to do with ['moments']"),
        (dict(keep=["query"]), "unknown key 'keep'"),
    ],
)
def test_wrong_lists_of_residuals_are_refused(remat, says):
    with pytest.raises(BadInput) as caught:
        EncoderSpec(width=8, depth=1, num_heads=2, remat=remat)
    assert says in str(caught.value)


def test_offloaded_residuals_go_to_the_hosts_memory():
    rest = [name for name in RESIDUALS if name != "hidden"]
    remat = dict(offload=["hidden"], recompute=rest)
    encoder = Encoder(EncoderSpec(width=16, depth=2, num_heads=2, remat=remat), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(encoder)

    def loss(params, x):
        return nnx.merge(graphdef, params)(x).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(nnx.to_pure_dict(params), jnp.zeros((4, 8, 16))))
    assert "pinned_host" in jaxpr or "<host>" in jaxpr


def test_recorded_weights_are_those_that_were_used_and_change_nothing():
    spec = EncoderSpec(width=8, depth=3, num_heads=2, remat="full")
    encoder = Encoder(spec, memory_width=6, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = (jnp.asarray(rng.standard_normal((2, *s)), jnp.float32) for s in ((5, 8), (7, 6)))
    mask = jnp.arange(7) < jnp.array([[7], [4]])

    @jax.jit
    def look(x, memory):
        with attention.recording() as found:
            out = encoder(x, memory=Encoded(memory, memory[:, 0], mask))
        return out, [each.weights for each in found], jnp.array([each.of_itself for each in found])

    out, weights, of_itself = look(x, memory)
    plain = encoder(x, memory=Encoded(memory, memory[:, 0], mask))
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    assert of_itself.tolist() == [True, False] * 3  # of each block, its own first
    assert [w.shape for w in weights] == [(2, 2, 5, 5), (2, 2, 5, 7)] * 3
    for found in weights:
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert not weights[1][1, ..., 4:].any() and weights[1][0, ..., 4:].all()  # the mask
    assert not attention.is_recording()


def test_a_probe_is_added_to_the_weights_that_are_applied():
    layer = Attention(EncoderSpec(width=8, depth=1, num_heads=2), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2 * 5, 8)), jnp.float32)

    def out(probe):
        with attention.recording([probe]) as found:
            return layer(x, x, batch=2).sum(), found[0].weights

    zeros = jnp.zeros((2, 2, 5, 5))
    gradient, weights = jax.grad(out, has_aux=True)(zeros)
    assert out(zeros)[0] == layer(x, x, batch=2).sum()
    probe = zeros.at[1, 0, 3, 2].set(0.5)
    np.testing.assert_allclose(out(probe)[1], weights + probe)
    # Linear in the weights, so the difference is the gradient.
    found = (out(probe)[0] - out(zeros)[0]) / 0.5
    np.testing.assert_allclose(found, gradient[1, 0, 3, 2], rtol=1e-3)


def test_recorded_weights_are_the_softmax_of_the_scores():
    layer = Attention(EncoderSpec(width=8, depth=1, num_heads=2), 6, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2 * 5, 8), (2 * 7, 6)))
    with attention.recording() as found:
        layer(x, memory, batch=2)
    q, k = np.asarray(layer.query(x)), np.asarray(layer.key(memory))
    for example in range(2):
        for head in range(2):
            columns = slice(4 * head, 4 * head + 4)
            scores = q[5 * example : 5 * example + 5, columns] @ (
                k[7 * example : 7 * example + 7, columns].T / 2.0
            )
            want = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            np.testing.assert_allclose(found[0].weights[example, head], want, rtol=1e-4, atol=1e-6)
