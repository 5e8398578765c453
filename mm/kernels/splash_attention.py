"""JAX's splash attention for TPUs, on tokens as our layers hold them: for long sequences."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Bool, Float

BLOCKS = range(1024, 128, -128)  # of queries, and of keys
FILLING = 1 / 8  # of a sequence, at most; a larger block is faster, and needs less memory


def splash_attention(
    q: Float[Array, "bn d"],
    k: Float[Array, "bm d"],
    v: Float[Array, "bm d"],
    mask: Bool[Array, "b m"] | None = None,
    *,
    batch: int,
    num_heads: int,
    causal: bool = False,
    residual: str | None = None,
    interpret: bool = False,
) -> Float[Array, "bn d"]:
    """softmax(Q K^T / sqrt(k)) V a tile at a time, without the scores' n x m (Dao et al. 2022).

    Its backward pass holds a copy of Q for each block of keys.

    True in `mask`: may be seen. `causal`: query i sees keys 0 .. i. A query that sees nothing gets
    some finite vector. Examples are filled up to whole blocks. residual: the name under which
    `jax.checkpoint` knows the result and the logarithms of the sums, both of which the backward
    pass needs. interpret: run it without a TPU, for tests.
    """
    queries, keys, head = len(q) // batch, len(k) // batch, q.shape[1] // num_heads
    (n, block_q), (m, block_kv) = whole_blocks(queries), whole_blocks(keys)
    shape = (num_heads, n, m)
    see = masks.CausalMask(shape[1:]) if causal else masks.FullMask(shape[1:])
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([see] * num_heads),
        block_sizes=kernels.BlockSizes(
            block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
            block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1, q_seq_shards=1, residual_checkpoint_name=residual, interpret=interpret,
    )  # fmt: skip

    def by_head(x: Array, length: int) -> Array:
        x = x.reshape(batch, -1, num_heads, head).swapaxes(1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    # A query sees the keys of its segment: real ones are 1, and so are all queries.
    real = jnp.ones((batch, keys), jnp.int32) if mask is None else mask.astype(jnp.int32)
    real = jnp.pad(real, ((0, 0), (0, m - keys)))
    everyone = jnp.ones((batch, n), jnp.int32)
    q = (q.astype(jnp.float32) * head**-0.5).astype(q.dtype)
    out = jax.vmap(kernel)(
        by_head(q, n), by_head(k, m), by_head(v, m), kernels.SegmentIds(everyone, real)
    )
    return out[:, :, :queries].swapaxes(1, 2).reshape(batch * queries, -1).astype(v.dtype)


def whole_blocks(length: int) -> tuple[int, int]:
    """(the length of whole blocks, the block): the largest block that is filled up little."""
    pairs = [(-(-length // block) * block, block) for block in BLOCKS]
    near = [pair for pair in pairs if pair[0] <= length * (1 + FILLING)]
    return max(near, key=lambda pair: pair[1]) if near else min(pairs)
