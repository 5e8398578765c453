"""Guided attention: what one modality looks at in the other steers the other's self-attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.models.encoder import Encoded, Encoder, real
from mm.models.fusion import base
from mm.models.fusion.base import OTHER, Fused, Fusion, Pool, Spec
from mm.models.keys import Keys
from mm.models.layers import at_least_float32


@registry.register("fusion", "guided")
class Guided(Fusion):
    """Self-attention of one modality, weighted by what the other's summary attends to.

    With guide="text", of the text's pooled vector p and the image's tokens x_j:
    a = softmax_j(W_q p . W_k x_j / sqrt(width)), and in every block a query i of the image's
    self-attention weighs token j by softmax_j(q_i . k_j / sqrt(d_head) + log a_j), which is
    proportional to a_j exp(q_i . k_j / sqrt(d_head)). guide="image" is the reverse. Only the guided
    tokens are fused; the pooled vector is theirs beside p. The other keys are those of
    `EncoderSpec`.
    """

    def __init__(
        self,
        *,
        guide: Literal["text", "image"] = "text",
        pool: Pool = "mean",
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Spec,
    ):
        spec = base.read_spec(encoder)
        self.guide, self.guided = guide, OTHER[guide]
        self.adapt = base.Adapter(spec, getattr(model, self.guided).width, rngs=rngs)
        self.query, self.key = (
            base.to_width(n, spec.width, spec.dtype, rngs)
            for n in (getattr(model, guide).pooled_width, spec.width)
        )
        self.encoder = Encoder(spec, rngs=rngs)
        self.fuses, self.pool = (self.guided,), pool
        self.width, self.pooled_width = spec.width, spec.width + getattr(model, guide).pooled_width

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        sides = {"image": image, "text": text}
        guide, mask = sides[self.guide].pooled, sides[self.guided].mask
        x = self.adapt(sides[self.guided].tokens)
        scores = jnp.einsum("bd,bnd->bn", self.query(guide), self.key(x)) * self.width**-0.5
        scores = at_least_float32(scores)
        # The least finite number and not -inf, which has no gradient where nothing is real.
        scores = jnp.where(real(x, mask), scores, jnp.finfo(scores.dtype).min)
        x = self.encoder(x, mask, rng, guide=jax.nn.log_softmax(scores))
        pooled = base.pool_streams(self.pool, (x, mask))
        return Fused(jnp.concatenate([pooled, guide.astype(x.dtype)], -1), **{self.guided: x})
