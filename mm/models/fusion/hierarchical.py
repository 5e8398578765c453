"""Hierarchical fusion: the modalities meet at several depths of their towers (BridgeTower)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.models.encoder import Encoded, EncoderSpec
from mm.models.fusion.base import SIDES, Context, Flat, StreamFusion, Streams, Widths, by_side, each
from mm.models.fusion.coattention import CoLayer
from mm.models.keys import Keys


class BridgeLayer(nnx.Module):
    """norm(x + y), y the tokens of a tower's level, of each stream, then co-attention."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.norms = each(lambda: spec.make_norm(rngs), SIDES)
        self.layer = CoLayer(spec, rngs=rngs)

    def __call__(self, streams: Flat, context: Context) -> Flat:
        level = context.level
        return self.layer({n: self.norms[n](streams[n] + level[n]) for n in SIDES}, context)


@registry.register("fusion", "hierarchical")
class Hierarchical(StreamFusion):
    """A layer of co-attention for each of `depth` evenly spaced depths of the towers.

    Layer k reads norm(z_(k-1) + W x_k) of each stream, where x_k are the tower's tokens at level k
    and z_0 = 0, and returns z_k (the bridges of BridgeTower: Xu et al. 2023, section 3). So the
    first exchange is of shallow tokens, the last of the towers' own. A layer is LXMERT's with a
    cross-attention of each direction. `depth` divides those of both towers. The other keys are
    those of `StreamFusion`.
    """

    def layer(self, spec: EncoderSpec, widths: Widths, rngs: nnx.Rngs) -> BridgeLayer:
        """A layer of both streams and what one level adds."""
        return BridgeLayer(spec, rngs=rngs)

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
