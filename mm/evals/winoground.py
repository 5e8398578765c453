"""Two pictures and two captions of the same words: which belongs to which (Thrush et al. 2022)."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from mm import registry
from mm.config import BadInput, Share
from mm.evals.base import Model
from mm.evals.compositional import higher
from mm.evals.pool import embedded, pool_of
from mm.evals.rerank import match_rows
from mm.report.outcomes import Outcome


@registry.register("evaluator", "winoground")
class Winoground:
    """Text, image and group score of the quadruples of `source`; chance is 1/4, 1/4 and 1/6.

    Examples 2 k and 2 k + 1 are the two pairs of a quadruple, as the source "quadruples" has them.
    match: ask the matching head, too. A quadruple with a broken example is left out. Raises
    BadInput for an odd number of examples.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them
    score = "group_score"

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: int,
        match: bool = False,
        max_bad_share: Share = 0.01,
    ):
        if len(source) < 2 or len(source) % 2:
            raise BadInput(
                f"winoground: {len(source)} examples are no quadruples of two pairs each; expected "
                "dict(name='quadruples', of=...) as the source"
            )
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.match, self.max_bad_share = match, max_bad_share
        if match:
            self.needs, self.reads = (*self.needs, "match"), (*self.reads, "entities")

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns what `scores` says, with `match` also under "match/"; and "count". No picture."""
        pool = pool_of(self, model, embedded(model.embed, keep=self.match))
        zimg, ztxt, ids = pool.pop("zimg"), pool.pop("ztxt"), pool.pop("id")
        first = np.flatnonzero((ids[:-1] % 2 == 0) & (ids[1:] == ids[:-1] + 1))
        if not len(first):
            raise BadInput("winoground: no quadruple is without a broken example")
        quadruples = np.stack([first, first + 1], 1)
        images, texts = zimg[quadruples], ztxt[quadruples]
        found = scores(np.einsum("qie,qte->qit", images.astype(float), texts.astype(float)))
        if self.match:
            sides = (np.repeat(quadruples, 2, 1).ravel(), np.tile(quadruples, 2).ravel())
            given = dict(batch_size=self.batch_size, sharding=model.sharding)
            logits = match_rows(model.match, pool, *sides, **given)
            matched = scores(logits.reshape(-1, 2, 2))
            found |= {f"match/{name}": right for name, right in matched.items()}
        results = model.metrics({name: Outcome(ids[first], x) for name, x in found.items()})
        return results | {"count": float(len(first))}


def scores(found: Float[np.ndarray, "q images texts"]) -> dict[str, Bool[np.ndarray, " q"]]:
    """Whether each quadruple is right, by the scores of two images with two texts; [i, i] belong
    together.

    Thrush et al. 2022, section 3.2: text score, each image prefers its text; image score, each text
    prefers its image; group score, both. A tie is a failure.
    """
    own, swapped = found[:, [0, 1], [0, 1]], found[:, [0, 1], [1, 0]]  # of image 0 and image 1
    text = higher(own, swapped).all(1)
    image = higher(own, swapped[:, ::-1]).all(1)
    return {"text_score": text, "image_score": image, "group_score": text & image}
