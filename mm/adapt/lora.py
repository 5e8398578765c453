"""Low-rank changes of matrices (LoRA: Hu et al. 2021)."""

import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.adapt.base import Arrays, find_modules
from mm.config import BadInput, Positive, Scale
from mm.models.layers import Linear, affine, param
from mm.models.multimodal import Multimodal

_AT, _ALPHA = (".*/attention/(query|value)",), 16.0
_TABLE = "model/decoder/head"  # logits read its kernel as a table of words, a part at a time


@registry.register("adaptation", "lora")
def lora(
    *,
    at: tuple[str, ...] = _AT,
    rank: Positive = 8,
    alpha: Scale = _ALPHA,
    model: Multimodal,
    rngs: nnx.Rngs,
    whole: bool,
) -> None:
    """Every Linear whose path one of the regexes `at` matches computes x W + alpha/rank x A B, too.

    A is [inputs, rank], normal, and B [rank, outputs], zero at the start: so the first outputs are
    those of the model (eq. 3). The default are the paper's, queries and values. Export folds it in.
    """
    for path, linear in find_modules(model, Linear, at, whole).items():
        if linear.lora is not None:
            raise BadInput(f"at: {path} has a lora already; let one regex match it")
        if path == _TABLE:
            raise BadInput(f"at: {path} is a table of words; leave it out, or train it whole")
        linear.lora = nnx.data(Lora(linear, rank, alpha, rngs=rngs))


class Lora(nnx.Module):
    """alpha/rank x A B, for a linear layer or a stack of them."""

    def __init__(self, linear: Linear, rank: int, alpha: float, *, rngs: nnx.Rngs):
        kernel, axes, cut = linear.kernel, linear.axes, linear.input_dims
        layers = kernel.ndim - len(axes)
        lead, names = kernel.shape[:layers], kernel.get_metadata("axes")[:layers]
        inputs, outputs = kernel.shape[layers : layers + cut], kernel.shape[layers + cut :]
        self.axes = (*axes[:cut], None), (None, *axes[cut:])
        init = jax.nn.initializers.normal(linear.inputs**-0.5)
        self.a = param(rngs, init, (*lead, *inputs, rank), (*names, *self.axes[0]))
        self.b = param(rngs, 0.0, (*lead, rank, *outputs), (*names, *self.axes[1]))
        self.scale = alpha / rank

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        inner = affine(self.axes[0], x, self.a[...], None)
        return self.scale * affine(self.axes[1], inner, self.b[...], None)


@registry.register("fold", "lora")
def fold_lora(params: Arrays, spec: Mapping) -> tuple[dict[str, np.ndarray], None]:
    """W + alpha/rank A B, in float64, rounded to the type of W."""
    at, alpha, merged = spec.get("at", _AT), spec.get("alpha", _ALPHA), dict(params)
    for name in params:
        path = name.removesuffix("/lora/a")
        if path == name or not any(re.fullmatch(pattern, path) for pattern in at):
            continue
        a, b = (merged.pop(f"{path}/lora/{part}").astype(np.float64) for part in "ab")
        kernel = params[f"{path}/kernel"]
        lead = kernel.shape[: a.ndim + b.ndim - kernel.ndim - 2]
        rank = a.shape[-1]
        change = alpha / rank * (a.reshape(*lead, -1, rank) @ b.reshape(*lead, rank, -1))
        merged[f"{path}/kernel"] = (kernel + change.reshape(kernel.shape)).astype(kernel.dtype)
    return merged, None
