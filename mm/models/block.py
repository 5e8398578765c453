"""A Transformer block, its layers, and the keys of a config that say what they are."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from mm.config import BadInput, Count, Positive, Rate
from mm.models.attention import Kernel, Mask, Rotary, attend, rotate
from mm.models.keys import Keys, split
from mm.models.layers import (
    ACTIVATIONS,
    NORMS,
    Activation,
    Dtype,
    Linear,
    Norm,
    dropout,
    keep_random,
    param,
)
from mm.models.remat import Remat, find_policy
from mm.sharding.rules import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The stack of blocks: keys that every tower's config has.

    `mlp_dim` is 4 x width by default, `dropout` a rate, `attention` a kernel of
    `mm.models.attention`. `norm_placement` is "pre" (before each part of a block and after the last
    block: Xiong et al. 2020) or "post" (after each sum: BERT). `qk_norm` norms queries and keys
    head by head, `layer_scale` is where learned factors of each branch start (CaiT, Touvron et al.
    2021, eq. 3), `drop_path` the rate at which an example skips a branch of the last block, less
    before it (stochastic depth, Huang et al. 2016, section 3). `unroll` blocks are laid out one
    after the other in the compiled scan (more is faster and slower to compile; `depth` is no scan
    at all). `remat` says what the backward pass computes again: nothing ("none"), what costs no
    matmul ("cheap"), that and the MLP's hidden layer ("hidden"), or everything ("full"); or a dict
    of three lists that share out the RESIDUALS of `mm.models.remat`: `save`, `recompute`, and
    `offload` to the host's memory.
    """

    width: Positive
    depth: Count
    num_heads: Positive
    mlp_dim: Positive | None = None
    activation: Activation = "gelu"
    norm: Norm = "layer_norm"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    layer_scale: float | None = None
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    remat: Remat | Mapping = "none"
    attention: Kernel = "auto"
    unroll: Positive = 1
    dtype: Dtype = "float32"

    def __post_init__(self):
        if self.width % self.num_heads:
            raise BadInput(
                f"width={self.width} does not divide by num_heads={self.num_heads}; "
                f"change num_heads to a divisor of the width"
            )
        if isinstance(self.remat, Mapping):
            find_policy(self.remat)

    def make_norm(self, rngs: nnx.Rngs, width: int | None = None) -> nnx.Module:
        """A norm of the stack's kind, and its width unless another is given."""
        return NORMS[self.norm](width or self.width, epsilon=self.norm_epsilon, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention of `queries` over `memory` (self-attention when they are the same).

    softmax(Q K^T / sqrt(d_head)) V (Vaswani et al. 2017, eq. 1), by the kernel of the spec; with
    its `qk_norm` queries and keys are normed head by head (Dehghani et al. 2023, section 2.1).
    `memory_width` is that of the memory, by default the queries'.
    """

    def __init__(self, spec: EncoderSpec, memory_width: int | None = None, *, rngs: nnx.Rngs):
        width, heads, axes = spec.width, spec.num_heads, ("embed", "heads", "kv")
        sizes, make = (heads, width // heads), partial(Linear, dtype=spec.dtype, rngs=rngs)
        self.query = make((width,), sizes, axes)
        self.key, self.value = (make((memory_width or width,), sizes, axes) for _ in range(2))
        self.out = make(sizes, (width,), ("heads", "kv", "embed"))
        self.query_norm = spec.make_norm(rngs, width // heads) if spec.qk_norm else None
        self.key_norm = spec.make_norm(rngs, width // heads) if spec.qk_norm else None
        self.num_heads, self.kernel = heads, spec.attention

    def __call__(
        self,
        queries: Float[Array, "bn d"],
        memory: Float[Array, "bm d2"],
        mask: Mask | None = None,
        *,
        batch: int,
        causal: bool = False,
        rotary: Rotary | None = None,
        guide: Float[Array, "b m"] | None = None,
    ) -> Float[Array, "bn d"]:
        """Of `batch` examples, their tokens one below the other.

        `mask` and `guide` are those of `attend`. causal: query i sees tokens 0 .. i. rotary: angles
        to turn queries and keys by, see `rotate`.
        """
        q = checkpoint_name(self.project("query", queries, batch, rotary), "query")
        k = checkpoint_name(self.project("key", memory, batch, rotary), "key")
        v = checkpoint_name(self.value(memory), "value")
        out = attend(
            q, k, v, mask, guide,
            batch=batch, num_heads=self.num_heads, causal=causal, kernel=self.kernel,
            of_itself=queries is memory,
        )  # fmt: skip
        return self.out(out)

    def project(
        self, name: str, x: Float[Array, "bm d2"], batch: int, rotary: Rotary | None = None
    ) -> Float[Array, "bm e"]:
        """What "query" or "key" makes of x, normed and turned."""
        x, norm = getattr(self, name)(x), getattr(self, f"{name}_norm")
        if norm is not None:
            x = norm(x.reshape(len(x), self.num_heads, -1)).reshape(x.shape)
        return x if rotary is None else rotate(x, rotary, batch, self.num_heads)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        width, hidden = spec.width, spec.mlp_dim or 4 * spec.width
        self.up = Linear((width,), (hidden,), ("embed", "mlp"), dtype=spec.dtype, rngs=rngs)
        self.down = Linear((hidden,), (width,), ("mlp", "embed"), dtype=spec.dtype, rngs=rngs)
        self.activation = spec.activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        hidden = checkpoint_name(self.up(x), "hidden")
        return self.down(ACTIVATIONS[self.activation](hidden))


class Draw(NamedTuple):
    """How many examples the tokens are of, and what is dropped of each: without keys nothing."""

    batch: int
    keys: Keys | None = None
    drop_path: Float[Array, ""] | None = None

    def split(self, count: int = 2) -> list["Draw"]:
        """As many independent ones."""
        return [self._replace(keys=keys) for keys in split(self.keys, count)]


class Branch(nnx.Module):
    """x + f(norm(x)), or norm(x + f(x)): a norm, a factor and what is dropped, around any layer."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.norm = spec.make_norm(rngs)
        start, shape = spec.layer_scale, (spec.width,)
        self.scale = None if start is None else param(rngs, start, shape, ("embed",))
        self.pre, self.dropout_rate = spec.norm_placement == "pre", spec.dropout
        self.dtype, self.adapter = jnp.dtype(spec.dtype), None  # what `mm.adapt.adapter` adds

    def __call__(
        self, x: Float[Array, "bn d"], layer: Callable[[Array], Array], draw: Draw
    ) -> Float[Array, "bn d"]:
        return self.add(x, layer(self.read(x)), draw)

    def read(self, x: Float[Array, "bn d"]) -> Float[Array, "bn d"]:
        """What the layer reads of x."""
        return self.norm(x) if self.pre else x

    def add(
        self, x: Float[Array, "bn d"], y: Float[Array, "bn d"], draw: Draw
    ) -> Float[Array, "bn d"]:
        """x and what the layer made of it."""
        if self.adapter is not None:
            y = self.adapter(y)
        if self.scale is not None:
            y = y * self.scale[...].astype(y.dtype)
        shaped = y.reshape(draw.batch, -1, y.shape[1])  # by examples, which have the keys
        shaped = dropout(shaped, self.dropout_rate, draw.keys)
        if draw.drop_path is not None:
            shaped = keep_random(shaped, draw.drop_path, split(draw.keys)[1], (1, 1))
        x = x + shaped.reshape(y.shape)
        return x if self.pre else self.norm(x)


class Reads(NamedTuple):
    """What all blocks of a stack read beside their tokens, see `Attention`.

    `memory` [bm, d] is what cross-attention attends to. `causal` False: causal blocks see ahead.
    """

    mask: Mask | None = None
    memory: Float[Array, "bm d"] | None = None
    memory_mask: Mask | None = None
    rotary: Rotary | None = None
    guide: Float[Array, "b n"] | None = None
    causal: bool = True


class Block(nnx.Module):
    """Self-attention, cross-attention to a memory if it has a width, then an MLP."""

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        causal: bool = False,
        memory_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention_branch, self.attention = Branch(spec, rngs=rngs), Attention(spec, rngs=rngs)
        crosses = memory_width is not None
        self.cross_branch = Branch(spec, rngs=rngs) if crosses else None
        self.cross = Attention(spec, memory_width, rngs=rngs) if crosses else None
        self.mlp_branch, self.mlp = Branch(spec, rngs=rngs), Mlp(spec, rngs=rngs)
        self.causal = causal

    def __call__(self, x: Float[Array, "bn d"], reads: Reads, draw: Draw) -> Float[Array, "bn d"]:
        draws, batch = draw.split(3), draw.batch

        def attend(y: Array) -> Array:
            return self.attention(
                y, y, reads.mask, batch=batch, causal=self.causal and reads.causal,
                rotary=reads.rotary, guide=reads.guide,
            )  # fmt: skip

        def cross(y: Array) -> Array:
            return self.cross(y, reads.memory, reads.memory_mask, batch=batch)

        x = self.attention_branch(x, attend, draws[0])
        x = checkpoint_name(x, "middle")
        if self.cross is not None:
            x = self.cross_branch(x, cross, draws[1])
            x = checkpoint_name(x, "middle")
        x = self.mlp_branch(x, self.mlp, draws[2])
        return constrain(x, "batch", "width")
