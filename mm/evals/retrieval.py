"""Image-text retrieval: recall at k and median rank, exact over a whole pool of pairs.

Row i of the images and row i of the texts are each other's only match, unless several examples show
one picture. Ties and NaN rank last: see `mm.evals.ranks`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int

from data.sources import BadExample, read_each
from mm import registry
from mm.config import BadInput, Count, Positive, Share, suggest
from mm.evals import examples
from mm.evals.base import Model, draw_later, leave_page
from mm.evals.pool import embedded, pool_of
from mm.evals.ranks import ranks
from mm.evals.rerank import reranked
from mm.evals.word_maps import word_maps
from mm.report.outcomes import Outcome
from mm.runtime.workdir import write_atomic

KS = (1, 5, 10)
_AT_ONCE = 1024  # records read
_CAPTIONS = 10  # in the picture
_MAP_SIDE = 128  # pixels


@registry.register("evaluator", "retrieval")
class Retrieval:
    """Retrieval in both directions over all of `source`, batch_size examples at a time.

    image_id: the field that is the same for examples with captions of one picture, as COCO and
    Flickr30k have five: to a picture any of its captions is right, to a caption its one picture
    (Karpathy and Fei-Fei 2015, section 4.2); the report shows first captions alone. rerank: so many
    of the first are put in order by the matching head as well, which gives
    "reranked/text_to_image/recall@1" and so on. The arrays of all examples are then kept in the
    memory of each host. maps: in so many pictures the run's page shows where words are. words:
    those, where their captions have them; by default their longest. max_bad_share: of broken
    examples, which are left out.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them
    score = "text_to_image/recall@1"

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        image_id: str | None = None,
        rerank: Count = 0,
        maps: Count = 6,
        words: tuple[str, ...] = (),
        max_bad_share: Share = 0.01,
    ):
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.rerank, self.maps, self.words = rerank, maps, words
        self.max_bad_share = max_bad_share
        self.shows = None if image_id is None else pictures_of(source, image_id)
        if rerank:
            self.needs, self.reads = (*self.needs, "match"), (*self.reads, "entities")

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "text_to_image/recall@1" and so on, as fractions; the same on every process.

        picture: a PNG to write, with what is found for a few captions (process 0); and for the
        run's page `report/<its name>.json` beside it, see `mm.evals.examples`.
        """
        mesh = model.sharding.mesh
        pool = pool_of(self, model, embedded(model.embed, keep=bool(self.rerank)))
        zimg, ztxt, ids = pool.pop("zimg"), pool.pop("ztxt"), pool.pop("id")
        first, shows = np.arange(len(ids)), np.arange(len(ids))
        if self.shows is not None:
            _, first, shows = np.unique(self.shows[ids], return_index=True, return_inverse=True)
            pool = {k: x[first] if k.startswith("image") else x for k, x in pool.items()}
        own = belonging(shows)
        sides = directions(zimg[first], ztxt)
        found = {name: ranks(*pair, mesh, **own[name]) for name, pair in sides.items()}
        if picture is not None and examples.text_and_image(self.preprocess) is not None:
            shown = found | {"text_to_image": found["text_to_image"][first]}
            rows = zimg[first], ztxt[first], ids[first]
            draw = functools.partial(self._draw, model, *rows, shown, picture)
            draw_later(model, picture, draw, together=True)
        every = {"": found}
        if self.rerank:
            given = dict(batch_size=self.batch_size, sharding=model.sharding, top=self.rerank)
            order = functools.partial(reranked, model.match, pool, **given)
            every["reranked/"] = {
                name: order(*pair, found[name], of_texts=name == "text_to_image", **own[name])
                for name, pair in sides.items()
            }
        together = None if self.shows is None else shows
        of = {"text_to_image": (ids, together), "image_to_text": (ids[first], None)}
        results = {}
        for kind, ranked in every.items():
            results |= {f"{kind}{key}": x for key, x in sizes(ranked).items()}
            made = metrics(ranked, of).items()
            results |= model.metrics({f"{kind}{key}": x for key, x in made})
        return results

    def _draw(
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
            self._draw_sheet(zimg, ztxt, ids, picture)
            shown = examples.examples(self.source, self.preprocess, zimg, ztxt, ids, found)
            leave_page(picture, shown | {"maps": maps})

    def _maps(self, model: Model, ids: np.ndarray) -> dict[str, Any] | None:
        """Where the model finds words in a few pictures, as JSON; see `word_maps`."""
        if model.apply is None or not self.maps:
            return None
        text, _ = examples.text_and_image(self.preprocess)
        rows = examples.spread(len(ids), self.maps)
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

    def _draw_sheet(
        self, zimg: np.ndarray, ztxt: np.ndarray, ids: np.ndarray, path: epath.Path
    ) -> None:
        """Captions spread evenly over the pool, so that nobody chose them."""
        rows = examples.spread(len(zimg), _CAPTIONS)
        fields = examples.text_and_image(self.preprocess)
        title = f"{len(zimg):,} pictures; the best five for captions spread evenly over them"
        scores = ztxt[rows] @ zimg.T
        write_atomic(path, examples.sheet(self.source, fields, scores, rows, ids, title))


def rounded(values: np.ndarray) -> list:
    """For JSON: a map needs no more than three digits."""
    return [[float(f"{x:.3g}") for x in row] for row in values]


def pictures_of(source: Any, field: str) -> Int[np.ndarray, " n"]:
    """Which picture each example shows, numbered as they come; a broken example shows its own.

    Raises BadInput where the source has no such field.
    """
    if field not in source.features:
        near = suggest(field, source.features)
        raise BadInput(f"image_id={field!r}: the source has no such field{near}")
    numbers: dict[Any, int] = {}
    found = []
    for start in range(0, len(source), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(source)))
        for number, record in zip(ids, read_each(source, ids, (field,)), strict=True):
            key = ("broken", number) if isinstance(record, BadExample) else record[field]
            found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found)


def directions(zimg: np.ndarray, ztxt: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The queries and the candidates of each."""
    return {"text_to_image": (ztxt, zimg), "image_to_text": (zimg, ztxt)}


def belonging(shows: Int[np.ndarray, " n"]) -> dict[str, dict[str, np.ndarray]]:
    """What queries and candidates of each direction belong to: pictures, texts by what they show.

    shows: the picture of each text, numbers from 0 on, none left out.
    """
    pictures = np.arange(shows.max(initial=-1) + 1)
    return {
        "text_to_image": {"own": shows, "of": pictures},
        "image_to_text": {"own": pictures, "of": shows},
    }


def metrics(
    found: Mapping[str, Int[np.ndarray, " n"]],
    of: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
) -> dict[str, Outcome]:
    """Of the ranks of each direction: recall at 1, 5, 10 (fractions), median rank (1 is perfect).

    of: the examples' numbers of each direction, and what they show, None for each its own.
    """
    made = {}
    for name, rank in found.items():
        ids, shows = of[name]
        for k in KS:
            made[f"{name}/recall@{k}"] = Outcome(ids, rank < k, clusters=shows)
        made[f"{name}/median_rank"] = Outcome(ids, rank, "median_rank", shows)
    return made


def sizes(found: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, float]:
    """Of the pool, which belongs to its metrics: among ten pictures, chance finds the right one in
    a tenth; and how many captions it has, where these are more."""
    queries = {len(rank) for rank in found.values()}
    captions = {"captions": float(max(queries))} if len(queries) > 1 else {}
    return {"pool_size": float(min(queries))} | captions
