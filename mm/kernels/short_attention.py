"""Attention for sequences that fit on a chip: one Pallas kernel for TPU, forward and backward.

XLA writes the scores of each head to memory, several times and in several layouts, which for a few
hundred tokens costs more than all the arithmetic. Here queries, keys and values of some examples
are read once, as the projections make them: tokens of all examples one below the other, heads side
by side. Scores live and die on the chip; the backward pass computes them again (FlashAttention, Dao
et al. 2022, without its tiles).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float

# Beyond this the scores of a head and what is derived from them do not fit beside the operands.
MAX_LENGTH = 1024
_VMEM_BYTES = 100 << 20  # for a kernel; a v5e has 128 MiB, a v5p 64
# Of one operand, of which a backward pass holds fourteen, beside 22 MiB that spill from registers
# where heads of 88 numbers fill whole registers only 16 at a time (BEiT-3's and CoCa's giants).
_BLOCK_BYTES = 5 << 19
_ROWS, _LANES = 16, 128  # of a register of bfloat16
_LOWEST = float(np.finfo(np.float32).min)


def short_attention(
    q: Float[Array, "bn d"],
    k: Float[Array, "bm d"],
    v: Float[Array, "bm d"],
    mask: Bool[Array, "b m"] | None = None,
    *,
    batch: int,
    num_heads: int,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "bn d"]:
    """softmax(Q K^T / sqrt(k)) V with the softmax in float32; True in `mask` means may be seen.

    `causal`: query i sees keys 0 .. i. A query that sees nothing gets the mean of the values. At
    most MAX_LENGTH queries and keys an example, as many as `padded_length` says. interpret: run it
    without a TPU, for tests.
    """
    lengths = len(q) // batch, len(k) // batch
    examples = max(examples_of_block(batch, length, q.shape[1]) for length in lengths)
    if mask is not None:  # Pallas wants the last two dimensions of a block whole or aligned
        mask = mask.astype(jnp.float32).reshape(batch // examples, examples, -1)
    static = _Static(batch, examples, num_heads, causal, interpret)
    return _attention(static, q, k, v, mask)


def padded_length(batch: int, length: int, width: int) -> int:
    """The least length, from `length` on, at which examples can be cut into aligned blocks."""
    while not examples_of_block(batch, length, width):
        length += 1
    return length


def examples_of_block(batch: int, length: int, width: int) -> int:
    """The least number of examples whose rows fill whole registers; 0 if they are too many."""
    examples = _ROWS // math.gcd(length, _ROWS)
    fits = examples * length * width * 2 <= _BLOCK_BYTES
    return examples if examples == 1 or (fits and batch % examples == 0) else 0


class _Static(NamedTuple):
    """What a kernel is made for. examples: of a block."""

    batch: int
    examples: int
    heads: int
    causal: bool
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, mask):
    return _forward(static, q, k, v, mask)[0]


def _forward(static, q, k, v, mask):
    out = _call(_forward_kernel, static, (q, k, v), mask, [q], matmuls=2)[0]
    return out, (q, k, v, mask)


def _backward(static, residuals, gradient):
    q, k, v, mask = residuals
    grads = _call(_backward_kernel, static, (q, k, v, gradient), mask, [q, k, v], matmuls=5)
    return *grads, None if mask is None else jnp.zeros_like(mask)


_attention.defvjp(_forward, _backward)


def _call(kernel, static, operands, mask, results, *, matmuls: int):
    """Runs the kernel once a block of examples; `results` are arrays of the shapes it writes."""
    batch, examples, heads, causal, interpret = static
    q, k = operands[:2]
    inputs = operands if mask is None else (*operands, mask)
    blocks = batch // examples

    def block(x: Array) -> pl.BlockSpec:
        if x.ndim == 3:
            return pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0))
        return pl.BlockSpec((len(x) // blocks, x.shape[1]), lambda i: (i, 0))

    def with_mask(*refs):
        # A kernel takes its operands, then the mask or None, then what it writes.
        count = len(operands)
        refs = refs if mask is not None else (*refs[:count], None, *refs[count:])
        kernel(*refs, examples=examples, heads=heads, causal=causal)

    pairs = len(q) * len(k) // batch
    cost = pl.CostEstimate(
        flops=2 * matmuls * pairs * q.shape[1],
        transcendentals=pairs * heads,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *results)),
    )
    return pl.pallas_call(
        with_mask,
        grid=(blocks,),
        in_specs=[block(x) for x in inputs],
        out_specs=[block(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=_VMEM_BYTES
        ),
        cost_estimate=cost,
        interpret=interpret,
        name="short_attention" if matmuls == 2 else "short_attention_backward",
    )(*inputs)


def _forward_kernel(q_ref, k_ref, v_ref, mask_ref, out_ref, *, examples, heads, causal):
    def group(lanes, parts):
        for example in range(examples):
            here, there = _rows(q_ref, example, examples), _rows(k_ref, example, examples)
            q, k, v = q_ref[here, lanes], k_ref[there, lanes], v_ref[there, lanes]
            outs = []
            for part in parts:
                seen = _seen(mask_ref, example, (len(q), len(k)), causal)
                weights = _softmax(q[:, part], k[:, part], seen)
                outs.append(_dot(weights.astype(v.dtype), v[:, part], 1, 0))
            out_ref[here, lanes] = _side_by_side(outs, out_ref)

    _each_group(q_ref, heads, group)


def _backward_kernel(
    q_ref, k_ref, v_ref, g_ref, mask_ref, dq_ref, dk_ref, dv_ref, *, examples, heads, causal
):
    def group(lanes, parts):
        for example in range(examples):
            here, there = _rows(q_ref, example, examples), _rows(k_ref, example, examples)
            q_group, g_group = q_ref[here, lanes], g_ref[here, lanes]
            k_group, v_group = k_ref[there, lanes], v_ref[there, lanes]
            dq, dk, dv = [], [], []
            for part in parts:
                q, k, v, g = (x[:, part] for x in (q_group, k_group, v_group, g_group))
                seen = _seen(mask_ref, example, (len(q), len(k)), causal)
                weights = _softmax(q, k, seen)
                dv.append(_dot(weights.astype(v.dtype), g, 0, 0))
                dweights = _dot(g, v, 1, 1)
                mean = jnp.sum(dweights * weights, axis=1, keepdims=True)
                dscores = weights * (dweights - mean) * _scale(q)
                if seen is not None:  # of a query that sees nothing, weights are not zero
                    dscores = jnp.where(seen, dscores, 0)
                dscores = dscores.astype(q.dtype)
                dq.append(_dot(dscores, k, 1, 0))
                dk.append(_dot(dscores, q, 0, 0))
            dq_ref[here, lanes] = _side_by_side(dq, dq_ref)
            dk_ref[there, lanes] = _side_by_side(dk, dk_ref)
            dv_ref[there, lanes] = _side_by_side(dv, dv_ref)

    _each_group(q_ref, heads, group)


def _rows(ref, example: int, examples: int) -> slice:
    """The tokens of one example."""
    length = ref.shape[0] // examples
    return slice(example * length, (example + 1) * length)


def _each_group(ref, heads: int, function) -> None:
    """function(columns of a group, where each of its heads is in them), for all groups of heads.

    A group is as many heads as fill whole registers: of 64 columns two, of 128 one.
    """
    size = ref.shape[1] // heads
    width = math.lcm(size, _LANES)
    if ref.shape[1] % width:  # too narrow for registers; all heads at once
        width = ref.shape[1]
    parts = [slice(start, start + size) for start in range(0, width, size)]
    groups = ref.shape[1] // width
    if groups == 1:
        function(slice(None), parts)
        return

    def body(i, _):
        function(pl.ds(pl.multiple_of(i * width, width), width), parts)

    jax.lax.fori_loop(0, groups, body, None)


def _side_by_side(parts, ref) -> Array:
    parts = [part.astype(ref.dtype) for part in parts]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _scale(q: Array) -> float:
    return 1 / math.sqrt(q.shape[-1])


def _seen(mask_ref, example: int, shape: tuple[int, int], causal: bool) -> Array | None:
    """Which pairs [n, m] count; None for all."""
    seen = None
    if mask_ref is not None:
        seen = jnp.broadcast_to(mask_ref[0, example : example + 1], shape) > 0
    if causal:
        rows = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        past = jax.lax.broadcasted_iota(jnp.int32, shape, 1) <= rows
        seen = past if seen is None else seen & past
    return seen


def _softmax(q: Array, k: Array, seen: Array | None) -> Array:
    """The weights of one head [n, m]."""
    scores = _dot(q, k, 1, 1) * _scale(q)
    if seen is not None:
        scores = jnp.where(seen, scores, _LOWEST)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=1, keepdims=True)


def _dot(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    """a . b over those dimensions, summed up in float32."""
    dimensions = (((contract_a,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
