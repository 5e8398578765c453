"""Metrics of resamples: an example that counts twice is as two examples."""

import numpy as np
import pytest

from mm.report.measures import KINDS, is_share, measure, resample

RNG = np.random.default_rng(0)
N = 40
LABELS = RNG.integers(0, 4, N)
PAIRS = np.stack([LABELS, np.where(RNG.random(N) < 0.6, LABELS, RNG.integers(0, 4, N))], axis=1)
VALUES = {
    "mean": RNG.normal(size=N),
    "per_class": np.stack([LABELS, RNG.random(N)], axis=1),
    "median_rank": RNG.integers(0, 99, N),
    "of_one:f1/macro": PAIRS,
    "of_one:precision/weighted": PAIRS,
    "of_one:f1/weighted": np.where([[False, True]] & (RNG.random((N, 1)) < 0.3), -1, PAIRS),
    "of_several:f1/micro": RNG.random((N, 6)) < 0.5,
    "area_under_roc": RNG.integers(0, 5, (N, 4)) + [1, 0, 0, 0],
    "calibration_error": np.stack([RNG.random(N), RNG.random(N) < 0.5], axis=1),
    "bleu": np.cumsum(RNG.integers(1, 9, (N, 10)), axis=1)[:, [3, 2, 1, 0, 7, 6, 5, 4, 8, 9]],
    "r2": RNG.normal(size=(N, 4)) + RNG.normal(size=(N, 1)),
}


def test_every_kind_is_tested():
    assert {kind.split(":")[0] for kind in VALUES} == set(KINDS)


@pytest.mark.parametrize("kind", VALUES)
def test_counts_stand_for_examples(kind):
    values = np.asarray(VALUES[kind])
    counts = RNG.integers(0, 4, (3, N))
    found = measure(kind, values, counts)
    repeated = [np.repeat(values, row, axis=0) for row in counts]
    want = [measure(kind, rows, np.ones((1, len(rows))))[0] for rows in repeated]
    np.testing.assert_allclose(found, want, rtol=1e-9)
    assert np.ptp(found) > 0


def test_a_median_is_that_of_numpy():
    for size in (7, 8):
        ranks = RNG.integers(0, 20, size)
        assert measure("median_rank", ranks, np.ones((1, size))) == np.median(ranks) + 1


def test_r2_is_what_is_told_of_the_variance():
    true, found = np.split(VALUES["r2"], 2, axis=1)
    want = np.mean(1 - ((found - true) ** 2).mean(0) / true.var(0))
    assert measure("r2", VALUES["r2"], np.ones((1, N)))[0] == pytest.approx(want)


def test_a_resample_has_as_many_examples_and_clusters_whole():
    rng = np.random.default_rng(0)
    alone = resample(rng, 5, np.array([2, 3, 1]))
    assert alone.shape == (5, 3) and (alone.sum(1) == 6).all()
    clusters = np.array([7, 3, 7, 5])
    together = resample(rng, 50, np.ones(4, int), clusters)
    assert (together[:, 0] == together[:, 2]).all()
    assert (together[:, 1:].sum(1) == 3).all() and (together.sum(1) != 4).any()


@pytest.mark.parametrize(
    "metric, share",
    [
        ("seen/accuracy", True),
        ("seen/text_to_image/recall@1", True),
        ("probes/few_shot/4_shot/accuracy_spread", True),
        ("seen/precision/macro", True),
        ("quadruples/group_score", True),
        ("noisy/mean_corruption_error", True),
        ("zero_shot_accuracy/examples", False),
        ("seen/squared_error", False),
        ("seen/score", False),
        ("seen/cider", False),
        ("seen/brier", False),
    ],
)
def test_a_share_is_told_by_its_own_name(metric, share):
    assert is_share(metric) == share


def test_what_has_no_variance_but_that_of_rounding_has_no_r2():
    true = np.full(6, 0.1) + np.array([0, 0, 0, 0, 0, 5.0])
    counts = np.array([[1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 0]])
    found = measure("r2", np.stack([true, np.zeros(6)], axis=1), counts)
    assert np.isfinite(found[0]) and np.isnan(found[1])
