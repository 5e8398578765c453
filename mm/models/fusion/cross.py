"""Cross-attention: the tokens of one modality read those of the other (ALBEF, CoCa)."""

from typing import Literal

from flax import nnx

from mm import registry
from mm.models.encoder import Encoded, Encoder
from mm.models.fusion import base
from mm.models.fusion.base import OTHER, Fused, Fusion, Pool, Spec
from mm.models.keys import Keys


@registry.register("fusion", "cross")
class Cross(Fusion):
    """Blocks of self-attention, cross-attention and MLP over the `queries`' tokens.

    ALBEF (Li et al. 2021, section 3.1) with queries="text", whose last tokens know of the image;
    `causal` for captions (CoCa, Yu et al. 2022, section 3.2). The other keys are those of
    `EncoderSpec`.
    """

    def __init__(
        self,
        *,
        queries: Literal["text", "image"] = "text",
        causal: bool = False,
        pool: Pool = "mean",
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Spec,
    ):
        spec = base.read_spec(encoder)
        self.queries, self.memory = queries, OTHER[queries]
        self.adapt = base.Adapter(spec, getattr(model, queries).width, rngs=rngs)
        memory_width = getattr(model, self.memory).width
        self.encoder = Encoder(spec, causal=causal, memory_width=memory_width, rngs=rngs)
        self.fuses, self.pool, self.causal = (queries,), pool, causal
        self.width = self.pooled_width = spec.width

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        sides = {"image": image, "text": text}
        own, other = sides[self.queries], sides[self.memory]
        x = self.encoder(self.adapt(own.tokens), own.mask, rng, memory=other)
        return Fused(base.pool_streams(self.pool, (x, own.mask)), **{self.queries: x})
