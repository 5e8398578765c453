"""The stack of pre-norm Transformer blocks that image and text towers share, and their pooling."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from mm import registry
from mm.config import BadInput, suggest
from mm.models.attention import Attention, Kernel, aligned_length
from mm.models.keys import Keys, split
from mm.models.layers import (
    ACTIVATIONS,
    Activation,
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

# What a block may keep for its backward pass, by `checkpoint_name`: what its matmuls make, and the
# moments of layer norms, two numbers a token. All else (norms, activations, the scores of
# attention) is cheap to compute again.
RESIDUALS = ("moments", "query", "key", "value", "attention", "middle", "hidden")
# What is kept. "hidden", the widest, is half of the bytes and a third of the FLOPs.
REMAT_PRESETS = {
    "full": (),
    "hidden": tuple(name for name in RESIDUALS if name != "hidden"),
    "cheap": RESIDUALS,
}
Remat = Literal["none", "cheap", "hidden", "full"]


class Encoded(NamedTuple):
    """What every encoder returns: all tokens, one vector, and which tokens are real (None: all)."""

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]
    mask: Bool[Array, "b n"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The stack of blocks: keys that every tower's config has.

    `mlp_dim` is 4 x width by default, `dropout` a rate, `attention` a kernel of
    `mm.models.attention`. `unroll` blocks are laid out one after the other in the compiled scan
    (more is faster and slower to compile; `depth` is no scan at all). `remat` says what the
    backward pass computes again: nothing ("none"), what costs no matmul ("cheap"), that and the
    MLP's hidden layer ("hidden"), or everything ("full"); or a dict of three lists that share out
    RESIDUALS: `save`, `recompute`, and `offload` to the host's memory.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int | None = None
    activation: Activation = "gelu"
    norm: Norm = "layer_norm"
    dropout: float = 0.0
    remat: Remat | Mapping = "none"
    attention: Kernel = "auto"
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
        if isinstance(self.remat, Mapping):
            find_policy(self.remat)

    def make_norm(self, rngs: nnx.Rngs) -> nnx.Module:
        """A norm of the stack's kind and width."""
        return norm(self.norm, self.width, rngs=rngs)

    def make_attention(self, rngs: nnx.Rngs) -> Attention:
        """An attention layer of the stack's heads."""
        return Attention(
            self.width, self.num_heads, kernel=self.attention, dtype=self.dtype, rngs=rngs
        )

    def make_mlp(self, rngs: nnx.Rngs) -> Mlp:
        """An MLP of the stack's size."""
        hidden = self.mlp_dim or 4 * self.width
        return Mlp(self.width, hidden, activation=self.activation, dtype=self.dtype, rngs=rngs)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm: Xiong et al. 2020)."""

    def __init__(self, spec: EncoderSpec, *, causal: bool = False, rngs: nnx.Rngs):
        self.attention_norm = spec.make_norm(rngs)
        self.attention = spec.make_attention(rngs)
        self.mlp_norm = spec.make_norm(rngs)
        self.mlp = spec.make_mlp(rngs)
        self.dropout_rate, self.causal = spec.dropout, causal

    def __call__(
        self,
        x: Float[Array, "bn d"],
        mask: Bool[Array, "b n"] | None,
        keys: Keys | None = None,
        *,
        batch: int,
    ) -> Float[Array, "bn d"]:
        def drop(x: Array, keys: Keys | None) -> Array:  # by examples, which have the keys
            shaped = x.reshape(batch, -1, x.shape[1])
            return dropout(shaped, self.dropout_rate, keys).reshape(x.shape)

        keys = (None, None) if keys is None else split(keys)
        y = self.attention_norm(x)
        y = self.attention(y, y, mask, batch=batch, causal=self.causal)
        x = checkpoint_name(x + drop(y, keys[0]), "middle")
        y = self.mlp(self.mlp_norm(x))
        return constrain(x + drop(y, keys[1]), "batch", "width")

    def training_flops(self, tokens: int) -> float:
        """Of both passes over one example of so many tokens.

        A causal block counts all pairs, as its matmuls compute them.
        """
        attention = self.attention.training_flops(tokens, tokens, tokens**2)
        return attention + self.mlp.training_flops(tokens)


class Encoder(nnx.Module):
    """Blocks stored stacked along a leading "layers" axis, scanned, then a final norm."""

    def __init__(self, spec: EncoderSpec, *, causal: bool = False, rngs: nnx.Rngs):
        make = partial(Block, spec, causal=causal)
        self.blocks = stack(make, spec.depth, rngs) if spec.depth else None
        self.final_norm = spec.make_norm(rngs)
        self.depth, self.remat, self.unroll = spec.depth, spec.remat, spec.unroll
        self.kernel = spec.attention

    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
        keys: Keys | None = None,
    ) -> Float[Array, "b n d"]:
        if not self.depth:
            return self.final_norm(x)
        batch, length, width = x.shape
        aligned = aligned_length(self.kernel, batch, length, width, x.dtype)
        if aligned > length:
            real = jnp.ones((batch, length), bool) if mask is None else mask
            mask = jnp.pad(real, ((0, 0), (0, aligned - length)))
            x = jnp.pad(x, ((0, 0), (0, aligned - length), (0, 0)))
        # One matrix, the tokens of all examples one below the other: on a TPU an example would be
        # padded to whole registers, and each layout of that is a copy.
        x = self._scan(x.reshape(batch * aligned, width), mask, keys, batch)
        return self.final_norm(x.reshape(batch, aligned, width)[:, :length])

    def training_flops(self, tokens: int) -> float:
        """Of both passes over one example of so many tokens."""
        return self.depth * self.blocks.training_flops(tokens) if self.depth else 0.0

    def _scan(self, x: Array, mask: Array | None, keys: Keys | None, batch: int) -> Array:
        graphdef, params = nnx.split(self.blocks)
        keys = None if keys is None else split(keys, self.depth)

        def apply(x, layer):
            params, keys = layer
            return nnx.merge(graphdef, params)(x, mask, keys, batch=batch), None

        if self.remat != "none":
            # Inside a scan nothing can move between the passes, so the guard only costs time.
            guard = self.unroll >= self.depth
            apply = jax.checkpoint(apply, policy=find_policy(self.remat), prevent_cse=guard)
        if self.unroll >= self.depth:
            # No scan: nothing that the backward pass needs is copied into and out of a stack.
            for i in range(self.depth):
                x, _ = apply(x, jax.tree.map(lambda leaf, i=i: leaf[i], (params, keys)))
            return x
        return jax.lax.scan(apply, x, (params, keys), unroll=self.unroll)[0]


def find_policy(remat: str | Mapping) -> Callable:
    """What `jax.checkpoint` keeps, for a preset or lists of names."""
    if isinstance(remat, Mapping):
        return registry.call(remat_policy, remat, "remat")
    return jax.checkpoint_policies.save_only_these_names(*REMAT_PRESETS[remat])


def remat_policy(
    *,
    save: tuple[str, ...] = (),
    recompute: tuple[str, ...] = (),
    offload: tuple[str, ...] = (),
) -> Callable:
    """Each of RESIDUALS has to be in one of the lists, so that none is forgotten."""
    listed = [*save, *recompute, *offload]
    for name in listed:
        if name not in RESIDUALS:
            raise BadInput(f"no residual {name!r}{suggest(name, RESIDUALS)} (have {RESIDUALS})")
        if listed.count(name) > 1:
            raise BadInput(f"{name!r} is in two of save, recompute and offload; keep one")
    if missing := [name for name in RESIDUALS if name not in listed]:
        raise BadInput(f"does not say what to do with {missing}: add them to recompute or save")
    if not offload:
        return jax.checkpoint_policies.save_only_these_names(*save)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(save),
        names_which_can_be_offloaded=list(offload),
        offload_src="device",
        offload_dst="pinned_host",
    )


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
        batch, _, width = tokens.shape
        probe = jnp.broadcast_to(self.probe[...], (batch, width)).astype(tokens.dtype)
        x = self.attention(probe, tokens.reshape(-1, width), mask, batch=batch)
        return x + self.mlp(self.norm(x))

    def training_flops(self, tokens: int) -> float:
        """Of both passes over one example of so many tokens."""
        # The probe's projection is the same for all examples, though computed for each.
        return self.attention.training_flops(1, tokens, tokens) + self.mlp.training_flops(1)


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
        self, tokens: Float[Array, "b n d"], keys: Keys | None = None
    ) -> Float[Array, "b m"]:
        x = ACTIVATIONS[self.activation](self.hidden(tokens.reshape(len(tokens), -1)))
        return dropout(x, self.dropout_rate, keys)


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
