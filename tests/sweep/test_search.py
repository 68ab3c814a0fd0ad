"""Which trials a sweep makes."""

import json

import numpy as np
import pytest

from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.search import Grid, Random, search

sweeps = pytest.importorskip("sweeps", reason="W&B's package sweeps: see the Makefile")

GRIDS = {
    "values": {"b": {"values": [0.1, 0.2]}, "a": {"values": ["x", "y", "z"]}, "c": {"value": True}},
    "whole numbers": {"n": {"min": 3, "max": 6}, "m": {"values": [1]}},
    "steps": {"n": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}, "m": {"values": [1, 2]}},
    "nested": {
        "z": {"parameters": {"y": {"values": [1, 2]}, "x": {"parameters": {"w": {"values": [3, 4]}}}}}
    },
    "the same twice": {"a": {"values": [1, 2, 1]}, "b": {"values": [1]}},
    "lists": {"a": {"values": [[1, 2], [3]]}},
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_wandbs_in_its_order(name, define):
    definition = define(parameters=GRIDS[name])
    grid = Grid(definition)
    ours = [definition.arguments(grid.propose(n).values) for n in range(1, grid.size + 1)]
    runs = sweeps.next_runs(dict(definition.raw), [], n=100)
    theirs = [{key: value["value"] for key, value in run.config.items()} for run in runs if run]
    # W&B's server makes whole numbers of those that are: 0.0 reaches an agent as 0.
    assert ours == theirs
    assert [json.dumps(t, sort_keys=True) for t in ours] == [
        json.dumps(t, sort_keys=True).replace(".0", "") for t in theirs
    ]


def test_a_grid_that_never_ends_is_refused(define):
    with pytest.raises(UserError, match=r"1,000,000 trials.*method random"):
        Grid(define(parameters={"a": {"min": 1, "max": 1000}, "b": {"min": 1, "max": 1000}}))


def test_random_trials_hang_on_seed_and_number_alone(define):
    definition = define(
        method="random", parameters={"a": {"min": 0.0, "max": 1.0}, "b": {"values": [1, 2, 3]}}
    )
    forwards = [Random(definition, 7).propose(n).values for n in range(1, 21)]
    one = Random(definition, 7)
    backwards = [one.propose(n).values for n in range(20, 0, -1)]
    assert forwards == backwards[::-1]
    assert forwards != [Random(definition, 8).propose(n).values for n in range(1, 21)]
    assert len({values["a"] for values in forwards}) == 20


@pytest.mark.parametrize(("goal", "sign"), [("maximize", 1), ("minimize", -1)])
def test_bayes_finds_what_random_does_not(goal, sign, define):
    parameters = {name: {"min": 0.0, "max": 1.0} for name in "abc"} | {"d": {"values": ["good", "bad"]}}
    definition = define(method="bayes", metric={"name": "eval/return", "goal": goal}, parameters=parameters)

    def worth(values):
        distance = sum((values[name] - 0.3) ** 2 for name in "abc")
        return sign * (-distance - (values["d"] == "bad"))

    found = {}
    for method in ("bayes", "random"):
        tried = search(definition, 1) if method == "bayes" else Random(definition, 1)
        worths = []
        for n in range(1, 61):
            worths.append(worth(tried.propose(n).values))
            tried.tell(n, worths[-1])
        found[method] = np.mean(sorted(sign * w for w in worths)[-20:])
    assert found["bayes"] > found["random"]


def test_bayes_goes_on_where_it_was(define):
    """What it proposes hangs on what it knows: a second sitting that is told the same proposes the same."""
    definition = define(method="bayes", parameters={"a": {"min": 0.0, "max": 1.0}, "b": {"value": 3}})
    first = search(definition, 1)
    proposals = {}
    for n in range(1, 16):
        proposals[n] = first.propose(n)
        if n != 14:  # which still runs when the sitting ends
            first.tell(n, proposals[n].values["a"])
    second = search(definition, 1)
    for n, proposal in proposals.items():
        second.resume(n, proposal)
        if n != 14:
            second.tell(n, proposal.values["a"])
    assert first.propose(16) == second.propose(16)
    assert second.propose(17).values["b"] == 3


def test_a_failed_trial_teaches_nothing(define):
    definition = define(method="bayes", parameters={"a": {"min": 0.0, "max": 1.0}})
    one = search(definition, 1)
    one.propose(1)
    one.tell(1, None)
    assert 0 <= one.propose(2).values["a"] <= 1
