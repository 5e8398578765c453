"""Late fusion: one vector of the two towers' pooled vectors; tokens never meet."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.fusion.base import SIDES, Fused, Fusion, Widths, to_width
from mm.models.keys import Keys
from mm.models.layers import Dtype


@registry.register("fusion", "late")
class Late(Fusion):
    """Of the pooled v_I and v_T, by `kind`; h = W v, of `width`, with a W of each.

    "concatenate": [v_I; v_T], of no width. "sum": h_I + h_T. "gated": z * tanh(h_I) + (1 - z) *
    tanh(h_T), where z = sigmoid(W_z [v_I; v_T]) (Arevalo et al. 2017, section 3.1). "bilinear":
    h_I * h_T elementwise (Kim et al. 2017, section 3), whose sum is the score v_I^T W v_T with
    W = W_I^T W_T, of rank `width` at most; a linear head p over it gives v_I^T W_I^T diag(p) W_T
    v_T. So any matching head makes a pair's score of it.
    """

    fuses = ()

    def __init__(
        self,
        *,
        kind: Literal["concatenate", "sum", "gated", "bilinear"],
        width: int | None = None,
        dtype: Dtype = "float32",
        widths: Widths,
        rngs: nnx.Rngs,
    ):
        if (kind == "concatenate") != (width is None):
            raise BadInput(f"width={width}: kind={kind!r}; all but 'concatenate' need a width")
        image, text = (widths.pooled[name] for name in SIDES)
        self.kind, self.width = kind, width or image + text
        self.pooled_width = self.width
        if width:
            self.image, self.text = (to_width(n, width, dtype, rngs) for n in (image, text))
        if kind == "gated":
            self.gate = to_width(image + text, width, dtype, rngs)

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        both = jnp.concatenate([image.pooled, text.pooled], axis=-1)
        if self.kind == "concatenate":
            return Fused(both)
        x, y = self.image(image.pooled), self.text(text.pooled)
        if self.kind == "gated":
            gate = jax.nn.sigmoid(self.gate(both))
            x, y = gate * jnp.tanh(x), (1 - gate) * jnp.tanh(y)
        return Fused(x * y if self.kind == "bilinear" else x + y)
