"""Self-distillation of the image tower: what an average of it says of the whole picture."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput, Positive, Rate, Scale
from mm.models.inputs import images
from mm.models.layers import Dtype, Linear
from mm.models.multimodal import Multimodal, normalize
from mm.objectives.base import Buffer, Loss, Objective
from mm.objectives.heads import Projector
from mm.objectives.views import Views, view


@registry.register("objective", "self_distillation")
class SelfDistillation(Objective):
    """DINO from local views to the whole picture, iBOT from hidden patches to seen ones.

    The averaged tower (config.teacher) sees the clean picture, the trained one `views` of it, of
    `view_size` pixels (batch["image_<name>"]; SILC, Naeem et al. 2023), and, with `replace` > 0,
    the clean picture of which that share of patches is hidden (TIPS, Maninis et al. 2024; SigLIP 2,
    section 2.2); the loss of these counts `patch_weight`. Both pass a head to `prototypes`: -sum_k
    p_k log q_k, q = softmax(student / temperature), p = softmax((teacher - center) /
    teacher_temperature), and the center is a running mean of what the teacher says (Caron et al.
    2021, eq. 1, 4), so that no prototype takes all.
    """

    needs_teacher = True

    def __init__(
        self,
        *,
        views: tuple[str, ...] = (),
        view_size: int | None = None,
        replace: Rate = 0.0,
        patch_weight: Scale = 1.0,
        prototypes: Positive = 4096,
        hidden: Positive = 2048,
        bottleneck: Positive = 256,
        temperature: Scale = 0.1,
        teacher_temperature: Scale = 0.04,
        center_decay: Rate = 0.9,
        dtype: Dtype = "float32",
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("self_distillation", "image")
        if (not views and not replace) or (bool(views) != (view_size is not None)):
            raise BadInput(
                f"views={views}, view_size={view_size}, replace={replace}: expected views with "
                "their size, or a share of patches to replace, or both"
            )
        if "clean" in views:
            raise BadInput("views: 'clean' is what the teacher sees; name others")
        patch = getattr(model.image, "patch_size", 1)
        if view_size is not None and view_size % patch:
            raise BadInput(f"view_size={view_size}: expected a multiple of patch_size={patch}")
        if replace and getattr(model.image, "mask_token", None) is None:
            raise BadInput(f"replace={replace}: set config.model.image.mask_token=True")
        self.names, self.replace, self.patch_weight = views, replace, patch_weight
        shape = (*model.image.image_shape[:-3], view_size, view_size, model.image.image_shape[-1])
        self.reads = images(shape, *(f"image_{name}" for name in views)) if views else ()
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.center_decay, self.prefix = center_decay, model.image.prefix

        def head(width: int) -> PrototypeHead:
            kwargs = dict(layers=3, activation="gelu", dtype=dtype, rngs=rngs)
            return PrototypeHead(Projector(width, hidden, bottleneck, **kwargs), prototypes, rngs)

        self.head = head(model.image.pooled_width) if views else None
        self.patch_head = head(model.image.width) if replace else None
        self.center = Buffer(jnp.zeros(prototypes))
        self.patch_center = Buffer(jnp.zeros(prototypes))

    def __call__(self, views: Views, rng: Array) -> Loss:
        taught, average = views.teacher.image(), views.averaged(self)
        total, metrics = jnp.zeros(()), {}
        if self.names:
            target = self._target(average.head(taught.pooled), self.center)
            seen = views.encode_all([view("image", name) for name in self.names])
            said = self.head(jnp.stack([x.pooled for x in seen], axis=1))
            loss, entropy = self._compare(target[:, None], said)
            total, metrics = total + loss, {"view_loss": loss, "view_entropy": entropy}
        if self.replace:
            masked = views.image(replace=self.replace)
            count = max(1, round(masked.replaced.shape[1] * self.replace))
            places = jnp.argsort(~masked.replaced, axis=1)[:, :count, None] + self.prefix
            tokens = [jnp.take_along_axis(x.tokens, places, axis=1) for x in (taught, masked)]
            target = self._target(average.patch_head(tokens[0]), self.patch_center)
            loss, entropy = self._compare(target, self.patch_head(tokens[1]))
            total = total + self.patch_weight * loss
            metrics |= {"patch_loss": loss, "patch_entropy": entropy}
        return Loss(total, jax.lax.stop_gradient(metrics))

    def _target(self, logits: Array, center: Buffer) -> Array:
        """The teacher's distribution; its mean moves the center."""
        logits, before = jax.lax.stop_gradient(logits), center[...]
        mean = logits.reshape(-1, logits.shape[-1]).mean(0)
        center[...] = self.center_decay * before + (1 - self.center_decay) * mean
        return jax.nn.softmax((logits - before) / self.teacher_temperature)

    def _compare(self, p: Array, said: Array) -> tuple[Array, Array]:
        """Mean cross-entropy, and the targets' entropy: 0 or log(prototypes) is collapse."""
        loss = -(p * jax.nn.log_softmax(said / self.temperature)).sum(-1).mean()
        return loss, jax.scipy.special.entr(p).sum(-1).mean()


class PrototypeHead(nnx.Module):
    """A projector, unit vectors, cosines with learned prototypes (Caron et al. 2021, app. C)."""

    def __init__(self, projector: Projector, prototypes: int, rngs: nnx.Rngs):
        self.projector, width, axes = projector, projector.layers[-1].outputs, ("embed", "vocab")
        self.prototypes = Linear((width,), (prototypes,), axes, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... k"]:
        unit = normalize(self.projector(x).reshape(-1, self.prototypes.inputs))
        norms = jnp.linalg.norm(self.prototypes.kernel[...], axis=0)
        return (self.prototypes(unit) / norms).reshape(*x.shape[:-1], -1)
