import itertools
import math
import random
import statistics

import numpy as np
import pytest
from scipy import stats

from mm.report.statistics import bootstrap, compare, detectable, holm, summarize, verdict

BASE = {0: 10.0, 1: 12.0, 2: 11.0}
ARM = {0: 11.5, 1: 13.0, 2: 13.0}  # differences 1.5, 1, 2


def test_a_summary_has_the_spread_of_a_sample():
    found = summarize([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3) and found.count == 3
    assert found.spread == pytest.approx(statistics.stdev([1, 2, 4]))
    assert math.isnan(summarize([1.0]).spread)


def test_a_difference_is_that_of_runs_of_one_seed():
    found = compare(ARM, BASE)
    assert (found.mean, found.spread, found.count) == (pytest.approx(1.5), pytest.approx(0.5), 3)
    reach = 4.302653 * 0.5 / math.sqrt(3)  # a table's t for 2 degrees of freedom
    assert found.interval == pytest.approx((1.5 - reach, 1.5 + reach), rel=1e-6)


def test_the_interval_and_p_are_those_of_scipy():
    found = compare(ARM, BASE)
    want = stats.ttest_rel([ARM[s] for s in range(3)], [BASE[s] for s in range(3)])
    assert found.p == pytest.approx(want.pvalue)
    assert found.interval == pytest.approx(tuple(want.confidence_interval(0.95)))


def test_a_seed_that_one_of_both_lacks_is_left_out():
    assert compare({0: 1.0, 1: 3.0, 5: 99.0}, {0: 0.0, 1: 1.0, 4: 99.0}).mean == 1.5
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_pairs_tell_what_their_seeds_hide():
    """Seeds spread by 10, the difference is 1 with a spread of 0.1."""
    base = {0: 0.0, 1: 10.0, 2: 20.0}
    arm = {0: 1.0, 1: 11.1, 2: 20.9}
    assert compare(arm, base).p < 0.01 < 0.5 < stats.ttest_ind([*arm.values()], [*base.values()])[1]


def test_a_bootstrap_of_few_values_is_of_all_resamples():
    values = [1.0, 2.0, 4.0, 8.0]
    means = sorted(sum(drawn) / 4 for drawn in itertools.product(values, repeat=4))
    assert bootstrap(values) == (means[6], means[256 - 7])  # 255 x 0.025 = 6.4, to the outside


def test_a_bootstrap_of_three_reaches_from_the_least_to_the_greatest():
    assert bootstrap([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_a_bootstrap_of_many_is_near_that_of_scipy():
    values = np.random.default_rng(0).normal(size=30)
    want = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert bootstrap(values) == pytest.approx((want.low, want.high), abs=0.03)


def test_of_three_seeds_the_bootstrap_covers_three_in_four_and_t_what_it_says():
    draw = random.Random(0)
    inside = {"bootstrap": 0, "interval": 0}
    for _ in range(1000):
        found = compare({i: draw.gauss(0, 1) for i in range(3)}, dict.fromkeys(range(3), 0.0))
        for name in inside:
            low, high = getattr(found, name)
            inside[name] += low <= 0 <= high
    assert 710 <= inside["bootstrap"] <= 790 and 930 <= inside["interval"] <= 970


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    found = holm([math.nan, 0.02])
    assert math.isnan(found[0]) and found[1] == 0.04, "what cannot be told was compared, too"


@pytest.mark.parametrize(
    "arm, corrected, better, said",
    [
        (ARM, 0.03, "higher", "better: distinguishable"),
        (ARM, 0.03, "lower", "worse: distinguishable"),
        (ARM, 0.07, "higher", "better if it were the only comparison; not distinguishable"),
        ({0: 14.0, 1: 11.0, 2: 11.5}, 0.7, "higher", "not distinguishable from seed noise"),
        ({0: 14.0}, math.nan, "higher", "one seed"),
        ({s: x + 1 for s, x in BASE.items()}, math.nan, "higher", "the same on every seed"),
        (BASE, 1.0, "higher", "not distinguishable from seed noise"),
    ],
)
def test_a_verdict_says_whether_and_which_way(arm, corrected, better, said):
    assert verdict(compare(arm, BASE), corrected, better).startswith(said)


def test_rounding_of_a_mean_is_no_seed_noise():
    always = {seed: 0.1 for seed in range(3)}
    assert np.std(list(always.values()), ddof=1) > 0
    found = compare(always, dict.fromkeys(range(3), 0.0))
    assert found.spread == 0 and math.isnan(found.p)


def test_what_is_detectable_is_where_the_t_interval_leaves_zero():
    one = compare(ARM, BASE)
    assert detectable([one]) == pytest.approx(one.mean - one.interval[0])
    assert math.isnan(detectable([]))
