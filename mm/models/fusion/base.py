"""What a fusion is, what it returns, and what several are made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from mm.config import BadInput
from mm.models.block import Draw, EncoderSpec
from mm.models.encoder import Encoded, Stack, align, flat, real
from mm.models.keys import Keys, split
from mm.models.layers import Dtype, Linear
from mm.models.pool import POOLS
from mm.sharding.rules import constrain

SIDES = "image", "text"
OTHER = {"image": "text", "text": "image"}
Pool = Literal["first", "last", "mean"]
Spec = Annotated[Any, EncoderSpec]  # of a constructor's **encoder: its keys
Masks = Mapping[str, Bool[Array, "b _"] | None]  # None: all tokens are real
Streams = Mapping[str, Float[Array, "b _ _"]]
Flat = Mapping[str, Float[Array, "_ _"]]  # the tokens of all examples one below the other


class Fused(NamedTuple):
    """One vector of a pair, and the tokens that know of the other modality (None: they do not).

    Tokens are as many and in the order of the towers' own; what precedes patches is there, too.
    """

    pooled: Float[Array, "b d2"]
    image: Float[Array, "b n d"] | None = None
    text: Float[Array, "b l d"] | None = None


class Fusion(nnx.Module):
    """Called with (image, text, rng), both Encoded, it returns a Fused.

    `fuses` are the modalities whose tokens it returns, `width` is that of the tokens,
    `pooled_width` that of the vector, `levels` at how many depths it reads the towers;
    `reads_embeddings`: what the text's first block reads, in place of its last tokens. `rng` are
    keys of the rows, None without dropout. A constructor is given the `model`.
    """

    fuses: tuple[str, ...]
    width: int
    pooled_width: int
    levels: int = 1
    reads_embeddings: bool = False

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        raise NotImplementedError


class Context(NamedTuple):
    """What a layer of streams reads beside them.

    `level` and `memory` are there if the fusion's `start` gives them; there `level` has those of
    all layers, [depth, bn, d].
    """

    masks: Masks
    draw: Draw
    level: Mapping[str, Float[Array, "..."]] | None = None
    memory: Encoded | None = None


class StreamFusion(Fusion):
    """A stack of layers over streams of tokens, by name; the pooled vectors are side by side.

    A subclass says what a layer is: `layer` makes its modules, by name, and `step` applies them.
    `names` are the streams that come out; at `least_depth` they have seen each other. The other
    keys are those of `EncoderSpec`.
    """

    fuses = names = SIDES
    least_depth = 1
    filled = False  # whether each layer attends to whole streams, so that their length matters

    def __init__(self, *, pool: Pool = "mean", model: nnx.Module, rngs: nnx.Rngs, **encoder: Spec):
        spec = read_spec(encoder, self.least_depth)
        self.stack = Stack(lambda rngs: nnx.Dict(self.layer(spec, model, rngs)), spec, rngs=rngs)
        self.adapters = adapters(spec, model, self.fuses, rngs)
        pre = spec.norm_placement == "pre"
        self.final_norms = each(lambda: spec.make_norm(rngs), self.names) if pre else None
        self.pool, self.dtype, self.kernel = pool, jnp.dtype(spec.dtype), spec.attention
        self.width, self.pooled_width = spec.width, len(self.names) * spec.width

    def layer(self, spec: EncoderSpec, model: nnx.Module, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Makes the modules of a layer."""
        raise NotImplementedError

    def step(self, layer: nnx.Dict, streams: Flat, context: Context) -> Flat:
        """What a layer makes of the streams."""
        raise NotImplementedError

    def start(self, image: Encoded, text: Encoded, rng: Keys | None) -> tuple[Streams, Context]:
        """What enters the first layer: the streams of `names`, and others of the layers' own."""
        streams = {name: self.adapters[name](x.tokens) for name, x in by_side(image, text)}
        return streams, Context({"image": image.mask, "text": text.mask}, Draw(len(text.tokens)))

    def _fill(self, streams: Streams, context: Context) -> tuple[Streams, Context]:
        """Streams with as many tokens as the kernel of attention takes."""
        filled = {name: align(self.kernel, x, context.masks[name]) for name, x in streams.items()}
        masks = {name: mask for name, (_, mask) in filled.items()}
        return {name: x for name, (x, _) in filled.items()}, context._replace(masks=masks)

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        keys = split(rng)
        streams, context = self.start(image, text, keys[0])
        draw = context.draw._replace(keys=keys[1])
        if self.filled:
            streams, context = self._fill(streams, context)

        def run(layer: nnx.Dict, streams: Flat, draw: Draw, level: Flat | None) -> Flat:
            streams = self.step(layer, streams, context._replace(draw=draw, level=level))
            return {name: constrain(x, "batch", "width") for name, x in streams.items()}

        start = {name: flat(x) for name, x in streams.items()}
        [found] = self.stack.scan(run, start, draw, inputs=(context.level,))
        found = {name: found[name] for name in self.names}
        if self.final_norms is not None:
            found = {name: self.final_norms[name](x) for name, x in found.items()}
        found = {name: x.reshape(draw.batch, -1, self.width) for name, x in found.items()}
        pooled = pool_streams(self.pool, *((x, context.masks[n]) for n, x in found.items()))
        lengths = {name: x.tokens.shape[1] for name, x in by_side(image, text)}
        return Fused(pooled, **{name: found[name][:, : lengths[name]] for name in self.fuses})


def read_spec(encoder: Mapping[str, Any], least: int = 1) -> EncoderSpec:
    """The keys of a stack. Raises BadInput for one too shallow for its tokens to be fused."""
    spec = EncoderSpec(**encoder)
    if spec.depth < least:
        raise BadInput(
            f"depth={spec.depth}: tokens see the other modality at depth={least} first; set it"
        )
    return spec


class Adapter(nnx.Module):
    """Tokens in the width and dtype of a stack: through a layer where they are not as wide."""

    def __init__(self, spec: EncoderSpec, width: int, *, rngs: nnx.Rngs):
        layer = partial(to_width, width, spec.width, spec.dtype, rngs, bias=True)
        self.layer = layer() if width != spec.width else None
        self.dtype = jnp.dtype(spec.dtype)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return x.astype(self.dtype) if self.layer is None else self.layer(x)


def adapters(
    spec: EncoderSpec, model: nnx.Module, names: Sequence[str], rngs: nnx.Rngs
) -> nnx.Dict:
    """Those of the tokens of these towers."""
    return nnx.Dict({name: Adapter(spec, getattr(model, name).width, rngs=rngs) for name in names})


def to_width(
    inputs: int, width: int, dtype: Dtype, rngs: nnx.Rngs, *, bias: bool = False
) -> Linear:
    """A layer to vectors of `width`."""
    return Linear((inputs,), (width,), (None, "embed"), bias=bias, dtype=dtype, rngs=rngs)


def each(make: Callable[[], nnx.Module], names: Sequence[str], shared: bool = False) -> nnx.Dict:
    """A module for each name, or one for all."""
    return nnx.Dict({name: make() for name in (["shared"] if shared else names)})


def of(modules: nnx.Dict, name: str) -> nnx.Module:
    """The module of a name among those of `each`."""
    return modules["shared" if "shared" in modules else name]


def by_side(image: Encoded, text: Encoded) -> Iterator[tuple[str, Encoded]]:
    """Each with its name."""
    return zip(SIDES, (image, text), strict=True)


def join(
    streams: Sequence[tuple[Float[Array, "..."], Bool[Array, "b _"] | None]], batch: int
) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"]]:
    """Streams, flat or not, one after the other in each example, and which tokens are real."""
    tokens = [x.reshape(batch, -1, x.shape[-1]) for x, _ in streams]
    masks = [real(x, mask) for x, (_, mask) in zip(tokens, streams, strict=True)]
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


def part(x: Float[Array, "b n d"], lengths: Sequence[int]) -> list[Float[Array, "b _ d"]]:
    """The inverse of `join`."""
    return jnp.split(x, np.cumsum(lengths)[:-1], axis=1)


def learned_tokens(tokens: nnx.Param, batch: int, dtype: DTypeLike) -> Float[Array, "b n d"]:
    """The same [n, d] for every example."""
    return jnp.broadcast_to(tokens[...], (batch, *tokens.shape)).astype(dtype)


def pool_streams(pool: Pool, *streams: tuple[Array, Array | None]) -> Float[Array, "b d2"]:
    """The pooled vectors of (tokens, mask) side by side."""
    return jnp.concatenate([POOLS[pool](x, real(x, mask)) for x, mask in streams], axis=-1)
