"""Vision Transformer (Dosovitskiy et al. 2021)."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput
from mm.models import stem as _stem  # noqa: F401  (registers the stems)
from mm.models.encoder import AttentionPool, Encoded, Encoder, FlattenPool, Remat, mean_pool
from mm.models.layers import Activation, Dtype, Norm, dropout, param
from mm.sharding.rules import constrain


@registry.register("image_encoder", "vit")
class ViT(nnx.Module):
    """Image [b, image_size, image_size, 3] to tokens [b, n, width] and a pooled [b, width].

    `stem` is the spec of a registered stem (default: one matmul a patch). `position` is "learned"
    or "sincos2d" (MoCo v3, fixed); `pool` is "cls", "mean", "map" (attention pooling) or "flatten"
    (a layer of `pool_dim` over all tokens side by side, where the place of a part tells much). A
    call with `keep` < 1 drops patches at random, others in each example (FLIP, Li et al. 2023), and
    needs `rng`. `pooled_width` is the width of the pooled vector.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int | None = None,
        stem: Mapping | None = None,
        pool: Literal["cls", "mean", "map", "flatten"] = "map",
        pool_dim: int | None = None,
        pool_dropout: float = 0.0,
        position: Literal["learned", "sincos2d"] = "learned",
        activation: Activation = "gelu",
        norm: Norm = "layer_norm",
        dropout: float = 0.0,
        remat: Remat = "none",
        unroll: int = 1,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        if image_size % patch_size:
            raise BadInput(
                f"image_size={image_size} does not divide by patch_size={patch_size}; "
                f"the nearest that does is {max(1, round(image_size / patch_size)) * patch_size}"
            )
        self.image_size, self.patch_size, self.width = image_size, patch_size, width
        self.pool, self.dropout_rate, self.dtype = pool, dropout, jnp.dtype(dtype)
        grid = image_size // patch_size
        self.stem = registry.build(
            "stem",
            stem or {"name": "linear"},
            "stem",
            patch_size=patch_size,
            width=width,
            dtype=dtype,
            rngs=rngs,
        )
        self.position = position
        if position == "learned":
            init = jax.nn.initializers.normal(width**-0.5)
            self.position_embedding = param(rngs, init, (grid**2, width), ("tokens", "embed"))
        elif width % 4:
            raise BadInput(f"width={width} must be a multiple of 4 for position='sincos2d'")
        if pool == "cls":
            self.cls = param(rngs, jax.nn.initializers.zeros, (1, width), (None, "embed"))
        self.encoder = Encoder(
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            activation=activation,
            norm_kind=norm,
            dropout_rate=dropout,
            remat=remat,
            unroll=unroll,
            dtype=dtype,
            rngs=rngs,
        )
        if (pool == "flatten") != (pool_dim is not None):
            raise BadInput(f"pool_dim={pool_dim} goes with pool='flatten', not {pool!r}")
        self.pooled_width = pool_dim or width
        if pool == "flatten":
            self.flatten_pool = FlattenPool(
                grid**2,
                width,
                pool_dim,
                activation=activation,
                dropout_rate=pool_dropout,
                dtype=dtype,
                rngs=rngs,
            )
        if pool == "map":
            self.attention_pool = AttentionPool(
                width,
                num_heads,
                mlp_dim or 4 * width,
                activation=activation,
                norm_kind=norm,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, image: Float[Array, "b h w 3"], *, keep: float = 1.0, rng: Array | None = None
    ) -> Encoded:
        keys = (None,) * 4 if rng is None else jax.random.split(rng, 4)
        x = self.stem(image.astype(self.dtype)) + self._positions().astype(self.dtype)
        if keep < 1.0:
            if self.pool == "flatten":
                raise BadInput("pool='flatten' needs every token; set image_keep=1 or another pool")
            x = drop_tokens(x, keep, keys[0])
        if self.pool == "cls":
            cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (len(x), 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        x = constrain(dropout(x, self.dropout_rate, keys[1]), "batch", "tokens", "width")
        tokens = self.encoder(x, None, keys[2])
        if self.pool == "cls":
            pooled = tokens[:, 0]
        elif self.pool == "flatten":
            pooled = self.flatten_pool(tokens, keys[3])
        else:
            pooled = self.attention_pool(tokens) if self.pool == "map" else mean_pool(tokens)
        return Encoded(tokens, pooled, None)

    def _positions(self) -> Float[Array, "n d"]:
        if self.position == "learned":
            return self.position_embedding[...]
        return jnp.asarray(sincos2d(self.image_size // self.patch_size, self.width))


def sincos2d(grid: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed sine and cosine embeddings of row and column, [grid * grid, width] (MoCo v3, 2021)."""
    omega = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    rows, columns = np.mgrid[:grid, :grid].reshape(2, -1, 1) * omega
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def drop_tokens(x: Float[Array, "b n d"], keep: float, key: Array | None) -> Array:
    """A random share `keep` of each example's tokens, others in each example (FLIP)."""
    if key is None:
        raise ValueError("dropping tokens needs a random key; evaluation keeps all of them")
    noise = jax.random.uniform(key, x.shape[:2])
    kept = jnp.argsort(noise, axis=1)[:, : max(1, round(x.shape[1] * keep))]
    return jnp.take_along_axis(x, kept[..., None], axis=1)
