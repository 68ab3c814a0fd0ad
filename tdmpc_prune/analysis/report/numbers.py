"""The numbers behind the figures and tables of a report, each over the seeds of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np

from tdmpc_prune.analysis.dip import dip
from tdmpc_prune.analysis.report.groups import RunGroup, Section
from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.analysis.statistics import Estimate, Floats, bootstrap

Rows = Sequence[Mapping[str, Any]]
"""Of one run's metrics.jsonl, in order."""


@dataclass(frozen=True)
class Point:
    """One moment of a group: all its runs that came so far."""

    x: float
    """Mean over them of what is on the x axis."""
    y: Estimate
    """Of the outcome."""


@dataclass(frozen=True)
class Removal:
    """One removal of a group: the outcome right before and right after, None where it was not measured."""

    env_step: float
    """Mean over its runs."""
    before: Estimate | None
    after: Estimate | None


@dataclass(frozen=True)
class HeatMap:
    """A value of every pruning group over time."""

    names: Sequence[str]
    """Pruning groups [G]."""
    steps: Sequence[int]
    """Environment steps [T]."""
    values: Floats
    """[G, T]."""
    source: str
    """Whose values: a mean over seeds, or one run's."""


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Interquartile mean and interval of the values that are there, None if none is."""
    found = [value for value in values if value is not None]
    return bootstrap([found]) if found else None


def learning_curve(group: RunGroup) -> list[Point]:
    """The outcome over environment steps, evaluation by evaluation."""
    return _points(group, [run.evaluations for run in group.runs], "env_step")


def trajectory(group: RunGroup) -> list[Point]:
    """The outcome over the sparsity, from the last evaluation before the first removal on."""
    pruned = [run for run in group.runs if run.removals]
    parts = []
    for run in pruned:
        first = run.removals[0]["env_step"]
        before = [row for row in run.evaluations if row["env_step"] < first][-1:]
        parts.append(before + [row for row in run.evaluations if row["env_step"] >= first])
    return _points(group, parts, "prune/sparsity")


def removals(group: RunGroup) -> list[Removal]:
    """What each removal did to the outcome, in order; see `_together`."""
    outcome = group.runs[0].outcome
    found = []
    for rows in _by_index(_together([run.removals for run in group.runs])):
        before, after = (
            estimate([r.get(f"prune/{outcome}_{when}") for r in rows]) for when in ("before", "after")
        )
        found.append(Removal(_mean(rows, "env_step"), before, after))
    return found


def _points(group: RunGroup, parts: Sequence[Rows], x: str) -> list[Point]:
    """One point for the first rows of all runs, one for the second, and so on; see `_together`."""
    outcome = f"eval/{group.runs[0].outcome}"
    return [
        Point(_mean(rows, x), bootstrap([[row[outcome] for row in rows]]))
        for rows in _by_index(_together(parts))
    ]


def _together(parts: Sequence[Rows]) -> Sequence[Rows]:
    """Rows of several runs of which the first belong together, the second, and so on; else the longest run's alone.

    Where episodes end early, what is due waits for their ends. Runs with short episodes lie at slightly other steps
    then; with long ones, several removals can fall together, and the sixth of one run is the third of another.
    """
    spacings = [later["env_step"] - row["env_step"] for part in parts for row, later in pairwise(part)]
    apart = max((steps[-1] - steps[0] for steps in map(_steps, _by_index(parts))), default=0)
    return parts if apart <= min(spacings, default=inf) / 2 else [max(parts, key=len)]


def _steps(rows: Rows) -> list[float]:
    return sorted(row["env_step"] for row in rows)


def _by_index(parts: Sequence[Rows]) -> list[list[Mapping[str, Any]]]:
    longest = max((len(part) for part in parts), default=0)
    return [[part[i] for part in parts if i < len(part)] for i in range(longest)]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row.get(key, 0.0) for row in rows]))


# Importance, widths and sparsities over time


def importance(group: RunGroup, criterion: str) -> HeatMap | None:
    """Mean score of each pruning group, divided by the mean over all of them; None if nothing was scored."""
    return heat_map(group, f"importance/{criterion}/", relative=True)


def widths(group: RunGroup) -> HeatMap | None:
    """Units left of each pruning group."""
    return heat_map(group, "prune/width/")


def component_sparsity(group: RunGroup) -> HeatMap | None:
    """Share of each component's parameters that is gone."""
    return heat_map(group, "prune/sparsity/")


def heat_map(group: RunGroup, prefix: str, *, relative: bool = False) -> HeatMap | None:
    """The metrics under a prefix, over time: the mean over a group's runs that count, or the longest one's.

    The mean needs runs that log at the same steps; where episodes end early they do not.

    Args:
        group: whose.
        prefix: of the metrics' names.
        relative: divide each run's values by their mean over all names.
    """
    found = [(run, values) for run in group.counted if (values := _series(run, prefix, relative))]
    if not found:
        return None
    series = [values for _, values in found]
    steps = sorted(set.intersection(*(set(values) for values in series)))
    source = f"mean over {len(series)} runs"
    longest, values = max(found, key=lambda pair: len(pair[1]))
    if len(series) == 1 or len(steps) < len(values) / 2:
        series, steps, source = [values], sorted(values), f"run {longest.name}"
    names = list(dict.fromkeys(name for values in series for row in values.values() for name in row))
    table = [[[values[step].get(name, np.nan) for step in steps] for name in names] for values in series]
    return HeatMap(names, steps, np.array(table, np.float64).mean(0), source)


def _series(run: ReportRun, prefix: str, relative: bool) -> dict[int, dict[str, float]]:
    """By step, the values under a prefix by name."""
    found: dict[int, dict[str, float]] = {}
    for row in run.rows:
        values = {k.removeprefix(prefix): float(v) for k, v in row.items() if k.startswith(prefix)}
        mean = float(np.mean(list(values.values()))) if values else 0.0
        if relative and mean <= 0:  # nothing was scored yet
            continue
        if values:
            found[row["env_step"]] = {k: v / mean for k, v in values.items()} if relative else values
    return found


# The end


def ends(runs: Sequence[ReportRun]) -> Estimate | None:
    """The outcome of runs in the end."""
    return estimate([run.last for run in runs])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points (cost, worth) that no other beats: none is as cheap and worth more, or cheaper
    and worth as much; cheapest first."""

    def beaten(cost: float, worth: float) -> bool:
        return any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)

    return sorted((i for i, point in enumerate(points) if not beaten(*point)), key=lambda i: points[i])


def fall(run: ReportRun, section: Section, dense: Estimate | None) -> dict[str, float | int | None]:
    """The dip of a pruned run as `analysis.dip` measures it; {} if nothing was removed.

    Of an error the highest counts, and there is no recovery: a share of an error says little.
    """
    if not run.evaluations:
        return {}
    if section.outcome == "return":
        return dip(run.rows, dense.value if dense else None)
    # The dip of -error, with its sign turned back.
    renamed = [{k.replace("/error", "/return"): _turned(k, v) for k, v in row.items()} for row in run.rows]
    found = dip(renamed)
    outcomes = ("lowest_return", "window_return", "window_return_by_size")
    turned = {k: -v for k, v in found.items() if k in outcomes and v is not None}
    return found | turned | {"recovery_steps": None} if found else {}


def _turned(key: str, value: float) -> float:
    return -value if "/error" in key else value
