"""Captions that a decoder writes, against all that people wrote of a picture."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from mm import registry
from mm.config import Positive, Share
from mm.evals import examples
from mm.evals.base import Model
from mm.evals.caption_scores import caption_scores, words
from mm.evals.pool import pool_of
from mm.evals.writing import Writer, find_tokenizer, leave_texts, read_references, writer
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.report.outcomes import Outcome


@registry.register("evaluator", "captions")
class Captions:
    """Writes a caption of every picture of `source`, and compares it with its references.

    references: the field with them, one text or a list; None is the one that the ops read for
    `text`. similarity: also the cosine of the picture and what is written, by the model's own
    towers, as CLIPScore without its factor (Hessel et al. 2021, equation 1). beam: so many
    sequences at a time; 1 is greedy. max_bad_share: of broken examples, which are left out. Raises
    BadInput for what could not run: no references, a tokenizer that cannot be read.
    """

    needs: tuple[str, ...] = ("writes",)
    reads = ("image",)

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        references: str | None = None,
        similarity: bool = False,
        beam: Positive = 1,
        max_bad_share: Share = 0.01,
    ):
        field = references or examples.text_field(preprocess)
        read_references(source, str(field), np.arange(len(source)))
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.references, self.max_bad_share = field, max_bad_share
        self.tokenizer = find_tokenizer(preprocess, "captions")
        self.writer = writer(self.tokenizer, beam)
        if similarity:
            self.needs = ("writes", "image", "text", "embed_dim")
            self.writer = Similar(**dataclasses.asdict(self.writer))

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "bleu4", "rouge_l", "meteor", "cider" (`mm.evals.caption_scores`), and
        "similarity".

        picture: where it would be; some captions for the run's page are left beside it.
        """
        pool = pool_of(self, model, model.apply(self.writer))
        ids, written = pool["id"], self.tokenizer.decode(pool["ids"])
        texts = read_references(self.source, self.references, ids)
        candidates = [words(text) for text in written]
        scores = caption_scores(candidates, [[words(text) for text in row] for row in texts])
        found = {"bleu4": Outcome(ids, scores.pop("bleu4"), "bleu")}
        found |= {name: Outcome(ids, values) for name, values in scores.items()}
        if "similarity" in pool:
            found["similarity"] = Outcome(ids, pool["similarity"].astype(np.float64))
        rows = [
            dict(written=text, references=own) for text, own in zip(written, texts, strict=True)
        ]
        leave_texts(self, model, picture, ids, rows)
        return model.metrics(found) | {"examples": float(len(ids))}


@dataclasses.dataclass(frozen=True)
class Similar(Writer):
    """Also the cosine of the picture and what is written."""

    def __call__(self, system: System, views: Views) -> dict[str, Array]:
        ids = self.write(views).ids
        ended = jnp.cumsum(ids == self.end_id, axis=1) - (ids == self.end_id)
        views.derive("text_written", lambda keys: {"text_written": ids})
        views.derive("text_written_mask", lambda keys: {"text_written_mask": ended == 0})
        zimg, ztxt = views.image_embedding().z, views.text_embedding("written").z
        return {"ids": ids, "similarity": (zimg * ztxt).sum(-1)}
