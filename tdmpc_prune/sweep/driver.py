"""A sweep under way: which trials are still to be made, and what became of the others. Knows no engine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from tdmpc_prune.config import AnyTrainConfig
from tdmpc_prune.errors import UserError
from tdmpc_prune.pruning.config import SparsityError
from tdmpc_prune.reading import read_json
from tdmpc_prune.sweep.definition import Definition
from tdmpc_prune.sweep.folder import SweepFolder, Trial
from tdmpc_prune.sweep.search import Random, Search, search
from tdmpc_prune.sweep.trial import Plan, Resources, command_line, plan

CHECKED = 200
"""Trials whose settings are checked before the first one starts."""
BUILT = 20
"""Of them, how many different agents are built to see whether they can be pruned as far."""
LISTED = 10_000
"""Trials that a dry run lists at most."""
FIRST_METRIC = "eval/return"
"""What is shown of trials whose sweep names no metric."""


class Sweep:
    """Hands out trials, notes what they came to, and shows how far all of it is."""

    def __init__(
        self,
        definition: Definition,
        folder: SweepFolder,
        *,
        seed: int,
        count: int | None,
        resources: Resources,
    ) -> None:
        """Nothing is begun yet.

        Raises:
            UserError: the file asks for no number of trials, or its trials cannot be trained.
        """
        self.definition, self.folder, self.resources = definition, folder, resources
        self.search: Search = search(definition, seed)
        limits = [n for n in (self.search.size, count or definition.run_cap) if n is not None]
        if not limits:
            raise UserError(
                f"{definition.path}: method {definition.method} never ends by itself: "
                "choose --count N, or run_cap: N in the file"
            )
        self.total = min(limits)
        self.metric = definition.metric.name if definition.metric else FIRST_METRIC
        self.interrupted = False
        new = not folder.about.exists()
        self.first_decision = checked(definition, self.total, seed, self.search, resources, new=new)
        self._fractions: dict[int, float] = {}

    # Trials

    def planned(self) -> list[dict[str, Any]]:
        """The trials that a grid or a random search will make, the first ones of a long or a Bayesian search."""
        most = CHECKED if self.definition.method == "bayes" else LISTED  # a Bayesian search thinks about each
        numbers = range(1, min(self.total, most) + 1)
        proposals = {n: self.search.propose(n).values for n in numbers}
        return [
            {"trial": n, **{name: values[name] for name in self.definition.varied}}
            for n, values in proposals.items()
        ]

    def begin(self) -> None:
        """Takes up what earlier sittings left."""
        for number, trial in sorted(self.folder.trials.items()):
            self.search.resume(number, trial.proposal)
            if trial.status in ("finished", "stopped"):
                self.search.tell(number, trial.value)
        self._again = [t for t in self.folder.trials.values() if t.status in ("open", "failed")]
        self._next = max(self.folder.trials, default=0) + 1
        self.bar = tqdm(
            total=self.total,
            unit="trial",
            disable=None,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} trials [{elapsed}<{remaining}]{postfix}",
        )
        self._show()
        if done := len(self._done()):
            rest = "; the others go on" if done < self.total else ""
            self.say(f"{done} of {self.total} trials are done{rest}")

    def next_trial(self) -> dict[str, Any] | None:
        """The next trial, or None if there is none any more; one that cannot be trained fails here.

        Returns:
            All that a machine must know to train it, as JSON values.
        """
        while True:
            if self._again:
                trial = self._again.pop(0)
            elif self._next <= self.total:
                trial = self.folder.propose(self._next, self.search.propose(self._next))
                self._next += 1
            else:
                return None
            try:
                return self._spec(trial, plan(self.definition, trial.proposal.values, self.resources))
            except UserError as error:
                self.failed(trial.number, str(error))

    def _spec(self, trial: Trial, planned: Plan) -> dict[str, Any]:
        run = self.folder.run(trial).absolute()
        return {
            "trial": trial.number,
            "line": command_line(self.definition, planned, run, self.resources),
            "sweep": str(self.folder.path.absolute()),
            "run": str(run),
            "log": str(self.folder.log(trial).absolute()),
            "metric": self.metric,
            "steps": planned.config.steps,
            "grace": max(self.first_decision, planned.grace),
            "threads": planned.config.threads or self.resources.threads,
        }

    # What became of them

    def progress(self, number: int, share: float) -> None:
        """A trial has made this share of its steps."""
        self._fractions[number] = min(share, 1.0)
        self._show()

    def finished(self, number: int, values: Sequence[float]) -> None:
        """A trial made all its steps."""
        if not values and self.definition.metric is not None:
            self.failed(number, f"it ended without {self.metric}")
            return
        self._end(number, "finished", values)

    def stopped(self, number: int, values: Sequence[float]) -> None:
        """A trial was stopped early."""
        self._end(number, "stopped", values)

    def failed(self, number: int, reason: str) -> None:
        """A trial failed for good."""
        self.folder.end(number, "failed", error=reason)
        self.search.tell(number, None)
        self._fractions.pop(number, None)
        self.say(f"trial {number} failed: {reason}")
        self._show()

    def retried(self, number: int, reason: str) -> None:
        """A trial failed and is tried again."""
        self.say(f"trial {number} failed and is tried again: {reason}")

    def _end(self, number: int, status: Any, values: Sequence[float]) -> None:
        value = values[-1] if values else None
        history = values if self.definition.hyperband else ()
        trial = self.folder.end(number, status, value=value, history=history)
        self.search.tell(number, value)
        self._fractions.pop(number, None)
        came = "" if value is None else f"   {self.metric} {value:.4g}"
        self.say(f"trial {number:>4} {status}{came}   {self._words(trial)}")
        self._show()

    # Showing

    def rows(self) -> list[dict[str, Any]]:
        """A row a trial, best first: what was varied, and what came of it."""
        rows = []
        for trial in self.folder.trials.values():
            path = self.folder.run(trial) / "summary.json"
            summary: Mapping[str, Any] = read_json(path) if path.is_file() else {}
            rows.append(
                {
                    "trial": trial.number,
                    **{name: trial.proposal.values.get(name) for name in self.definition.varied},
                    "status": trial.status,
                    self.metric: trial.value,
                    **{key: summary.get(key) for key in ("sparsity", "parameters", "minutes")},
                    "error": trial.error,
                }
            )
        sign = self.definition.metric.sign if self.definition.metric else 1
        worst = float("-inf")

        def rank(row: Mapping[str, Any]) -> tuple[float, int]:
            value = row[self.metric]
            return (worst if value is None else sign * value, -row["trial"])

        return sorted(rows, key=rank, reverse=True)

    def complete(self) -> bool:
        """Whether every trial has ended, well or not."""
        return len(self.folder.trials) >= self.total and all(
            trial.status != "open" for trial in self.folder.trials.values()
        )

    def failures(self) -> list[Trial]:
        """Trials that failed for good."""
        return [trial for trial in self.folder.trials.values() if trial.status == "failed"]

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on standard error."""
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Ends the progress bar."""
        self.bar.close()

    def _done(self) -> list[Trial]:
        return [t for t in self.folder.trials.values() if t.status in ("finished", "stopped")]

    def _show(self) -> None:
        ended = sum(trial.status != "open" for trial in self.folder.trials.values())
        self.bar.n = min(ended + sum(self._fractions.values()), self.total)
        self.bar.refresh()

    def _words(self, trial: Trial) -> str:
        values = trial.proposal.values
        return ", ".join(f"{name} {_short(values[name])}" for name in self.definition.varied)


def checked(
    definition: Definition,
    total: int,
    seed: int,
    source: Search | None,
    resources: Resources | None = None,
    *,
    new: bool = True,
) -> int:
    """Checks the settings of many trials, spread over all; returns the evaluations before a trial may be stopped.

    Args:
        definition: the sweep.
        total: its trials.
        seed: of the search.
        source: proposes trials; None, or a Bayesian search, of which nobody knows what it will try: random
            draws of the same distributions.
        resources: of a trial; None: whatever it asks for.
        new: none was trained yet: also see whether its agents can be pruned as far.

    Raises:
        UserError: a trial cannot be trained, or none could be stopped early.
    """
    if source is None or definition.method == "bayes":
        source = Random(definition, seed)
    numbers = range(1, total + 1, max(1, total // CHECKED))
    plans = [plan(definition, source.propose(n).values, resources) for n in numbers]
    if new:
        _check_targets(definition, [one.config for one in plans if one.config.prune.enabled])
    if definition.hyperband is None:
        return 1
    grace = max(definition.hyperband.first, *(one.grace for one in plans))
    if grace >= max(one.evaluations for one in plans):
        raise UserError(
            f"{definition.path}: early_terminate could stop no trial: removals and the recovery from "
            f"them last {grace} evaluations, which is to the end; choose a smaller prune.end or eval_every, "
            "or leave it out"
        )
    return grace


def _check_targets(definition: Definition, configs: Sequence[AnyTrainConfig]) -> None:
    """Refuses a grid, of which a trial cannot be pruned as far as it asks for, and a search of which none can."""
    from tdmpc_prune import dry_run

    first: dict[str, AnyTrainConfig] = {}
    grid = definition.method == "grid"
    for config in sorted(configs, key=lambda config: config.prune.sparsity, reverse=grid):
        agent = repr((config.task, config.agent, getattr(config, "data", None), config.prune.limits))
        first.setdefault(agent, config)
    built, failed = list(first.values())[:BUILT], []
    for config in built:
        try:
            dry_run.check_prunable(config)
        except (SparsityError, UserError) as error:
            failed.append(UserError(f"{definition.path} ({config.task}): {error}"))
    # A search may come upon some that cannot be trained, and goes on with others.
    if failed and (grid or len(failed) == len(built)):
        raise failed[0]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def of_earlier_sittings(trials: Iterable[Trial]) -> list[tuple[Trial, int, float]]:
    """Every value that ended trials reported, with its number from 1, in the order of the trials."""
    ended = [trial for trial in trials if trial.status in ("finished", "stopped")]
    return [(trial, n, value) for trial in ended for n, value in enumerate(trial.history, 1)]
