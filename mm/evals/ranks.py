"""Who is found before the right one: queries over the mesh, candidates on every device.

Ties and NaN rank last: a model that says the same of everything finds nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mm.evals.pool import place

BLOCK = 128  # queries at a time; pools are padded to a multiple, so that no tile is a remainder


def ranks(
    queries: Float[np.ndarray, "n d"],
    candidates: Float[np.ndarray, "m d"],
    mesh: Mesh,
    own: Int[np.ndarray, " n"] | None = None,
    of: Int[np.ndarray, " m"] | None = None,
) -> Int[np.ndarray, " n"]:
    """How many candidates of others score at least as high as the best of the query's own.

    0 is best. own: what each query belongs to, of: what each candidate does, numbers from 0 on; by
    default rows of the same number belong together and to nobody else. Scores are float32 dot
    products. A candidate whose score is NaN beats nobody; a query whose own are all NaN has rank m.
    A device holds the scores of one block of queries at a time, never n x m.
    """
    if own is None and of is None and len(queries) != len(candidates):
        raise ValueError(f"{len(queries)} queries but {len(candidates)} candidates")
    own = np.arange(len(queries)) if own is None else own
    of = np.arange(len(candidates)) if of is None else of
    if not np.isin(own, of).all():
        raise ValueError("a query has no candidate that is its own")
    filled = np.full(-len(of) % BLOCK, -1)
    return by_blocks(
        functools.partial(_ranks, mesh),
        mesh,
        (queries, own.astype(np.int32)),
        (_filled(candidates), np.concatenate([of, filled]).astype(np.int32)),
    )


def nearest(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "m d"], k: int, mesh: Mesh
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The k highest dot products of each query, and whose they are; of equals the first. NaN is
    lowest."""
    return by_blocks(
        functools.partial(_nearest, mesh, k, len(candidates)),
        mesh,
        (queries,),
        (_filled(candidates),),
    )


def by_blocks(
    jitted: Callable[[], Callable], mesh: Mesh, split: tuple, whole: tuple
) -> np.ndarray | tuple[np.ndarray, ...]:
    """What `jitted()` makes of rows [n ...] in blocks over the devices, and of `whole`."""
    n = len(split[0])
    blocks = -(-n // (BLOCK * mesh.size)) * mesh.size

    def in_blocks(rows: np.ndarray) -> np.ndarray:
        filled = np.pad(rows, [(0, blocks * BLOCK - n)] + [(0, 0)] * (rows.ndim - 1))
        return filled.reshape(blocks, BLOCK, *rows.shape[1:])

    over = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    everywhere = NamedSharding(mesh, PartitionSpec())
    found = jitted()(
        *(place(in_blocks(rows), over) for rows in map(_floats, split)),
        *(place(array, everywhere) for array in whole),
    )
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:n], found)


@functools.lru_cache(maxsize=8)
def _ranks(mesh: Mesh) -> Callable:
    """Jitted (queries [blocks q d], own [blocks q], candidates [m d], of [m]) -> [blocks q]."""

    def block(candidates, of, queries, own):
        scores = _scores(queries, candidates)
        mine, wrong = of[None] == own[:, None], jnp.isnan(scores)
        # from the same product as the others: a second one might round equal pairs apart
        own_score = jnp.max(jnp.where(mine & ~wrong, scores, -jnp.inf), axis=1, keepdims=True)
        others = ~mine & (of >= 0)[None]
        beaten_by = jnp.sum((scores >= own_score) & others, axis=1, dtype=jnp.int32)
        nobody = jnp.all(~mine | wrong, axis=1)
        return jnp.where(nobody, jnp.sum(of >= 0, dtype=jnp.int32), beaten_by)

    return _over_blocks(block, mesh, split=2, whole=2)


@functools.lru_cache(maxsize=8)
def _nearest(mesh: Mesh, k: int, m: int) -> Callable:
    """Jitted (queries [blocks q d], candidates [m d]) -> [blocks q k] twice."""

    def block(candidates, queries):
        scores = _scores(queries, candidates)
        real = jnp.arange(candidates.shape[0]) < m
        return jax.lax.top_k(jnp.where(real & ~jnp.isnan(scores), scores, -jnp.inf), k)

    return _over_blocks(block, mesh, split=1, whole=1)


def _over_blocks(block: Callable, mesh: Mesh, split: int, whole: int) -> Callable:
    """block(*whole, *split) of each block, one after the other on each device."""

    def local(*arrays: Array) -> Any:
        return jax.lax.map(lambda rows: block(*arrays[split:], *rows), arrays[:split])

    over, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (over,) * split + (everywhere,) * whole
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=over)
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, everywhere))


def _scores(queries: Array, candidates: Array) -> Array:
    return jnp.einsum("qd,md->qm", queries, candidates, precision=jax.lax.Precision.HIGHEST)


def _filled(rows: np.ndarray) -> np.ndarray:
    return np.pad(_floats(rows), [(0, -len(rows) % BLOCK), (0, 0)])


def _floats(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows
