"""Resampler: learned queries read the image, and the text reads them (Perceiver, Q-Former)."""

from functools import partial

from flax import nnx

from mm import registry
from mm.config import BadInput, Count, Positive
from mm.models.block import Draw, EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.fusion import base
from mm.models.fusion.base import Context, Pool, Spec, Streams
from mm.models.fusion.multiway import Multiway
from mm.models.keys import Keys
from mm.models.layers import vectors


@registry.register("fusion", "resampler")
class Resampler(Multiway):
    """Layers of self-attention over [queries; text], cross-attention of queries to image, MLPs.

    Q-Former (BLIP-2: Li et al. 2023, section 3.1), with cross-attention in every layer. Queries and
    text share self-attention; norms and MLPs are each one's own, or `shared`. What the queries read
    in a layer the text sees in the next. Before that, `resampler_depth` blocks of the queries alone
    may read the image (Perceiver: Jaegle et al. 2021); with cross=False nothing reads it later, and
    the queries are soft tokens of the image in a joint stream. The pooled vector is that of the
    queries beside that of the text. The other keys are those of `StreamFusion`.
    """

    fuses, names, filled = ("text",), ("queries", "text"), False

    def __init__(
        self,
        *,
        queries: Positive = 32,
        shared: bool = False,
        cross: bool = True,
        resampler_depth: Count = 0,
        pool: Pool = "mean",
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Spec,
    ):
        if not cross and not resampler_depth:
            raise BadInput("cross=False: nothing reads the image; set resampler_depth=1 or more")
        self.least_depth = 1 if resampler_depth else 2
        self.shared, self.crosses = shared, cross
        super().__init__(pool=pool, model=model, rngs=rngs, **encoder)
        self.queries = vectors(rngs, queries, self.width)
        spec = EncoderSpec(**encoder | {"depth": resampler_depth})
        alone = partial(Encoder, spec, memory_width=model.image.width, rngs=rngs)
        self.resampler = alone() if resampler_depth else None

    def start(self, image: Encoded, text: Encoded, rng: Keys | None) -> tuple[Streams, Context]:
        """The queries, after their own blocks, and the text."""
        queries = base.learned_tokens(self.queries, len(text.tokens), self.dtype)
        if self.resampler is not None:
            queries = self.resampler(queries, None, rng, memory=image)
        streams = {"queries": queries, "text": self.adapters["text"](text.tokens)}
        masks = {"queries": None, "text": text.mask}
        return streams, Context(masks, Draw(len(text.tokens)), memory=image)
