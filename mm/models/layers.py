"""The layers that every tower is made of.

A parameter is an `nnx.Param` with `axes`, one logical name a dimension ("embed", "mlp", "heads",
"kv", "vocab", ...), which `mm.sharding` maps to the mesh. Parameters are float32; `dtype` is what a
layer computes in. Norms and softmax compute in float32 whatever `dtype` is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from mm.models.keys import Keys, bernoulli
from mm.sharding.parameters import gather, sum_rows

Dtype = Literal["float32", "bfloat16"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu"]
Norm = Literal["layer_norm", "rms_norm"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


def param(rngs: nnx.Rngs, init: Callable | float, shape: tuple[int, ...], axes: tuple) -> nnx.Param:
    """A float32 parameter whose dimensions have the logical names `axes`; `init`: or a number."""
    assert len(shape) == len(axes), (shape, axes)
    init = init if callable(init) else jax.nn.initializers.constant(init)
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


def vectors(
    rngs: nnx.Rngs, count: int, width: int, *, axis: str | None = None, deviation: float = 0.02
) -> nnx.Param:
    """`count` learned vectors [count, width], along a logical axis if they are many."""
    return param(rngs, jax.nn.initializers.normal(deviation), (count, width), (axis, "embed"))


class Buffer(nnx.Variable):
    """An array that steps change without a gradient, or not at all: a queue, a mean, a memory.

    An objective assigns to it; in evaluation the new value is dropped. It is the same on every
    device, and part of a checkpoint.
    """


class Linear(nnx.Module):
    """y = x W + b over the last axis of x, as wide as the product of `inputs`; so y of `outputs`.

    W has shape inputs + outputs, `axes` names its dimensions: attention's [embed, heads, kv] can be
    split by heads. What it reads and writes is flat: heads side by side fill a TPU's 128 lanes.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: tuple,
        *,
        bias: bool = True,
        init: Callable | None = None,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        ndim = len(inputs) + len(outputs)
        init = init or jax.nn.initializers.variance_scaling(
            1.0,
            "fan_avg",  # Xavier uniform, as the original ViT
            "uniform",
            in_axis=tuple(range(len(inputs))),
            out_axis=tuple(range(len(inputs), ndim)),
        )
        self.kernel = param(rngs, init, inputs + outputs, axes)
        self.bias = param(rngs, 0.0, outputs, axes[len(inputs) :]) if bias else None
        self.inputs, self.outputs, self.axes = math.prod(inputs), math.prod(outputs), axes
        self.input_dims, self.dtype = len(inputs), jnp.dtype(dtype)
        self.lora = None  # what `mm.adapt.lora` adds

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        bias = None if self.bias is None else self.bias[...].reshape(self.outputs)
        # Two matrices: XLA's CPU backend is a third slower on other ranks.
        x2 = x.astype(self.dtype).reshape(-1, self.inputs)
        y = affine(self.axes, x2, self.kernel[...], bias)
        if self.lora is not None:
            y = y + self.lora(x2)
        return y.reshape(*x.shape[:-1], self.outputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def affine(
    axes: tuple, x: Float[Array, "b i"], kernel: Float[Array, "..."], bias: Float[Array, "o"] | None
) -> Float[Array, "b o"]:
    """x @ kernel + bias in the dtype of x; the kernel's dimensions, i and o, may be cut further.

    A kernel that is split over the batch's devices is gathered for each pass, in the dtype of x.
    Gradients of kernel and bias are summed up in theirs: else they would be rounded to bfloat16
    before they are added to those of the other devices.
    """
    y = x @ _matrix(axes, x, kernel)
    return y if bias is None else y + bias.astype(x.dtype)


def _matrix(axes, x, kernel):
    return gather(kernel.astype(x.dtype), axes).reshape(x.shape[1], -1)


def _affine_forward(axes, x, kernel, bias):
    return affine(axes, x, kernel, bias), (x, kernel, bias)


def _affine_backward(axes, residuals, gradient):
    x, kernel, bias = residuals

    def product(x: Array, gradient: Array) -> Array:
        dimensions = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(
            x, gradient, dimensions, preferred_element_type=kernel.dtype
        ).reshape(kernel.shape)

    dkernel = sum_rows(product, kernel.shape, axes, x, gradient)
    dbias = None if bias is None else gradient.astype(bias.dtype).sum(0)
    return gradient @ _matrix(axes, x, kernel).T, dkernel, dbias


affine.defvjp(_affine_forward, _affine_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def lookup(
    axes: tuple, dtype: DTypeLike, table: Float[Array, "v d"], ids: Int[Array, "b l"]
) -> Float[Array, "b l d"]:
    """Rows of a table in `dtype`; the table's gradient is summed up in its own."""
    return gather(table.astype(dtype), axes)[ids]


def _lookup_forward(axes, dtype, table, ids):
    return lookup(axes, dtype, table, ids), (table, ids)


def _lookup_backward(axes, dtype, residuals, gradient):
    table, ids = residuals

    def add(ids: Array, gradient: Array) -> Array:
        return jnp.zeros(table.shape, table.dtype).at[ids].add(gradient.astype(table.dtype))

    dtable = sum_rows(add, table.shape, axes, ids, gradient, by_rows=True)
    return dtable, None


lookup.defvjp(_lookup_forward, _lookup_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def add_table(
    axes: tuple, x: Float[Array, "b n d"], table: Float[Array, "n d"]
) -> Float[Array, "b n d"]:
    """x + table in the dtype of x; the table's gradient is summed up in its own."""
    return x + gather(table.astype(x.dtype), axes)


def _add_table_forward(axes, x, table):
    return add_table(axes, x, table), table


def _add_table_backward(axes, table, gradient):
    def add(gradient: Array) -> Array:
        return gradient.astype(table.dtype).sum(0)

    return gradient, sum_rows(add, table.shape, axes, gradient, by_rows=True)


add_table.defvjp(_add_table_forward, _add_table_backward)


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al. 2016) in float32, the result in the dtype of x."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.scale = param(rngs, 1.0, (width,), ("embed",))
        self.bias = param(rngs, 0.0, (width,), ("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return layer_norm(self.epsilon, x, self.scale[...], self.bias[...])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(
    epsilon: float, x: Float[Array, "... d"], scale: Float[Array, "d"], bias: Float[Array, "d"]
) -> Float[Array, "... d"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    Reads x once for both moments: on a TPU what is read is what it costs.
    """
    return _layer_norm_forward(epsilon, x, scale, bias)[0]


def _layer_norm_forward(epsilon, x, scale, bias):
    wide = at_least_float32(x)
    # One pass, about the first element: few digits cancel unless it is far from all others, which
    # costs (x_0 - mean)^2 / variance roundings of a float32, at most `width` of them.
    shift = at_least_float32(x[..., :1])
    moments = jnp.mean(wide - shift, -1), jnp.mean(jnp.square(wide - shift), -1)
    variance = jnp.maximum(moments[1] - jnp.square(moments[0]), 0)
    mean = checkpoint_name(shift[..., 0] + moments[0], "moments")
    inverse = checkpoint_name(jax.lax.rsqrt(variance + epsilon), "moments")
    y = (wide - mean[..., None]) * inverse[..., None] * scale + bias
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(epsilon, residuals, gradient):
    x, mean, inverse, scale = residuals
    gradient = at_least_float32(gradient)
    normed = (at_least_float32(x) - mean[..., None]) * inverse[..., None]
    slope = gradient * scale
    along = jnp.mean(slope * normed, -1, keepdims=True)
    dx = inverse[..., None] * (slope - jnp.mean(slope, -1, keepdims=True) - normed * along)
    rows = tuple(range(x.ndim - 1))
    sums = (gradient * normed).sum(rows), gradient.sum(rows)
    return dx.astype(x.dtype), *(x.astype(scale.dtype) for x in sums)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """bfloat16 to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, eq. 4) in float32."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.scale = param(rngs, 1.0, (width,), ("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = at_least_float32(x)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def dropout(x: Array, rate: float, keys: Keys | None) -> Array:
    """Zeroes a share `rate` of x and scales the rest; without keys (evaluation) returns x."""
    if keys is None or rate == 0.0:
        return x
    return keep_random(x, rate, keys, x.shape[1:])


def keep_random(x: Array, rate: float | Array, keys: Keys, shape: tuple[int, ...]) -> Array:
    """x / (1 - rate) with probability 1 - rate, else 0; draws `shape`, broadcast, an example."""
    kept = bernoulli(keys, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)
