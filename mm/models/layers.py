"""The layers that every tower is made of.

A parameter is an `nnx.Param` with `axes`, one logical name a dimension ("embed", "mlp", "heads",
"kv", "vocab", ...), which `mm.sharding` maps to the mesh. Parameters are float32; `dtype` is what a
layer computes in. Norms and softmax compute in float32 whatever `dtype` is.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from mm.config import BadInput

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


def param(rngs: nnx.Rngs, init: Callable, shape: tuple[int, ...], axes: tuple) -> nnx.Param:
    """A float32 parameter whose dimensions carry the logical names `axes`."""
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


class Linear(nnx.Module):
    """y = x W + b over the last `len(inputs)` axes of x; W has shape inputs + outputs.

    `inputs` and `outputs` are tuples of sizes, `axes` the logical names of W's dimensions, so that
    attention's [embed, heads, kv] needs no reshape between a kernel and its sharding.
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
        self.bias = (
            param(rngs, jax.nn.initializers.zeros, outputs, axes[len(inputs) :]) if bias else None
        )
        self.contract = len(inputs)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...].astype(self.dtype)
        leading, inputs = x.shape[: -self.contract], kernel.shape[: self.contract]
        outputs = kernel.shape[self.contract :]
        # One matrix product of two matrices: XLA's CPU backend is a third slower on other ranks.
        flat = x.astype(self.dtype).reshape(-1, math.prod(inputs))
        y = flat @ kernel.reshape(math.prod(inputs), math.prod(outputs))
        y = y.reshape(*leading, *outputs)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al. 2016) in float32, the result in the dtype of x."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.scale = param(rngs, jax.nn.initializers.ones, (width,), ("embed",))
        self.bias = param(rngs, jax.nn.initializers.zeros, (width,), ("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019, eq. 4) in float32."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        self.scale = param(rngs, jax.nn.initializers.ones, (width,), ("embed",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def norm(kind: Norm, width: int, *, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
    """The norm layer of that name."""
    return {"layer_norm": LayerNorm, "rms_norm": RMSNorm}[kind](width, rngs=rngs)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, width: int, mlp_dim: int, *, activation: Activation, dtype: Dtype, rngs: nnx.Rngs
    ):
        self.up = Linear((width,), (mlp_dim,), ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = Linear((mlp_dim,), (width,), ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Attention(nnx.Module):
    """Multi-head attention of `queries` over `memory` (self-attention when they are the same).

    softmax(Q K^T / sqrt(d_head)) V (Vaswani et al. 2017, eq. 1).
    """

    def __init__(self, width: int, num_heads: int, *, dtype: Dtype, rngs: nnx.Rngs):
        sizes, axes = (num_heads, width // num_heads), ("embed", "heads", "kv")
        self.query = Linear((width,), sizes, axes, dtype=dtype, rngs=rngs)
        self.key = Linear((width,), sizes, axes, dtype=dtype, rngs=rngs)
        self.value = Linear((width,), sizes, axes, dtype=dtype, rngs=rngs)
        self.out = Linear(sizes, (width,), ("heads", "kv", "embed"), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "b n d"],
        memory: Float[Array, "b m d"],
        mask: Bool[Array, "b #h #n m"] | None = None,
    ) -> Float[Array, "b n d"]:
        q, k, v = self.query(queries), self.key(memory), self.value(memory)
        return self.out(dot_product_attention(q, k, v, mask))


def dot_product_attention(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    v: Float[Array, "b m h k"],
    mask: Bool[Array, "b #h #n m"] | None = None,
) -> Float[Array, "b n h k"]:
    """Attention by two einsums, softmax in float32; True in `mask` means may be seen.

    A query that may see nothing gets the mean of the values, never NaN.
    """
    scores = jnp.einsum("bnhk,bmhk->bhnm", q * (q.shape[-1] ** -0.5), k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhk->bnhk", weights, v)


def check_rate(name: str, rate: float) -> None:
    """Raises BadInput unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise BadInput(f"{name}={rate}: expected at least 0 and less than 1")


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share `rate` of x and scales the rest; without a key (evaluation) returns x."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)
