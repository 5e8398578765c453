"""A stack of blocks one token at a time: keys and values of what was read are kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm.models.attention import attend
from mm.models.block import Attention, Block, Draw
from mm.models.encoder import Encoded, Encoder, flat
from mm.sharding.rules import constrain


class Cache(NamedTuple):
    """Keys and values of each layer: [layers, b, m, d]."""

    keys: Array
    values: Array


def empty_cache(encoder: Encoder, rows: int, length: int) -> Cache:
    """Room for `length` tokens of `rows` sequences."""
    layer = encoder.blocks.attention.key
    zeros = jnp.zeros((encoder.depth, rows, length, layer.outputs), layer.dtype)
    return Cache(*(constrain(zeros, None, "batch"),) * 2)


def read(encoder: Encoder, memory: Encoded) -> Cache:
    """The memory's keys and values for the cross-attention of each layer."""
    graphdef, params = nnx.split(encoder.blocks)
    batch, x = len(memory.tokens), flat(memory.tokens)

    def project(_: None, params: nnx.State) -> tuple[None, Cache]:
        cross = nnx.merge(graphdef, params).cross
        found = cross.project("key", x, batch), cross.value(x)
        return None, Cache(*(y.reshape(batch, -1, y.shape[1]) for y in found))

    return jax.lax.scan(project, None, params)[1]


def step(
    encoder: Encoder,
    x: Float[Array, "r d"],
    cache: Cache,
    place: Int[Array, ""],
    memory: Cache | None = None,
    memory_mask: Bool[Array, "b m"] | None = None,
) -> tuple[Float[Array, "r d"], Cache]:
    """One more token of each sequence through a causal stack, what came before it being cached.

    Of r / b sequences for each row of the memory. It equals `encoder` at that place.
    """
    graphdef, params = nnx.split(encoder.blocks)
    rows, length = cache.keys.shape[1:3]
    past, draw = jnp.broadcast_to(jnp.arange(length) <= place, (rows, length)), Draw(rows)

    def run(carry: tuple[Array, Cache], layer: tuple) -> tuple[tuple[Array, Cache], None]:
        x, cache = carry
        params, number, memory = layer
        block: Block = nnx.merge(graphdef, params)

        def attend_to_past(y: Array) -> Array:
            nonlocal cache
            new = block.attention.project("key", y, rows), block.attention.value(y)
            cache = Cache(*(c.at[number, :, place].set(n) for c, n in zip(cache, new, strict=True)))
            return look(block.attention, y, Cache(*(c[number] for c in cache)), past)

        def attend_to_memory(y: Array) -> Array:
            return look(block.cross, y, memory, memory_mask)

        x = block.attention_branch(x, attend_to_past, draw)
        if block.cross is not None:
            x = block.cross_branch(x, attend_to_memory, draw)
        return (block.mlp_branch(x, block.mlp, draw), cache), None

    layers = params, jnp.arange(encoder.depth), memory
    (x, cache), _ = jax.lax.scan(run, (x, cache), layers)
    return x if encoder.final_norm is None else encoder.final_norm(x), cache


def look(
    attention: Attention, y: Float[Array, "r d"], seen: Cache, mask: Bool[Array, "b m"] | None
) -> Float[Array, "r d"]:
    """Attention to keys and values [b, m, d] of one layer."""
    batch = len(seen.keys)
    out = attend(
        attention.project("query", y, batch), flat(seen.keys), flat(seen.values), mask,
        batch=batch, num_heads=attention.num_heads, kernel="einsum",
    )  # fmt: skip
    return attention.out(out)
