"""Prompts of one class find each other: several texts of a name are drawn together."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mm import registry
from mm.config import BadInput, Scale
from mm.models.inputs import GROUP, texts
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.contrastive import nt_xent
from mm.objectives.views import Views, batch_key, view


@registry.register("objective", "prompt_contrastive")
class PromptContrastive(Objective):
    """Supervised contrast among the embeddings of several prompts of each row's class.

    `views` name the texts of the batch, text_one and so on, which the ops `template` and
    `keep_text` make. All prompts of a group, its class, are positives of each other, those of other
    classes negatives (SupCon, Khosla et al. 2020, eq. 2), at a fixed temperature. Metric:
    `accuracy` at finding a prompt of the same class nearest.
    """

    def __init__(
        self,
        *,
        views: tuple[str, ...] = ("one", "two"),
        temperature: Scale = 0.07,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("prompt_contrastive", "text", "embed_dim")
        if len(set(views)) < max(2, len(views)):
            raise BadInput(f"views={views}: expected several names, each another, as (one, two)")
        self.names, self.temperature = tuple(views), temperature
        names = [batch_key(view("text", name)) for name in views]
        self.reads = (GROUP, *texts(model.text.length, *names))

    def __call__(self, views: Views, rng: Array) -> Loss:
        # The prompts of a row side by side: no row moves to another device.
        found = [views.text_embedding(name).z for name in self.names]
        z = jnp.stack(found, axis=1).reshape(-1, found[0].shape[-1])
        group = views.batch["group"].repeat(len(found))
        loss, accuracy = nt_xent(z, group, jnp.asarray(1 / self.temperature, z.dtype))
        return Loss(loss, jax.lax.stop_gradient({"accuracy": accuracy}))
