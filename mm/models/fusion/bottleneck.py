"""Bottleneck fusion: modalities exchange only through a few tokens that both see (MBT)."""

from typing import Annotated, Any

from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Block, Encoded, EncoderSpec, Reads, flat
from mm.models.fusion import base
from mm.models.fusion.base import SIDES, Context, Flat, StreamFusion, Streams, Widths
from mm.models.keys import Keys, split
from mm.models.layers import vectors


class BottleneckLayer(nnx.Module):
    """A block of each stream over its tokens and the bottlenecks, which are then averaged."""

    def __init__(self, spec: EncoderSpec, *, rngs: nnx.Rngs):
        self.blocks = base.each(lambda: Block(spec, rngs=rngs), SIDES)

    def __call__(self, streams: Flat, context: Context) -> Flat:
        found, bottlenecks, batch = {}, [], context.batch
        for name, keys in zip(SIDES, split(context.keys), strict=True):
            both = (streams[name], context.masks[name]), (streams["bottleneck"], None)
            x, mask = base.join(both, batch)
            y = self.blocks[name](flat(x), Reads(mask), keys, context.drop_path, batch=batch)
            own, shared = base.part(y.reshape(x.shape), [len(x) // batch for x, _ in both])
            found[name] = flat(own)
            bottlenecks.append(flat(shared))
        return {**found, "bottleneck": sum(bottlenecks) / len(SIDES)}


@registry.register("fusion", "bottleneck")
class Bottleneck(StreamFusion):
    """Attention bottlenecks (MBT: Nagrani et al. 2021, section 3.2, eqs. 8 and 9).

    In each layer [z_m; f_m] = block_m([z_m; f]) of each modality m, then f = (f_I + f_T) / 2; the
    first f are `bottlenecks` learned tokens. What one modality writes into f the other reads a
    layer later: `depth` is at least 2. The other keys are those of `StreamFusion`.
    """

    least_depth = 2

    def __init__(self, *, bottlenecks: int = 4, **rest: Annotated[Any, StreamFusion]):
        super().__init__(**rest)
        if bottlenecks < 1:
            raise BadInput(f"bottlenecks={bottlenecks}: expected at least 1; the paper has 4")
        self.bottlenecks = vectors(rest["rngs"], bottlenecks, self.width)

    def layer(self, spec: EncoderSpec, widths: Widths, rngs: nnx.Rngs) -> BottleneckLayer:
        """A layer of both streams and the bottlenecks."""
        return BottleneckLayer(spec, rngs=rngs)

    def start(self, image: Encoded, text: Encoded, rng: Keys | None) -> tuple[Streams, Context]:
        """Both streams and the learned bottlenecks."""
        streams, context = super().start(image, text, rng)
        tokens = base.learned_tokens(self.bottlenecks, context.batch, self.dtype)
        return {**streams, "bottleneck": tokens}, context
