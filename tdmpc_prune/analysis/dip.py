"""What removing units while learning did to the return: the dip and the recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

RECOVERED = 0.95


def dip(rows: Sequence[Mapping[str, Any]], reference: float | None = None) -> dict[str, float | int | None]:
    """The dip of a pruned run, from the rows of its metrics.jsonl; {} if nothing was removed.

    Args:
        rows: all rows, in order.
        reference: the dense return to recover to; the run's own best evaluation if none.

    Returns:
        `lowest_return`: the lowest return measured right after a removal. `largest_drop`: the most that the
        return fell from right before a removal to right after it. `window_return`: mean evaluation return
        from the first removal to the last. `recovery_steps`: environment steps from the last removal to
        the first evaluation with 95% of the reference, None if it never came.
    """
    events = [r for r in rows if "prune/event" in r]
    if not events:
        return {}
    evaluations = [(r["env_step"], r["eval/return"]) for r in rows if "eval/return" in r]
    first, last = events[0]["env_step"], events[-1]["env_step"]
    best = reference if reference is not None else max(value for _, value in evaluations)
    measured = [
        (r["prune/return_before"], r["prune/return_after"]) for r in events if "prune/return_after" in r
    ]
    window = [value for step, value in evaluations if first <= step <= last]
    after = [(last, measured[-1][1])] if measured else []
    recovered = [
        step - last
        for step, value in after + [e for e in evaluations if e[0] > last]
        if value >= RECOVERED * best
    ]
    return {
        "lowest_return": min((after for _, after in measured), default=None),
        "largest_drop": max((before - after for before, after in measured), default=None),
        "window_return": mean(window) if window else None,
        "recovery_steps": recovered[0] if recovered else None,
    }
