"""Bottleneck fusion: modalities exchange only through a few tokens that both see (MBT)."""

from typing import Annotated, Any

from flax import nnx

from mm import registry
from mm.config import Positive
from mm.models.block import Block, EncoderSpec, Reads
from mm.models.encoder import Encoded, flat
from mm.models.fusion import base
from mm.models.fusion.base import SIDES, Context, Flat, StreamFusion, Streams
from mm.models.keys import Keys
from mm.models.layers import vectors


@registry.register("fusion", "bottleneck")
class Bottleneck(StreamFusion):
    """Attention bottlenecks (MBT: Nagrani et al. 2021, section 3.2, eqs. 8 and 9).

    In each layer [z_m; f_m] = block_m([z_m; f]) of each modality m, then f = (f_I + f_T) / 2; the
    first f are `bottlenecks` learned tokens. What one modality writes into f the other reads a
    layer later: `depth` is at least 2. The other keys are those of `StreamFusion`.
    """

    least_depth = 2

    def __init__(self, *, bottlenecks: Positive = 4, **rest: Annotated[Any, StreamFusion]):
        super().__init__(**rest)
        self.bottlenecks = vectors(rest["rngs"], bottlenecks, self.width)

    def layer(self, spec: EncoderSpec, model: nnx.Module, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """A block of each stream."""
        return dict(blocks=base.each(lambda: Block(spec, rngs=rngs), SIDES))

    def step(self, layer: nnx.Dict, streams: Flat, context: Context) -> Flat:
        """Blocks over a stream's tokens and the bottlenecks, which are then averaged."""
        found, bottlenecks, batch = {}, [], context.draw.batch
        for name, draw in zip(SIDES, context.draw.split(), strict=True):
            both = (streams[name], context.masks[name]), (streams["bottleneck"], None)
            x, mask = base.join(both, batch)
            y = layer.blocks[name](flat(x), Reads(mask), draw)
            own, shared = base.part(y.reshape(x.shape), [len(x) // batch for x, _ in both])
            found[name] = flat(own)
            bottlenecks.append(flat(shared))
        return {**found, "bottleneck": sum(bottlenecks) / len(SIDES)}

    def start(self, image: Encoded, text: Encoded, rng: Keys | None) -> tuple[Streams, Context]:
        """Both streams and the learned bottlenecks."""
        streams, context = super().start(image, text, rng)
        tokens = base.learned_tokens(self.bottlenecks, context.draw.batch, self.dtype)
        return {**streams, "bottleneck": tokens}, context
