"""Exact search: the nearest of many embeddings, block by block, so that memory stays bounded.

  python -m mm.search workdirs/quickstart/embeddings-480 --text="a red apple" --top=5

finds pictures (or, with --of=text, captions) in a folder that `--mode=embed` wrote, by the model
that wrote it; `--image=photo.jpg` asks with a picture.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from mm.config import BadInput
from mm.embeddings import read_facts, read_parts

_ROWS = 1 << 15  # of the index at a time
_QUERIES = 1 << 10  # at a time: a block of scores has 128 MB


def search(
    queries: Float[np.ndarray, "q d"],
    index: Float[np.ndarray, "n d"] | Iterable[Float[np.ndarray, "some d"]],
    k: int,
    *,
    rows: int = _ROWS,
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k rows of the index with the largest dot product, best first: (scores, row numbers).

    index: an array, memory-mapped maybe, or its parts one after the other, as
    `mm.embeddings.read_parts` gives them; `rows` of it are looked at in one go. Scores are float32.
    Equal ones are in the order of the rows; a NaN counts as -inf. Where the index has fewer rows
    than k, there are fewer columns. Raises BadInput for other shapes.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or k < 1:
        raise BadInput(f"search: queries {list(queries.shape)}, k={k}: expected [q, d], k above 0")
    best = _Best(len(queries))
    if isinstance(index, np.ndarray):
        rows = min(rows, max(len(index), 1))
    first, top = 0, _top(min(k, rows))
    for block in _blocks(index, rows):
        if block.ndim != 2 or block.shape[1] != queries.shape[1]:
            raise BadInput(
                f"search: the index has rows of {list(block.shape[1:])}, the queries are "
                f"{list(queries.shape)}; expected the same last size"
            )
        # The last block is filled up, so that one program serves all.
        filled = np.zeros((rows, block.shape[1]), np.float32)
        filled[: len(block)] = block
        found = [
            top(queries[start : start + _QUERIES], filled, len(block))
            for start in range(0, max(len(queries), 1), _QUERIES)
        ]
        scores, places = (np.concatenate(x) for x in zip(*found, strict=True))
        best.add(scores, places + np.int64(first), k)
        first += len(block)
    return best.scores[:, :first], best.places[:, :first]


class _Best:
    """The best so far of each query, best first."""

    def __init__(self, queries: int):
        self.scores = np.zeros((queries, 0), np.float32)
        self.places = np.zeros((queries, 0), np.int64)

    def add(self, scores: np.ndarray, places: np.ndarray, k: int) -> None:
        """Of equals the earlier ones stand first: they have the lower numbers."""
        scores = np.concatenate([self.scores, scores], axis=1)
        places = np.concatenate([self.places, places], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.places = np.take_along_axis(places, order, axis=1)


@functools.lru_cache(maxsize=8)
def _top(k: int) -> Callable[[Array, Array, int], tuple[Array, Array]]:
    """Jitted (queries [q d], block [rows d], how many rows count) -> their k best."""

    def top(queries: Array, block: Array, count: int) -> tuple[Array, Array]:
        scores = jnp.einsum("qd,nd->qn", queries, block, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        # What only fills up stands after all rows, so it is cut off at the end.
        scores = jnp.where(jnp.arange(len(block)) < count, scores, -jnp.inf)
        return jax.lax.top_k(scores, k)  # of equals the first

    return jax.jit(top)


def _blocks(index: np.ndarray | Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Of so many rows each, but the last; small parts are put together."""
    waiting: list[np.ndarray] = []
    for part in [index] if isinstance(index, np.ndarray) else index:
        at = 0
        while at < len(part):
            some = part[at : at + rows - sum(map(len, waiting))]
            waiting.append(some)
            at += len(some)
            if sum(map(len, waiting)) == rows:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line of JSON for each that is found: its score, and its number in the source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", help="what --mode=embed wrote")
    parser.add_argument("--text", help="find what goes with this text")
    parser.add_argument("--image", help="find what goes with this picture: a path")
    parser.add_argument("--of", default="image", choices=("image", "text"), help="what is found")
    parser.add_argument("--top", type=int, default=10, help="how many")
    parser.add_argument("--workdir", help="of the run that embedded (default: as it was then)")
    flags = parser.parse_args(arguments)
    try:
        for found in find(flags):
            print(json.dumps(found))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find(flags: argparse.Namespace) -> Iterator[dict[str, float | int]]:
    """What `main` prints."""
    if (flags.text is None) == (flags.image is None):
        raise BadInput("expected one of --text=WORDS and --image=PATH")
    facts = read_facts(flags.folder)
    from mm.library import load

    # By the same ops as the index.
    given = {"step": facts["step"], "preprocess": facts["preprocess"]}
    model = load(flags.workdir or facts["workdir"], **given)
    if flags.text is not None:
        query = model.embed_text([flags.text])
    else:
        query = model.embed_image([flags.image])
    numbers: list[np.ndarray] = []

    def parts() -> Iterator[np.ndarray]:
        for ids, rows in read_parts(flags.folder, ["id", flags.of]):
            numbers.append(np.asarray(ids))
            yield rows

    scores, places = search(query, parts(), flags.top)
    ids = np.concatenate(numbers)[places[0]]
    for score, number in zip(scores[0].tolist(), ids.tolist(), strict=True):
        yield {"score": round(score, 6), "id": number}


if __name__ == "__main__":
    sys.exit(main())
