"""The distributions of sweep files are W&B's, by W&B's own package as the judge."""

import random
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from tdmpc_prune.sweep.distributions import FAMILIES, distribution
from tdmpc_prune.sweep.search import Random

sweeps = pytest.importorskip("sweeps", reason="W&B's package sweeps: see the Makefile")
HyperParameter = pytest.importorskip("sweeps.params").HyperParameter

DESCRIBED = {
    "constant": {"value": 0.3},
    "categorical": {"values": ["a", 2, True, None]},
    "categorical_w_probabilities": {"values": ["a", "b", "c"], "probabilities": [0.2, 0.5, 0.3]},
    "int_uniform": {"min": -3, "max": 12},
    "uniform": {"min": -0.5, "max": 2.0},
    "q_uniform": {"distribution": "q_uniform", "min": 1.0, "max": 30.0, "q": 4},
    "log_uniform": {"distribution": "log_uniform", "min": -7.0, "max": -2.0},
    "log_uniform_values": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.1},
    "q_log_uniform": {"distribution": "q_log_uniform", "min": 1.0, "max": 5.0, "q": 3},
    "q_log_uniform_values": {"distribution": "q_log_uniform_values", "min": 2, "max": 300, "q": 0.5},
    "inv_log_uniform": {"distribution": "inv_log_uniform", "min": 1.0, "max": 4.0},
    "inv_log_uniform_values": {"distribution": "inv_log_uniform_values", "min": 0.01, "max": 3.0},
    "normal": {"distribution": "normal", "mu": 2.0, "sigma": 0.5},
    "q_normal": {"distribution": "q_normal", "mu": 20.0, "sigma": 6.0, "q": 2},
    "log_normal": {"distribution": "log_normal", "mu": -1.0, "sigma": 0.4},
    "q_log_normal": {"distribution": "q_log_normal", "mu": 3.0, "sigma": 0.4},
    "beta": {"distribution": "beta", "a": 2, "b": 5},
    "q_beta": {"distribution": "q_beta", "a": 2, "b": 5, "q": 0.1},
}
# Not at the edges of steps, where "below" and "at" differ.
SHARES = np.random.default_rng(0).random(200)


def test_all_are_described():
    assert set(DESCRIBED) == set(FAMILIES)


@pytest.mark.parametrize("name", DESCRIBED)
def test_quantiles_are_wandbs(name):
    spec = DESCRIBED[name]
    ours, theirs = distribution(spec), HyperParameter("p", spec)
    for share in SHARES:
        expected = theirs.ppf(float(share))
        value = ours.quantile(float(share))
        if isinstance(value, float | int) and not isinstance(value, bool):
            assert value == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
        else:
            assert value == expected
            assert type(value) is type(expected)


@pytest.mark.parametrize("name", sorted(set(DESCRIBED) - {"constant"}))
def test_random_trials_have_wandbs_distribution(name, define):
    """1,000 trials of ours and of W&B's from one file: no test tells them apart (at 0.1%, fixed seeds)."""
    definition = define(method="random", run_cap=1000, parameters={"p": DESCRIBED[name]})
    search = Random(definition, seed=3)
    ours = [search.propose(n).values["p"] for n in range(1, 1001)]
    random.seed(5)
    theirs = [run.config["p"]["value"] for run in sweeps.next_runs(dict(definition.raw), [], n=1000)]
    if len(set(map(str, theirs))) > 50:
        assert ks_2samp([float(v) for v in ours], [float(v) for v in theirs]).pvalue > 1e-3
        return
    counted = Counter(map(_key, ours)), Counter(map(_key, theirs))
    # Values that W&B drew at least five times; both samples' rests are a value of their own.
    common = [key for key, count in counted[1].items() if count >= 5]
    table = np.array([[c[key] for key in common] + [1000 - sum(c[key] for key in common)] for c in counted])
    table = table[:, table.sum(0) > 0]
    expected = table.sum(0) / 2
    assert chisquare(table[0], expected, sum_check=False).pvalue > 1e-3


def _key(value):
    return round(float(value), 9) if isinstance(value, int | float | np.number) else str(value)


def test_another_distribution_is_told_apart(define):
    """The test above can fail: uniform is not log-uniform."""
    definition = define(method="random", run_cap=1000, parameters={"p": {"min": 0.0001, "max": 0.1}})
    search = Random(definition, seed=3)
    ours = [search.propose(n).values["p"] for n in range(1, 1001)]
    other = distribution(DESCRIBED["log_uniform_values"])
    theirs = [other.quantile(u) for u in np.random.default_rng(1).random(1000)]
    assert ks_2samp(ours, theirs).pvalue < 1e-6


@pytest.mark.parametrize("u", [0.0, 1 - 1e-12, np.nextafter(1, 0)])
@pytest.mark.parametrize("name", DESCRIBED)
def test_the_ends_are_values_too(name, u):
    value = distribution(DESCRIBED[name]).quantile(float(u))
    assert not isinstance(value, float) or np.isfinite(value)


WRONG = {
    "nothing": ({}, "it needs value, values, min and max, or a distribution"),
    "misspelt key": ({"valeus": [1]}, "it needs value"),
    "misspelt beside a right one": (
        {"values": [1], "probabilites": [1]},
        "means nothing for categorical: choose values",
    ),
    "misspelt distribution": (
        {"distribution": "log_unifrom_values", "min": 1, "max": 2},
        "did you mean log_uniform",
    ),
    "a key of another": (
        {"min": 1, "max": 2, "mu": 3},
        "'mu' means nothing for int_uniform: choose min, max",
    ),
    "only one end": ({"min": 1}, "uniform needs max"),
    "ends exchanged": ({"min": 2, "max": 1}, "choose min below max"),
    "ends alike": ({"min": 2.0, "max": 2.0}, "choose min below max"),
    "a word": ({"min": "a", "max": 1}, "min is 'a'; choose a number"),
    "what YAML takes for a word": ({"min": "1e-4", "max": 1.0}, "write 1.0e-4"),
    "true": ({"min": True, "max": 3}, "whole numbers"),
    "not a number": ({"min": float("nan"), "max": 1.0}, "choose a number"),
    "infinite": ({"min": 0.0, "max": float("inf")}, "choose a number"),
    "logarithm of 0": ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "more than 0"),
    "step 0": ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q is 0; choose more than 0"),
    "sigma 0": ({"distribution": "normal", "sigma": 0}, "sigma is 0"),
    "no values": ({"values": []}, "at least one value"),
    "values no list": ({"values": 3}, "choose a list"),
    "probabilities of fewer": ({"values": [1, 2], "probabilities": [1.0]}, "2 values and 1 probabilities"),
    "probabilities not 1": ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1.1"),
    "probability below 0": ({"values": [1, 2], "probabilities": [-0.5, 1.5]}, "at least 0"),
    "halves in int_uniform": ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "whole numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_descriptions(case):
    spec, said = WRONG[case]
    with pytest.raises(ValueError, match=r".") as caught:
        distribution(spec)
    assert said in str(caught.value)
