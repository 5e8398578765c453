"""Cross-attention: the tokens of one modality read those of the other (ALBEF, CoCa)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.fusion import base
from mm.models.fusion.base import OTHER, Fused, Fusion, Pool, Spec
from mm.models.keys import Keys


@registry.register("fusion", "cross")
class Cross(Fusion):
    """Blocks of self-attention, cross-attention and MLP over the `queries`' tokens.

    ALBEF (Li et al. 2021, section 3.1) with queries="text", whose last tokens know of the image;
    `causal` for captions (CoCa, Yu et al. 2022, section 3.2). `start` "embeddings": the blocks read
    what the text tower's first block reads, and are those of the text tower but for cross-attention
    (BLIP, Li et al. 2022, section 3.1). The other keys are those of `EncoderSpec`.
    """

    def __init__(
        self,
        *,
        queries: Literal["text", "image"] = "text",
        causal: bool = False,
        pool: Pool = "mean",
        start: Literal["tokens", "embeddings"] = "tokens",
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Spec,
    ):
        spec = base.read_spec(encoder)
        self.queries, self.memory = queries, OTHER[queries]
        self.adapt = base.Adapter(spec, getattr(model, queries).width, rngs=rngs)
        memory_width = getattr(model, self.memory).width
        self.encoder = Encoder(spec, causal=causal, memory_width=memory_width, rngs=rngs)
        self.reads_embeddings = start == "embeddings"
        if self.reads_embeddings:
            self._share(model, spec)
        self.fuses, self.pool, self.causal = (queries,), pool, causal
        self.width = self.pooled_width = spec.width

    def _share(self, model: nnx.Module, spec: EncoderSpec) -> None:
        """Makes the text tower's self-attention and MLPs those of this stack, too."""
        own = getattr(model.text, "encoder", None)
        if self.queries != "text" or own is None or own.depth != spec.depth:
            raise BadInput(
                "start='embeddings' needs queries='text', and a text Transformer of the same depth"
            )
        for part in ("attention_branch", "attention", "mlp_branch", "mlp"):
            alike = [nnx.split(getattr(x.blocks, part)) for x in (own, self.encoder)]
            shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) for _, state in alike]
            if alike[0][0] != alike[1][0] or shapes[0] != shapes[1]:
                raise BadInput(
                    "start='embeddings' needs a text tower of the same width, num_heads, mlp_dim "
                    "and so on; make their specs alike"
                )
            setattr(self.encoder.blocks, part, getattr(own.blocks, part))

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        sides = {"image": image, "text": text}
        own, other = sides[self.queries], sides[self.memory]
        tokens = own.embedded if self.reads_embeddings else own.tokens
        x = self.encoder(self.adapt(tokens), own.mask, rng, memory=other)
        return Fused(base.pool_streams(self.pool, (x, own.mask)), **{self.queries: x})
