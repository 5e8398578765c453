"""Early fusion: one Transformer over the tokens of both modalities (ViLT, VisualBERT, FLAVA)."""

import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.models.encoder import Encoded, Encoder
from mm.models.fusion import base
from mm.models.fusion.base import SIDES, Fused, Fusion, Pool, Spec
from mm.models.keys import Keys
from mm.models.layers import lookup, vectors


@registry.register("fusion", "early")
class Early(Fusion):
    """encoder([W_I x_I + t_I; W_T x_T + t_T]), t a learned embedding of the modality.

    Over towers of depth 0 it is ViLT (Kim et al. 2021, section 3.1), VisualBERT (Li et al. 2019)
    or M3AE (Geng et al. 2022); over deep ones FLAVA's multimodal encoder (Singh et al. 2022,
    section 3.1), with its learned `cls_token` for the pooled vector; without, that is the pooled
    image beside the pooled text. Positions are those of the towers. The other keys are those of
    `EncoderSpec`.
    """

    fuses = SIDES

    def __init__(
        self,
        *,
        cls_token: bool = False,
        pool: Pool = "mean",
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Spec,
    ):
        spec = base.read_spec(encoder)
        self.adapters = base.adapters(spec, model, SIDES, rngs)
        self.types = vectors(rngs, 2, spec.width)
        self.cls = vectors(rngs, 1, spec.width) if cls_token else None
        self.encoder = Encoder(spec, rngs=rngs)
        self.pool, self.dtype = pool, jnp.dtype(spec.dtype)
        self.width, self.pooled_width = spec.width, (1 if cls_token else 2) * spec.width

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        batch, streams = len(text.tokens), []
        for i, (name, x) in enumerate(base.by_side(image, text)):
            kind = jnp.full(x.tokens.shape[:2], i)
            kind = lookup((None, "embed"), self.dtype, self.types[...], kind)
            streams.append((self.adapters[name](x.tokens) + kind, x.mask))
        if self.cls is not None:
            streams.insert(0, (base.learned_tokens(self.cls, batch, self.dtype), None))
        x = self.encoder(*base.join(streams, batch), rng)
        *cls, x, y = base.part(x, [x.shape[1] for x, _ in streams])
        if cls:
            return Fused(cls[0][:, 0], x, y)
        return Fused(base.pool_streams(self.pool, (x, image.mask), (y, text.mask)), x, y)
