"""Metrics as functions of what became of each example, and of how often each one counts.

`measure(kind, values, counts)`: values [n ...] are those of the examples, of `kind` one of KINDS;
counts [r n] says how often each is there, in each of r resamples. So an evaluator computes its
number, all counts one, and `mm.report.compare` the numbers of other samples, by the same lines.
"""

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Values = Shaped[np.ndarray, "n ..."]
Counts = Shaped[np.ndarray, "r n"]
_ROUNDING = 1e-12
_BINS = 15  # of the calibration error: Guo et al. 2017, section 4


_SHARES = ("accuracy", "recall", "precision", "f1", "exact_match", "ece", "roc", "error")


def is_share(metric: str) -> bool:
    """Whether a metric is a share, from 0 to 1, that is shown in percent.

    By the words of its name, of which what stands before the first / is that of the evaluation.
    """
    own = metric.partition("/")[2] or metric
    words = re.split("[/_@]", own)
    share = any(word in _SHARES for word in words) or own.endswith("_score")
    return share and not {"squared", "absolute"} & {*words}


def measure(kind: str, values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """The metric of each resample. What follows a colon is a part: "of_one:f1/macro"."""
    name, _, part = kind.partition(":")
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    return KINDS[name](table, counts, *([part] if part else []))


def mean(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of the first column."""
    return counts @ values[:, 0] / counts.sum(1)


def per_class(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of (class, value): the mean over the classes that are there of the mean of their values."""
    label, value = values[:, 0].astype(int), values[:, 1]
    total, there = (_by_class(label, x, label.max() + 1) for x in (counts * value, counts))
    return (total / np.maximum(there, 1)).sum(1) / (there > 0).sum(1)


def median_rank(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of ranks from 0 on; 1 is perfect."""
    order = np.argsort(values[:, 0], kind="stable")
    ranks, upto = values[order, 0], np.cumsum(counts[:, order], axis=1)
    last = upto[:, -1:] - 1
    middle = [ranks[(upto <= place).sum(1)] for place in (last // 2, (last + 1) // 2)]
    return np.mean(middle, axis=0) + 1


def of_one(values: Values, counts: Counts, part: str) -> Float[np.ndarray, " r"]:
    """Of (class, class that was found): an `average` over classes that are there or found.

    -1: none was found, a miss of the one and a find of no other.
    """
    label, found = values.astype(int).T
    size = values.astype(int).max() + 1
    right = _by_class(label, counts * (label == found), size)
    told = _by_class(found + 1, counts, size + 1)[:, 1:]
    true = _by_class(label, counts, size)
    return average(part, right, told, true, (told > 0) | (true > 0))


def of_several(values: Values, counts: Counts, part: str) -> Float[np.ndarray, " r"]:
    """Of [labels, those that were found], 0 or 1: an `average` over all classes."""
    true, found = np.split(values, 2, axis=1)
    sums = [counts @ x for x in (true * found, found, true)]
    return average(part, *sums, np.ones(sums[0].shape, bool))


def average(
    part: str,
    right: Shaped[np.ndarray, "*r c"],
    found: Shaped[np.ndarray, "*r c"],
    true: Shaped[np.ndarray, "*r c"],
    counted: Bool[np.ndarray, "*r c"],
) -> Float[np.ndarray, "*r"]:
    """Precision, recall or F1, of how often a class is rightly found, found, and there.

    part: as "f1/macro". macro: the mean over the classes that are counted, as by scikit-learn those
    that are there or found where an example has one class, and all where it has several; weighted:
    by how often they are there; micro: of the sums over classes. A share of nothing is 0.
    """
    name, _, kind = part.partition("/")
    share, whole = {
        "precision": (right, found),
        "recall": (right, true),
        "f1": (2 * right, found + true),
    }[name]
    if kind == "micro":
        return _share(share.sum(-1), whole.sum(-1))
    weights = {"macro": counted, "weighted": true}[kind]
    return _share((share / np.maximum(whole, 1) * weights).sum(-1), weights.sum(-1))


def area_under_roc(
    own: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " m"],
    own_counts: Counts | None = None,
    other_counts: Shaped[np.ndarray, "r m"] | None = None,
) -> Float[np.ndarray, " r"]:
    """How often one of `own` scores higher than one of `other`; a tie is half (Mann and Whitney
    1947). What is no number counts against the model."""
    counts = np.ones((1, len(own))) if own_counts is None else own_counts
    others = np.ones((1, len(other))) if other_counts is None else other_counts
    own = np.where(np.isnan(own), -np.inf, own)
    other = np.where(np.isnan(other), np.inf, other)
    order = np.argsort(other, kind="stable")
    below = np.pad(np.cumsum(others[:, order], axis=1), [(0, 0), (1, 0)])
    places = (np.searchsorted(other[order], own, side) for side in ("left", "right"))
    wins = sum(below[:, place] for place in places) / 2
    return (counts * wins).sum(1) / (counts.sum(1) * below[:, -1])


def calibration_error(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of (confidence, right): mean |accuracy - confidence| of bins of one width, (a, b], weighted
    by what is in them (Guo et al. 2017, equations 3 and 5)."""
    confidence, right = values.T
    place = np.ceil(confidence * _BINS).astype(int)
    gaps = np.where(place[:, None] == np.arange(_BINS + 1), (right - confidence)[:, None], 0.0)
    return np.abs(counts @ gaps).sum(1) / counts.sum(1)


def bleu(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of a corpus, 0 to 1, without smoothing (Papineni et al. 2002, section 2.3).

    Of each text how many n-grams of each length are right, how many there are, how many words, and
    how many of the reference that is nearest in length.
    """
    sums = counts @ values
    right, found = np.split(sums[:, :-2], 2, axis=1)
    length, wanted = sums[:, -2:].T
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.exp(np.log(right / found).mean(1) + np.minimum(0, 1 - wanted / length))
    return np.where((right > 0).all(1), score, 0.0)


def r2(values: Values, counts: Counts) -> Float[np.ndarray, " r"]:
    """Of [numbers, what was told]: what share of their variance is told, the mean over numbers."""
    true, found = np.split(values, 2, axis=1)
    true, found = true - true.mean(0), found - true.mean(0)
    n = counts.sum(1, keepdims=True)
    spread = counts @ true**2 - (counts @ true) ** 2 / n
    there = spread > _ROUNDING * (counts @ true**2)  # else all that were drawn are equal
    told = 1 - counts @ (found - true) ** 2 / np.where(there, spread, np.nan)
    return told.mean(1)


KINDS: dict[str, Callable] = {
    "mean": mean,
    "per_class": per_class,
    "median_rank": median_rank,
    "of_one": of_one,
    "of_several": of_several,
    "area_under_roc": lambda values, counts: area_under_roc(
        values[:, 0], values[:, 1:].ravel(), counts, np.repeat(counts, values.shape[1] - 1, axis=1)
    ),
    "calibration_error": calibration_error,
    "bleu": bleu,
    "r2": r2,
}


def resample(
    rng: np.random.Generator,
    size: int,
    counts: Int[np.ndarray, " m"],
    clusters: Int[np.ndarray, " m"] | None = None,
) -> Counts:
    """How often each of m rows is in each of `size` samples drawn with replacement.

    counts: how many examples a row stands for; one each if there are clusters, whose rows are drawn
    together.
    """
    if clusters is None:
        return rng.multinomial(counts.sum(), counts / counts.sum(), size=size)
    _, place = np.unique(clusters, return_inverse=True)
    many = place.max() + 1
    return rng.multinomial(many, np.full(many, 1 / many), size=size)[:, place]


def _by_class(
    label: Int[np.ndarray, " n"], weights: Shaped[np.ndarray, "r n"], size: int
) -> Shaped[np.ndarray, "r c"]:
    """The sum of the weights of each class."""
    order = np.argsort(label, kind="stable")
    there, starts = np.unique(label[order], return_index=True)
    sums = np.zeros((len(weights), size))
    sums[:, there] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 of nothing."""
    return part / np.where(whole > 0, whole, 1)
