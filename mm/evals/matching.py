"""How well a matching head tells pairs from pictures with the text of another."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from mm import registry
from mm.config import BadInput, Count, Positive, Share
from mm.evals.base import Model
from mm.evals.pool import of_pairs, pool_of, read_column
from mm.evals.rerank import match_rows
from mm.report.outcomes import Outcome

_TRIES = 100  # draws for a text of another group


@registry.register("evaluator", "matching")
class Matching:
    """Each pair of `source`, and each picture with texts of `negatives` others, drawn by `seed`.

    A text of the same `group`, if the ops write it, is no negative. The arrays of all examples are
    kept in the memory of each host. max_bad_share: of broken examples, which are left out. Raises
    BadInput when there are fewer than two pairs, or all are of one group.
    """

    needs = ("image", "text", "match")
    reads = ("image", "text", "text_mask", "entities")

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        negatives: Positive = 1,
        seed: Count = 0,
        max_bad_share: Share = 0.01,
    ):
        if len(source) < 2:
            raise BadInput(f"matching: needs two pairs at least, the source has {len(source)}")
        if preprocess.only("group").ops:
            group, whole = read_column(source, preprocess, "group")
            others(group[whole], 1, seed)
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.negatives, self.seed, self.max_bad_share = negatives, seed, max_bad_share

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "area_under_roc", how often a pair scores higher than a negative, and the
        "accuracy" of each kind at a logit of 0."""
        given = dict(batch_size=self.batch_size, sharding=model.sharding)
        pool = pool_of(
            self,
            model,
            lambda batch: of_pairs(batch) | {"group": batch.get("group", batch["id"])},
        )
        ids, group = pool.pop("id"), pool.pop("group")
        images = np.repeat(np.arange(len(group)), self.negatives)
        texts = others(group, self.negatives, self.seed)
        own = match_rows(model.match, pool, *[np.arange(len(group))] * 2, **given)
        other = match_rows(model.match, pool, images, texts, **given)
        other = other.reshape(len(own), -1)
        scores = np.concatenate([own[:, None], other], axis=1)
        found = {
            "area_under_roc": Outcome(ids, scores, "area_under_roc", group),
            "own_accuracy": Outcome(ids, own > 0, clusters=group),
            "other_accuracy": Outcome(ids, (other <= 0).mean(1), clusters=group),
        }
        return model.metrics(found) | {"examples": float(len(own))}


def others(group: Int[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """For each row `count` rows of other groups. Raises BadInput if all are of one."""
    if (group == group[:1]).all():
        raise BadInput("matching: all pairs are of one group, so that none has a negative")
    rng, own = np.random.default_rng(seed), np.repeat(group, count)
    found = rng.integers(len(group), size=len(own))
    for _ in range(_TRIES):
        same = group[found] == own
        found[same] = rng.integers(len(group), size=int(same.sum()))
    for row in np.flatnonzero(group[found] == own):  # of a group that is nearly all there is
        found[row] = rng.choice(np.flatnonzero(group != own[row]))
    return found
