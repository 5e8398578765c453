"""Image-text retrieval: recall at k and median rank, exact over a whole pool of pairs.

Row i of the images and row i of the texts are each other's only match. Ties and NaN rank last: a
model that says the same of everything finds nothing.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mm import registry
from mm.config import BadInput, Share
from mm.evals import examples
from mm.evals.base import Model
from mm.evals.rerank import of_pairs, place, reranked
from mm.evals.word_maps import word_maps
from mm.report import retrieval as report
from mm.runtime.workdir import write_atomic, write_json

KS = (1, 5, 10)
_CAPTIONS = 10  # in the picture
_MAPS = 6  # pictures in which words are looked for
_MAP_SIDE = 128  # pixels
_BLOCK = 128  # queries at a time; pools are padded to a multiple, so that no tile is a remainder


@registry.register("evaluator", "retrieval")
class Retrieval:
    """Retrieval in both directions over all of `source`, batch_size examples at a time.

    rerank: so many of the first are put in order by the matching head as well, which gives
    "reranked/text_to_image/recall@1" and so on. The arrays of all examples are then kept in the
    memory of each host. words: what the run's page looks for in pictures, where their captions have
    it; by default their longest words. max_bad_share: of broken examples, which are left out.
    Raises BadInput when the source is empty.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: int,
        rerank: int = 0,
        words: tuple[str, ...] = (),
        max_bad_share: Share = 0.01,
    ):
        if len(source) < 1:
            raise BadInput("retrieval: the source is empty")
        if batch_size < 1:
            raise BadInput(f"batch_size={batch_size} must be at least 1")
        if rerank < 0:
            raise BadInput(f"rerank={rerank} must be at least 0")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.rerank, self.words, self.max_bad_share = rerank, words, max_bad_share
        if rerank:
            self.needs, self.reads = (*self.needs, "match"), (*self.reads, "entities")

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "text_to_image/recall@1" and so on, as fractions; the same on every process.

        picture: a PNG to write, with what is found for a few captions (process 0); and for the
        run's page `report/<its name>.json` beside it, see `mm.evals.examples`.
        """
        sharding = model.sharding
        from data.loader import eval_batches  # here, since it loads TensorFlow

        given = dict(batch_size=self.batch_size, sharding=sharding)
        batches = eval_batches(
            self.source, self.preprocess, max_bad_share=self.max_bad_share, **given
        )
        with contextlib.closing(batches):
            zimg, ztxt, pool = embed_pool(model.embed, batches, sharding.mesh, bool(self.rerank))
        ids = pool.pop("id")
        found = {
            name: ranks(*sides, sharding.mesh) for name, sides in directions(zimg, ztxt).items()
        }
        if picture is not None and examples.text_and_image(self.preprocess) is not None:
            try:
                self._show(model, zimg, ztxt, ids, found, picture)
            except Exception as error:  # at the end of training, before the last checkpoint
                print(f"warning: no pictures of {picture.stem}: {type(error).__name__}: {error}")
        results = metrics(found)
        if self.rerank:
            order = functools.partial(reranked, model.match, pool, top=self.rerank, **given)
            found = {
                name: order(*sides, found[name], of_texts=name == "text_to_image")
                for name, sides in directions(zimg, ztxt).items()
            }
            results |= {f"reranked/{key}": value for key, value in metrics(found).items()}
        return results

    def _show(
        self,
        model: Model,
        zimg: np.ndarray,
        ztxt: np.ndarray,
        ids: np.ndarray,
        found: Mapping[str, np.ndarray],
        picture: epath.Path,
    ) -> None:
        """Writes what a person looks at; every process takes part."""
        maps = self._maps(model, ids)
        if jax.process_index() == 0:
            self._draw(zimg, ztxt, ids, picture)
            shown = examples.examples(self.source, self.preprocess, zimg, ztxt, ids, found)
            page = picture.parent / "report" / f"{picture.stem}.json"
            page.parent.mkdir(parents=True, exist_ok=True)
            write_json(page, shown | {"maps": maps})

    def _maps(self, model: Model, ids: np.ndarray) -> dict[str, Any] | None:
        """Where the model finds words in a few pictures, as JSON; see `word_maps`."""
        if model.apply is None:
            return None
        text, _ = examples.text_and_image(self.preprocess)
        rows = examples.spread(len(ids), _MAPS)
        records, problem = [], None
        try:
            records = self.source.read(ids[rows], self.preprocess.reads)
        except Exception as error:  # told below, by all processes: what follows they do together
            problem = error
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.array(problem is not None))
            if problem is None and failed.any():
                problem = OSError(f"processes {np.flatnonzero(failed).tolist()} could not read")
        if problem is not None:
            raise problem
        captions = [examples.caption_of(record[text]) for record in records]
        given = dict(words=self.words, batch_size=self.batch_size)
        maps = word_maps(model, self.preprocess, records, captions, **given)
        for example in maps["examples"]:
            image = examples.to_image(example["picture"])
            example["picture"] = examples.thumbnail(image, _MAP_SIDE)
            example["words"] = [(word, rounded(found)) for word, found in example["words"]]
            example["pool"] = None if example["pool"] is None else rounded(example["pool"])
        return maps

    def _draw(self, zimg: np.ndarray, ztxt: np.ndarray, ids: np.ndarray, path: epath.Path) -> None:
        """Captions spread evenly over the pool, so that nobody chose them."""
        text, image = examples.text_and_image(self.preprocess)
        rows = examples.spread(len(zimg), _CAPTIONS)
        scores = ztxt[rows] @ zimg.T
        shown = np.unique(report.best_columns(scores))
        captions = [
            examples.caption_of(record[text]) for record in self.source.read(ids[rows], (text,))
        ]
        records = self.source.read(ids[shown], (image,))
        pictures = {
            i: examples.to_image(r[image]) for i, r in zip(shown.tolist(), records, strict=True)
        }
        title = f"{len(zimg):,} pictures; the best five for captions spread evenly over them"
        buffer = io.BytesIO()
        report.draw(captions, pictures, scores, rows, title).save(buffer, "PNG")
        write_atomic(path, buffer.getvalue())


def rounded(values: np.ndarray) -> list:
    """For JSON: a map needs no more than three digits."""
    return [[float(f"{x:.3g}") for x in row] for row in values]


def embed_pool(
    embed: Callable, batches: Iterator[Mapping[str, Array]], mesh: Mesh, keep: bool = False
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns float32 (zimg, ztxt), both [n d], of all valid rows, on every host.

    And the "id" of each; to `keep`, also what they were made of.
    """
    replicate = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    parts = []

    def fetch(arrays: Mapping[str, Array]) -> None:
        found = jax.device_get(dict(arrays))
        valid = found.pop("valid")
        parts.append({name: rows[valid] for name, rows in found.items()})

    waiting = None
    for batch in batches:
        zimg, ztxt = embed(batch)
        found = {"zimg": zimg, "ztxt": ztxt, "valid": batch["valid"], "id": batch["id"]}
        running = replicate(found | (of_pairs(batch) if keep else {}))
        if waiting is not None:  # one behind, so that the devices always have work
            fetch(waiting)
        waiting = running
    fetch(waiting)
    pool = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return *(pool.pop(name).astype(np.float32) for name in ("zimg", "ztxt")), pool


def directions(zimg: np.ndarray, ztxt: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The queries and the candidates of each."""
    return {"text_to_image": (ztxt, zimg), "image_to_text": (zimg, ztxt)}


def metrics(found: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, float]:
    """Of the ranks of each direction: recall at 1, 5, 10 (fractions), median rank (1 is perfect).

    And the size of the pool, which belongs to them: among ten pictures, chance finds the right one
    in a tenth.
    """
    results = {}
    for name, rank in found.items():
        results["pool_size"] = float(len(rank))
        results |= {f"{name}/recall@{k}": float(np.mean(rank < k)) for k in KS}
        results[f"{name}/median_rank"] = float(np.median(rank)) + 1
    return results


def ranks(
    queries: Float[np.ndarray, "n d"], candidates: Float[np.ndarray, "n d"], mesh: Mesh
) -> Int[np.ndarray, " n"]:
    """How many other candidates score at least as high as the query's own; 0 is best.

    Scores are float32 dot products. A candidate whose score is NaN beats nobody; a query whose own
    score is NaN has rank n. Queries are split over the mesh, candidates are on every device, and a
    device holds the scores of one block of queries at a time, never n x n.
    """
    n = len(queries)
    if n != len(candidates):
        raise ValueError(f"{n} queries but {len(candidates)} candidates")
    count = -(-n // _BLOCK)
    blocks = -(-count // mesh.size) * mesh.size
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())
    rank = _ranks(mesh, n)(
        place(_padded(queries, blocks * _BLOCK).reshape(blocks, _BLOCK, -1), split),
        place(np.arange(blocks * _BLOCK, dtype=np.int32).reshape(blocks, _BLOCK), split),
        place(_padded(candidates, count * _BLOCK), whole),
    )
    return np.asarray(rank).reshape(-1)[:n]


@functools.lru_cache(maxsize=8)
def _ranks(mesh: Mesh, n: int) -> Callable:
    """Jitted (queries [blocks q d], their own rows [blocks q], candidates [m d]) -> [blocks q]."""

    def block(candidates, arguments):
        queries, own = arguments
        scores = jnp.einsum("qd,md->qm", queries, candidates, precision=jax.lax.Precision.HIGHEST)
        column = jnp.arange(candidates.shape[0])
        own_column = jnp.minimum(own, n - 1)  # rows past n are padding; any column will do
        # from the same product as the others: a second one might round equal pairs apart
        own_score = jnp.take_along_axis(scores, own_column[:, None], axis=1)
        others = (column[None] != own_column[:, None]) & (column[None] < n)
        beaten_by = jnp.sum((scores >= own_score) & others, axis=1, dtype=jnp.int32)
        return jnp.where(jnp.isnan(own_score[:, 0]), n, beaten_by)

    def local(queries, own, candidates):
        return jax.lax.map(functools.partial(block, candidates), (queries, own))

    split = PartitionSpec(mesh.axis_names)
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, PartitionSpec()), out_specs=split
    )
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(np.asarray(rows, np.float32), [(0, length - len(rows)), (0, 0)])
