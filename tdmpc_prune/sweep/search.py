"""Which trials a sweep makes: all of a grid, random ones, or those that a Bayesian search hopes most of.

Trial n of a grid or of a random search follows from the file, the seed and n alone, so a sweep that is begun
again, or made on more machines, has the same trials.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.definition import Definition

MOST_TRIALS = 100_000
"""Trials that one sweep may have."""
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Proposal:
    """What one trial is to try."""

    values: Values
    """Of all parameters, by dotted name."""
    point: Mapping[str, float] = field(default_factory=dict)
    """Bayesian: where in the unit cube it lies."""


class Search(Protocol):
    """Proposes trials by number, from 1, and hears what they came to."""

    size: int | None
    """Trials that there are; None: as many as one likes."""

    def propose(self, number: int) -> Proposal:
        """What trial `number` is to try."""

    def resume(self, number: int, proposal: Proposal) -> None:
        """Trial `number` was proposed in an earlier sitting."""

    def tell(self, number: int, value: float | None) -> None:
        """Trial `number` came to this value of the sweep's metric; None: it failed."""


class Independent:
    """A search whose proposals do not hang on results."""

    def resume(self, number: int, proposal: Proposal) -> None:
        """Nothing to know."""

    def tell(self, number: int, value: float | None) -> None:
        """Nothing to learn."""


class Grid(Independent):
    """Every combination of all values; the last parameter changes fastest. W&B's set, in its order."""

    def __init__(self, definition: Definition) -> None:
        choices = [parameter.choices or () for parameter in definition.parameters.values()]
        if (count := math.prod(len(c) for c in choices)) > MOST_TRIALS:
            raise UserError(
                f"{definition.path}: the grid has {count:,} trials; choose fewer values, or method random "
                f"(at most {MOST_TRIALS:,} trials a sweep)"
            )
        trials = (
            dict(zip(definition.parameters, values, strict=True)) for values in itertools.product(*choices)
        )
        self.trials = list({json.dumps(trial, default=str): trial for trial in trials}.values())
        self.size: int | None = len(self.trials)

    def propose(self, number: int) -> Proposal:
        return Proposal(self.trials[number - 1])


class Random(Independent):
    """Independent draws of every parameter's distribution."""

    size: int | None = None

    def __init__(self, definition: Definition, seed: int) -> None:
        self.definition, self.seed = definition, seed

    def propose(self, number: int) -> Proposal:
        random = np.random.default_rng([self.seed, number])
        parameters = self.definition.parameters.items()
        return Proposal({name: parameter.quantile(random.random()) for name, parameter in parameters})


class TPE:
    """Optuna's tree-structured Parzen estimator, in the unit cube that the quantile functions start from.

    W&B's own `bayes` is a Gaussian process: the same file, another search. The first ten trials are random
    draws of the distributions; trials that still run count as bad ones, so that others keep away from them.
    """

    size: int | None = None

    def __init__(self, definition: Definition, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert definition.metric is not None
        self.definition, self.seed, self.sign = definition, seed, definition.metric.sign
        unit: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(0.0, 1.0)
        self.space = dict.fromkeys(definition.varied, unit)
        self.study = optuna.create_study(direction="maximize")
        self.running: dict[int, Any] = {}

    def propose(self, number: int) -> Proposal:
        import optuna

        # A sampler of its own for every trial: what it proposes hangs on what was told, not on who asked before.
        seed = int(np.random.default_rng([self.seed, number]).integers(2**31))
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial = self.running[number] = self.study.ask(self.space)
        point = {name: float(trial.params[name]) for name in self.space}
        parameters = self.definition.parameters.items()
        values = {name: p.quantile(min(point.get(name, 0.0), 1 - 1e-12)) for name, p in parameters}
        return Proposal(values, point)

    def resume(self, number: int, proposal: Proposal) -> None:
        self.study.enqueue_trial(dict(proposal.point))
        self.running[number] = self.study.ask(self.space)

    def tell(self, number: int, value: float | None) -> None:
        import optuna

        trial = self.running.pop(number)
        if value is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, self.sign * value)


def search(definition: Definition, seed: int) -> Search:
    """The search that a definition asks for."""
    match definition.method:
        case "grid":
            return Grid(definition)
        case "random":
            return Random(definition, seed)
        case "bayes":
            return TPE(definition, seed)
