"""Statistics against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from tdmpc_prune.analysis.statistics import bootstrap, iqm, mean, spearman


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


def test_spearman_is_scipys():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 12, 60).astype(float)  # with ties
    y = x**3 + rng.normal(scale=400, size=60)
    found = spearman(x, y, resamples=5_000)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.03)
    assert found.high == pytest.approx(theirs.high, abs=0.03)


def test_spearman_of_nothing_to_rank():
    for x, y in (([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3], [5, 5, 5])):
        assert np.isnan([spearman(x, y).value, spearman(x, y).low]).all()


def test_spearman_of_a_perfect_order():
    found = spearman(np.arange(20), np.exp(np.arange(20)))
    assert (found.low, found.value, found.high) == pytest.approx((1, 1, 1))
