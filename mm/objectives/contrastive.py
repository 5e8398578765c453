"""Contrastive image-text learning over the global batch: softmax (CLIP) and sigmoid (SigLIP)."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from mm import registry
from mm.config import BadInput, Keep
from mm.models.inputs import GROUP
from mm.models.layers import param
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.tiles import grow, log_sum, nothing, products
from mm.objectives.views import Views, image_view
from mm.sharding.ring import over_batch, ring, total


@registry.register("objective", "contrastive")
class Contrastive(Objective):
    """Pulls pairs together and all other pairs of the global batch apart.

    Rows of one group (the same concept, or the same picture twice) are positives of each other,
    never negatives. `kind` "softmax" is InfoNCE both ways (Radford et al. 2021), "sigmoid" is eq. 1
    of SigLIP (Zhai et al. 2023). The scale is learned as its logarithm, starts at `init_scale` and
    is clamped to `max_scale`; the bias exists for "sigmoid". Defaults are the papers': 1/0.07 and
    at most 100 for softmax, 10, without a limit, and -10 for sigmoid. `image_keep` < 1 drops image
    tokens (FLIP).
    """

    reads = (GROUP,)

    def __init__(
        self,
        *,
        kind: Literal["softmax", "sigmoid"],
        init_scale: float | None = None,
        init_bias: float = -10.0,
        max_scale: float | None = None,
        image_keep: Keep = 1.0,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("contrastive", "image", "text", "embed_dim")
        start, most = {"softmax": (1 / 0.07, 100.0), "sigmoid": (10.0, math.inf)}[kind]
        start = start if init_scale is None else init_scale
        most = most if max_scale is None else max_scale
        self.log_scale = learned_scale(rngs, start, most)
        self.bias = param(rngs, init_bias, (), ()) if kind == "sigmoid" else None
        self.max_scale, self.image = most, image_view(image_keep)

    def __call__(self, views: Views, rng: Array) -> Loss:
        image, text = views.embed(self.image), views.text_embedding()
        scale = read_scale(self.log_scale, self.max_scale)
        group = views.batch["group"]
        metrics = {"logit_scale": scale}
        if self.bias is None:
            loss, accuracy = softmax_loss(image.z, text.z, group, scale)
        else:
            loss, accuracy = sigmoid_loss(image.z, text.z, group, scale, self.bias[...])
            metrics["logit_bias"] = self.bias[...]
        metrics |= {
            "image_to_text_accuracy": accuracy[0],
            "text_to_image_accuracy": accuracy[1],
            "image_pooled_norm": image.pooled_norm.mean(),
            "text_pooled_norm": text.pooled_norm.mean(),
        }
        return Loss(loss, jax.lax.stop_gradient(metrics))


def learned_scale(rngs: nnx.Rngs, start: float, most: float) -> nnx.Param:
    """The logarithm of a scale; `read_scale` gives the scale, of which `most` is the limit."""
    if not 0 < start <= most:
        raise BadInput(f"init_scale={start} must lie in (0, max_scale={most}]")
    return param(rngs, math.log(start), (), ())


def read_scale(logarithm: nnx.Param, most: float) -> Float[Array, ""]:
    """The scale, clamped."""
    return jnp.exp(clamp_from_above(logarithm[...], math.log(most)))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clamp_from_above(x: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """min(x, limit), whose gradient above the limit still lets a descent step bring x back.

    A plain minimum has no gradient there: a scale that once passed its limit would stay for good.
    """
    return jnp.minimum(x, limit)


def _clamp_forward(x, limit):
    return jnp.minimum(x, limit), x


def _clamp_backward(limit, x, gradient):
    return (jnp.where((x < limit) | (gradient > 0), gradient, 0.0),)


clamp_from_above.defvjp(_clamp_forward, _clamp_backward)


def softmax_loss(
    zimg: Float[Array, "b e"],
    ztxt: Float[Array, "b e"],
    group: Int[Array, "b"],
    scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "2"]]:
    """InfoNCE, the mean of both directions, and the accuracies (image to text, text to image).

    With several positives a row's target is uniform over them (UniCL, Yang et al. 2022, eq. 2, 3):
    L = -1/(2B) sum_i 1/|P(i)| sum_{p in P(i)} [log softmax_p(s x_i Y) + log softmax_p(s y_i X)].
    """
    return _loss("softmax", scale * zimg, ztxt, group, jnp.zeros_like(scale))


def sigmoid_loss(
    zimg: Float[Array, "b e"],
    ztxt: Float[Array, "b e"],
    group: Int[Array, "b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "2"]]:
    """SigLIP, eq. 1: -1/B sum_ij log sigmoid(z_ij (s x_i . y_j + b)), z = 1 on positives, else -1.

    B is the global batch, whatever the number of devices. Returns the accuracies, too.
    """
    return _loss("sigmoid", scale * zimg, ztxt, group, bias)


def nt_xent(
    z: Float[Array, "b e"], group: Int[Array, "b"], scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """NT-Xent among all rows (SimCLR, Chen et al. 2020, eq. 1), and the accuracy.

    A row's positives are the others of its group, at least one; with several the target is uniform
    over them (SupCon, Khosla et al. 2020, eq. 2). No row is a candidate for itself.
    """
    loss, accuracies = _loss("others", scale * z, z, group, jnp.zeros_like(scale))
    return loss, accuracies[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(kind: str, zimg: Array, ztxt: Array, group: Array, bias: Array):
    return _forward(kind, zimg, ztxt, group, bias)[0]


def _forward(kind, zimg, ztxt, group, bias):
    """(loss, accuracies), and what the backward pass needs: at most three numbers a pair."""
    size, labels = len(zimg), {"group": group}
    if kind == "others":
        labels["row"] = jnp.arange(size)

    def local(arrays, bias):
        zimg, ztxt, labels = arrays
        zero = jnp.zeros(len(zimg), zimg.dtype)
        low = zero - jnp.inf

        def tile(rows, row_sums, columns, column_sums):
            logits, same = _pairs(rows, columns, bias)
            hits, misses = jnp.where(same, logits, -jnp.inf), jnp.where(same, -jnp.inf, logits)
            row_sums = dict(row_sums)
            if kind != "sigmoid":
                row_sums["loss"] += jnp.where(same, logits, 0).sum(1)
                row_sums["count"] += same.sum(1)
                row_sums["exponentials"] = grow(row_sums["exponentials"], logits)
                column_sums = column_sums | {
                    "exponentials": grow(column_sums["exponentials"], logits, axis=0)
                }
            else:
                row_sums["loss"] -= jax.nn.log_sigmoid(jnp.where(same, logits, -logits)).sum(1)

            def best(sums, axis):
                return sums | {
                    "hit": jnp.maximum(sums["hit"], hits.max(axis)),
                    "miss": jnp.maximum(sums["miss"], misses.max(axis)),
                }

            return best(row_sums, 1), best(column_sums, 0)

        sums = {"hit": low, "miss": low}
        if kind != "sigmoid":
            sums["exponentials"] = nothing(zimg)
        rows, columns = {"z": zimg, **labels}, {"z": ztxt, **labels}
        start = sums | {"loss": zero, "count": zero}
        row_sums, column_sums = ring(tile, rows, start, columns, sums)
        loss, saved = row_sums["loss"], ()
        if kind != "sigmoid":
            row, column = (log_sum(side["exponentials"]) for side in (row_sums, column_sums))
            loss = (row + column) / 2 - loss / row_sums["count"]
            saved = {"log": row, "count": row_sums["count"]}, {"log": column}
        hits = [side["hit"] > side["miss"] for side in (row_sums, column_sums)]
        scalars = (loss, *(hit.astype(loss.dtype) for hit in hits))
        return saved, [total(x) / size for x in scalars]

    saved, (loss, *accuracies) = over_batch(local, (zimg, ztxt, labels), bias)
    return (loss, jnp.stack(accuracies)), (zimg, ztxt, labels, bias, saved)


def _backward(kind, residuals, cotangents):
    """Makes each tile again, instead of keeping any."""
    zimg, ztxt, labels, bias, saved = residuals
    size = len(zimg)

    def local(arrays, scalars):
        zimg, ztxt, labels, saved = arrays
        rows, columns = saved or ({}, {})
        bias, gradient = scalars

        def tile(rows, row_sums, columns, column_sums):
            logits, same = _pairs(rows, columns, bias)
            if kind != "sigmoid":
                shares = jnp.exp(logits - rows["log"][:, None]) + jnp.exp(logits - columns["log"])
                slope = shares / 2 - jnp.where(same, 1 / rows["count"][:, None], 0)
            else:
                slope = jnp.where(same, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
            slope = slope * (gradient / size)
            dz, dbias = row_sums
            row_sums = dz + products(slope, columns["z"]), dbias + slope.sum(1)
            return row_sums, column_sums + products(slope.T, rows["z"])

        rows, columns = {"z": zimg, **labels, **rows}, {"z": ztxt, **labels, **columns}
        start = jnp.zeros_like(zimg), jnp.zeros(len(zimg), zimg.dtype)
        (dimg, dbias), dtxt = ring(tile, rows, start, columns, jnp.zeros_like(ztxt))
        return (dimg, dtxt), total(dbias)

    arrays, scalars = (zimg, ztxt, labels, saved), (bias, cotangents[0])
    (dimg, dtxt), dbias = over_batch(local, arrays, scalars)
    no_gradient = np.zeros(labels["group"].shape, jax.dtypes.float0)
    return dimg, dtxt, no_gradient, dbias


_loss.defvjp(_forward, _backward)


def _pairs(rows: dict, columns: dict, bias: Array) -> tuple[Array, Array]:
    """The logits of a tile, and which pairs are positives."""
    logits = products(rows["z"], columns["z"].T) + bias
    same = rows["group"][:, None] == columns["group"][None]
    if "row" in rows:
        itself = rows["row"][:, None] == columns["row"][None]
        logits = jnp.where(itself, jnp.finfo(logits.dtype).min, logits)
        same = same & ~itself
    return logits, same
