"""Learned tokens among the patches of a picture (visual prompt tuning: Jia et al. 2022)."""

from flax import nnx

from mm import registry
from mm.adapt.prompts import Prompts, fold_prompts
from mm.config import BadInput, Positive
from mm.models.multimodal import Multimodal
from mm.models.vit import ViT

_PATH = "model/image/prompts"


@registry.register("adaptation", "image_prompt")
def image_prompt(
    *,
    count: Positive = 8,
    deep: bool = True,
    hidden: Positive | None = None,
    model: Multimodal,
    rngs: nnx.Rngs,
    whole: bool,
) -> None:
    """`count` tokens that every block of the ViT reads; neither returned nor pooled.

    deep: each block reads its own in place of what the one before made of them (eq. 4, 5); else
    they go through the blocks as patches do (VPT-shallow, eq. 2, 3). hidden: see `Prompts`.
    """
    if not isinstance(model.image, ViT) or not model.image.encoder.depth:
        raise BadInput("needs blocks that read tokens: config.model.image of name='vit', depth > 0")
    if model.image.prompts is not None:
        raise BadInput("config.model.image has prompts already; keep one of the two")
    layers = model.image.encoder.depth if deep else None
    prompts = Prompts(count, model.image.width, layers=layers, hidden=hidden, rngs=rngs)
    model.image.prompts = nnx.data(prompts)


registry.register("fold", "image_prompt")(lambda params, spec: fold_prompts(params, _PATH, spec))
