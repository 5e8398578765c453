"""The stack of pre-norm Transformer blocks that image and text towers share, and their pooling."""

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


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm: Xiong et al. 2020)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: Activation,
        norm_kind: Norm,
        dropout_rate: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = norm(norm_kind, width, rngs=rngs)
        self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm(norm_kind, width, rngs=rngs)
        self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)
        self.dropout_rate = dropout_rate

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
    """`depth` blocks, stored stacked along a leading "layers" axis, scanned, then a final norm.

    `unroll` blocks are laid out one after the other in the compiled scan (more is faster on CPU and
    slower to compile); `remat` says what the backward pass recomputes: "none", all but matmuls
    ("dots"), or everything ("full").
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int | None = None,
        activation: Activation = "gelu",
        norm_kind: Norm = "layer_norm",
        dropout_rate: float = 0.0,
        remat: Remat = "none",
        unroll: int = 1,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise BadInput(
                f"width={width} does not divide by num_heads={num_heads}; "
                f"change num_heads to a divisor of the width"
            )
        if depth < 0 or unroll < 1:
            raise BadInput(f"depth={depth} must be at least 0 and unroll={unroll} at least 1")
        make = partial(
            Block,
            width,
            num_heads,
            mlp_dim or 4 * width,
            activation=activation,
            norm_kind=norm_kind,
            dropout_rate=dropout_rate,
            dtype=dtype,
        )
        check_rate("dropout", dropout_rate)
        self.blocks = stack(make, depth, rngs) if depth else None
        self.final_norm = norm(norm_kind, width, rngs=rngs)
        self.depth, self.remat, self.unroll = depth, remat, unroll

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

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: Activation,
        norm_kind: Norm,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        xavier = jax.nn.initializers.xavier_uniform()
        self.probe = param(rngs, xavier, (1, width), (None, "embed"))
        self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
        self.norm = norm(norm_kind, width, rngs=rngs)
        self.mlp = Mlp(width, mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

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
        num_tokens: int,
        width: int,
        hidden: int,
        *,
        activation: Activation,
        dropout_rate: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        check_rate("pool_dropout", dropout_rate)
        axes = ("tokens", "embed", "mlp")
        self.hidden = Linear((num_tokens, width), (hidden,), axes, dtype=dtype, rngs=rngs)
        self.activation, self.dropout_rate = activation, dropout_rate

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
