"""Late fusion: one vector of the two towers' pooled vectors; tokens never meet."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.fusion.base import SIDES, Fused, Fusion, to_width
from mm.models.keys import Keys
from mm.models.layers import Dtype, Linear, at_least_float32


@registry.register("fusion", "late")
class Late(Fusion):
    """Of the pooled v_I and v_T, by `kind`; h = W v, of `width`, with a W of each.

    "concatenate": [v_I; v_T], of no width. "sum": h_I + h_T. "gated": z * tanh(h_I) + (1 - z) *
    tanh(h_T), where z = sigmoid(W_z [v_I; v_T]) (Arevalo et al. 2017, section 3.1). "bilinear":
    h_I * h_T elementwise (Kim et al. 2017, section 3), whose sum is the score v_I^T W v_T with
    W = W_I^T W_T, of rank `width` at most; a linear head p over it gives v_I^T W_I^T diag(p) W_T
    v_T. So any matching head makes a pair's score of it. "weighted": a_I h_I + a_T h_T, a = softmax
    over modalities of u^T tanh(W h + b), with the same u, W and b: the attention of Yang et al.
    2016 (eqs. 5-7) with modalities for words.
    """

    fuses = ()

    def __init__(
        self,
        *,
        kind: Literal["concatenate", "sum", "gated", "bilinear", "weighted"],
        width: int | None = None,
        dtype: Dtype = "float32",
        model: nnx.Module,
        rngs: nnx.Rngs,
    ):
        if (kind == "concatenate") != (width is None):
            raise BadInput(f"width={width}: kind={kind!r}; all but 'concatenate' need a width")
        image, text = (getattr(model, name).pooled_width for name in SIDES)
        self.kind, self.width = kind, width or image + text
        self.pooled_width = self.width
        if width:
            self.image, self.text = (to_width(n, width, dtype, rngs) for n in (image, text))
        if kind == "gated":
            self.gate = to_width(image + text, width, dtype, rngs)
        if kind == "weighted":
            self.hidden = to_width(width, width, dtype, rngs, bias=True)
            axes = ("embed", None)
            self.score = Linear((width,), (1,), axes, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        both = jnp.concatenate([image.pooled, text.pooled], axis=-1)
        if self.kind == "concatenate":
            return Fused(both)
        x, y = self.image(image.pooled), self.text(text.pooled)
        if self.kind == "weighted":
            h = jnp.stack([x, y], axis=1)
            scores = at_least_float32(self.score(jnp.tanh(self.hidden(h))))
            return Fused((jax.nn.softmax(scores, axis=1).astype(h.dtype) * h).sum(1))
        if self.kind == "gated":
            gate = jax.nn.sigmoid(self.gate(both))
            x, y = gate * jnp.tanh(x), (1 - gate) * jnp.tanh(y)
        return Fused(x * y if self.kind == "bilinear" else x + y)
