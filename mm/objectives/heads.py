"""Small heads that objectives own."""

from itertools import pairwise

from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.models.layers import ACTIVATIONS, Activation, Dtype, LayerNorm, Linear


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
