"""Groups of one sparsity side by side: what each came to in the end, and while units were removed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tdmpc_prune.analysis.report.canvas import COLOURS, INK, MARKERS
from tdmpc_prune.analysis.report.figures import plain_ticks
from tdmpc_prune.analysis.report.groups import RunGroup, Section, percent
from tdmpc_prune.analysis.report.results import GroupResult
from tdmpc_prune.analysis.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES: dict[str, Callable[[GroupResult], Estimate | None]] = {
    "in the end": lambda result: result.end,
    "while units are removed": lambda result: result.window,
}
"""What groups are compared by."""
RIVALS = 3
"""Groups of one sparsity from which on a comparison has a figure of its own."""


def side_by_side(figure: Figure, section: Section, results: Sequence[GroupResult]) -> None:
    """A row of panels for each target sparsity, in it a row for each group, the best one uppermost."""
    rivals = compared(results)
    measures = [
        name for name in MEASURES if any(MEASURES[name](r) for found in rivals.values() for r in found)
    ]
    groups = [r.group for found in rivals.values() for r in found]
    common = set.intersection(*(set(group.kind.split()) for group in groups))
    extras = {group.extras for group in groups}
    common |= extras if len(extras) == 1 else set()
    manners = sorted(set(map(manner, groups)))
    grid = figure.subplots(
        len(rivals),
        len(measures),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=[len(found) + 1 for found in rivals.values()],
    )
    for line, (target, found) in zip(grid, rivals.items(), strict=True):
        for axes, name in zip(line, measures, strict=True):
            for row, result in enumerate(found):
                turn, color_index = divmod(manners.index(manner(result.group)), len(COLOURS))
                color, marker = COLOURS[color_index], MARKERS[turn % len(MARKERS)]
                if value := MEASURES[name](result):
                    axes.hlines(row, value.low, value.high, color=color, linewidth=1.8)
                    axes.plot(value.value, row, marker, markersize=4, color=color)
            for end in {r.dense for r in found if r.dense}:
                axes.axvline(end.value, color=INK, linestyle="--", linewidth=1.2)
            axes.set_title(name if target == min(rivals) else "", fontsize=9)
        names = [textwrap.fill(_without(r.group, common), 40) for r in found]
        line[0].set_yticks(range(len(found)), names, fontsize=8)
        line[0].set_ylim(len(found) - 0.4, -0.6)
        line[-1].set_ylabel(f"{percent(target)} removed", rotation=270, labelpad=14)
        line[-1].yaxis.set_label_position("right")
    for axes in grid[-1]:
        axes.set_xlabel("return" if section.outcome == "return" else "squared error")
        if section.outcome != "return":
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)


def compared(results: Sequence[GroupResult]) -> dict[float, list[GroupResult]]:
    """By target sparsity, where there are several: groups of known outcome, the best one first."""
    found: dict[float, list[GroupResult]] = {}
    for result in results:
        if not result.group.dense and result.end is not None:
            found.setdefault(result.group.target, []).append(result)
    return {
        target: sorted(found[target], key=_merit) for target in sorted(found) if len(found[target]) >= RIVALS
    }


def _merit(result: GroupResult) -> float:
    """Less is better; by what happens while units are removed, where that is known: ends forgive much."""
    value = result.window or result.end
    assert value is not None, "a group of unknown outcome"
    return -value.value if result.group.runs[0].outcome == "return" else value.value


def _without(group: RunGroup, common: set[str]) -> str:
    """A group's name but for what is common to all, unless that leaves nothing."""
    kind = " ".join(word for word in group.kind.split() if word not in common)
    return (kind + ("" if group.extras in common else group.extras)).strip() or group.kind


def manner(group: RunGroup) -> str:
    """How a group is pruned, whatever its criterion."""
    return group.family.partition(" ")[2]
