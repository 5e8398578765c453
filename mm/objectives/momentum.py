"""Contrastive learning against queues of momentum embeddings, with soft targets (MoCo, ALBEF)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from mm import registry
from mm.config import BadInput, Count, Positive, Share
from mm.models.inputs import GROUP
from mm.models.multimodal import Multimodal, normalize
from mm.objectives.base import Buffer, Loss, Objective
from mm.objectives.contrastive import learned_scale, read_scale
from mm.objectives.tiles import grow, log_sum, nothing, products
from mm.objectives.views import Views

CHUNK = 4096  # candidates whose logits are held at a time


@registry.register("objective", "momentum")
class Momentum(Objective):
    """InfoNCE of each image over a queue of momentum texts, and of each text over images.

    The queues hold the last `queue_size` embeddings that the averaged towers (config.teacher) made,
    this batch's among them (He et al. 2020; Li et al. 2021, section 3.2). The target of a row is
    `alpha` x what the averaged towers say of it + (1 - alpha) x uniform over the candidates of its
    group (ALBEF, eq. 6); alpha grows linearly from 0 over `alpha_warmup_steps`. The scale is
    learned as in `contrastive`. Memory: two queues on every device, whatever the batch.
    """

    reads, needs_teacher = (GROUP,), True

    def __init__(
        self,
        *,
        queue_size: Positive,
        alpha: Share = 0.4,
        alpha_warmup_steps: Count = 0,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("momentum", "image", "text", "embed_dim")
        self.log_scale = learned_scale(rngs, init_scale, max_scale)
        self.alpha, self.warmup, self.max_scale = alpha, alpha_warmup_steps, max_scale
        shape = (queue_size, model.embed_dim)
        # Random directions, of no group: before the queue is full they are negatives like others.
        self.images = Buffer(normalize(jax.random.normal(rngs.params(), shape)))
        self.texts = Buffer(normalize(jax.random.normal(rngs.params(), shape)))
        self.groups = Buffer(jnp.full(queue_size, -1, jnp.int32))
        self.step = Buffer(jnp.zeros((), jnp.int32))

    def __call__(self, views: Views, rng: Array) -> Loss:
        group, teacher = views.batch["group"], views.teacher
        sides = views.image_embedding().z, views.text_embedding().z
        slow = teacher.image_embedding().z, teacher.text_embedding().z
        size, batch = len(self.groups[...]), len(group)
        if size % batch:
            raise BadInput(f"queue_size={size} must be a multiple of the batch of {batch}")
        at = self.step[...] % (size // batch) * batch
        for queue, new in zip((self.images, self.texts, self.groups), (*slow, group), strict=True):
            queue[...] = jax.lax.dynamic_update_slice_in_dim(queue[...], new, at, 0)
        ramp = jnp.minimum(1.0, self.step[...] / self.warmup) if self.warmup else 1.0
        self.step[...] = self.step[...] + 1
        scale = read_scale(self.log_scale, self.max_scale)
        queues, alpha = (self.texts[...], self.images[...]), self.alpha * ramp
        found = [
            queue_loss(z, t, queue, group, self.groups[...], scale, alpha)
            for z, t, queue in zip(sides, slow, queues, strict=True)
        ]
        losses, accuracies, agreements = zip(*found, strict=True)
        metrics = {
            "logit_scale": scale,
            "alpha": jnp.asarray(alpha, jnp.float32),
            "image_to_text_accuracy": accuracies[0],
            "text_to_image_accuracy": accuracies[1],
            "teacher_hard_share": sum(agreements) / 2,
            "embedding_spread": sum(z.std(0).mean() for z in sides) / 2,
        }
        return Loss(sum(losses) / 2, jax.lax.stop_gradient(metrics))


def queue_loss(
    z: Float[Array, "b e"],
    slow: Float[Array, "b e"],
    queue: Float[Array, "q e"],
    group: Int[Array, "b"],
    groups: Int[Array, "q"],
    scale: Float[Array, ""],
    alpha: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """(loss, accuracy, the share of the teacher's belief that is of the row's group).

    The loss is the mean over rows of -sum_j y_j log softmax_j(scale z . queue_j), where y = alpha
    softmax(scale slow . queue) + (1 - alpha) uniform(group). Candidates are visited CHUNK at a time
    and visited again for the gradient.
    """
    queue, slow = jax.lax.stop_gradient((queue, slow))
    chunks = next(n for n in range(-(-len(queue) // CHUNK), len(queue) + 1) if len(queue) % n == 0)
    rest = len(queue) // chunks
    low, zero = jnp.full(len(z), -jnp.inf), jnp.zeros(len(z))
    start = nothing(z), nothing(z, 2), (zero, zero), (low, low)

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def visit(sums, chunk):
        columns, names = chunk
        logits = scale * products(z, columns.T)
        believed = jax.lax.stop_gradient(scale) * products(slow, columns.T)
        same = group[:, None] == names[None]
        own, taught, hard, best = sums
        of_group, others = (jnp.where(x, logits, -jnp.inf).max(1) for x in (same, ~same))
        return (
            grow(own, logits),
            grow(taught, believed, logits, same),
            (hard[0] + jnp.where(same, logits, 0).sum(1), hard[1] + same.sum(1)),
            (jnp.maximum(best[0], of_group), jnp.maximum(best[1], others)),
        ), None

    cut = queue.reshape(chunks, rest, -1), groups.reshape(chunks, rest)
    (own, taught, hard, best), _ = jax.lax.scan(visit, start, cut)
    target = alpha * taught[2] / taught[1] + (1 - alpha) * hard[0] / jnp.maximum(hard[1], 1)
    accuracy, believed = (best[0] > best[1]).mean(), (taught[3] / taught[1]).mean()
    return (log_sum(own) - target).mean(), accuracy, believed
