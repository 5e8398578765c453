"""Whether two variants differ by more than their seeds do. Of numbers; imports no JAX.

Runs of one seed share the order of the data and the initial values that they have in common, so
arms are compared by the differences of runs of one seed, which spread less than the runs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mm.report.measures import measure, resample

LEVEL = 0.95
_EXACT = 50_000  # up to so many, all resamples are made; 6 seeds have 46,656
_RESAMPLES = 10_000
_DRAWN = 1 << 22  # numbers in memory at once


class Summary(NamedTuple):
    """mean; spread: the sample's standard deviation (n - 1), NaN of one run; count."""

    mean: float
    spread: float
    count: int


class Difference(NamedTuple):
    """An arm minus the base, seed by seed.

    mean; spread: standard deviation of the differences; count: of seeds that both have; bootstrap:
    percentiles over resampled seeds; interval: paired t; p: two-sided, that of the paired t test.
    Intervals and p are NaN for one seed; p is NaN when all differences are equal, but not 0.
    """

    mean: float
    spread: float
    count: int
    bootstrap: tuple[float, float]
    interval: tuple[float, float]
    p: float


def summarize(values: Sequence[float]) -> Summary:
    """Of the runs of an arm. Raises ValueError when there is none."""
    if not len(values):
        raise ValueError("no values")
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(float(np.mean(values)), spread, len(values))


def compare(arm: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Of values by seed; None without a seed in common."""
    seeds = sorted(arm.keys() & base.keys())
    if not seeds:
        return None
    differences = np.array([arm[seed] - base[seed] for seed in seeds])
    mean, spread, count = summarize(differences)
    if count == 1:
        none = math.nan, math.nan
        return Difference(mean, spread, count, none, none, math.nan)
    if np.ptp(differences) == 0:  # rounding of the mean may have left a spread
        spread = 0.0
    error = spread / math.sqrt(count)
    reach = critical(count) * error
    if error > 0:
        p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    else:
        p = 1.0 if mean == 0 else math.nan
    return Difference(mean, spread, count, bootstrap(differences), (mean - reach, mean + reach), p)


def bootstrap(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of the mean (Efron 1979), of all resamples if they are few.

    Of n values it reaches no further than they do. Where the mean lies beyond all of three
    values, it is missed: with symmetric noise in 1 of 4 cases, whatever the level.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n**n <= _EXACT:
        chosen = np.indices((n,) * n).reshape(n, -1).T
    else:
        chosen = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    means = values[chosen].mean(axis=1)
    tail = (1 - level) / 2
    low = np.quantile(means, tail, method="lower")
    return float(low), float(np.quantile(means, 1 - tail, method="higher"))


def bootstrap_pairs(
    base: np.ndarray,
    arm: np.ndarray,
    level: float = LEVEL,
    *,
    kind: str = "mean",
    clusters: np.ndarray | None = None,
) -> tuple[float, tuple[float, float]]:
    """The difference of a metric, arm - base, of the same examples, and its percentile interval
    (Efron 1979).

    kind: of the metric, see `mm.report.measures`. clusters: examples of one number are drawn
    together (Davison and Hinkley 1997, section 3.8). Many examples are alike, so how often each
    comes in a resample is drawn, a multinomial, instead of the examples: the same distribution.
    """
    sides = [np.asarray(side, np.float64).reshape(len(side), -1) for side in (base, arm)]
    rows, width = np.concatenate(sides, axis=1), sides[0].shape[1]
    counts = np.ones(len(rows), np.int64)
    whole = _difference(kind, rows, width, counts[None])[0]
    if clusters is None:
        rows, counts = np.unique(rows, axis=0, return_counts=True)
    rng, found = np.random.default_rng(0), []
    at_once = max(1, _DRAWN // rows.size)
    for start in range(0, _RESAMPLES, at_once):
        drawn = resample(rng, min(at_once, _RESAMPLES - start), counts, clusters)
        found.append(_difference(kind, rows, width, drawn))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail))
    return float(whole), (float(low), float(high))


def _difference(kind: str, rows: np.ndarray, width: int, counts: np.ndarray) -> np.ndarray:
    return measure(kind, rows[:, width:], counts) - measure(kind, rows[:, :width], counts)


def critical(count: int, level: float = LEVEL) -> float:
    """Of Student's t for the mean of so many differences: 4.3 for 3, 2.8 for 5, 2.0 for many."""
    return float(stats.t.ppf((1 + level) / 2, count - 1))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979); NaN stays, and counts."""
    order = sorted(range(len(p)), key=lambda i: (math.isnan(p[i]), p[i]))
    found, largest = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p[i]):
            largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
            found[i] = largest
    return found


def detectable(differences: Sequence[Difference]) -> float:
    """From which size on a difference of one arm would be told from noise; NaN if unknown.

    By the spread of the differences of all arms together (root mean square over degrees of
    freedom), at the number of seeds that most of them have.
    """
    found = [d for d in differences if d.count > 1]
    if not found:
        return math.nan
    freedom = sum(d.count - 1 for d in found)
    spread = math.sqrt(sum(d.spread**2 * (d.count - 1) for d in found) / freedom)
    count = max(d.count for d in found)
    return critical(count) * spread / math.sqrt(count)


def verdict(difference: Difference, corrected: float, better: str) -> str:
    """In words; corrected: p after `holm`; better: "higher" or "lower"."""
    if difference.count < 2:
        return "one seed: cannot be told from noise"
    if math.isnan(difference.p):
        return "the same on every seed: no noise to compare with"
    good = (difference.mean > 0) == (better == "higher")
    word = "better" if good else "worse"
    if corrected < 1 - LEVEL:
        return f"{word}: distinguishable from seed noise"
    if difference.p < 1 - LEVEL:
        return f"{word} if it were the only comparison; not distinguishable among all of them"
    return "not distinguishable from seed noise"
