"""Measures of predicted classes: of one class an example, and of several.

As scikit-learn defines them; a share of nothing is 0.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from mm.report.outcomes import Outcome

AVERAGES = tuple(
    f"{measure}/{average}"
    for measure in ("precision", "recall", "f1")
    for average in ("macro", "micro", "weighted")
)  # of `mm.report.measures.averages`
Ids = Int[np.ndarray, " n"]


def found_class(logits: Float[np.ndarray, "n c"]) -> Int[np.ndarray, " n"]:
    """The class with the highest logit; -1, none, where several share it."""
    sure = (logits == logits.max(1, keepdims=True)).sum(1) == 1
    return np.where(sure, logits.argmax(1), -1)


def confusion(
    labels: Int[np.ndarray, " n"], found: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "c _"]:
    """How many examples of the class of a row are taken for that of a column.

    A column more, the last, if for some no class is found (-1).
    """
    columns = count + int((found < 0).any())
    places = labels * columns + np.where(found < 0, count, found)
    return np.bincount(places, minlength=count * columns).reshape(count, columns)


def of_one(
    ids: Ids, labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n c"]
) -> dict[str, Outcome]:
    """Accuracy and AVERAGES, of `found_class`."""
    pairs = np.stack([labels, found_class(logits)], axis=1)
    averages = {part: Outcome(ids, pairs, f"of_one:{part}") for part in AVERAGES}
    return {"accuracy": Outcome(ids, pairs[:, 0] == pairs[:, 1])} | averages


def of_several(
    ids: Ids, labels: Bool[np.ndarray, "n c"], logits: Float[np.ndarray, "n c"]
) -> dict[str, Outcome]:
    """Accuracy, that all labels of an example are right, and AVERAGES; found is what is above 0."""
    found = logits > 0
    both = np.concatenate([labels, found], axis=1)
    averages = {part: Outcome(ids, both, f"of_several:{part}") for part in AVERAGES}
    return {"accuracy": Outcome(ids, (found == labels).all(1))} | averages


def mean_average_precision(
    labels: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]
) -> float:
    """The mean of `average_precision` over the classes that an example has."""
    there = np.flatnonzero(labels.any(0))
    found = [average_precision(labels[:, i], scores[:, i]) for i in there]
    return float(np.mean(found)) if found else 0.0


def average_precision(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The sum over thresholds of precision times what recall gains; at least one label is true.

    Examples of one score are found together.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each score
    right = np.cumsum(labels[order])[last]
    precision = right / (np.flatnonzero(last) + 1)
    return float((precision * np.diff(right, prepend=0)).sum() / labels.sum())
