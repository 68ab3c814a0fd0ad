"""Statistics of a few seeds or episodes: interquartile means, intervals, rank correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""From samples [R, N] to the statistic of each row [R]."""

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that it lies in, with a confidence of 95% unless said otherwise."""

    value: float
    low: float
    high: float


def iqm(samples: Floats) -> Floats:
    """Interquartile mean of each row [R, N]: the mean of the middle half (Agarwal et al. 2021).

    A quarter of the values goes at each end, rounded down: of fewer than four, the mean of all.
    """
    return stats.trim_mean(samples, 0.25, axis=-1)


def mean(samples: Floats) -> Floats:
    """Mean of each row [R, N]."""
    return samples.mean(-1)


def bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """A statistic of all values and its stratified percentile-bootstrap interval (Agarwal et al. 2021).

    Every resample draws, with replacement, as many values from each stratum (a task, say) as it holds.

    Args:
        strata: values of each stratum, at least one each.
        statistic: of all values together.
        resamples: draws.
        confidence: of the interval.
        seed: of the draws.

    Raises:
        ValueError: there are no values.
    """
    arrays = [np.asarray(values, np.float64).ravel() for values in strata]
    if not arrays or not all(len(values) for values in arrays):
        raise ValueError("there is nothing to draw from: give at least one value for every stratum")
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(resamples, len(values)))] for values in arrays]
    found = statistic(np.concatenate(drawn, axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(float(statistic(np.concatenate(arrays)[None])[0]), float(low), float(high))


def ratio(values: ArrayLike, others: ArrayLike, *, together: bool = False, seed: int = 0) -> Estimate:
    """Ratio of interquartile means, and its percentile-bootstrap interval.

    Args:
        values: at least one.
        others: at least one, all positive.
        together: whether each value belongs to the other of its place, as two runs of one seed do: what makes
            both of them high or low does not widen the interval then.
        seed: of the draws.

    Raises:
        ValueError: there are no values, others are not positive, or not as many as values though `together`.
    """
    above, below = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if not len(above) or not len(below) or not (below > 0).all():
        raise ValueError("a ratio needs a value at least, and others that are all positive")
    if together and len(above) != len(below):
        raise ValueError(f"{len(above)} values do not belong to {len(below)} others one by one")
    if together:  # places are drawn
        places = np.arange(len(above))
        return bootstrap([places], lambda p: iqm(above[p.astype(int)]) / iqm(below[p.astype(int)]), seed=seed)
    count = len(above)
    return bootstrap([above, below], lambda s: iqm(s[:, :count]) / iqm(s[:, count:]), seed=seed)


def students(values: ArrayLike) -> Estimate:
    """Mean of a few episodes, and Student's interval; of one it has none: nan.

    A percentile bootstrap's is too narrow of ten or fewer: of three it is their range, and holds the mean in 76% of
    cases.
    """
    array = np.asarray(values, np.float64)
    value, count = float(array.mean()), len(array)
    if count < 2:
        return Estimate(value, np.nan, np.nan)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * array.std(ddof=1) / np.sqrt(count)
    return Estimate(value, value - float(reach), value + float(reach))


def paired(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean difference of pairs, and its interval: as `students`."""
    return students(np.subtract(values, others))


def standard_ranks(samples: Floats) -> Floats:
    """Ranks of each row [R, N], shifted to mean 0 and scaled to norm 1; ties share their mean rank.

    The product of two such rows, summed, is Spearman's rank correlation. nan [R, 1] or in a whole row where
    there is no order: fewer than three values, or all alike.
    """
    if samples.shape[1] < 3:
        return np.full((len(samples), 1), np.nan)
    ranks = stats.rankdata(samples, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, norm, out=np.full_like(ranks, np.nan), where=norm > 0)
