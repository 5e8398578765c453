"""Extra tokens for the fusion: neighbours from an external memory, and entities from a table.

They follow the tokens of one tower into the fusion, and are cut off again behind it.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, UInt32

from mm.config import BadInput, Positive
from mm.models.encoder import Encoded
from mm.models.fusion.base import join
from mm.models.layers import Buffer, Dtype, Linear, lookup, vectors
from mm.sharding.ring import over_batch

Extra = tuple[Float[Array, "b k d"], Bool[Array, "b k"]]  # tokens, and which of them are real


class Memory(nnx.Module):
    """The nearest neighbours of an embedding among those of a file, by cosine (kNN memory).

    `path` is a .npy file, float [n, embed_dim], in the space of the model's embeddings; `ids`, a
    .npy file of integers [n], says of which example each is: a row never gets those of its own
    batch["id"]. The embedding of the tower `query`, without gradient, asks, and that tower's tokens
    are followed by the `neighbours`, best first, through a linear layer. The memory is a Buffer:
    read when a state is made, then part of its checkpoints, and whole on each device; scores are
    computed for `chunk` entries at a time.
    """

    needs = ("embed_dim",)

    def __init__(
        self,
        *,
        path: str,
        ids: str | None,
        query: Literal["image", "text"] = "image",
        neighbours: Positive = 4,
        chunk: Positive = 4096,
        model: nnx.Module,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.embeddings = read("path", path, jnp.float32)
        size, *rest = self.embeddings.shape
        if rest != [model.embed_dim]:
            raise BadInput(
                f"path={path!r}: has shape {[size, *rest]}, expected [n, {model.embed_dim}], "
                "as config.model.embed_dim"
            )
        self.ids = None if ids is None else read("ids", ids, jnp.uint32)
        if self.ids is not None and self.ids.shape != (size,):
            raise BadInput(f"ids={ids!r}: has shape {list(self.ids.shape)}, expected [{size}]")
        if neighbours > size:
            raise BadInput(f"neighbours={neighbours}: expected at most the {size} entries")
        sizes = (model.embed_dim,), (getattr(model, query).width,)
        self.project = Linear(*sizes, ("projection", "embed"), dtype=dtype, rngs=rngs)
        self.tower, self.added, self.chunk = query, neighbours, chunk

    def __call__(self, query: Callable[[], Array], batch: Mapping[str, Array]) -> Extra:
        """query() are unit vectors [b, e]."""
        own = None if self.ids is None else batch["id"]
        ids = None if self.ids is None else self.ids[...]
        query = jax.lax.stop_gradient(query())
        vectors, found = nearest(
            query, own, self.embeddings[...], ids, count=self.added, chunk=self.chunk
        )
        return self.project(vectors), found


class Entities(nnx.Module):
    """Learned vectors of the entities that a text names (knowledge injection).

    batch["entities"], int32 [b, max], holds numbers below `count`, -1 for none, as the op
    `entities` writes them. Their vectors follow the text's tokens.
    """

    tower, needs = "text", ()

    def __init__(
        self, *, count: Positive, max: Positive, model: nnx.Module, dtype: Dtype, rngs: nnx.Rngs
    ):
        self.table = vectors(rngs, count, model.text.width, axis="vocab")
        self.added, self.dtype = max, jnp.dtype(dtype)

    def __call__(self, query: Callable[[], Array], batch: Mapping[str, Array]) -> Extra:
        ids = batch["entities"]
        rows = jnp.maximum(ids, 0)
        return lookup(("vocab", "embed"), self.dtype, self.table[...], rows), ids >= 0


def read(what: str, path: str, dtype: DTypeLike) -> Buffer:
    """A .npy file as a Buffer; vectors at unit length. Its header is enough for its shape."""
    try:
        shape = np.load(path, mmap_mode="r").shape
    except (OSError, ValueError) as error:
        raise BadInput(f"{what}={path!r}: is no .npy file that can be read ({error})") from error

    def load() -> np.ndarray:
        array = np.load(path)
        if array.ndim == 2:
            array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
        return array.astype(dtype)

    # A callback: as a constant it would be a part of the compiled program that makes the state.
    array = jax.pure_callback(load, jax.ShapeDtypeStruct(shape, dtype))
    return Buffer(array, axes=(None,) * len(shape))


def nearest(
    query: Float[Array, "b e"],
    own: UInt32[Array, "b"] | None,
    embeddings: Float[Array, "n e"],
    ids: UInt32[Array, "n"] | None,
    *,
    count: int,
    chunk: int,
) -> tuple[Float[Array, "b k e"], Bool[Array, "b k"]]:
    """The embeddings of greatest product with each query, best first; False where there is none.

    Those whose id is the row's own do not count. Each device takes its rows, and holds the scores
    of `chunk` entries.
    """
    size = len(embeddings)

    def local(rows: tuple, memory: tuple) -> tuple:
        (query, own), (embeddings, ids) = rows, memory

        def step(best: tuple, start: Array) -> tuple:
            # The last chunk would stick out: it begins earlier, and what was seen does not count.
            begin = jnp.minimum(start, size - width)
            place = begin + jnp.arange(width)
            part = jax.lax.dynamic_slice_in_dim(embeddings, begin, width)
            scores = jnp.matmul(query, part.T, precision=jax.lax.Precision.HIGHEST)
            seen = (place < start)[None]
            if ids is not None:
                seen = seen | (own[:, None] == jax.lax.dynamic_slice_in_dim(ids, begin, width))
            scores = jnp.where(seen, -jnp.inf, scores)
            scores, places = (
                jnp.concatenate([a, jnp.broadcast_to(b, scores.shape)], axis=1)
                for a, b in zip(best, (scores, place), strict=True)
            )
            scores, at = jax.lax.top_k(scores, count)
            return (scores, jnp.take_along_axis(places, at, axis=1)), None

        width = min(chunk, size)
        nothing = jnp.full((len(query), count), -jnp.inf), jnp.zeros((len(query), count), int)
        starts = jnp.arange(0, size, width)
        (scores, places), _ = jax.lax.scan(step, nothing, starts)
        return (embeddings[places], scores > -jnp.inf), ()

    return over_batch(local, (query, own), (embeddings, ids))[0]


def append(encoded: Encoded, tokens: Float[Array, "b k d"], mask: Bool[Array, "b k"]) -> Encoded:
    """The encoding with more tokens at the end, those of each level too."""
    own, extra = encoded.mask, (tokens.astype(encoded.tokens.dtype), mask)
    whole, *levels = (join([(x, own), extra], len(x)) for x in (encoded.tokens, *encoded.levels))
    return encoded._replace(tokens=whole[0], mask=whole[1], levels=tuple(x for x, _ in levels))
