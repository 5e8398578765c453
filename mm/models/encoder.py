"""A stack of blocks: what image and text towers, fusions and the decoder share."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm.config import BadInput
from mm.models.attention import Kernel, Mask, Rotary, aligned_length, is_recording
from mm.models.block import Block, Draw, EncoderSpec, Reads
from mm.models.keys import Keys, split
from mm.models.remat import counting, find_policy


class Encoded(NamedTuple):
    """What every encoder returns: all tokens, one vector, and which tokens are real (None: all).

    Of an image tower also: `kept`, the patch of each token that is not in its `prefix`, when some
    were dropped, and `replaced`, True for patches that the mask token stood for. `levels` are the
    tokens at evenly spaced depths, of a view that asks for them, and `embedded` what the first
    block of a text tower read, where a fusion asks.
    """

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b d2"]
    mask: Bool[Array, "b n"] | None
    kept: Int[Array, "b k"] | None = None
    replaced: Bool[Array, "b p"] | None = None
    levels: tuple[Float[Array, "b n d"], ...] = ()
    embedded: Float[Array, "b n d"] | None = None


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
        draw: Draw,
        *,
        levels: int = 1,
        inputs: tuple = (),
    ) -> list[Any]:
        """The carry after each of `levels` parts of the stack.

        run(block, carry, draw, *inputs) -> carry applies one. Of `inputs`, arrays [depth, ...] or
        pytrees of such, each block gets its own.
        """
        if not self.depth:
            return [carry] * levels
        if self.depth % levels:
            raise BadInput(f"levels={levels}: does not divide depth={self.depth}")
        graphdef, params = nnx.split(self.blocks)
        keys = None if draw.keys is None else split(draw.keys, self.depth)
        rates = None
        if keys is not None and self.drop_path:
            rates = jnp.linspace(0.0, self.drop_path, self.depth)

        def apply(carry, layer):
            params, keys, rate, inputs = layer
            own = Draw(draw.batch, keys, rate)
            return run(nnx.merge(graphdef, params), carry, own, *inputs), None

        if self.remat != "none" and not (counting() or is_recording()):
            # Inside a scan nothing can move between the passes, so the guard only costs time.
            guard = self.unroll >= self.depth
            apply = jax.checkpoint(apply, policy=find_policy(self.remat), prevent_cse=guard)
        found, part = [], self.depth // levels
        for start in range(0, self.depth, part):
            layers = params, keys, rates, inputs
            if levels > 1:
                layers = jax.tree.map(lambda x, start=start: x[start : start + part], layers)
            if self.unroll >= self.depth or is_recording():
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

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs, **block: Any):
        super().__init__(partial(Block, spec, **block), spec, rngs=rngs)
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
        prompts: Float[Array, "layers p d"] | None = None,
        prompts_from: int = 0,
    ) -> list[Float[Array, "b n d"]]:
        """Tokens at so many evenly spaced depths, of which the last has passed the final norm.

        What is read beside x: see `Reads`. Of `prompts` each block puts its own in the place of the
        tokens from number `prompts_from` on.
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

        def run(block: Block, x: Array, draw: Draw, prompts: Array | None = None) -> Array:
            if prompts is not None:
                places = slice(prompts_from, prompts_from + len(prompts))
                tokens = x.reshape(batch, -1, width)
                x = flat(tokens.at[:, places].set(prompts.astype(x.dtype)))
            return block(x, reads, draw)

        # One matrix, the tokens of all examples one below the other: on a TPU an example would be
        # padded to whole registers, and each layout of that is a copy.
        inputs = () if prompts is None else (prompts,)
        found = self.scan(run, flat(x), Draw(batch, keys), levels=levels, inputs=inputs)
        found = [x.reshape(batch, -1, width)[:, :length] for x in found]
        last = found[-1] if self.final_norm is None else self.final_norm(found[-1])
        return [*found[:-1], last]


def flat(x: Float[Array, "b n d"]) -> Float[Array, "bn d"]:
    """The tokens of all examples one below the other."""
    return x.reshape(-1, x.shape[-1])


def real(x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None) -> Bool[Array, "b n"]:
    """A mask where there is none, too."""
    return jnp.ones(x.shape[:2], bool) if mask is None else mask


def align(
    kernel: Kernel, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None
) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"] | None]:
    """Filled up to as many tokens as the kernel of attention takes, and which of them are real."""
    batch, length, width = x.shape
    aligned = aligned_length(kernel, batch, length, width, x.dtype)
    if aligned == length:
        return x, mask
    mask = jnp.pad(real(x, mask), ((0, 0), (0, aligned - length)))
    return jnp.pad(x, ((0, 0), (0, aligned - length), (0, 0))), mask


def stack(make: Callable[..., nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules made by `make(rngs=...)`, each parameter with a leading "layers" axis."""
    keys = jax.random.split(rngs.params(), depth)
    stacked = nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)
    for _, variable in nnx.iter_graph(stacked):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return stacked
