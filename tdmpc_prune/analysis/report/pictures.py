"""The figures of one task, in the page's order, with what to see in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from tdmpc_prune.analysis.report import figures, maps, rivals
from tdmpc_prune.analysis.report.canvas import COLOURS, Picture, paint, slug
from tdmpc_prune.analysis.report.groups import Section
from tdmpc_prune.analysis.report.numbers import (
    component_sparsity,
    importance,
    stands_for,
    trajectory,
    widths,
)
from tdmpc_prune.analysis.report.results import GroupResult
from tdmpc_prune.analysis.report.timing import Timings

BAND = "Lines: interquartile means over seeds; bands: their 95% bootstrap intervals."
PANEL = 3.1
"""Height of a figure with one panel, without its legend; inches."""
LEGEND_ROW = 0.19


def pictures(
    section: Section,
    results: Sequence[GroupResult],
    timings: Timings,
    periods: Mapping[Path, float],
    prefix: str,
) -> Iterator[Picture]:
    """Draws every figure that a task's runs have numbers for, one after the other.

    Args:
        section: the task's groups.
        results: their numbers.
        timings: milliseconds per control step.
        periods: milliseconds that there are, by the run's folder.
        prefix: of the files' names.
    """
    yield from _outcomes(section, results, prefix)
    yield from _costs(section, results, timings, periods, prefix)
    yield from _parts(section, prefix)
    yield from _importances(section, prefix)


def _outcomes(section: Section, results: Sequence[GroupResult], prefix: str) -> Iterator[Picture]:
    """The outcome over sparsity and steps, and around removals."""
    word = section.outcome.title()
    dense = "Dashed: where the dense runs ended." if any(g.dense for g in section.groups) else ""
    better = "" if section.sign > 0 else "Less is better."
    if any(trajectory(group) for group in section.groups):
        yield paint(
            slug(prefix, "over sparsity"),
            f"{word} over sparsity",
            _words(
                "Evaluations from the last one before the first removal on; the large mark is the end. A line",
                "that goes up and down on the spot is learning after a removal.",
                BAND,
                _alone(section, "trajectory"),
                dense,
                better,
            ),
            partial(figures.over_sparsity, section=section),
            _height([group.label for group in section.groups]),
        )
    if found := rivals.compared(results):
        yield paint(
            slug(prefix, "side by side"),
            f"{word}, group by group",
            _words(
                "Groups that are to reach the same sparsity, the best one uppermost. What happens while units",
                "are removed tells more: in the end, much has been made up for. Marks: interquartile means over",
                "seeds; strokes: their 95% bootstrap intervals.",
                dense,
                better,
            ),
            partial(rivals.side_by_side, section=section, results=results),
            sum(len(groups) + 1 for groups in found.values()) * LEGEND_ROW + 0.9,
        )
    families = figures.families(section).values()
    if any(len(groups) > 1 for groups in families) and (not found or len(families) <= len(COLOURS)):
        yield paint(
            slug(prefix, "end over target"),
            f"{word} in the end over target sparsity",
            _words(
                "Groups that differ in the sparsity asked for alone. The further right a line keeps its level,",
                "the more can be spared. Strokes: 95% bootstrap intervals over seeds.",
                dense,
                better,
            ),
            partial(figures.over_targets, section=section),
            _height([group.label for group in section.groups]),
        )
    if any(run.evaluations for run in section.runs):
        ticks = "Ticks at the foot: removals." if any(run.removals for run in section.runs) else ""
        yield paint(
            slug(prefix, "learning curves"),
            "Learning curves",
            _words(
                f"{word} at every evaluation.", ticks, BAND, ticks and _alone(section, "removals"), better
            ),
            partial(figures.over_steps, section=section),
            _height([group.label for group in section.groups]),
        )
    if groups := figures.measured(section):
        yield paint(
            slug(prefix, "removals"),
            "What each removal did",
            _words(
                "Hollow: right before a removal; filled: right after it and its recovery, if any. A long",
                "stroke is a removal that cut deep. Grey: evaluations. Interquartile means over seeds.",
                _alone(section, "removals"),
                better,
            ),
            partial(figures.before_and_after, section=section),
            _rows(len(groups)) * 1.7 + 0.5,
        )


def _costs(
    section: Section,
    results: Sequence[GroupResult],
    timings: Timings,
    periods: Mapping[Path, float],
    prefix: str,
) -> Iterator[Picture]:
    """Milliseconds, and what the outcome costs."""
    timed = [timings.of[run.path] for run in section.runs if run.path in timings.of]
    if timed:
        p99 = any(timing.p99 is not None for timing in timed)
        yield paint(
            slug(prefix, "latency"),
            "Time per control step over sparsity",
            _words(
                f"A point for each run: the median{', and a stroke up to the 99th percentile' if p99 else ''};",
                f"{timings.how}. A controller must stay below the dashed line. A sparsity is a speed-up only",
                "where the points sink with it. What else the machine does meanwhile scatters them.",
            ),
            partial(figures.latency, section=section, timings=timings, periods=periods),
            _height([group.label for group in section.groups]),
        )
    if any(figures.pareto_points(results, cost) for cost in figures.COSTS.values()):
        yield paint(
            slug(prefix, "pareto"),
            f"{section.outcome.title()} against cost: the Pareto front",
            _words(
                "Ringed and joined: groups that no other beats by being as cheap and better, or cheaper and as",
                f"good. Best is {'up' if section.sign > 0 else 'down'} and to the left. Marks: interquartile",
                "means over seeds; strokes: 95% bootstrap intervals.",
            ),
            partial(figures.pareto, section=section, results=results),
            _height([group.label for group in section.groups]),
        )


def _parts(section: Section, prefix: str) -> Iterator[Picture]:
    """What is left of components and pruning groups."""
    lost = [(g, left) for g in section.groups if not g.dense and (left := component_sparsity(g))]
    if lost:
        yield paint(
            slug(prefix, "components"),
            "Sparsity of each component",
            _words(
                "What each component has lost: where an allocation takes from.",
                _sources({group.label: left.source for group, left in lost}),
            ),
            partial(maps.components, section=section, groups=[group for group, _ in lost]),
            _rows(len(lost)) * 1.6 + 0.9,
        )
    if found := {
        group.label: left for group in section.groups if not group.dense and (left := widths(group))
    }:
        yield paint(
            slug(prefix, "widths"),
            "Widths of the pruning groups",
            _words(
                "Bright: all units are there; dark: few are. On the right, the units left in the end.",
                _sources({label: left.source for label, left in found.items()}),
            ),
            partial(maps.all_widths, section=section, maps=found),
            maps.height(max(len(left.names) for left in found.values()), len(found)),
        )


def _importances(section: Section, prefix: str) -> Iterator[Picture]:
    """Heat maps of importance, a figure for each group."""
    for number, group in enumerate(section.groups, start=1):
        found = {name: scores for name in maps.criteria(group) if (scores := importance(group, name))}
        if found:
            first = next(iter(found.values()))
            yield paint(
                slug(prefix, "importance", str(number), group.label),
                f"Importance over time: {group.label}",
                _words(
                    f"A map for each criterion, {first.source}. Bright: units that score high, compared with",
                    "the mean over all pruning groups, which is 1. A row that changes its colour is a pruning",
                    "group whose importance changes while the agent learns.",
                ),
                partial(maps.importances, section=section, maps=found),
                maps.height(len(first.names), len(found)),
                folded=True,
            )


def _alone(section: Section, what: Literal["trajectory", "removals"]) -> str:
    """Which runs stand for their whole groups there."""
    found = {group.label: name for group in section.groups if (name := stands_for(group, what))}
    runs = "; ".join(f"of {label} only {name}" for label, name in found.items())
    shown = {"trajectory": "are shown", "removals": "have their removals shown"}[what]
    return f"Of groups whose runs are apart in time, single runs {shown}: {runs}." if found else ""


def _sources(sources: Mapping[str, str]) -> str:
    """Whose values are shown: once for all, or group by group."""
    if len(set(sources.values())) == 1:
        return f"Shown: {next(iter(sources.values()))}."
    return f"Shown: {'; '.join(f'{label}: {source}' for label, source in sources.items())}."


def _height(labels: Sequence[str]) -> float:
    """Inches of a figure with one panel and a legend."""
    return PANEL + LEGEND_ROW * (-(-len(labels) // figures.legend_columns(labels)) + 1)


def _rows(count: int) -> int:
    """Rows of so many panels in two columns."""
    return -(-count // 2)


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)
