"""Features with classes: what probes learn from, draw of, and are right about."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mm.config import BadInput

_ROWS = 4096  # of scores at a time


class Labelled(NamedTuple):
    """Features and classes of examples, and how many classes there are."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    num_classes: int

    def take(self, rows: np.ndarray) -> "Labelled":
        return self._replace(features=self.features[rows], labels=self.labels[rows])


def check_counts(labels: Int[np.ndarray, " n"], names: tuple[str, ...], least: int, why: str):
    """Raises BadInput, with `why` so many are needed, for the class with fewer examples."""
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    if counts.min() < least:
        name, count = names[int(counts.argmin())], int(counts.min())
        raise BadInput(
            f"{why} needs {least} training examples of each class, and {name!r} has {count}"
        )


def by_class(labels: Int[np.ndarray, " n"], num_classes: int, seed: tuple[int, ...]) -> list:
    """The rows of each class, in an order drawn by the seed."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == number)) for number in range(num_classes)]


def redrawn(labels: Int[np.ndarray, " n"], num_classes: int, seed: tuple[int, ...]) -> np.ndarray:
    """Rows drawn with replacement, of each class as many as it has (a stratified bootstrap)."""
    rng = np.random.default_rng(seed)
    every = (np.flatnonzero(labels == number) for number in range(num_classes))
    return np.concatenate([rng.choice(rows, len(rows)) for rows in every if len(rows)])


def over_draws(accuracies: Sequence[float]) -> dict[str, float]:
    """What is said of other training examples: the mean, and the standard deviation."""
    found = {"redrawn/accuracy": float(np.mean(accuracies))}
    if len(accuracies) > 1:
        found["redrawn/accuracy_spread"] = float(np.std(accuracies, ddof=1))
    return found


def standardize(
    train: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"]
) -> list[Float[np.ndarray, "_ d"]]:
    """All by mean and standard deviation of the first, in float64; what is constant becomes 0."""
    mean = train.mean(axis=0, dtype=np.float64)
    spread = train.std(axis=0, dtype=np.float64)
    # What differs by rounding alone would be blown up to noise.
    floor = 1e-6 * max(spread.max(initial=0.0), np.abs(mean).max(initial=0.0))
    scale = np.where(spread > floor, spread, np.inf)
    return [(x.astype(np.float64) - mean) / scale for x in (train, *others)]


def ranks_of(
    scores: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """How many other classes score at least as high as the right one; c if its score is NaN."""
    found = []
    for start in range(0, len(scores), _ROWS):
        part, own = scores[start : start + _ROWS], labels[start : start + _ROWS, None]
        right = np.take_along_axis(part, own, axis=1)
        beaten_by = (part >= right).sum(axis=1) - 1
        found.append(np.where(np.isnan(right[:, 0]), scores.shape[1], beaten_by))
    return np.concatenate(found)
