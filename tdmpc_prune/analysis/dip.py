"""What removing units while learning did to the return: the dip and the recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log
from typing import Any

import numpy as np

RECOVERED = 0.95

Points = Sequence[tuple[float, float]]
"""Environment steps and the return measured there, in order; a removal has two."""


def dip(rows: Sequence[Mapping[str, Any]], reference: float | None = None) -> dict[str, float | int | None]:
    """The dip of a pruned run, from the rows of its metrics.jsonl; {} if nothing was removed.

    Args:
        rows: all rows, in order.
        reference: the dense return to recover to; the run's own best evaluation if none.

    Returns:
        `lowest_return`: the lowest return measured right after a removal (and its `prune.recovery`, if there is
        any). `largest_drop`: the most that the return fell from right before a removal to right after it.
        `window_return`: the mean return while units are removed (see `course`, `window` and `mean_between`),
        None if removals were not measured. `window_return_by_size`: the same by what was left rather than by
        time (see `mean_by_size`).
        `recovery_steps`: environment steps from the last removal to the first evaluation at most 5% below the
        reference, None if it never came.
    """
    events = [r for r in rows if "prune/event" in r]
    if not events:
        return {}
    evaluations = [(r["env_step"], r["eval/return"]) for r in rows if "eval/return" in r]
    last, removed = events[-1]["env_step"], max(i for i, r in enumerate(rows) if "prune/event" in r)
    # By order: an evaluation at the last removal's step comes after it where the run ends there, else before it.
    later = [(r["env_step"], r["eval/return"]) for r in rows[removed:] if "eval/return" in r]
    best = reference if reference is not None else max(value for _, value in evaluations)
    measured = [
        (r["prune/return_before"], r["prune/return_after"]) for r in events if "prune/return_after" in r
    ]
    after = [(last, measured[-1][1])] if measured else []
    recovered = [step - last for step, value in after + later if value >= best - (1 - RECOVERED) * abs(best)]
    return {
        "lowest_return": min((after for _, after in measured), default=None),
        "largest_drop": max((max(before - after, 0.0) for before, after in measured), default=None),
        "window_return": mean_between(course(rows), *window(rows)) if measured else None,
        "window_return_by_size": mean_by_size(rows) if measured else None,
        "recovery_steps": recovered[0] if recovered else None,
    }


def course(rows: Sequence[Mapping[str, Any]]) -> Points:
    """The return over time: right before and right after every removal, and at the evaluations in between.

    An evaluation at the step of a removal comes before it, and says nothing of what the removal did.
    """
    removals = {r["env_step"] for r in rows if "prune/return_after" in r}
    points = []
    for row in rows:
        step = row["env_step"]
        if "prune/return_after" in row:
            points += [(step, row["prune/return_before"]), (step, row["prune/return_after"])]
        elif "eval/return" in row and step not in removals:
            points.append((step, row["eval/return"]))
    return points


def window(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From right after the first removal until as long after the last one as they are apart: each counts alike.

    To the end of the run at most; where there is one removal only, to the end.
    """
    events = [r["env_step"] for r in rows if "prune/event" in r]
    end = rows[-1]["env_step"]
    if len(events) == 1:
        return events[0], end
    return events[0], min(events[-1] + (events[-1] - events[0]) / (len(events) - 1), end)


def mean_by_size(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over the sizes that a run went through in `window`: every halving of its parameters weighs alike.

    A run that removes less at first, as the Bayesian criteria's guard has it, would else be compared with runs that
    are smaller than it for most of the time. None where `mean_between` is, or where rows do not say the sparsity.
    """
    events = [row for row in rows if "prune/event" in row]
    if not all("prune/sparsity" in row for row in events):
        return None
    left = [1.0, *(1 - row["prune/sparsity"] for row in events)]
    steps = [*(row["env_step"] for row in events), window(rows)[1]]
    points = course(rows)
    total = weights = 0.0
    for (before, after), (start, end) in zip(pairwise(left), pairwise(steps), strict=True):
        if start < end:
            value = mean_between(points, start, end)
            if value is None:
                return None
            weight = log(before / after)
            total, weights = total + weight * value, weights + weight
    return total / weights if weights else None


def mean_between(points: Points, first: float, last: float) -> float | None:
    """Mean over time from right after `first` to right before `last`, linear between points.

    None where they do not reach so far, or that is no time at all.
    """
    total = 0.0
    for (start, before), (end, after) in pairwise(points):
        a, b = max(start, first), min(end, last)
        if a < b:
            values = np.interp([a, b], [start, end], [before, after])
            total += (b - a) * float(values.mean())
    covered = points and points[0][0] <= first < last <= points[-1][0]
    return total / (last - first) if covered else None
