"""Attention over the modalities: a pair says how much each of its two vectors counts."""

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.models.encoder import Encoded
from mm.models.fusion.base import SIDES, Fused, Fusion, Widths, to_width
from mm.models.keys import Keys
from mm.models.layers import Dtype, Linear, at_least_float32


@registry.register("fusion", "weighted")
class Weighted(Fusion):
    """a_I h_I + a_T h_T, where a = softmax over modalities of u^T tanh(W h + b), h = W_m v.

    The attention of Yang et al. 2016 (eqs. 5-7) with modalities for words; v are the towers' pooled
    vectors, u, W and b are the same for both. Tokens never meet.
    """

    fuses = ()

    def __init__(self, *, width: int, dtype: Dtype = "float32", widths: Widths, rngs: nnx.Rngs):
        pooled = (widths.pooled[name] for name in SIDES)
        self.image, self.text = (to_width(n, width, dtype, rngs) for n in pooled)
        self.hidden = to_width(width, width, dtype, rngs, bias=True)
        axes = ("embed", None)
        self.score = Linear((width,), (1,), axes, bias=False, dtype=dtype, rngs=rngs)
        self.width = self.pooled_width = width

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        h = jnp.stack([self.image(image.pooled), self.text(text.pooled)], axis=1)
        scores = at_least_float32(self.score(jnp.tanh(self.hidden(h))))
        return Fused((jax.nn.softmax(scores, axis=1).astype(h.dtype) * h).sum(1))
