"""Bottleneck adapters (Houlsby et al. 2019)."""

from functools import partial

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.adapt.base import find_modules
from mm.config import BadInput, Positive
from mm.models.block import Branch
from mm.models.encoder import stack
from mm.models.layers import ACTIVATIONS, Activation, Dtype, Linear
from mm.models.multimodal import Multimodal


@registry.register("adaptation", "adapter")
def adapter(
    *,
    at: tuple[str, ...] = (".*/(attention|mlp)_branch",),
    size: Positive = 16,
    activation: Activation = "gelu",
    model: Multimodal,
    rngs: nnx.Rngs,
    whole: bool,
) -> None:
    """Two small layers after attention or MLP, before what they made is added to their input.

    `at` are regexes of branches, "model/image/encoder/blocks/mlp_branch"; by default all. `size` is
    the width between the layers. The second is zero at the start, so that an adapter begins as the
    identity (section 2.1, where it is nearly one).
    """
    for path, branch in find_modules(model, Branch, at, whole).items():
        if branch.adapter is not None:
            raise BadInput(f"at: {path} has an adapter already; let one regex match it")
        *layers, width = branch.norm.scale.shape
        make = partial(Bottleneck, width, size, activation, branch.dtype.name)
        made = stack(make, layers[0], rngs) if layers else make(rngs=rngs)
        branch.adapter = nnx.data(made)


class Bottleneck(nnx.Module):
    """y + W2 f(W1 y + b1) + b2."""

    def __init__(
        self, width: int, size: int, activation: Activation, dtype: Dtype, *, rngs: nnx.Rngs
    ):
        zero, given = jax.nn.initializers.zeros, dict(dtype=dtype, rngs=rngs)
        self.down = Linear((width,), (size,), ("embed", None), **given)
        self.up = Linear((size,), (width,), (None, "embed"), init=zero, **given)
        self.activation = activation

    def __call__(self, y: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return y + self.up(ACTIVATIONS[self.activation](self.down(y)))
