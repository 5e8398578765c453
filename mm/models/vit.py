"""Vision Transformer (Dosovitskiy et al. 2021)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput
from mm.models import stem as _stem  # noqa: F401  (registers the stems)
from mm.models.encoder import (
    AttentionPool,
    Encoded,
    Encoder,
    EncoderSpec,
    FlattenPool,
    mean_pool,
)
from mm.models.keys import Keys, split, uniform
from mm.models.layers import add_table, dropout, param
from mm.sharding.rules import constrain


@registry.register("image_encoder", "vit")
class ViT(nnx.Module):
    """Image [b, image_size, image_size, 3] to tokens [b, n, width] and a pooled [b, width].

    The other keys are those of `EncoderSpec`. `stem` is the spec of a registered stem (default: one
    matmul a patch). `position` is "learned" or "sincos2d" (MoCo v3, fixed); `pool` is "cls",
    "mean", "map" (attention pooling) or "flatten" (a layer of `pool_dim` over all tokens side by
    side, where the place of a part tells much). `pre_norm`: a norm before the first block, too
    (CLIP). A call with `keep` < 1 drops patches at random, others in each example (FLIP, Li et al.
    2023), and needs `rng`. `pooled_width` is the width of the pooled vector.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        stem: Mapping | None = None,
        pool: Literal["cls", "mean", "map", "flatten"] = "map",
        pool_dim: int | None = None,
        pool_dropout: float = 0.0,
        position: Literal["learned", "sincos2d"] = "learned",
        pre_norm: bool = False,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        if image_size % patch_size:
            raise BadInput(
                f"image_size={image_size} does not divide by patch_size={patch_size}; "
                f"the nearest that does is {max(1, round(image_size / patch_size)) * patch_size}"
            )
        spec = EncoderSpec(**encoder)
        if (pool == "flatten") != (pool_dim is not None):
            raise BadInput(f"pool_dim={pool_dim} goes with pool='flatten', not {pool!r}")
        if position == "sincos2d" and spec.width % 4:
            raise BadInput(f"width={spec.width} must be a multiple of 4 for position='sincos2d'")
        self.image_size, self.patch_size, self.width = image_size, patch_size, spec.width
        self.pool, self.position = pool, position
        self.dropout_rate, self.dtype = spec.dropout, jnp.dtype(spec.dtype)
        self.pooled_width = pool_dim or spec.width
        num_tokens = (image_size // patch_size) ** 2
        self.stem = registry.build(
            "stem",
            stem or {"name": "linear"},
            "stem",
            patch_size=patch_size,
            width=spec.width,
            dtype=spec.dtype,
            rngs=rngs,
        )
        if position == "learned":
            init = jax.nn.initializers.normal(spec.width**-0.5)
            shape = (num_tokens, spec.width)
            self.position_embedding = param(rngs, init, shape, ("tokens", "embed"))
        if pool == "cls":
            init = jax.nn.initializers.zeros
            self.cls = param(rngs, init, (1, spec.width), (None, "embed"))
        self.pre_norm = spec.make_norm(rngs) if pre_norm else None
        self.encoder = Encoder(spec, rngs=rngs)
        if pool == "flatten":
            self.flatten_pool = FlattenPool(spec, num_tokens, pool_dim, pool_dropout, rngs=rngs)
        if pool == "map":
            self.attention_pool = AttentionPool(spec, rngs=rngs)

    def __call__(
        self, image: Float[Array, "b h w 3"], *, keep: float = 1.0, rng: Keys | None = None
    ) -> Encoded:
        keys = (None,) * 4 if rng is None else split(rng, 4)
        x = self.stem(image.astype(self.dtype))
        if self.position == "learned":
            x = add_table(("tokens", "embed"), x, self.position_embedding[...])
        else:
            grid = self.image_size // self.patch_size
            x = x + jnp.asarray(sincos2d(grid, self.width), x.dtype)
        if keep < 1.0:
            if self.pool == "flatten":
                raise BadInput("pool='flatten' needs every token; set image_keep=1 or another pool")
            x = drop_tokens(x, keep, keys[0])
        if self.pool == "cls":
            cls = jnp.broadcast_to(self.cls[...], (len(x), 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([cls, x], axis=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = constrain(dropout(x, self.dropout_rate, keys[1]), "batch", "tokens", "width")
        tokens = self.encoder(x, None, keys[2])
        if self.pool == "cls":
            pooled = tokens[:, 0]
        elif self.pool == "flatten":
            pooled = self.flatten_pool(tokens, keys[3])
        else:
            pooled = self.attention_pool(tokens) if self.pool == "map" else mean_pool(tokens)
        return Encoded(tokens, pooled, None)

    def training_flops(self, keep: float = 1.0) -> float:
        """Of both passes over one image, of whose patches a share `keep` is encoded."""
        patches = (self.image_size // self.patch_size) ** 2
        kept = patches if keep == 1.0 else max(1, round(patches * keep))
        flops = self.stem.training_flops(patches)
        flops += self.encoder.training_flops(kept + (self.pool == "cls"))
        if self.pool == "flatten":
            flops += self.flatten_pool.hidden.training_flops(1)
        elif self.pool == "map":
            flops += self.attention_pool.training_flops(kept)
        return flops


def sincos2d(grid: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed sine and cosine embeddings of row and column, [grid * grid, width] (MoCo v3, 2021)."""
    omega = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    rows, columns = np.mgrid[:grid, :grid].reshape(2, -1, 1) * omega
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def drop_tokens(x: Float[Array, "b n d"], keep: float, keys: Keys | None) -> Array:
    """A random share `keep` of each example's tokens, others in each example (FLIP)."""
    if keys is None:
        raise ValueError("dropping tokens needs random keys; evaluation keeps all of them")
    noise = uniform(keys, x.shape[1:2])
    kept = jnp.argsort(noise, axis=1)[:, : max(1, round(x.shape[1] * keep))]
    return jnp.take_along_axis(x, kept[..., None], axis=1)
