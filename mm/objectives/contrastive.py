"""Contrastive image-text learning over the global batch: softmax (CLIP) and sigmoid (SigLIP)."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.config import BadInput
from mm.models.layers import param
from mm.objectives.base import Loss
from mm.objectives.views import Views
from mm.sharding.rules import constrain


@registry.register("objective", "contrastive")
class Contrastive(nnx.Module):
    """Pulls pairs together and all other pairs of the global batch apart.

    Rows of one group (the same concept, or the same picture twice) are positives of each other,
    never negatives. `kind` "softmax" is InfoNCE both ways (Radford et al. 2021), "sigmoid" is eq. 1
    of SigLIP (Zhai et al. 2023). The scale is learned as its logarithm, starts at `init_scale` and
    is clamped to `max_scale`; the bias exists for "sigmoid". Defaults are the papers': 1/0.07 for
    softmax, 10 and -10 for sigmoid. `image_keep` < 1 drops image tokens (FLIP).
    """

    def __init__(
        self,
        *,
        kind: Literal["softmax", "sigmoid"],
        init_scale: float | None = None,
        init_bias: float = -10.0,
        max_scale: float = 100.0,
        image_keep: float = 1.0,
        rngs: nnx.Rngs,
    ):
        default = {"softmax": 1 / 0.07, "sigmoid": 10.0}[kind]
        scale = default if init_scale is None else init_scale
        if not 0 < scale <= max_scale:
            raise BadInput(f"init_scale={scale} must lie in (0, max_scale={max_scale}]")
        if not 0 < image_keep <= 1:
            raise BadInput(f"image_keep={image_keep} must lie in (0, 1]")
        constant = jax.nn.initializers.constant
        self.log_scale = param(rngs, constant(math.log(scale)), (), ())
        self.bias = param(rngs, constant(init_bias), (), ()) if kind == "sigmoid" else None
        self.kind, self.max_scale, self.image_keep = kind, max_scale, image_keep

    def __call__(self, views: Views, rng: Array) -> Loss:
        model = views.model
        how = {"keep": self.image_keep} if self.image_keep < 1 else {}
        zimg = model.project_image(views.image(**how))
        ztxt = model.project_text(views.text())
        scale = jnp.exp(clamp_from_above(self.log_scale[...], math.log(self.max_scale)))
        group = views.batch["group"]
        metrics = {"logit_scale": scale}
        if self.bias is None:
            loss, logits = softmax_loss(zimg, ztxt, group, scale)
        else:
            loss, logits = sigmoid_loss(zimg, ztxt, group, scale, self.bias[...])
            metrics["logit_bias"] = self.bias[...]
        hits = positives(group, group)
        metrics |= {
            "image_to_text_accuracy": accuracy(logits, hits),
            "text_to_image_accuracy": accuracy(logits.T, hits),
            "image_pooled_norm": jnp.linalg.norm(views.image(**how).pooled, axis=-1).mean(),
            "text_pooled_norm": jnp.linalg.norm(views.text().pooled, axis=-1).mean(),
        }
        return Loss(loss, jax.lax.stop_gradient(metrics))

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What it reads of a batch beside image and text."""
        return {"group": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}


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


def positives(rows: Int[Array, "b"], columns: Int[Array, "c"]) -> Bool[Array, "b c"]:
    """True where two examples are of one group."""
    return rows[:, None] == columns[None, :]


def softmax_loss(
    zimg: Float[Array, "b e"],
    ztxt: Float[Array, "b e"],
    group: Int[Array, "b"],
    scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "b b"]]:
    """InfoNCE, the mean of both directions, and the logits [image, text].

    With several positives a row's target is uniform over them (UniCL, Yang et al. 2022, eq. 2, 3):
    L = -1/(2B) sum_i 1/|P(i)| sum_{p in P(i)} [log softmax_p(s x_i Y) + log softmax_p(s y_i X)].
    """
    logits = constrain(scale * zimg @ ztxt.T, "batch", None)
    targets = positives(group, group).astype(logits.dtype)
    targets = targets / targets.sum(1, keepdims=True)
    image_to_text = -(targets * jax.nn.log_softmax(logits, axis=1)).sum(1).mean()
    text_to_image = -(targets * jax.nn.log_softmax(logits, axis=0)).sum(0).mean()
    return (image_to_text + text_to_image) / 2, logits


def sigmoid_loss(
    zimg: Float[Array, "b e"],
    ztxt: Float[Array, "b e"],
    group: Int[Array, "b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "b b"]]:
    """SigLIP, eq. 1: -1/B sum_ij log sigmoid(z_ij (s x_i . y_j + b)), z = 1 on positives, else -1.

    B is the global batch, whatever the number of devices. Returns the logits [image, text] too.
    """
    logits = constrain(scale * zimg @ ztxt.T + bias, "batch", None)
    signs = jnp.where(positives(group, group), 1.0, -1.0)
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits), logits


def accuracy(logits: Float[Array, "b c"], hits: Bool[Array, "b c"]) -> Float[Array, ""]:
    """Share of rows whose best column is a positive; a tie with a negative is a miss."""
    best_hit = jnp.where(hits, logits, -jnp.inf).max(1)
    best_miss = jnp.where(hits, -jnp.inf, logits).max(1)
    return (best_hit > best_miss).mean(dtype=logits.dtype)
