"""Answers that a decoder writes after an instruction, against those that are right."""

from typing import Any

import numpy as np
from etils import epath

from mm import registry
from mm.config import BadInput, Positive, Share
from mm.evals import vqa
from mm.evals.base import Model
from mm.evals.pool import pool_of
from mm.evals.writing import find_tokenizer, leave_texts, read_references, writer
from mm.report.outcomes import Outcome


@registry.register("evaluator", "answers")
class Answers:
    """Writes an answer to the instruction of every example of `source` (`tokenize_answer`).

    references: a field with the answers of several people, for the accuracy of the VQA benchmark;
    None: the answer that the ops give alone. beam: so many sequences at a time; 1 is greedy.
    max_bad_share: of broken examples, which are left out. Raises BadInput for what could not run:
    ops without `tokenize_answer`, a tokenizer that cannot be read.
    """

    needs = ("writes",)
    reads = ("image", "text", "text_mask", "text_answer")

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        references: str | None = None,
        beam: Positive = 1,
        max_bad_share: Share = 0.01,
    ):
        if not preprocess.only("tokenize_answer").ops:
            raise BadInput("answers: the ops make no answers; end them with tokenize_answer")
        if references is not None:  # of all, so that what is missing shows before training
            read_references(source, references, np.arange(len(source)))
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.references, self.max_bad_share = references, max_bad_share
        self.tokenizer = find_tokenizer(preprocess, "answers")
        self.writer = writer(self.tokenizer, beam, answers=True)
        self.kinds = preprocess.only("ask").classes or ()

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "exact_match", and of each kind that `ask` asks "exact_match/what", both sides
        normalized as by the benchmark (`mm.evals.vqa`); with references "vqa_accuracy".

        picture: where it would be; some answers for the run's page are left beside it.
        """
        write = model.apply(self.writer)
        asked = {"kind"} if self.kinds else set()
        pool = pool_of(
            self, model, lambda batch: {**write(batch), **{name: batch[name] for name in asked}}
        )
        decode, ids = self.tokenizer.decode, pool["id"]
        written, answers, asked = (decode(pool[k]) for k in ("ids", "answers", "instructions"))
        right = np.array([vqa.same(a, b) for a, b in zip(written, answers, strict=True)])
        found = {"exact_match": Outcome(ids, right)}
        for number, kind in enumerate(self.kinds):
            of_kind = pool["kind"] == number
            if of_kind.any():
                found[f"exact_match/{kind}"] = Outcome(ids[of_kind], right[of_kind])
        texts = [[answer] for answer in answers]
        if self.references is not None:
            texts = read_references(self.source, self.references, ids)
            pairs = zip(written, texts, strict=True)
            accuracies = np.array([vqa.accuracy(*pair) for pair in pairs])
            found["vqa_accuracy"] = Outcome(ids, accuracies)
        rows = [
            dict(asked=question, written=text, references=others, right=bool(hit))
            for question, text, others, hit in zip(asked, written, texts, right, strict=True)
        ]
        leave_texts(self, model, picture, ids, rows)
        counts = {
            f"examples/{k}": float((pool["kind"] == n).sum()) for n, k in enumerate(self.kinds)
        }
        return model.metrics(found) | {"examples": float(len(ids))} | counts
