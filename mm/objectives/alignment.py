"""Alignment of the two spaces: a discriminator cannot tell them apart; one leads to the other."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import Factor, Positive
from mm.models.multimodal import Multimodal, normalize
from mm.objectives.base import Loss, Objective
from mm.objectives.heads import Projector
from mm.objectives.views import Views


@registry.register("objective", "adversarial")
class Adversarial(Objective):
    """A discriminator learns which modality an embedding is of; the towers learn to hide it.

    Its loss is the binary cross-entropy, whose gradient is turned round on its way to the towers
    (Ganin and Lempitsky 2015, section 3.2), times `reversal`. Nothing here keeps pairs together or
    embeddings apart: it goes beside a contrastive objective. Metrics: `discriminator_accuracy`, 0.5
    for aligned modalities; `modality_gap`, the distance of their means (Liang et al. 2022).
    """

    def __init__(
        self,
        *,
        reversal: Factor = 1.0,
        hidden: Positive = 256,
        layers: Positive = 3,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("adversarial", "image", "text", "embed_dim")
        self.discriminator = Projector(model.embed_dim, hidden, 1, layers=layers, rngs=rngs)
        self.reversal = reversal

    def __call__(self, views: Views, rng: Array) -> Loss:
        zimg, ztxt = views.image_embedding().z, views.text_embedding().z
        image, text = (self.discriminator(reverse(self.reversal, z))[:, 0] for z in (zimg, ztxt))
        loss = (jax.nn.softplus(-image).mean() + jax.nn.softplus(text).mean()) / 2
        metrics = {
            "discriminator_accuracy": ((image > 0).mean() + (text < 0).mean()) / 2,
            "modality_gap": jnp.linalg.norm(zimg.mean(0) - ztxt.mean(0)),
        }
        return Loss(loss, jax.lax.stop_gradient(metrics))


def reverse(strength: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, whose gradient is multiplied by -strength (the gradient reversal layer)."""
    still = jax.lax.stop_gradient(x)
    return still - strength * (x - still)


@registry.register("objective", "cycle")
class Cycle(Objective):
    """Two small networks lead from one space to the other and back.

    With f from image to text and g from text to image, the squared errors of f(x) for y, of g(y)
    for x, and, times `cycle_weight`, of g(f(x)) for x and of f(g(y)) for y: the cycle consistency
    of CycleGAN (Zhu et al. 2017, eq. 2) beside the translation of pairs (MCTN, Pham et al. 2019).
    Both end in unit vectors, as embeddings are: errors in the hundreds, which fresh networks would
    make, move the towers to one point before anything is learned.
    Targets have no gradient, so no embedding moves to where it is easily predicted. Towers still
    learn to predict, and constant ones would do it best: a contrastive objective beside this keeps
    them apart. Metrics: each error, and `..._explained`, the share of the target's variance that is
    predicted: 1 is all, 0 no better than the mean, as after a collapse.
    """

    def __init__(
        self,
        *,
        cycle_weight: Factor = 1.0,
        hidden: Positive = 512,
        layers: Positive = 2,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("cycle", "image", "text", "embed_dim")
        make = partial(Projector, model.embed_dim, hidden, model.embed_dim, layers=layers)
        self.to_text, self.to_image = make(rngs=rngs), make(rngs=rngs)
        self.cycle_weight = cycle_weight

    def __call__(self, views: Views, rng: Array) -> Loss:
        zimg, ztxt = views.image_embedding().z, views.text_embedding().z
        to_text, to_image = (lambda z, f=f: normalize(f(z)) for f in (self.to_text, self.to_image))
        found, back = to_text(zimg), to_image(ztxt)
        parts = {
            "image_to_text": (found, ztxt, 1.0),
            "text_to_image": (back, zimg, 1.0),
            "image_cycle": (to_image(found), zimg, self.cycle_weight),
            "text_cycle": (to_text(back), ztxt, self.cycle_weight),
        }
        loss, metrics = jnp.zeros(()), {}
        for name, (prediction, target, weight) in parts.items():
            target = jax.lax.stop_gradient(target)
            error = jnp.square(prediction - target).sum(1).mean()
            loss = loss + weight * error
            metrics |= {name: error, f"{name}_explained": explained(error, target)}
        return Loss(loss, jax.lax.stop_gradient(metrics))


def explained(error: Float[Array, ""], target: Float[Array, "b e"]) -> Float[Array, ""]:
    """1 - error / variance of the target over the batch; 0 for a target without any."""
    variance = target.var(0).sum()
    return jnp.where(variance > 1e-6, 1 - error / jnp.maximum(variance, 1e-6), 0.0)
