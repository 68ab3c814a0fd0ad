"""Statistics against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from tdmpc_prune.analysis.statistics import bootstrap, iqm, mean, paired, ratio, standard_ranks, students


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([[100.0, 1, 2, 3, 4, 5, 6, -50]])) == pytest.approx([(2 + 3 + 4 + 5) / 4])
    assert iqm(np.array([[1.0, 2, 6], [5, 5, 5]])) == pytest.approx([3, 5])  # too few to trim


@pytest.mark.parametrize("statistic", [iqm, mean])
def test_interval_is_scipys(statistic):
    values = np.random.default_rng(1).gamma(2, 10, 40)
    ours = bootstrap([values], statistic, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), lambda x, axis: statistic(x), n_resamples=20_000, method="percentile", rng=3
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(statistic(values[None])[0])
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_confidence_of_the_interval():
    values = np.random.default_rng(2).normal(size=30)
    half = bootstrap([values], mean, confidence=0.5, resamples=20_000)
    # A normal mean lies within 0.674 standard errors with probability one half.
    error = values.std() / np.sqrt(30)
    assert half.high - half.low == pytest.approx(2 * 0.674 * error, rel=0.05)


def test_strata_do_not_mix():
    """Drawn from all together, the share of each stratum would vary; drawn apart, nothing does."""
    apart = bootstrap([np.zeros(5), np.full(5, 100.0)], mean)
    assert (apart.low, apart.value, apart.high) == (50, 50, 50)
    together = bootstrap([np.repeat([0.0, 100.0], 5)], mean)
    assert together.high - together.low > 30


def test_one_value_has_no_width():
    found = bootstrap([[7.0]])
    assert (found.low, found.value, found.high) == (7, 7, 7)


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []]])
def test_nothing_to_draw_from(strata):
    with pytest.raises(ValueError, match="nothing to draw from"):
        bootstrap(strata)


def test_ratio_of_what_belongs_together():
    """Two runs of one seed are both good or both bad: that tells nothing of their ratio."""
    below = np.array([100.0, 200, 400, 800, 900])
    found = ratio(0.5 * below, below, together=True)
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))
    apart = ratio(0.5 * below, below)
    assert apart.value == pytest.approx(0.5)
    assert apart.low < 0.3 < 0.8 < apart.high
    assert ratio([300.0], [400.0]).value == ratio([300.0], [400.0], together=True).high == 0.75


def test_interval_of_a_ratio_by_its_logarithm():
    """Of many values it is the normal interval of the logarithm, as the delta method has it."""
    rng = np.random.default_rng(5)
    above, below = rng.normal(50, 5, 400), rng.normal(100, 20, 300)
    found = ratio(above, below)
    # The variance of a mean of the middle half: that of values winsorised at the quartiles, over n (1 - 2/4)^2.
    spread = [
        np.var(np.clip(x, *np.quantile(x, [0.25, 0.75]))) / len(x) / 0.25 / iqm(x[None])[0] ** 2
        for x in (above, below)
    ]
    reach = 1.96 * np.sqrt(sum(spread))
    assert np.log(found.high / found.low) == pytest.approx(2 * reach, rel=0.08)


@pytest.mark.parametrize(
    ("values", "others", "together", "said"),
    [
        ([], [1.0], False, "at least"),
        ([1.0], [], False, "at least"),
        ([1.0], [0.0], False, "positive"),
        ([1.0, 2.0], [1.0, -1.0], False, "positive"),
        ([1.0, 2.0], [1.0], True, "2 values do not belong to 1 others"),
    ],
)
def test_no_ratio(values, others, together, said):
    with pytest.raises(ValueError, match=said):
        ratio(values, others, together=together)


def test_products_of_standard_ranks_are_spearmans_correlation():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 12, (5, 60)).astype(float)  # with ties
    y = x**3 + rng.normal(scale=400, size=(5, 60))
    found = (standard_ranks(x) * standard_ranks(y)).sum(1)
    assert found == pytest.approx(
        [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)], abs=1e-12
    )


def test_ranks_of_nothing_to_rank():
    assert np.isnan(standard_ranks(np.array([[1.0, 2.0]]))).all()
    mixed = standard_ranks(np.array([[5.0, 5, 5, 5], [1, 2, 3, 4]]))
    assert np.isnan(mixed[0]).all()
    assert np.linalg.norm(mixed[1]) == pytest.approx(1)


def test_students_interval():
    values = [867.0, 850.0, 871.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = students(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.low < min(values)  # a bootstrap's ends there


def test_paired_intervals():
    found = paired([5.0, 2.0, 9.0, 4.0], [4.0, 4.0, 5.0, 1.0])
    low, high = stats.t.interval(0.95, 3, loc=1.5, scale=stats.sem([1, -2, 4, 3]))
    assert (found.value, found.low, found.high) == pytest.approx((1.5, low, high))
    one = paired([5.0], [4.0])
    assert one.value == 1
    assert np.isnan([one.low, one.high]).all()
