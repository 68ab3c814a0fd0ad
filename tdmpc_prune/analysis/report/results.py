"""What each group came to: a row of the report's table, and of its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from tdmpc_prune.analysis.report.groups import RunGroup, Section
from tdmpc_prune.analysis.report.numbers import ends, estimate, fall
from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.analysis.report.timing import Timings
from tdmpc_prune.analysis.statistics import Estimate, ratio


@dataclass(frozen=True)
class GroupResult:
    """A group of runs in numbers; None where a number is not known."""

    group: RunGroup
    """The runs."""
    end: Estimate | None
    """The outcome in the end: interquartile mean over seeds and its interval."""
    dense: Estimate | None
    """The same of the dense runs that it is compared with: those of its seeds, or all if it has others."""
    share: Estimate | None
    """`end` over `dense`, seed by seed if each has one dense run; None also of dense runs, and beside returns that are
    not positive."""
    parameters: float | None
    """Left in the end, mean over seeds."""
    sparsity: float
    """Reached in the end, mean over seeds."""
    macs: float | None
    """Multiply-accumulates of one pass through every network, mean over seeds."""
    ms: float | None
    """Median milliseconds per control step, mean over seeds."""
    p99: float | None
    """99th percentile of the same, mean over seeds."""
    worst: Estimate | None
    """The worst outcome measured right after a removal, over seeds."""
    deepest: float | None
    """The worst of them all."""
    window: Estimate | None
    """Mean outcome while units are removed, over seeds."""
    by_size: Estimate | None
    """The same with every halving of the parameters weighing alike, over seeds (`dip.mean_by_size`)."""
    recovery: Estimate | None
    """Environment steps from the last removal to 95% of the dense return, over the seeds that came there."""
    recovered: int
    """How many seeds did."""
    removed: int
    """Seeds that anything was removed from."""

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON values."""
        runs = self.group.runs
        return {
            "task": runs[0].task,
            "group": self.group.label,
            "runs": [str(run.path) for run in runs],
            "seeds": [run.seed for run in runs],
            "finished": sum(run.finished for run in runs),
            "target_sparsity": self.group.target,
            runs[0].outcome: _interval(self.end),
            "share_of_dense": _interval(self.share),
            "parameters": self.parameters,
            "sparsity": self.sparsity,
            "macs": self.macs,
            "ms": self.ms,
            "ms_p99": self.p99,
            f"{'lowest_return' if runs[0].outcome == 'return' else 'highest_error'}": _interval(self.worst),
            f"window_{runs[0].outcome}": _interval(self.window),
            f"window_{runs[0].outcome}_by_size": _interval(self.by_size),
            "recovery_steps": self.recovery and self.recovery.value,
            "recovered": self.recovered,
        }


def results(section: Section, timings: Timings) -> list[GroupResult]:
    """The numbers of every group of a task, in their order."""
    return [_result(group, section, timings) for group in section.groups]


def _result(group: RunGroup, section: Section, timings: Timings) -> GroupResult:
    reference = section.reference(group)
    runs = group.counted
    compared = _of_seeds(reference.counted, runs) if reference else []
    dense = ends(compared)
    falls = [found for run in runs if (found := fall(run, section, dense))]
    lowest = [found["lowest_return"] for found in falls if found["lowest_return"] is not None]
    times = [timings.of[run.path] for run in runs if run.path in timings.of]
    recoveries = [found["recovery_steps"] for found in falls if found["recovery_steps"] is not None]
    return GroupResult(
        group=group,
        end=ends(runs),
        dense=dense,
        share=None if group.dense else _share(runs, compared),
        parameters=_mean([_size(run, section, "prune/params") for run in runs]),
        sparsity=mean(run.sparsity for run in runs),
        macs=_mean([_size(run, section, "prune/macs") for run in runs]),
        ms=_mean([time.median for time in times]),
        p99=_mean([time.p99 for time in times]),
        worst=estimate(lowest),
        deepest=min(lowest, key=lambda value: section.sign * value, default=None),
        window=estimate([found["window_return"] for found in falls]),
        by_size=estimate([found["window_return_by_size"] for found in falls]),
        recovery=estimate(recoveries),
        recovered=len(recoveries),
        removed=len(falls),
    )


def _of_seeds(dense: Sequence[ReportRun], runs: Sequence[ReportRun]) -> Sequence[ReportRun]:
    """The dense runs of the seeds of others, if each of these has one; else all."""
    seeds = {run.seed for run in runs}
    return [run for run in dense if run.seed in seeds] if seeds <= {run.seed for run in dense} else dense


def _share(runs: Sequence[ReportRun], dense: Sequence[ReportRun]) -> Estimate | None:
    """What pruned runs have come to over what dense ones have."""
    own, other = ([(r.seed, r.last) for r in some if r.last is not None] for some in (runs, dense))
    if not own or not other or min(value for _, value in other) <= 0:
        return None
    partner = dict(other)
    if len(own) == len(other) == len(partner) and dict(own).keys() == partner.keys():
        return ratio([value for _, value in own], [partner[seed] for seed, _ in own], together=True)
    return ratio([value for _, value in own], [value for _, value in other])


def _size(run: ReportRun, section: Section, key: str) -> float | None:
    """Parameters or multiply-accumulates of a run; a dense one logs none, but what it is pruned to does."""
    if (known := run.newest(key)) is not None:
        return float(known)
    if key == "prune/params" and run.parameters is not None:
        return float(run.parameters)
    for other in section.runs:
        first = next((row for row in other.rows if key in row), None)
        if first is not None and not first.get("prune/sparsity") and _agent(other) == _agent(run):
            return float(first[key])
    return None


def _agent(run: ReportRun) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key.startswith("agent.")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _interval(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {"iqm": found.value, "low": found.low, "high": found.high}
