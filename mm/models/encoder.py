"""The stack of Transformer blocks that image and text towers, fusions and the decoder share."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from mm.config import BadInput
from mm.models.attention import Attention, Kernel, Mask, Rotary, aligned_length
from mm.models.keys import Keys, split
from mm.models.layers import (
    Activation,
    Dtype,
    Mlp,
    Norm,
    check_rate,
    dropout,
    keep_random,
    norm,
    param,
)
from mm.models.remat import Remat, counting, find_policy
from mm.sharding.rules import constrain


class Encoded(NamedTuple):
    """What every encoder returns: all tokens, one vector, and which tokens are real (None: all).

    Of an image tower also: `kept`, the patch of each token that is not in its `prefix`, when some
    were dropped, and `replaced`, True for patches that the mask token stood for. `levels` are the
    tokens at evenly spaced depths, of a view that asks for them.
    """

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b d2"]
    mask: Bool[Array, "b n"] | None
    kept: Int[Array, "b k"] | None = None
    replaced: Bool[Array, "b p"] | None = None
    levels: tuple[Float[Array, "b n d"], ...] = ()


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

    width: int
    depth: int
    num_heads: int
    mlp_dim: int | None = None
    activation: Activation = "gelu"
    norm: Norm = "layer_norm"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
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
        check_rate("drop_path", self.drop_path)
        if isinstance(self.remat, Mapping):
            find_policy(self.remat)

    def make_norm(self, rngs: nnx.Rngs, width: int | None = None) -> nnx.Module:
        """A norm of the stack's kind, and its width unless another is given."""
        return norm(self.norm, width or self.width, epsilon=self.norm_epsilon, rngs=rngs)

    def make_attention(self, rngs: nnx.Rngs, memory_width: int | None = None) -> Attention:
        """An attention layer of the stack's heads."""
        return Attention(
            self.width,
            self.num_heads,
            memory_width=memory_width,
            kernel=self.attention,
            head_norm=(lambda head, rngs: self.make_norm(rngs, head)) if self.qk_norm else None,
            dtype=self.dtype,
            rngs=rngs,
        )

    def make_mlp(self, rngs: nnx.Rngs) -> Mlp:
        """An MLP of the stack's size."""
        hidden = self.mlp_dim or 4 * self.width
        return Mlp(self.width, hidden, activation=self.activation, dtype=self.dtype, rngs=rngs)


class Branch(nnx.Module):
    """x + f(norm(x)), or norm(x + f(x)): a norm, a factor and what is dropped, around any layer."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.norm = spec.make_norm(rngs)
        init = jax.nn.initializers.constant(spec.layer_scale or 0.0)
        self.scale = (
            None if spec.layer_scale is None else param(rngs, init, (spec.width,), ("embed",))
        )
        self.pre, self.dropout_rate = spec.norm_placement == "pre", spec.dropout

    def __call__(
        self,
        x: Float[Array, "bn d"],
        layer: Callable[[Array], Array],
        keys: Keys | None = None,
        drop_path: Float[Array, ""] | None = None,
        *,
        batch: int,
    ) -> Float[Array, "bn d"]:
        return self.add(x, layer(self.read(x)), keys, drop_path, batch=batch)

    def read(self, x: Float[Array, "bn d"]) -> Float[Array, "bn d"]:
        """What the layer reads of x."""
        return self.norm(x) if self.pre else x

    def add(
        self,
        x: Float[Array, "bn d"],
        y: Float[Array, "bn d"],
        keys: Keys | None = None,
        drop_path: Float[Array, ""] | None = None,
        *,
        batch: int,
    ) -> Float[Array, "bn d"]:
        """x and what the layer made of it."""
        if self.scale is not None:
            y = y * self.scale[...].astype(y.dtype)
        shaped = y.reshape(batch, -1, y.shape[1])  # by examples, which have the keys
        shaped = dropout(shaped, self.dropout_rate, keys)
        if drop_path is not None:
            shaped = keep_random(shaped, drop_path, split(keys)[1], (1, 1))
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
        self.attention_branch, self.attention = Branch(spec, rngs=rngs), spec.make_attention(rngs)
        crosses = memory_width is not None
        self.cross_branch = Branch(spec, rngs=rngs) if crosses else None
        self.cross = spec.make_attention(rngs, memory_width) if crosses else None
        self.mlp_branch, self.mlp = Branch(spec, rngs=rngs), spec.make_mlp(rngs)
        self.causal = causal

    def __call__(
        self,
        x: Float[Array, "bn d"],
        reads: Reads,
        keys: Keys | None = None,
        drop_path: Float[Array, ""] | None = None,
        *,
        batch: int,
    ) -> Float[Array, "bn d"]:
        keys = split(keys, 3)

        def attend(y: Array) -> Array:
            return self.attention(
                y, y, reads.mask, batch=batch, causal=self.causal and reads.causal,
                rotary=reads.rotary, guide=reads.guide,
            )  # fmt: skip

        def cross(y: Array) -> Array:
            return self.cross(y, reads.memory, reads.memory_mask, batch=batch)

        x = self.attention_branch(x, attend, keys[0], drop_path, batch=batch)
        x = checkpoint_name(x, "middle")
        if self.cross is not None:
            x = self.cross_branch(x, cross, keys[1], drop_path, batch=batch)
            x = checkpoint_name(x, "middle")
        x = self.mlp_branch(x, self.mlp, keys[2], drop_path, batch=batch)
        return constrain(x, "batch", "width")


class Stack(nnx.Module):
    """`spec.depth` modules of one kind, their parameters along a leading "layers" axis, scanned."""

    def __init__(self, make: Callable[..., nnx.Module], spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.blocks = stack(make, spec.depth, rngs) if spec.depth else None
        self.depth, self.remat, self.unroll = spec.depth, spec.remat, spec.unroll
        self.drop_path = spec.drop_path

    def scan(
        self,
        run: Callable,
        carry: Any,
        keys: Keys | None = None,
        *,
        levels: int = 1,
        inputs: tuple = (),
    ) -> list[Any]:
        """The carry after each of `levels` parts of the stack.

        run(block, carry, keys, drop_path, *inputs) -> carry applies one; keys and drop_path may be
        None. Of `inputs`, arrays [depth, ...] or pytrees of such, each block gets its own.
        """
        if not self.depth:
            return [carry] * levels
        if self.depth % levels:
            raise BadInput(f"levels={levels}: does not divide depth={self.depth}")
        graphdef, params = nnx.split(self.blocks)
        keys = None if keys is None else split(keys, self.depth)
        rates = None
        if keys is not None and self.drop_path:
            rates = jnp.linspace(0.0, self.drop_path, self.depth)

        def apply(carry, layer):
            params, keys, rate, inputs = layer
            return run(nnx.merge(graphdef, params), carry, keys, rate, *inputs), None

        if self.remat != "none" and not counting():
            # Inside a scan nothing can move between the passes, so the guard only costs time.
            guard = self.unroll >= self.depth
            apply = jax.checkpoint(apply, policy=find_policy(self.remat), prevent_cse=guard)
        found, part = [], self.depth // levels
        for start in range(0, self.depth, part):
            layers = params, keys, rates, inputs
            if levels > 1:
                layers = jax.tree.map(lambda x, start=start: x[start : start + part], layers)
            if self.unroll >= self.depth:
                # No scan: nothing that the backward pass needs is copied into and out of a stack.
                for i in range(part):
                    carry, _ = apply(carry, jax.tree.map(lambda x, i=i: x[i], layers))
            else:
                carry, _ = jax.lax.scan(apply, carry, layers, unroll=min(self.unroll, part))
            found.append(carry)
        return found


class Encoder(Stack):
    """A stack of blocks over the tokens of a batch, then a final norm if norms come first.

    At depth 0 it is nothing, and there is no norm either.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        causal: bool = False,
        memory_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        make = partial(Block, spec, causal=causal, memory_width=memory_width)
        super().__init__(make, spec, rngs=rngs)
        normed = spec.depth and spec.norm_placement == "pre"
        self.final_norm = spec.make_norm(rngs) if normed else None
        self.kernel = spec.attention

    def __call__(self, x: Float[Array, "b n d"], *args: Any, **reads: Any) -> Float[Array, "b n d"]:
        """The tokens after the last block and norm; the rest is as for `at_levels`."""
        return self.at_levels(1, x, *args, **reads)[0]

    def at_levels(
        self,
        levels: int,
        x: Float[Array, "b n d"],
        mask: Mask | None = None,
        keys: Keys | None = None,
        *,
        memory: Encoded | None = None,
        rotary: Rotary | None = None,
        guide: Float[Array, "b n"] | None = None,
        causal: bool = True,
    ) -> list[Float[Array, "b n d"]]:
        """Tokens at so many evenly spaced depths, of which the last has passed the final norm.

        What is read beside x: see `Reads`.
        """
        batch, length, width = x.shape
        if self.depth and guide is None and (mask is None or mask.ndim == 2):
            x, mask = align(self.kernel, x, mask)
            if rotary is not None:
                filled = ((0, 0),) * (rotary.ndim - 2) + ((0, x.shape[1] - length), (0, 0))
                rotary = jnp.pad(rotary, filled)
        reads = Reads(mask, rotary=rotary, guide=guide, causal=causal)
        if memory is not None:
            tokens, memory_mask = align(self.kernel, memory.tokens, memory.mask)
            reads = reads._replace(memory=flat(tokens), memory_mask=memory_mask)

        def run(block: Block, x: Array, keys: Keys | None, drop_path: Array | None) -> Array:
            return block(x, reads, keys, drop_path, batch=batch)

        # One matrix, the tokens of all examples one below the other: on a TPU an example would be
        # padded to whole registers, and each layout of that is a copy.
        found = self.scan(run, flat(x), keys, levels=levels)
        found = [x.reshape(batch, -1, width)[:, :length] for x in found]
        return [*found[:-1], self._finish(found[-1])]

    def _finish(self, x: Array) -> Array:
        return x if self.final_norm is None else self.final_norm(x)


def flat(x: Float[Array, "b n d"]) -> Float[Array, "bn d"]:
    """The tokens of all examples one below the other."""
    return x.reshape(-1, x.shape[-1])


def align(
    kernel: Kernel, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"] | None]:
    """Filled up to as many tokens as the kernel of attention takes, and which of them are real."""
    batch, length, width = x.shape
    aligned = aligned_length(kernel, batch, length, width, x.dtype)
    if aligned == length:
        return x, mask
    mask = jnp.ones((batch, length), bool) if mask is None else mask
    mask = jnp.pad(mask, ((0, 0), (0, aligned - length)))
    return jnp.pad(x, ((0, 0), (0, aligned - length), (0, 0))), mask


def stack(make: Callable[..., nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules made by `make(rngs=...)`, each parameter with a leading "layers" axis."""
    keys = jax.random.split(rngs.params(), depth)
    stacked = nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)
    for _, variable in nnx.iter_graph(stacked):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return stacked
