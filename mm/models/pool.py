"""From tokens to one vector."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from mm.models.block import Attention, EncoderSpec, Mlp
from mm.models.keys import Keys
from mm.models.layers import ACTIVATIONS, Linear, dropout, param


class AttentionPool(nnx.Module):
    """One learned query attends to the tokens, then an MLP (MAP head: Zhai et al. 2022)."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        xavier = jax.nn.initializers.xavier_uniform()
        self.probe = param(rngs, xavier, (1, spec.width), (None, "embed"))
        self.attention = Attention(spec, rngs=rngs)
        self.norm = spec.make_norm(rngs)
        self.mlp = Mlp(spec, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        batch, _, width = tokens.shape
        probe = jnp.broadcast_to(self.probe[...], (batch, width)).astype(tokens.dtype)
        x = self.attention(probe, tokens.reshape(-1, width), mask, batch=batch)
        return x + self.mlp(self.norm(x))


class FlattenPool(nnx.Module):
    """All tokens side by side through one hidden layer: [b, n, width] to [b, hidden]."""

    def __init__(
        self, spec: EncoderSpec, num_tokens: int, hidden: int, rate: float, *, rngs: nnx.Rngs
    ):
        axes = ("tokens", "embed", "mlp")
        self.hidden = Linear((num_tokens, spec.width), (hidden,), axes, dtype=spec.dtype, rngs=rngs)
        self.activation, self.dropout_rate = spec.activation, rate

    def __call__(
        self, tokens: Float[Array, "b n d"], keys: Keys | None = None
    ) -> Float[Array, "b m"]:
        x = ACTIVATIONS[self.activation](self.hidden(tokens.reshape(len(tokens), -1)))
        return dropout(x, self.dropout_rate, keys)


class Pooler(nnx.Module):
    """tanh of a layer of the pooled vector (BERT: Devlin et al. 2019, its released code)."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        sizes = (spec.width,), (spec.width,)
        self.layer = Linear(*sizes, ("embed", "mlp"), dtype=spec.dtype, rngs=rngs)

    def __call__(self, pooled: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return jnp.tanh(self.layer(pooled))


def mean_pool(
    tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
) -> Float[Array, "b d"]:
    """Mean over the real tokens; zero for a row that has none."""
    if mask is None:
        return tokens.mean(1)
    weights = mask.astype(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def last_pool(tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The last real token, where a causal tower has read everything; before it some may be none."""
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), axis=1)
    return jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]


def first_pool(tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The first token, where BERT's tokenizer puts [CLS]."""
    return tokens[:, 0]


POOLS = {"first": first_pool, "last": last_pool, "mean": mean_pool}
