"""Retrieval by the matching head: what embeddings find first, put in order by the fusion."""

from collections.abc import Callable, Mapping

import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from mm.evals.pool import in_batches


def reranked(
    match: Callable[[Mapping[str, Array]], Array],
    pool: Mapping[str, np.ndarray],
    queries: Float[np.ndarray, "n d"],
    candidates: Float[np.ndarray, "m d"],
    ranks: Int[np.ndarray, " n"],
    *,
    own: Int[np.ndarray, " n"],
    of: Int[np.ndarray, " m"],
    of_texts: bool,
    top: int,
    batch_size: int,
    sharding: NamedSharding,
) -> Int[np.ndarray, " n"]:
    """The rank of the best of each query's own candidates when its first `top` are sorted by
    `match`.

    That is how ALBEF and BLIP retrieve (Li et al. 2021, section 4). A query none of whose own is
    among them keeps its rank in `ranks`. pool: the arrays of images and those of texts. own, of: as
    for `mm.evals.ranks.ranks`. of_texts: the queries are texts. Ties and NaN rank last, as among
    embeddings.
    """
    first = first_columns(queries, candidates, top)
    n, top = first.shape
    rows, columns = np.repeat(np.arange(n), top), first.reshape(-1)
    sides = (columns, rows) if of_texts else (rows, columns)
    found = match_rows(match, pool, *sides, batch_size=batch_size, sharding=sharding)
    found = found.reshape(n, top)
    mine, wrong = of[first] == own[:, None], np.isnan(found)
    own_score = np.where(mine & ~wrong, found, -np.inf).max(1)
    beaten_by = ((found >= own_score[:, None]) & ~mine).sum(1)
    beaten_by = np.where((mine & ~wrong).any(1), beaten_by, len(candidates))
    return np.where(mine.any(1), beaten_by, np.maximum(ranks, top))


def match_rows(
    match: Callable[[Mapping[str, Array]], Array],
    pool: Mapping[str, np.ndarray],
    image_rows: Int[np.ndarray, " m"],
    text_rows: Int[np.ndarray, " m"],
    *,
    batch_size: int,
    sharding: NamedSharding,
) -> Float[np.ndarray, " m"]:
    """`match` of images and texts of the pool, batch_size of them at a time."""

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        sides = image_rows[rows], text_rows[rows]
        return {name: x[sides[not name.startswith("image")]] for name, x in pool.items()}

    return in_batches(match, take, len(image_rows), sharding, batch_size)


def first_columns(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "n d"], top: int
) -> Int[np.ndarray, "n k"]:
    """The rows of the `top` most similar candidates of each query; NaN is last."""
    found = []
    for start in range(0, len(queries), 1024):  # never n x n
        scores = queries[start : start + 1024] @ candidates.T
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :top])
    return np.concatenate(found)
