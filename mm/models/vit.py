"""Vision Transformer (Dosovitskiy et al. 2021), of pictures, clips and spectrograms."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.config import BadInput, Count, Positive, Rate
from mm.models import stem as _stem  # noqa: F401  (registers the stems)
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.keys import Keys, split, uniform
from mm.models.layers import add_table, dropout, param, vectors
from mm.models.pool import AttentionPool, FlattenPool, Pooler, mean_pool
from mm.sharding.rules import constrain


@registry.register("image_encoder", "vit")
class ViT(nnx.Module):
    """Image [b, h, w, channels] to tokens [b, n, width] and a pooled [b, width].

    The other keys are those of `EncoderSpec`. `image_size` is a square's side or (height, width).
    With `frames` it reads clips [b, frames, h, w, channels], and a patch is a tubelet of
    `tubelet_size` frames (Arnab et al. 2021, section 3.2). `stem` is the spec of a registered stem
    (default: one matmul a patch). `position` is "learned", "sincos2d" (MAE, fixed; of clips by
    time, too) or "rotary" (queries and keys turned by row and column: Heo et al. 2024, section 3.2;
    not of clips). Learned positions are those of `position_size` pixels (default: image_size),
    resampled to the grid of the image. `pool` is "cls", "mean", "map" (attention pooling) or
    "flatten" (a layer of `pool_dim` over all tokens side by side, where the place of a part tells
    much); `pooler`: a layer with tanh after "cls" (as BERT's). `pre_norm`: a norm before the first
    block, too (CLIP). `registers` more learned tokens are read by all and not returned (Darcet et
    al. 2024). `window`: a patch attends to those at
    most so many rows, columns and tubelets away, and to the other tokens. `mask_token`: a learned
    token that can stand for patches (BEiT). The first `prefix` tokens are no patches;
    `pooled_width` is the width of the pooled vector.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, ...],
        patch_size: Positive,
        channels: Positive = 3,
        frames: Positive | None = None,
        tubelet_size: Positive = 1,
        stem: Mapping | None = None,
        pool: Literal["cls", "mean", "map", "flatten"] = "map",
        pool_dim: int | None = None,
        pool_dropout: Rate = 0.0,
        pooler: bool = False,
        position: Literal["learned", "sincos2d", "rotary"] = "learned",
        position_size: int | tuple[int, ...] | None = None,
        pre_norm: bool = False,
        registers: Count = 0,
        window: Positive | None = None,
        mask_token: bool = False,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        spec = EncoderSpec(**encoder)
        head = spec.width // spec.num_heads
        height, width = _sides("image_size", image_size, patch_size)
        if frames is None and tubelet_size != 1:
            raise BadInput(f"tubelet_size={tubelet_size} is of clips: set frames")
        if frames is not None:
            _divides("frames", frames, "tubelet_size", tubelet_size)
        if (pool == "flatten") != (pool_dim is not None):
            raise BadInput(f"pool_dim={pool_dim} goes with pool='flatten', not {pool!r}")
        if pooler and pool != "cls":
            raise BadInput(f"pooler=True goes with pool='cls', not {pool!r}")
        multiple = 4 if frames is None else 16
        if position == "sincos2d" and spec.width % multiple:
            raise BadInput(
                f"width={spec.width} must be a multiple of {multiple} for position='sincos2d'"
            )
        if position == "rotary" and frames is not None:
            raise BadInput("position='rotary' is of pictures; with frames, use another")
        if position == "rotary" and head % 4:
            raise BadInput(f"heads are {head} wide; position='rotary' needs a multiple of 4")
        if position != "learned" and position_size is not None:
            raise BadInput(f"position_size={position_size} goes with position='learned'")
        self.patch_size, self.width = patch_size, spec.width
        self.image_shape = (*(() if frames is None else (frames,)), height, width, channels)
        tubelet = () if frames is None else (tubelet_size,)
        self.patch_shape = (*tubelet, patch_size, patch_size, channels)
        self.grid = self._grid(self.image_shape)
        self.pool, self.position, self.window = pool, position, window
        self.rotary_width = head
        self.dropout_rate, self.dtype = spec.dropout, jnp.dtype(spec.dtype)
        self.pooled_width, self.prefix = pool_dim or spec.width, int(pool == "cls")
        given = dict(patch_shape=self.patch_shape, width=spec.width, dtype=spec.dtype, rngs=rngs)
        self.stem = registry.build("stem", stem or {"name": "linear"}, "stem", **given)
        if position == "learned":
            sides = _sides("position_size", position_size or image_size, patch_size)
            self.position_grid = self._grid((*self.image_shape[:-3], *sides, channels))
            places, deviation = math.prod(self.position_grid), spec.width**-0.5
            table = vectors(rngs, places, spec.width, axis="tokens", deviation=deviation)
            self.position_embedding = table
        if pool == "cls":
            self.cls = param(rngs, 0.0, (1, spec.width), (None, "embed"))
        self.registers = vectors(rngs, registers, spec.width) if registers else None
        self.prompts = None  # what `mm.adapt.image_prompt` adds
        self.mask_token = vectors(rngs, 1, spec.width) if mask_token else None
        self.pre_norm = spec.make_norm(rngs) if pre_norm else None
        self.encoder = Encoder(spec, rngs=rngs)
        if pool == "flatten":
            self.flatten_pool = FlattenPool(
                spec, math.prod(self.grid), pool_dim, pool_dropout, rngs=rngs
            )
        if pool == "map":
            self.attention_pool = AttentionPool(spec, rngs=rngs)
        self.pooler = Pooler(spec, rngs=rngs) if pooler else None

    def __call__(
        self,
        image: Float[Array, "b *size c"],
        *,
        keep: float = 1.0,
        replace: float | Bool[Array, "b n"] = 0.0,
        levels: int = 1,
        draw: Keys | None = None,
        rng: Keys | None = None,
    ) -> Encoded:
        """Of patches, a share `keep` goes on and a share `replace` becomes the mask token.

        Which ones is drawn from `draw`, for each example its own, or `replace` is True for them.
        Dropout draws from `rng`. Sizes other than image_size are taken too, if patches and pool can
        be.
        """
        keys = split(rng, 3)
        if image.ndim != len(self.image_shape) + 1 or image.shape[-1] != self.image_shape[-1]:
            raise BadInput(
                f"config.model.image: reads [{', '.join(map(str, self.image_shape))}], got "
                f"{list(image.shape[1:])}; change its frames or channels, or the input"
            )
        grid = self._grid(image.shape[1:])
        x = self.stem(image.astype(self.dtype))
        kept, replaced = None, replace
        if isinstance(replace, float):
            replaced = choose(x.shape[1], replace, draw) if replace else None
        if replaced is not None:
            if self.mask_token is None:
                raise BadInput("config.model.image: has no mask token; set mask_token=True")
            x = jnp.where(replaced[..., None], self.mask_token[...].astype(x.dtype), x)
        x = self._add_positions(x, grid)
        if keep < 1.0:
            if self.pool == "flatten":
                raise BadInput("pool='flatten' needs every token; set image_keep=1 or another pool")
            kept = drawn(x.shape[1], keep, draw)
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
        extra = [] if self.pool != "cls" else [self.cls]
        extra += [] if self.registers is None else [self.registers]
        prompts = None if self.prompts is None else self.prompts()
        deep = prompts is not None and self.prompts.deep
        extra += [] if prompts is None else [prompts[0] if deep else prompts]
        tokens = [jnp.broadcast_to(e[...], (len(x), *e.shape)).astype(x.dtype) for e in extra]
        others = sum(e.shape[0] for e in extra)
        x = jnp.concatenate([*tokens, x], axis=1) if extra else x
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = constrain(dropout(x, self.dropout_rate, keys[0]), "batch", "tokens", "width")
        near, angles = self._near(grid, others, kept), self._angles(grid, others, kept)
        own = dict(prompts=prompts, prompts_from=others - self.prompts.count) if deep else {}
        found = self.encoder.at_levels(levels, x, near, keys[1], rotary=angles, **own)
        if others > self.prefix:
            found = [jnp.concatenate([x[:, : self.prefix], x[:, others:]], axis=1) for x in found]
        tokens = found[-1]
        if self.pool == "cls":
            pooled = tokens[:, 0] if self.pooler is None else self.pooler(tokens[:, 0])
        elif self.pool == "flatten":
            pooled = self.flatten_pool(tokens, keys[2])
        else:
            pooled = self.attention_pool(tokens) if self.pool == "map" else mean_pool(tokens)
        levels_found = tuple(found) if levels > 1 else ()
        return Encoded(tokens, pooled, None, kept, replaced, levels_found)

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many patches there are along each dimension of an image."""
        sizes = zip(shape[:-1], self.patch_shape[:-1], strict=True)
        return tuple(size // patch for size, patch in sizes)

    def _add_positions(self, x: Array, grid: tuple[int, ...]) -> Array:
        if self.position == "rotary":
            return x
        if self.position == "sincos2d":
            return x + jnp.asarray(sincos2d(grid, self.width), x.dtype)
        table = self.position_embedding[...]
        if grid == self.position_grid:
            return add_table(("tokens", "embed"), x, table)
        return x + resample(table, self.position_grid, grid).astype(x.dtype)

    def _near(self, grid: tuple[int, ...], others: int, kept: Array | None) -> Array | None:
        """Who may attend to whom, [1 or b, n, n], when there is a window."""
        if self.window is None:
            return None
        places = np.stack(np.indices(grid), -1).reshape(-1, len(grid))
        far = np.abs(places[:, None] - places[None]).max(-1)
        near = jnp.asarray(far <= self.window)[None]
        if kept is not None:
            near = jax.vmap(lambda rows: near[0][rows][:, rows])(kept)
        return jnp.pad(near, ((0, 0), (others, 0), (others, 0)), constant_values=True)

    def _angles(self, grid: tuple[int, ...], others: int, kept: Array | None) -> Array | None:
        """Of queries and keys, [n, k/2] or [b, n, k/2]; tokens that are no patches stay."""
        if self.position != "rotary":
            return None
        angles = jnp.asarray(rotary2d(grid, self.rotary_width))
        angles = angles if kept is None else angles[kept]
        return jnp.pad(angles, ((0, 0),) * (angles.ndim - 2) + ((others, 0), (0, 0)))


def sincos2d(
    grid: tuple[int, ...], width: int, temperature: float = 10_000.0
) -> Float[np.ndarray, "n d"]:
    """Fixed sine and cosine embeddings of column and row, as in the released code of MAE.

    The frequencies are temperature ** -(i / (width / 4)), as in MoCo v3; big_vision's divide i by
    width / 4 - 1. Of a clip's grid, (time, rows, columns), the first quarter of the width is of the
    time, the rest of the place (as in PySlowFast's masked autoencoders).
    """
    if len(grid) == 3:
        quarter = width // 4
        omega = temperature ** -(np.arange(quarter // 2) / (quarter // 2))
        times = np.arange(grid[0])[:, None] * omega
        times = np.concatenate([np.sin(times), np.cos(times)], axis=1).astype(np.float32)
        places = sincos2d(grid[1:], width - quarter, temperature)
        both = times.repeat(len(places), 0), np.tile(places, (grid[0], 1))
        return np.concatenate(both, axis=1)
    omega = temperature ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1) * omega
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def rotary2d(
    grid: tuple[int, int], width: int, temperature: float = 100.0
) -> Float[np.ndarray, "n k"]:
    """Angles, width / 2 of them, by row and by column in turns (Heo et al. 2024, eq. 7)."""
    omega = temperature ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1) * omega
    return np.concatenate([rows, columns], axis=1).astype(np.float32)


def resample(
    table: Float[Array, "n d"], old: tuple[int, ...], grid: tuple[int, ...]
) -> Float[Array, "m d"]:
    """Position embeddings of the grid `old` for another one, by cubic interpolation."""
    table = table.reshape(*old, -1)
    return jax.image.resize(table, (*grid, table.shape[-1]), "cubic").reshape(-1, table.shape[-1])


def _sides(name: str, size: int | tuple[int, ...], patch_size: int) -> tuple[int, int]:
    """Height and width."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise BadInput(f"{name}={size}: expected a side of at least 1, or (height, width)")
    for side in sides:
        _divides(name, side, "patch_size", patch_size)
    return sides


def _divides(name: str, size: int, part: str, by: int) -> None:
    if size % by:
        near = max(1, round(size / by)) * by
        raise BadInput(
            f"{name}={size} does not divide by {part}={by}; the nearest that does is {near}"
        )


def drawn(count: int, share: float, keys: Keys | None) -> Int[Array, "b k"]:
    """A random share of `count` places, at least one, others in each example (FLIP, MAE)."""
    if keys is None:
        raise ValueError("which patches to keep or replace is random: it needs `draw` keys")
    return jnp.argsort(uniform(keys, (count,)), axis=1)[:, : max(1, round(count * share))]


def choose(count: int, share: float, keys: Keys | None) -> Bool[Array, "b n"]:
    """True for a random share of `count` places."""
    places = drawn(count, share, keys)
    return jax.vmap(lambda rows: jnp.zeros(count, bool).at[rows].set(True))(places)
