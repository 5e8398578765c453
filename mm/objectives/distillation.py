"""Distillation: learn what a teacher says of the batch, or the features that it has."""

from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput, Scale
from mm.models.inputs import Read
from mm.models.layers import Linear
from mm.models.multimodal import Multimodal, normalize
from mm.objectives.base import Loss, Objective
from mm.objectives.tiles import grow, log_sum, nothing, products
from mm.objectives.views import Views
from mm.sharding.ring import over_batch, ring, total


class Distillation(Objective):
    """Reads a teacher's embeddings: config.teacher's, or those that come with the data.

    With source="batch" they are batch["teacher_image"] and ["teacher_text"], float32 [b, `width`],
    made once by a model that need not be here (MobileCLIP's reinforced data sets: Vasu et al. 2024,
    section 4). With source="teacher" `width` may be left out where it does not matter.
    """

    def __init__(
        self,
        *,
        source: Literal["teacher", "batch"] = "teacher",
        width: int | None = None,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("distillation", "image", "text", "embed_dim")
        if source == "batch" and width is None:
            raise BadInput("source='batch': set width to that of the teacher's embeddings")
        self.source, self.width, self.needs_teacher = source, width, source == "teacher"
        if source == "batch":
            names = "teacher_image", "teacher_text"
            self.reads = tuple(Read(name, (width,), "float32") for name in names)

    def taught(self, views: Views) -> list[Float[Array, "b e"]]:
        """The teacher's normalized embeddings of images and texts."""
        if self.source == "batch":
            return [normalize(views.batch[f"teacher_{x}"]) for x in ("image", "text")]
        taught = [views.teacher.image_embedding().z, views.teacher.text_embedding().z]
        if self.width not in (None, found := taught[0].shape[1]):
            raise BadInput(f"width={self.width}: the teacher's embeddings are {found} wide")
        return taught


@registry.register("objective", "response_distillation")
class ResponseDistillation(Distillation):
    """The teacher's similarities of the global batch as soft targets, both ways.

    KL(softmax(teacher_scale T) || softmax(scale S)) over the rows and the columns of the
    similarities T and S (affinity mimicking: TinyCLIP, Wu et al. 2023, eq. 1-3).
    """

    def __init__(
        self,
        *,
        scale: Scale = 1 / 0.07,
        teacher_scale: Scale = 1 / 0.07,
        **rest: Annotated[Any, Distillation],
    ):
        super().__init__(**rest)
        self.scale, self.teacher_scale = scale, teacher_scale

    def __call__(self, views: Views, rng: Array) -> Loss:
        own = [self.scale * views.image_embedding().z, views.text_embedding().z]
        taught = self.taught(views)
        taught[0] = self.teacher_scale * taught[0]
        both = soft_cross_entropy(*own, *taught), soft_cross_entropy(*own[::-1], *taught[::-1])
        losses, entropies = zip(*both, strict=True)
        entropy = jax.lax.stop_gradient(sum(entropies) / 2)
        # log(batch) is what a teacher says that tells nothing apart.
        return Loss(sum(losses) / 2 - entropy, {"teacher_entropy": entropy})


@registry.register("objective", "feature_distillation")
class FeatureDistillation(Distillation):
    """1 - cosine of the teacher's embeddings and a linear map of one's own (CLIP-KD, eq. 4)."""

    def __init__(self, *, model: Multimodal, rngs: nnx.Rngs, **rest: Annotated[Any, Distillation]):
        super().__init__(model=model, rngs=rngs, **rest)
        self.width = self.width or model.embed_dim
        sizes, axes = ((model.embed_dim,), (self.width,)), ("embed", "projection")
        make = partial(Linear, *sizes, axes, bias=False, rngs=rngs)
        self.image, self.text = make(), make()

    def __call__(self, views: Views, rng: Array) -> Loss:
        own = self.image(views.image_embedding().z), self.text(views.text_embedding().z)
        taught = self.taught(views)
        cosines = [(normalize(x) * y).sum(-1) for x, y in zip(own, taught, strict=True)]
        metrics = {"image_cosine": cosines[0].mean(), "text_cosine": cosines[1].mean()}
        return Loss(1 - sum(x.mean() for x in cosines) / 2, jax.lax.stop_gradient(metrics))


@jax.custom_vjp
def soft_cross_entropy(
    x: Float[Array, "b e"],
    y: Float[Array, "b e"],
    taught_x: Float[Array, "b f"],
    taught_y: Float[Array, "b f"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over rows i of -sum_j softmax_j(taught_x_i . taught_y_j) log softmax_j(x_i . y_j).

    Over the global batch, a tile at a time; also the mean entropy of the targets. What is taught
    has no gradient.
    """
    return _forward(x, y, taught_x, taught_y)[0]


def _forward(x, y, taught_x, taught_y):
    def local(arrays, scalars):
        x, y, taught_x, taught_y = arrays

        def tile(rows, sums, columns, none):
            own, taught = _logits(rows, columns)
            return (grow(sums[0], own), grow(sums[1], taught, own, taught)), none

        rows, columns = {"own": x, "taught": taught_x}, {"own": y, "taught": taught_y}
        (own, taught), _ = ring(tile, rows, (nothing(x), nothing(x, 2)), columns, ())
        logs = {"own_log": log_sum(own), "taught_log": log_sum(taught)}
        losses = logs["own_log"] - taught[2] / taught[1]
        entropies = logs["taught_log"] - taught[3] / taught[1]
        return logs, (total(losses), total(entropies))

    logs, sums = over_batch(local, (x, y, taught_x, taught_y), ())
    return tuple(value / len(x) for value in sums), (x, y, taught_x, taught_y, logs)


def _backward(residuals, cotangents):
    """Makes each tile again."""
    x, y, taught_x, taught_y, logs = residuals

    def local(arrays, gradient):
        x, y, taught_x, taught_y, logs = arrays

        def tile(rows, dx, columns, dy):
            own, taught = _logits(rows, columns)
            slope = jnp.exp(own - rows["own_log"][:, None])
            slope = gradient * (slope - jnp.exp(taught - rows["taught_log"][:, None]))
            return dx + products(slope, columns["own"]), dy + products(slope.T, rows["own"])

        rows, columns = {"own": x, "taught": taught_x} | logs, {"own": y, "taught": taught_y}
        return ring(tile, rows, jnp.zeros_like(x), columns, jnp.zeros_like(y)), ()

    arrays = x, y, taught_x, taught_y, logs
    (dx, dy), _ = over_batch(local, arrays, cotangents[0] / len(x))
    return dx, dy, jnp.zeros_like(taught_x), jnp.zeros_like(taught_y)


def _logits(rows, columns):
    pairs = ((rows[name], columns[name]) for name in ("own", "taught"))
    return [products(row, column.T) for row, column in pairs]


soft_cross_entropy.defvjp(_forward, _backward)
