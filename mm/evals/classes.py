"""Measures of predicted classes, in float64: of one class an example, and of several.

As scikit-learn defines them; a share of nothing is 0.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int


def confusion(
    labels: Int[np.ndarray, " n"], found: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "c c"]:
    """How many examples of the class of a row are taken for that of a column."""
    return np.bincount(labels * count + found, minlength=count * count).reshape(count, count)


def of_one(matrix: Int[np.ndarray, "c c"]) -> dict[str, float]:
    """Accuracy and `averages` of a `confusion`."""
    right = np.diagonal(matrix)
    return {"accuracy": share(right.sum(), matrix.sum())} | averages(
        right, matrix.sum(0), matrix.sum(1), (matrix.sum(0) > 0) | (matrix.sum(1) > 0)
    )


def of_several(
    labels: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]
) -> dict[str, float]:
    """Of logits: `averages` of what is above 0, all labels of an example being right, and mAP.

    That is the mean of `average_precision` over the classes that an example has.
    """
    found = scores > 0
    precisions = [
        average_precision(labels[:, i], scores[:, i]) for i in np.flatnonzero(labels.any(0))
    ]
    return {
        "accuracy": float((found == labels).all(1).mean()),
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        **averages(
            (found & labels).sum(0), found.sum(0), labels.sum(0), np.ones(labels.shape[1], bool)
        ),
    }


def averages(
    right: Int[np.ndarray, " c"],
    found: Int[np.ndarray, " c"],
    true: Int[np.ndarray, " c"],
    counted: Bool[np.ndarray, " c"],
) -> dict[str, float]:
    """Precision, recall and F1, of how often a class is rightly found, found, and there.

    macro: the mean over the classes that are counted, as by scikit-learn those that are there or
    found where an example has one class, and all where it has several; weighted: by how often they
    are there; micro: of the sums over classes.
    """
    measures: Mapping[str, tuple[np.ndarray, np.ndarray]] = {
        "precision": (right, found),
        "recall": (right, true),
        "f1": (2 * right, found + true),
    }
    results = {}
    for name, (part, whole) in measures.items():
        of_class = part / np.maximum(whole, 1)
        results |= {
            f"{name}/macro": float(of_class[counted].mean()) if counted.any() else 0.0,
            f"{name}/micro": share(part.sum(), whole.sum()),
            f"{name}/weighted": share((of_class * true).sum(), true.sum()),
        }
    return results


def average_precision(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The sum over thresholds of precision times what recall gains; at least one label is true.

    Examples of one score are found together.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each score
    right = np.cumsum(labels[order])[last]
    precision = right / (np.flatnonzero(last) + 1)
    return float((precision * np.diff(right, prepend=0)).sum() / labels.sum())


def area_under_roc(own: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> float:
    """How often one of `own` scores higher than one of `other`; a tie is half (Mann and Whitney
    1947)."""
    own = np.where(np.isnan(own), -np.inf, own)  # what is no number never wins
    other = np.sort(np.where(np.isnan(other), np.inf, other))
    below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
    return float(below.mean() / (2 * len(other)))


def share(part: float, whole: float) -> float:
    """0 of nothing."""
    return float(part / whole) if whole else 0.0
