"""Small heads that objectives own."""

from itertools import pairwise
from typing import Literal

from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.models.layers import (
    ACTIVATIONS,
    Activation,
    Dtype,
    LayerNorm,
    Linear,
    at_least_float32,
)
from mm.models.multimodal import Multimodal
from mm.objectives.views import Views, view

Of = Literal["image", "text", "fused"]


class Projector(nnx.Module):
    """`layers` linear layers, `hidden` wide between; a layer norm and an activation after each but
    the last.

    The projection head of SimCLR (Chen et al. 2020, section 2.1) and of its followers, whose batch
    norm would tie what a device computes to the rows of all others.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        *,
        layers: int = 2,
        activation: Activation = "relu",
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        sizes = [width, *[hidden] * (layers - 1), out]
        # In turns, so that two dimensions of a layer never fall on one axis of the mesh.
        axes = [("embed", "mlp"), ("mlp", "embed")]
        self.layers = nnx.List(
            Linear((i,), (o,), axes[depth % 2], dtype=dtype, rngs=rngs)
            for depth, (i, o) in enumerate(pairwise(sizes))
        )
        self.norms = nnx.List(LayerNorm(hidden, rngs=rngs) for _ in range(layers - 1))
        self.activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d2"]:
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = ACTIVATIONS[self.activation](norm(layer(x)))
        return self.layers[-1](x)


class PooledHead(nnx.Module):
    """`out` numbers, in float32, from the pooled vector of a tower or of the fusion.

    A linear layer that begins with zeros: all answers are equally likely at first, whatever the
    weights below. `uses` is what an objective with this head uses of the model.
    """

    def __init__(self, what: str, of: Of, out: int, *, model: Multimodal, rngs: nnx.Rngs):
        self.of, self.uses = of, ("fusion",) if of == "fused" else ()
        part = "fusion" if of == "fused" else of
        model.need(f"{what} of={of!r}", part)
        width, zeros = getattr(model, part).pooled_width, nnx.initializers.zeros
        self.linear = Linear((width,), (out,), ("embed", None), init=zeros, rngs=rngs)

    def __call__(self, views: Views) -> Float[Array, "b o"]:
        read = views.fuse() if self.of == "fused" else views.encode(view(self.of))
        return self.linear(at_least_float32(read.pooled))
