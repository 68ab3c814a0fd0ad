"""Which runs are repetitions of each other, and which dense ones a pruned group is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.run_folder import FREE_ON_RESUME

SEVERAL = ("prune.schedule", "prune.compensation", "prune.selection", "preset")
"""Settings that are worth a word where a task's runs have several values of them."""
KEY = ("task", "prune.criterion", "prune.allocation", "prune.sparsity", *SEVERAL)
"""Settings that name a group; among them the runs of one group differ in nothing."""
FAMILY = tuple(key for key in KEY if key != "prune.sparsity")
"""Those that groups of one kind share, however much is removed."""
WORDS = {
    ("prune.compensation", "linear"): "compensated",
    ("prune.compensation", "none"): "cut only",
    ("prune.selection", "scores"): "",
}
"""Values that the report says in other words, or not at all."""
COMPONENT = "prune.limits.component."
"""Coefficients by component: of those that are not set, 1."""
UNSAID = {"prune.recovery": 0, "init_from": "nothing"}
"""Values that mean that there is none of it."""
OWN = ("seed", "eval_episodes", "prune.eval_episodes", *(n for n in FREE_ON_RESUME if n != "steps"))
"""Settings that a run of a group has to itself, or that decide only what is measured."""


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seeds alone."""

    kind: str
    """What it is pruned by: criterion and allocation, for example; or `dense`."""
    extras: str
    """What else tells it from the other groups of its task; empty if nothing does."""
    runs: Sequence[ReportRun]
    """By seed."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of its first run."""
        return self.runs[0].settings

    @property
    def dense(self) -> bool:
        """Whether nothing is ever removed."""
        return self.runs[0].dense

    @property
    def target(self) -> float:
        """Sparsity to come to."""
        return 0.0 if self.dense else float(self.settings["prune.sparsity"])

    @property
    def label(self) -> str:
        """What the report calls it: magnitude uniform 90%."""
        return self.family if self.dense else f"{self.kind} {percent(self.target)}{self.extras}"

    @property
    def family(self) -> str:
        """The same without the sparsity."""
        return self.kind + self.extras

    @property
    def counted(self) -> Sequence[ReportRun]:
        """The runs whose end counts: the finished ones, or all while there are none."""
        return [run for run in self.runs if run.finished] or self.runs


@dataclass(frozen=True)
class Section:
    """All groups of one task."""

    task: str
    """What they learned."""
    groups: Sequence[RunGroup]
    """Dense ones first."""

    @property
    def outcome(self) -> str:
        """What they are judged by: `return`, or `error`, of which less is better."""
        return self.groups[0].runs[0].outcome

    @property
    def sign(self) -> int:
        """1 if more of the outcome is better, else -1."""
        return 1 if self.outcome == "return" else -1

    @property
    def steps(self) -> str:
        """What env_step counts."""
        return "environment steps" if self.outcome == "return" else "updates"

    @property
    def runs(self) -> list[ReportRun]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    def reference(self, group: RunGroup) -> RunGroup | None:
        """The dense group to compare with: of the same preset, and the one most like it."""
        dense = [
            g for g in self.groups if g.dense and g.settings.get("preset") == group.settings.get("preset")
        ]
        return max(dense, key=lambda g: _alike(g.settings, group.settings), default=None)


def sections(runs: Iterable[ReportRun]) -> list[Section]:
    """Sorts runs into tasks, and those into groups."""
    tasks: dict[str, list[ReportRun]] = {}
    for run in runs:
        tasks.setdefault(run.task, []).append(run)
    return [Section(task, _groups(members)) for task, members in tasks.items()]


def _groups(runs: Sequence[ReportRun]) -> list[RunGroup]:
    """Groups of one task's runs: first by what names them, then by whatever else was set differently."""
    found = [_relevant(run) for run in runs]
    coefficients = {key for one in found for key in one if key.startswith(COMPONENT)}
    found = [dict.fromkeys(coefficients, 1.0) | one for one in found]
    parts: list[tuple[list[ReportRun], list[str]]] = []
    for family in _by(FAMILY, list(zip(runs, found, strict=True))):
        for named in _by(KEY, family):
            # An older version's run lacks newer settings: what only some have decides nothing.
            shared = sorted(set.intersection(*(set(one) for _, one in named)) - set(KEY))
            differing = [
                key
                for key in shared
                # How it is pruned has to be said where it is set otherwise at another sparsity, too.
                if _several(key, family if key.startswith("prune.") else named)
            ]
            parts += [([run for run, _ in part], differing) for part in _by(shared, named)]
    groups = [
        RunGroup(
            _kind(part[0], runs),
            _extras(part[0], differing),
            sorted(part, key=lambda run: (run.seed, run.name)),
        )
        for part, differing in parts
    ]
    return sorted(groups, key=lambda group: (not group.dense, group.family, group.target))


def _by(
    keys: Sequence[str], members: Sequence[tuple[ReportRun, dict[str, Any]]]
) -> list[list[tuple[ReportRun, dict[str, Any]]]]:
    """Runs and their settings, those together whose settings `keys` are the same."""
    parts: dict[tuple[str, ...], list[tuple[ReportRun, dict[str, Any]]]] = {}
    for run, one in members:
        parts.setdefault(tuple(repr(one.get(key)) for key in keys), []).append((run, one))
    return list(parts.values())


def _several(key: str, members: Sequence[tuple[ReportRun, dict[str, Any]]]) -> bool:
    return len({repr(one[key]) for _, one in members if key in one}) > 1


def _relevant(run: ReportRun) -> dict[str, Any]:
    """The settings that decide what a run learns; of a dense run, none of pruning but that there is none."""
    relevant = {
        key: value
        for key, value in run.settings.items()
        if key not in OWN
        and not key.startswith("wandb.")
        and (not run.dense or not key.startswith("prune.") or key == "prune.criterion")
    }
    # Each seed may begin with a dense run of its own; what counts is whether there is one, and how long it had learned.
    relevant["init_from"] = "a dense run" if run.settings.get("init_from") else "nothing"
    return relevant | ({} if run.source_steps is None else {"init_from.steps": run.source_steps})


def _kind(run: ReportRun, runs: Sequence[ReportRun]) -> str:
    """Criterion and allocation; of `SEVERAL` only what the task's runs have several of."""
    words = ["dense"] if run.dense else [run.settings["prune.criterion"], run.settings["prune.allocation"]]
    relevant = _relevant(run)
    values = {key: {r.settings[key] for r in runs if key in _relevant(r)} for key in SEVERAL}
    several = [key for key in SEVERAL if key in relevant and len(values[key]) > 1]
    words += [WORDS.get((key, relevant[key]), relevant[key]) for key in several]
    return " ".join(filter(None, words))


def _extras(run: ReportRun, differing: Sequence[str]) -> str:
    """Settings that are none of a group's key, but differ between runs that share it; and what it began with."""
    own = _relevant(run)
    said = ", ".join(
        f"{key} {own[key]}"
        for key in sorted({*differing, "init_from"})
        if key in own and (key, own[key]) not in UNSAID.items()
    )
    return f" ({said})" if said else ""


def percent(share: float) -> str:
    """A share as people read it: 90%, 97.5%."""
    return f"{100 * share:.4g}%"


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, bool, int]:
    """How many settings of their agents two runs share; whether both go on from another one, or neither; all settings.

    In this order: others differ between versions, too.
    """
    shared = [key for key, value in other.items() if one.get(key, ...) == value]
    both = bool(one.get("init_from")) == bool(other.get("init_from"))
    return sum(key.startswith("agent.") for key in shared), both, len(shared)
