"""Masked images: tell pixels (MAE) or codes (BEiT) of patches from those that are left."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from mm import registry
from mm.config import BadInput, Part, Range
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.keys import Keys
from mm.models.layers import Linear, vectors
from mm.models.multimodal import Multimodal, pixels
from mm.models.stem import contrast, cut, flat
from mm.models.vit import sincos2d
from mm.objectives.base import Loss, Objective
from mm.objectives.codes import KMeans, RandomProjection
from mm.objectives.masked_text import TextMask
from mm.objectives.tokens import TokenHead, predict
from mm.objectives.views import TEXT, View, Views, image_view, mask_reads


class MaskedImage(Objective):
    """What both share: a share `ratio` of an example's patches is masked, others in each.

    `context` "none" predicts from the image tower's tokens, "fused" from those of the fusion with
    the text: the whole text, or one masked by the keys of `TextMask` in `text_mask`. Then masked
    text and masked image read the same fused tokens, where both name the same masks (M3AE, Geng et
    al. 2022; FLAVA, Singh et al. 2022).
    """

    def __init__(
        self, what: str, ratio: float, context: str, text_mask: Mapping | None, model: Multimodal
    ):
        model.need(what, "fusion.image" if context == "fused" else "image")
        if not hasattr(model.image, "patch_size"):
            raise BadInput(f"{what}: needs an image tower of patches, such as vit")
        if text_mask is not None and context == "none":
            raise BadInput("text_mask: no text is read; set context='fused' or leave it away")
        self.uses = ("fusion",) if context == "fused" else ()
        self.text_mask = None
        if text_mask is not None:
            self.text_mask = registry.call(TextMask, text_mask, "text_mask")
            self.reads = self.text_mask.reads(model)
        self.ratio, self.context, self.patch_shape = ratio, context, model.image.patch_shape
        patches = math.prod(model.image.grid)
        if round(patches * ratio) in (0, patches):
            raise BadInput(f"ratio={ratio}: of {patches} patches some must be hidden, some seen")
        self.width = (model.fusion if context == "fused" else model.image).width

    def seen(self, views: Views, image: View) -> tuple[Encoded, Float[Array, "b n d"]]:
        """The image's encoding in that view, and its tokens with or without context."""
        encoded = views.encode(image)
        if self.context == "none":
            return encoded, encoded.tokens
        text = TEXT if self.text_mask is None else self.text_mask.view(views)
        return encoded, views.fuse(image, text).image

    def patches(self, views: Views) -> Float[Array, "b *grid p"]:
        """The pixels of each patch, row by row, colours last."""
        return cut(pixels(views.batch["image"]).astype(jnp.float32), self.patch_shape[:-1])


@registry.register("objective", "mae")
class MAE(MaskedImage):
    """The squared error of the masked patches' pixels (He et al. 2022).

    The encoder reads the patches that are kept and nothing else. `decoder`, the keys of an
    `EncoderSpec`, reads them and a learned token for each other patch, with fixed positions, and
    ends in one layer. `normalize`: each patch's pixels less their mean, over their deviation
    sqrt(variance + 1e-6) with n - 1 in the variance, as in the released code: predicting zeros
    has a loss of about 1. The loss is the mean over the masked patches of the global batch.
    """

    def __init__(
        self,
        *,
        decoder: Mapping,
        ratio: Part = 0.75,
        normalize: bool = True,
        context: Literal["none", "fused"] = "none",
        text_mask: Mapping | None = None,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        super().__init__("mae", ratio, context, text_mask, model)
        spec = {"dtype": model.image.dtype.name, **decoder}
        spec = registry.call(EncoderSpec, spec, "decoder")
        multiple = 4 if len(model.image.grid) == 2 else 16
        if spec.width % multiple:
            raise BadInput(
                f"decoder.width={spec.width} must be a multiple of {multiple}, for positions"
            )
        dtype, sizes = spec.dtype, ((self.width,), (spec.width,))
        self.embed = Linear(*sizes, (None, "embed"), dtype=dtype, rngs=rngs)
        self.mask_token = vectors(rngs, 1, spec.width)
        self.decoder = Encoder(spec, rngs=rngs)
        sizes = (spec.width,), (math.prod(self.patch_shape),)
        self.out = Linear(*sizes, ("embed", "patch"), dtype=dtype, rngs=rngs)
        self.prefix, self.normalize = model.image.prefix, normalize

    def __call__(self, views: Views, rng: Array) -> Loss:
        # Rounded, so that keep=0.1 elsewhere is the same view.
        encoded, tokens = self.seen(views, image_view(keep=round(1 - self.ratio, 6)))
        patches = self.patches(views)
        grid, targets = patches.shape[1:-1], flat(patches)
        mean = targets.mean(-1, keepdims=True)
        if self.normalize:
            deviation = jnp.sqrt(targets.var(-1, ddof=1, keepdims=True) + 1e-6)
            targets, mean = (targets - mean) / deviation, 0.0
        keys = views.draws(f"decoder of {self.key}") if views.training else None
        found = self.decode(tokens, encoded.kept, grid, keys).astype(jnp.float32)
        ones = jnp.ones(targets.shape[1])
        masked = jax.vmap(lambda kept: ones.at[kept].set(0))(encoded.kept)

        def average(x: Float[Array, "b n p"]) -> Float[Array, ""]:
            return (x.mean(-1) * masked).sum() / masked.sum()

        loss = average(jnp.square(found - targets))
        # 1 is perfect; 0 is as good as the mean of each patch.
        least = average(jnp.square(targets - mean))
        metrics = {
            "explained_variance": 1 - loss / jnp.maximum(least, 1e-12),
            "prediction_variance": average(jnp.square(found - found.mean(0))),
        }
        return Loss(loss, jax.lax.stop_gradient(metrics))

    def decode(
        self,
        tokens: Float[Array, "b k d"],
        kept: Int[Array, "b j"],
        grid: tuple[int, ...],
        keys: Keys | None = None,
    ) -> Float[Array, "b n p"]:
        """The pixels of all patches; `kept` are those of the tokens after the prefix."""
        x = self.embed(tokens)
        prefix, x = x[:, : self.prefix], x[:, self.prefix :]
        count, width = math.prod(grid), x.shape[-1]
        whole = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (len(x), count, width))
        x = jax.vmap(lambda whole, kept, x: whole.at[kept].set(x))(whole, kept, x)
        x = x + jnp.asarray(sincos2d(grid, width), x.dtype)
        x = self.decoder(jnp.concatenate([prefix, x], axis=1), None, keys)
        return self.out(x[:, self.prefix :])


@registry.register("objective", "beit")
class BEiT(MaskedImage):
    """Cross-entropy of the codes of patches that the mask token stands for (Bao et al. 2022).

    The tokenizer is ours: `targets` "frozen" is a random projection to `num_codes` random codes
    (BEST-RQ), "learned" a codebook of means that follow the images (VQ-VAE); see
    `mm.objectives.codes`. It reads each patch's pattern over its deviation, its mean colour and its
    deviation (`contrast`), so that codes tell more than light from dark. "code_perplexity" is how
    many codes the batch's patches use: 1 is collapse. `masks`: "drawn" hides patches
    one by one, "patch_mask" those that the input's op of that name drew with the same ratio, such
    as blocks.
    """

    def __init__(
        self,
        *,
        ratio: Part = 0.4,
        masks: Literal["drawn", "patch_mask"] = "drawn",
        targets: Literal["frozen", "learned"] = "frozen",
        num_codes: Annotated[int, Range("at least 2", lambda n: n > 1)] = 8192,
        context: Literal["none", "fused"] = "none",
        text_mask: Mapping | None = None,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        super().__init__("beit", ratio, context, text_mask, model)
        if model.image.mask_token is None:
            raise BadInput("config.model.image: has no mask token; set mask_token=True")
        if self.patch_shape[-1] != 3:
            raise BadInput("beit: its codes are of colours; set config.model.image.channels=3")
        features = math.prod(self.patch_shape) + 4
        kinds = {"frozen": partial(RandomProjection, rngs=rngs), "learned": KMeans}
        self.codes = kinds[targets](features, num_codes)
        dtype = model.image.dtype.name
        self.head = TokenHead(self.width, num_codes, dtype=dtype, rngs=rngs)
        self.prefix, self.num_codes = model.image.prefix, num_codes
        self.image = image_view(replace=ratio if masks == "drawn" else masks)
        self.reads += mask_reads(self.image, model)

    def __call__(self, views: Views, rng: Array) -> Loss:
        encoded, tokens = self.seen(views, self.image)
        features = flat(contrast(self.patches(views)))
        codes = self.codes(features, rng)
        # All examples have as many replaced as `ViT` draws.
        count = max(1, round(self.ratio * codes.shape[1]))
        tokens = tokens[:, self.prefix :]
        loss, metrics = predict(self.head, tokens, codes, encoded.replaced, count)
        used = jax.nn.one_hot(codes, self.num_codes).mean((0, 1))
        metrics["code_perplexity"] = jnp.exp(jax.scipy.special.entr(used).sum())
        return Loss(loss, jax.lax.stop_gradient(metrics))
