"""Residual network (He et al. 2016), with norms that know one example only."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.keys import Keys
from mm.models.layers import Dtype, param
from mm.models.pool import mean_pool
from mm.sharding.parameters import gather, sum_rows
from mm.sharding.rules import constrain

_AXES = (None, None, "embed", "mlp")  # of a kernel
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@registry.register("image_encoder", "resnet")
class ResNet(nnx.Module):
    """Image [b, h, w, 3] to tokens [b, h/32 x w/32, width], rows first, and their mean [b, width].

    Sides that 32 does not divide are rounded up. Version 1.5: of a bottleneck the 3x3 convolution
    has the stride (Goyal et al. 2017, section 5.1). `base_width` are the channels of the first
    stage, and `width` follows from it: 8 x base_width, 32 x of bottlenecks (depth 50 and 101).

    Norms are over `groups` of the channels of an example (Wu and He 2018), not over the batch:
    there are no statistics to sum up across hosts or to go stale between training and evaluation,
    and the numbers are the same on any mesh and in any micro-batch. The last of a block starts at
    scale 0, so that every block starts as the identity (Goyal et al. 2017, section 5.1).
    """

    prefix = 0  # all tokens are places

    def __init__(
        self,
        *,
        image_size: int,
        depth: Literal[18, 34, 50, 101],
        base_width: int = 64,
        groups: int = 32,
        norm_epsilon: float = 1e-5,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        if groups < 1 or base_width % groups:
            raise BadInput(f"base_width={base_width} does not divide by groups={groups}; change it")
        conv = partial(ConvNorm, groups=groups, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.image_shape, self.dtype = (image_size, image_size, 3), jnp.dtype(dtype)
        self.stem = conv(3, base_width, 7, 2)
        blocks, width = [], base_width
        for stage, count in enumerate(STAGES[depth]):
            hidden = base_width * 2**stage
            for i in range(count):
                stride = 2 if stage and not i else 1
                layers = [(hidden, 3, stride), (hidden, 3, 1)]
                if depth >= 50:
                    layers = [(hidden, 1, 1), (hidden, 3, stride), (4 * hidden, 1, 1)]
                blocks.append(Residual(width, layers, conv))
                width = layers[-1][0]
        self.blocks = nnx.List(blocks)
        self.width = self.pooled_width = width

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        keep: float = 1.0,
        replace: float = 0.0,
        levels: int = 1,
        draw: Keys | None = None,
        rng: Keys | None = None,
    ) -> Encoded:
        """Takes any size. Nothing is random here: `draw` and `rng` change nothing.

        Raises BadInput where patches shall be dropped or hidden, or tokens of several depths read.
        """
        if keep < 1 or replace > 0:
            raise BadInput(
                f"config.model.image: a resnet has no patches to drop or to hide (keep={keep}, "
                f"replace={replace}); use a vit, or an objective that sees whole images"
            )
        if levels > 1:
            raise BadInput(
                f"config.model.fusion: reads {levels} depths of the towers; those of a resnet are "
                "not of one width and grid: use a vit, or a fusion that reads the last tokens"
            )
        x = constrain(max_pool(jax.nn.relu(self.stem(image))), "batch")
        for block in self.blocks:
            x = constrain(block(x), "batch")
        tokens = constrain(x.reshape(len(x), -1, self.width), "batch", "tokens", "width")
        return Encoded(tokens, mean_pool(tokens), None)


class Residual(nnx.Module):
    """relu(x + f(x)): f is convolutions of (width, kernel size, stride) each, relu between them.

    Where f changes the width or the grid, x passes a 1x1 convolution (projection shortcut: He et
    al. 2016, option B).
    """

    def __init__(self, width: int, layers: Sequence[tuple[int, int, int]], conv: Callable):
        convs, inputs = [], width
        for i, layer in enumerate(layers):
            convs.append(conv(inputs, *layer, start=float(i < len(layers) - 1)))
            inputs = layer[0]
        stride = math.prod(layer[2] for layer in layers)
        self.convs = nnx.List(convs)
        self.shortcut = nnx.data(
            conv(width, inputs, 1, stride) if stride > 1 or inputs != width else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = self.convs[0](x)
        for conv in self.convs[1:]:
            y = conv(jax.nn.relu(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ConvNorm(nnx.Module):
    """A convolution without bias, in `dtype`, and a group norm whose scale begins at `start`.

    The kernel is [size, size, in, out]; sides become n / stride, rounded up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        *,
        start: float = 1.0,
        groups: int,
        epsilon: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015
        self.kernel = param(rngs, init, (size, size, inputs, outputs), _AXES)
        self.norm = GroupNorm(outputs, groups=groups, epsilon=epsilon, start=start, rngs=rngs)
        self.stride, self.dtype = stride, jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.norm(convolve(self.stride, x.astype(self.dtype), self.kernel[...]))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(
    stride: int, x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"]
) -> Float[Array, "b h2 w2 d"]:
    """The convolution in the dtype of x, with k // 2 zeros around.

    As a matmul's, a split kernel is gathered for each pass, and its gradient is summed over devices
    in its own dtype: left alone, the compiler gathers the whole batch for it.
    """
    return _convolve(stride, x, gather(kernel.astype(x.dtype), _AXES))


def _convolve(stride, x, kernel):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)


def _convolve_forward(stride, x, kernel):
    return convolve(stride, x, kernel), (x, kernel)


def _convolve_backward(stride, residuals, gradient):
    x, kernel = residuals
    whole = gather(kernel.astype(x.dtype), _AXES)
    (dx,) = jax.linear_transpose(lambda x: _convolve(stride, x, whole), x)(gradient)

    def product(x: Array, gradient: Array) -> Array:
        like = jax.ShapeDtypeStruct(kernel.shape, x.dtype)
        transposed = jax.linear_transpose(lambda kernel: _convolve(stride, x, kernel), like)
        return transposed(gradient)[0].astype(kernel.dtype)

    return dx, sum_rows(product, kernel.shape, _AXES, x, gradient)


convolve.defvjp(_convolve_forward, _convolve_backward)


class GroupNorm(nnx.Module):
    """Group norm (Wu and He 2018, eq. 7) over places and a group's channels, in float32."""

    def __init__(self, width: int, *, groups: int, epsilon: float, start: float, rngs: nnx.Rngs):
        constant = jax.nn.initializers.constant
        self.scale = param(rngs, constant(start), (width,), ("embed",))
        self.bias = param(rngs, constant(0.0), (width,), ("embed",))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(len(x), -1, self.groups, x.shape[-1] // self.groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The greatest of 3x3, at every second row and column."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
