"""Cross-attention: the tokens of one modality read those of the other (ALBEF, CoCa)."""

from typing import Annotated, Any, Literal

from flax import nnx

from mm import registry
from mm.models.encoder import Encoded, Encoder, EncoderSpec
from mm.models.fusion.base import Fused, Fusion, Pool, adapted, pool_streams, to_width
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
        image_width: int,
        text_width: int,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        spec = EncoderSpec(**encoder)
        widths = {"image": image_width, "text": text_width}
        self.queries, self.memory = queries, "image" if queries == "text" else "text"
        self.adapt = to_width(spec, widths[queries], rngs)
        self.encoder = Encoder(spec, causal=causal, memory_width=widths[self.memory], rngs=rngs)
        self.fuses, self.pool, self.causal = (queries,), pool, causal
        self.width = self.pooled_width = spec.width

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        sides = {"image": image, "text": text}
        own, other = sides[self.queries], sides[self.memory]
        x = self.encoder(adapted(self.adapt, own.tokens), own.mask, rng, memory=other)
        return Fused(pool_streams(self.pool, (x, own.mask)), **{self.queries: x})
