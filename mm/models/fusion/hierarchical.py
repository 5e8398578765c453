"""Hierarchical fusion: the modalities meet at several depths of their towers (BridgeTower)."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded
from mm.models.fusion.base import SIDES, Context, Flat, StreamFusion, Streams, by_side, each
from mm.models.fusion.coattention import CoAttention
from mm.models.keys import Keys


@registry.register("fusion", "hierarchical")
class Hierarchical(CoAttention):
    """A layer of co-attention for each of `depth` evenly spaced depths of the towers.

    Layer k reads norm(z_(k-1) + W x_k) of each stream, where x_k are the tower's tokens at level k
    and z_0 = 0, and returns z_k (the bridges of BridgeTower: Xu et al. 2023, section 3). So the
    first exchange is of shallow tokens, the last of the towers' own. A layer is LXMERT's with a
    cross-attention of each direction. `depth` divides those of both towers. The other keys are
    those of `StreamFusion`.
    """

    filled = False  # the levels are added to the streams

    def __init__(self, **rest: Annotated[Any, StreamFusion]):
        super().__init__(cross_mlp=False, **rest)

    def layer(self, spec: EncoderSpec, model: nnx.Module, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """A layer of co-attention, and norms of what it reads."""
        norms = each(lambda: spec.make_norm(rngs), SIDES)
        return dict(norms=norms) | super().layer(spec, model, rngs)

    def step(self, layer: nnx.Dict, streams: Flat, context: Context) -> Flat:
        """norm(x + y), y the tokens of a tower's level, of each stream, then co-attention."""
        read = {n: layer.norms[n](streams[n] + context.level[n]) for n in SIDES}
        return super().step(layer, read, context)

    @property
    def levels(self) -> int:
        """At how many depths it reads the towers."""
        return self.stack.depth

    def start(self, image: Encoded, text: Encoded, rng: Keys | None) -> tuple[Streams, Context]:
        """Nothing, and the levels."""
        streams, context = super().start(image, text, rng)
        levels = {}
        for name, x in by_side(image, text):
            adapted = [self.adapters[name](tokens) for tokens in x.levels or (x.tokens,)]
            levels[name] = jnp.stack(adapted).reshape(self.levels, -1, self.width)
        return jax.tree.map(jnp.zeros_like, streams), context._replace(level=levels)
