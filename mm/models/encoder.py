"""The stack of pre-norm Transformer blocks that image and text towers share, and their pooling."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from mm.config import BadInput
from mm.models.layers import (
    ACTIVATIONS,
    Activation,
    Attention,
    Dtype,
    Linear,
    Mlp,
    Norm,
    check_rate,
    dropout,
    norm,
    param,
)
from mm.sharding.rules import constrain

Remat = Literal["none", "dots", "full"]
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Encoded(NamedTuple):
    """What every encoder returns: all tokens, one vector, and which tokens are real (None: all)."""

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]
    mask: Bool[Array, "b n"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The stack of blocks: keys that every tower's config has.

    `mlp_dim` is 4 x width by default. `unroll` blocks are laid out one after the other in the
    compiled scan (more is faster on CPU and slower to compile); `remat` says what the backward pass
    recomputes: "none", all but matmuls ("dots"), or everything ("full"). `dropout` is a rate.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int | None = None
    activation: Activation = "gelu"
    norm: Norm = "layer_norm"
    dropout: float = 0.0
    remat: Remat = "none"
    unroll: int = 1
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.width % self.num_heads:
            raise BadInput(
                f"width={self.width} does not divide by num_heads={self.num_heads}; "
                f"change num_heads to a divisor of the width"
            )
        if self.depth < 0 or self.unroll < 1:
            raise BadInput(
                f"depth={self.depth} must be at least 0 and unroll={self.unroll} at least 1"
            )
        check_rate("dropout", self.dropout)

    def make_norm(self, rngs: nnx.Rngs) -> nnx.Module:
        """A norm of the stack's kind and width."""
        return norm(self.norm, self.width, rngs=rngs)

    def make_attention(self, rngs: nnx.Rngs) -> Attention:
        """An attention layer of the stack's heads."""
        return Attention(self.width, self.num_heads, dtype=self.dtype, rngs=rngs)

    def make_mlp(self, rngs: nnx.Rngs) -> Mlp:
        """An MLP of the stack's size."""
        hidden = self.mlp_dim or 4 * self.width
        return Mlp(self.width, hidden, activation=self.activation, dtype=self.dtype, rngs=rngs)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm: Xiong et al. 2020)."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.attention_norm = spec.make_norm(rngs)
        self.attention = spec.make_attention(rngs)
        self.mlp_norm = spec.make_norm(rngs)
        self.mlp = spec.make_mlp(rngs)
        self.dropout_rate = spec.dropout

    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b #h #n n"] | None,
        key: Array | None = None,
    ) -> Float[Array, "b n d"]:
        keys = (None, None) if key is None else jax.random.split(key)
        y = self.attention_norm(x)
        x = x + dropout(self.attention(y, y, mask), self.dropout_rate, keys[0])
        y = self.mlp(self.mlp_norm(x))
        return constrain(x + dropout(y, self.dropout_rate, keys[1]), "batch", "tokens", "width")


class Encoder(nnx.Module):
    """Blocks stored stacked along a leading "layers" axis, scanned, then a final norm."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.blocks = stack(partial(Block, spec), spec.depth, rngs) if spec.depth else None
        self.final_norm = spec.make_norm(rngs)
        self.depth, self.remat, self.unroll = spec.depth, spec.remat, spec.unroll

    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b #h #n n"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b n d"]:
        if self.depth:
            x = self._scan(x, mask, key)
        return self.final_norm(x)

    def _scan(self, x: Array, mask: Array | None, key: Array | None) -> Array:
        graphdef, params = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, self.depth)

        def apply(x, layer):
            params, key = layer
            return nnx.merge(graphdef, params)(x, mask, key), None

        if self.remat != "none":
            # Inside a scan nothing can move between the passes, so the guard only costs time.
            apply = jax.checkpoint(apply, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(apply, x, (params, keys), unroll=min(self.unroll, self.depth))[0]


def stack(make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules made by `make(rngs=...)`, each parameter with a leading "layers" axis."""
    keys = jax.random.split(rngs.params(), depth)
    stacked = nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)
    for _, variable in nnx.iter_graph(stacked):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return stacked


class AttentionPool(nnx.Module):
    """One learned query attends to the tokens, then an MLP (MAP head: Zhai et al. 2022)."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        xavier = jax.nn.initializers.xavier_uniform()
        self.probe = param(rngs, xavier, (1, spec.width), (None, "embed"))
        self.attention = spec.make_attention(rngs)
        self.norm = spec.make_norm(rngs)
        self.mlp = spec.make_mlp(rngs)

    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...], (len(tokens), *self.probe.shape))
        x = self.attention(
            probe.astype(tokens.dtype), tokens, None if mask is None else mask[:, None, None, :]
        )
        return (x + self.mlp(self.norm(x)))[:, 0]


class FlattenPool(nnx.Module):
    """All tokens side by side through one hidden layer: [b, n, width] to [b, hidden]."""

    def __init__(
        self,
        spec: EncoderSpec,
        num_tokens: int,
        hidden: int,
        dropout_rate: float,
        *,
        rngs: nnx.Rngs,
    ):
        check_rate("pool_dropout", dropout_rate)
        axes = ("tokens", "embed", "mlp")
        self.hidden = Linear((num_tokens, spec.width), (hidden,), axes, dtype=spec.dtype, rngs=rngs)
        self.activation, self.dropout_rate = spec.activation, dropout_rate

    def __call__(
        self, tokens: Float[Array, "b n d"], key: Array | None = None
    ) -> Float[Array, "b m"]:
        x = ACTIVATIONS[self.activation](self.hidden(tokens))
        return dropout(x, self.dropout_rate, key)


def mean_pool(
    tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
) -> Float[Array, "b d"]:
    """Mean over the real tokens; zero for a row that has none."""
    if mask is None:
        return tokens.mean(1)
    weights = mask.astype(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def last_pool(tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The last real token, where a causal tower has read everything."""
    last = jnp.maximum(mask.sum(1) - 1, 0)
    return jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]
