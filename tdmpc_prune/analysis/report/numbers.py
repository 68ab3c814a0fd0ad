"""The numbers behind the figures and tables of a report, each over the seeds of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal

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
    """The outcome over environment steps, evaluation by evaluation.

    Of runs that were evaluated at other steps it is read off between these, at the steps of the longest run.
    """
    outcome = f"eval/{group.runs[0].outcome}"
    parts: list[Rows] = [run.evaluations for run in group.runs if run.evaluations]
    if not _lie_together(parts):
        longest = max(parts, key=len)
        parts = [_read_off(part, _steps(longest), outcome) for part in parts]
    return _points(parts, "env_step", outcome)


def trajectory(group: RunGroup) -> list[Point]:
    """The outcome over the sparsity, from the last evaluation before the first removal on; see `stands_for`."""
    parts = _trajectories(group)
    return _points(_together(parts), "prune/sparsity", f"eval/{group.runs[0].outcome}")


def _trajectories(group: RunGroup) -> list[Rows]:
    """By what was gone, not by the step: an evaluation at a removal's was made before it, but for the run's last."""
    parts: list[Rows] = []
    for run in group.runs:
        if run.removals:
            whole = [row for row in run.evaluations if not row.get("prune/sparsity")]
            parts.append(whole[-1:] + [row for row in run.evaluations if row.get("prune/sparsity")])
    return parts


def removals(group: RunGroup) -> list[Removal]:
    """What each removal did to the outcome, in order; see `stands_for`."""
    outcome = group.runs[0].outcome
    found = []
    for rows in _by_index(_together([run.removals for run in group.runs])):
        before, after = (
            estimate([r.get(f"prune/{outcome}_{when}") for r in rows]) for when in ("before", "after")
        )
        found.append(Removal(_mean(rows, "env_step"), before, after))
    return found


def stands_for(group: RunGroup, what: Literal["trajectory", "removals"]) -> str | None:
    """The one run that stands for all of a group there, whose rows do not go together; None where all count.

    Where episodes end early, what is due waits for their ends. Runs with short episodes lie at slightly other steps
    then; with long ones, several removals can fall together, and the sixth of one run is the third of another.
    """
    found: list[tuple[ReportRun, Rows]]
    if what == "removals":
        found = [(run, run.removals) for run in group.runs]
    else:
        pruned = [run for run in group.runs if run.removals]
        found = list(zip(pruned, _trajectories(group), strict=True))
    shown = _together([rows for _, rows in found])
    return None if len(shown) == len(found) else next(run.name for run, rows in found if rows is shown[0])


def _points(parts: Sequence[Rows], x: str, outcome: str) -> list[Point]:
    """One point for the first rows of all runs, one for the second, and so on."""
    return [Point(_mean(rows, x), bootstrap([[row[outcome] for row in rows]])) for rows in _by_index(parts)]


def _together(parts: Sequence[Rows]) -> Sequence[Rows]:
    """All rows, if those of one number belong together; else the longest run's alone."""
    return parts if _lie_together(parts) else [max(parts, key=len)]


def _lie_together(parts: Sequence[Rows]) -> bool:
    """Whether rows of one number lie nearer to each other than to their neighbours.

    The last one is no measure of that: a run's end may come right after a row that was due before.
    """
    spacings = [
        later["env_step"] - row["env_step"]
        for part in parts
        for row, later in pairwise(part[:-1] if len(part) > 2 else part)
    ]
    apart = max((steps[-1] - steps[0] for steps in map(sorted, map(_steps, _by_index(parts)))), default=0)
    return apart <= min(spacings, default=inf) / 2


def _read_off(part: Rows, steps: Sequence[float], outcome: str) -> Rows:
    """Rows at these steps, as far as a run has come: linear between its own."""
    own = _steps(part)
    last = own[-1] + max((b - a for a, b in pairwise(own)), default=0) / 2
    values = np.interp(steps, own, [row[outcome] for row in part])
    return [{"env_step": s, outcome: float(v)} for s, v in zip(steps, values, strict=True) if s <= last]


def _steps(rows: Rows) -> list[float]:
    return [row["env_step"] for row in rows]


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
