"""From pixels to patch tokens: by one matmul, or by two levels that look at small cells first.

`patch_shape` is (height, width, channels) of a patch, in clips (frames, height, width, channels).
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput
from mm.models.layers import ACTIVATIONS, Activation, Dtype, Linear, RMSNorm


@registry.register("stem", "linear")
class LinearStem(nnx.Module):
    """Each patch by one matmul (Dosovitskiy et al. 2021); a reshape cuts the patches.

    A patch of a clip is a tubelet (Arnab et al. 2021, section 3.2). CLIP's has no `bias`.
    """

    def __init__(
        self,
        *,
        patch_shape: tuple[int, ...],
        width: int,
        bias: bool = True,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        self.patch_shape = patch_shape
        sizes, axes = ((math.prod(patch_shape),), (width,)), ("patch", "embed")
        self.embedding = Linear(*sizes, axes, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, image: Float[Array, "b *size c"]) -> Float[Array, "b n d"]:
        return self.embedding(flat(cut(image, self.patch_shape[:-1])))


@registry.register("stem", "cells")
class CellStem(nnx.Module):
    """Patches of cells: a nonlinear code of each small cell, then of the patch from its cells.

    A cell of `cell_size` pixels is split into contrast and mean (Coates, Ng and Lee 2011, section
    3.2.1; here mean colour and deviation stay as inputs), embedded to `cell_width` and normed; the
    cells of a patch, side by side, pass two more layers with `hidden` units between them. All cells
    share weights, as in a convolution, so edges are learned from few pictures.
    """

    def __init__(
        self,
        *,
        patch_shape: tuple[int, ...],
        width: int,
        cell_size: int = 4,
        cell_width: int = 64,
        hidden: int = 256,
        activation: Activation = "relu_squared",
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        patch_size = patch_shape[0]
        if patch_shape != (patch_size, patch_size, 3):
            raise BadInput("cells are of pictures in colour; use stem=dict(name='linear')")
        if patch_size % cell_size:
            raise BadInput(f"patch_size={patch_size} does not divide by cell_size={cell_size}")
        self.cell_size, self.cells = cell_size, patch_size // cell_size
        self.activation = activation

        def linear(inputs: int, outputs: int, axes: tuple) -> Linear:
            init = jax.nn.initializers.lecun_normal()
            return Linear((inputs,), (outputs,), axes, init=init, dtype=dtype, rngs=rngs)

        self.cell = linear(3 * cell_size**2 + 4, cell_width, ("patch", "mlp"))
        self.norm = RMSNorm(cell_width, rngs=rngs)
        self.merge = linear(self.cells**2 * cell_width, hidden, ("embed", "mlp"))
        self.out = linear(hidden, width, ("mlp", "embed"))

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        activation = ACTIVATIONS[self.activation]
        x = self.norm(activation(self.cell(contrast(cut(image, (self.cell_size,) * 2)))))
        x = flat(cut(x, (self.cells,) * 2))
        return self.out(activation(self.merge(x)))


def cut(x: Float[Array, "b *size c"], sizes: tuple[int, ...]) -> Float[Array, "b *grid p"]:
    """Blocks of `sizes`, of height and width or frames, height and width, each as one vector."""
    if len(sizes) == 2:
        return rearrange(x, "b (gh p) (gw q) c -> b gh gw (p q c)", p=sizes[0], q=sizes[1])
    t, p, q = sizes
    return rearrange(x, "b (gt t) (gh p) (gw q) c -> b gt gh gw (t p q c)", t=t, p=p, q=q)


def flat(x: Float[Array, "b *grid p"]) -> Float[Array, "b n p"]:
    """The places of a grid in a row, as `reshape` orders them."""
    return x.reshape(len(x), -1, x.shape[-1])


def contrast(cells: Float[Array, "b *grid p"], epsilon: float = 0.1) -> Float[Array, "b *grid q"]:
    """[(x - mean) / (deviation + epsilon), mean colour, deviation], q = p + 4.

    `epsilon`, in units of the pixels (-1 to 1), keeps flat cells flat.
    """
    pixels = cells.shape[-1] // 3
    average = jnp.tile(jnp.eye(3, dtype=cells.dtype), (pixels, 1)) / pixels
    # A matmul: XLA's CPU backend is slow at a mean over an axis that is not the last.
    mean = cells @ average
    centered = cells - jnp.tile(mean, pixels)
    deviation = jnp.sqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-6)
    return jnp.concatenate([centered / (deviation + epsilon), mean, deviation], -1)
