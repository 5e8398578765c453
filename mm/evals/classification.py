"""How well the head of `classification` tells classes: averages, confusions, calibration."""

import functools
import io
from typing import Any

import numpy as np
from etils import epath
from jax import Array

from mm import registry
from mm.config import BadInput, Positive, Share
from mm.evals import vqa
from mm.evals.base import Model, draw_later, leave_page
from mm.evals.calibration import calibration, fit_temperature
from mm.evals.classes import confusion, found_class, mean_average_precision, of_one, of_several
from mm.evals.pool import pool_of, read_column, read_labels
from mm.evals.writing import read_references
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.report import classes as report
from mm.report.outcomes import Outcome
from mm.runtime.workdir import write_atomic


@registry.register("evaluator", "classification")
class Classification:
    """The classes of all of `source`, by the first objective that classifies.

    The ops number them with `label` or, several an example, with `labels`. references: a field with
    what people answered, by which the name of the highest class is judged as an answer
    (`mm.evals.vqa`). max_bad_share: of broken examples, which are left out. Raises BadInput for
    what could not run: a label that is no class, a head of another number of classes.
    """

    reads = ("image", "text", "text_mask", "entities", "label", "labels")
    score = "accuracy"

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        references: str | None = None,
        max_bad_share: Share = 0.01,
    ):
        if not (preprocess.only("label").ops or preprocess.only("labels").ops):
            raise BadInput("classification: the ops number no classes; add label or labels")
        one = preprocess.only("label")
        # So that it refuses what is no class.
        if one.ops:
            read_labels(source, preprocess, "classification")
        else:
            read_column(source, preprocess, "labels")
        self.names = one.classes or preprocess.only("labels").classes
        self.needs = ("classify", f"classes={len(self.names)}")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        if references is not None:  # of all, so that what is missing shows before training
            read_references(source, references, np.arange(len(source)))
        self.references, self.max_bad_share = references, max_bad_share

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "accuracy", "precision/macro" and so on (`mm.evals.classes`); of one class an
        example also "ece", "brier", "temperature", ... (`mm.evals.calibration`); with references
        "vqa_accuracy".

        picture: a PNG to write, the confusion matrix (process 0), and for the run's page
        `report/<its name>.json` beside it.
        """
        pool = pool_of(self, model, model.apply(classify))
        logits, labels, ids = pool["logits"].astype(np.float64), pool["labels"], pool["id"]
        logits[np.isnan(logits).any(1)] = 0.0  # says nothing: all classes alike
        if labels.ndim == 2:
            found = of_several(ids, labels > 0.5, logits)
            more = {"mean_average_precision": mean_average_precision(labels > 0.5, logits)}
        else:
            found = of_one(ids, labels, logits) | calibration(ids, logits, labels)
            more = {"temperature": fit_temperature(logits, labels)}
            # Of a sample it is too high, of a vague model more than of a sharp one: differences in
            # resamples would be called true where there are none.
            more |= {name: found.pop(name).metric for name in ("ece", "scaled/ece")}
            matrix = confusion(labels, found_class(logits), len(self.names))
            draw_later(model, picture, functools.partial(self._draw, matrix, picture))
        if self.references is not None:
            texts = read_references(self.source, self.references, ids)
            said = ["" if i < 0 else self.names[i] for i in found_class(logits)]
            right = [vqa.accuracy(*pair) for pair in zip(said, texts, strict=True)]
            found["vqa_accuracy"] = Outcome(ids, np.array(right))
        return model.metrics(found) | more | {"examples": float(len(ids))}

    def _draw(self, matrix: np.ndarray, path: epath.Path) -> None:
        buffer = io.BytesIO()
        report.draw(self.names, matrix).save(buffer, "PNG")
        write_atomic(path, buffer.getvalue())
        leave_page(path, {"kind": "classes", "names": self.names, "confusion": matrix.tolist()})


def classify(system: System, views: Views) -> dict[str, Array]:
    objective = system.first("classify")
    return {"logits": objective.classify(views), "labels": views.batch[objective.label]}
