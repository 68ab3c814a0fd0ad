"""Figures with a line or point per group: outcome over steps, sparsity, parameters and milliseconds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc_prune.analysis.report.canvas import COLOURS, INK, MARKERS
from tdmpc_prune.analysis.report.groups import RunGroup, Section
from tdmpc_prune.analysis.report.numbers import (
    Point,
    ends,
    learning_curve,
    pareto_front,
    removals,
    trajectory,
)
from tdmpc_prune.analysis.report.results import GroupResult
from tdmpc_prune.analysis.report.timing import Timings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = 48
"""Characters of a line of a panel's title."""
MOST_ROWS = 4
"""Of ticks at the foot of a figure."""
SPARSITY = "sparsity (share of the parameters removed)"


@dataclass(frozen=True)
class Look:
    """How a group looks in every figure."""

    color: str
    marker: str
    linestyle: str

    @property
    def line(self) -> dict[str, Any]:
        """Of a line with marked points."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, "markersize": 4}

    @property
    def point(self) -> dict[str, Any]:
        """Of a point alone."""
        return {"color": self.color, "marker": self.marker, "linestyle": "none"}


def looks(section: Section) -> dict[str, Look]:
    """By label: dense groups in the colour of the text, each other one in its own.

    Where the colours do not suffice: one for each family, and a mark for each sparsity.
    """
    found: dict[str, Look] = {}
    for number, group in enumerate(group for group in section.groups if group.dense):
        found[group.label] = Look(INK, "*x+"[number % 3], "--")
    pruned = [group for group in section.groups if not group.dense]
    if len(pruned) <= len(COLOURS):
        own = zip(pruned, COLOURS, MARKERS, strict=False)
        return found | {group.label: Look(color, marker, "-") for group, color, marker in own}
    targets = sorted({group.target for group in pruned})
    for number, groups in enumerate(families(section).values()):
        turn, color = divmod(number, len(COLOURS))
        for group in groups:
            mark = targets.index(group.target) if len(targets) > 1 else number
            line = ("-", ":", "-.")[turn % 3]
            found[group.label] = Look(COLOURS[color], MARKERS[mark % len(MARKERS)], line)
    return found


def over_sparsity(figure: Figure, section: Section) -> None:
    """The outcome while a group is pruned, over the sparsity reached."""
    axes = figure.subplots()
    look = looks(section)
    for group in section.groups:
        if group.dense:
            _level(axes, group, look[group.label])
        elif points := trajectory(group):
            _line(axes, points, look[group.label], group.label, len(section.groups))
            axes.plot(points[-1].x, points[-1].y.value, **look[group.label].point, markersize=9)
    axes.set(xlabel=SPARSITY)
    _finish(figure, axes, section)


def over_targets(figure: Figure, section: Section) -> None:
    """The outcome in the end, over the sparsity that a group was to reach."""
    axes = figure.subplots()
    look = looks(section)
    for group in (g for g in section.groups if g.dense):
        _level(axes, group, look[group.label])
    members = list(families(section).values())
    for number, groups in enumerate(members):
        # Else the strokes of all families coincide; but never by more than half a percent.
        aside = min(0.004, 0.01 / len(members)) * (number - (len(members) - 1) / 2)
        ended = [(group, group.target + aside, end) for group in groups if (end := ends(group.counted))]
        colors = {look[group.label].color for group in groups}
        color, alpha = (colors.pop(), 1.0) if len(colors) == 1 else (INK, 0.35)
        axes.plot([x for _, x, _ in ended], [end.value for _, _, end in ended], color=color, alpha=alpha)
        for group, x, end in ended:
            axes.vlines(x, end.low, end.high, color=look[group.label].color, linewidth=1.8)
            axes.plot(x, end.value, **look[group.label].point, markersize=6, label=group.label)
    axes.set(xlabel=SPARSITY)
    _finish(figure, axes, section)


def families(section: Section) -> dict[str, list[RunGroup]]:
    """Pruned groups that differ in their sparsity alone, the least pruned first."""
    found: dict[str, list[RunGroup]] = {}
    for group in section.groups:
        if not group.dense:
            found.setdefault(group.family, []).append(group)
    return {family: sorted(groups, key=lambda g: g.target) for family, groups in found.items()}


def over_steps(figure: Figure, section: Section) -> None:
    """Learning curves, with ticks at the foot where units were removed."""
    axes = figure.subplots()
    look = looks(section)
    for group in section.groups:
        _line(axes, learning_curve(group), look[group.label], group.label, len(section.groups))
    rows = _tick_rows(section, look)
    if rows and section.outcome == "return":  # room for the ticks
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.04 * len(rows) * (high - low), high)
    for number, (steps, color) in enumerate(rows):
        height = [0.02 + 0.035 * number] * len(steps)
        axes.plot(steps, height, "|", color=color, markersize=6, transform=axes.get_xaxis_transform())
    steps_axis(axes, section)
    _finish(figure, axes, section)


def _tick_rows(section: Section, look: Mapping[str, Look]) -> list[tuple[list[float], str]]:
    """Steps of the removals and their colour: one row where all groups have the same, or too many differ."""
    found = {group.label: [removal.env_step for removal in removals(group)] for group in section.groups}
    found = {label: steps for label, steps in found.items() if steps}
    longest = max(found.values(), key=len, default=[])
    if not found or all(steps == longest[: len(steps)] for steps in found.values()):
        return [(longest, INK)] if longest else []
    if len(found) > MOST_ROWS:
        return [(sorted({step for steps in found.values() for step in steps}), INK)]
    return [(steps, look[label].color) for label, steps in found.items()]


def before_and_after(figure: Figure, section: Section) -> None:
    """Right before and right after every removal, a panel for each pruned group."""
    groups = measured(section)
    look = looks(section)
    grid = panels(figure, len(groups))
    for axes, group in zip(grid, groups, strict=False):
        color = look[group.label].color
        curve = learning_curve(group)
        axes.plot([p.x for p in curve], [p.y.value for p in curve], color=INK, alpha=0.25, linewidth=1)
        for removal in removals(group):
            if removal.before and removal.after:
                x, before, after = removal.env_step, removal.before.value, removal.after.value
                axes.plot([x, x], [before, after], color=color, linewidth=1.4)
                axes.plot(x, before, "o", markersize=4, markeredgecolor=color, markerfacecolor="none")
                axes.plot(x, after, "o", markersize=4, color=color)
        axes.set_title(textwrap.fill(group.label, TITLE), fontsize=9)
    for axes in grid[::2]:
        _outcome_axis(axes, section)
    for axes in grid[-2:]:
        steps_axis(axes, section)


def measured(section: Section) -> list[RunGroup]:
    """Groups whose removals were measured."""
    return [g for g in section.groups if any(r.before and r.after for r in removals(g))]


def latency(figure: Figure, section: Section, timings: Timings, periods: Mapping[Path, float]) -> None:
    """Milliseconds per control step over sparsity, a point for each run, and the time that there is."""
    axes = figure.subplots()
    look = looks(section)
    for group in section.groups:
        style, label = look[group.label], group.label
        for run in group.runs:
            if (timing := timings.of.get(run.path)) is None:
                continue
            axes.plot(run.sparsity, timing.median, **style.point, markersize=6, label=label)
            if timing.p99 is not None:
                axes.plot([run.sparsity] * 2, [timing.median, timing.p99], color=style.color, linewidth=1)
                axes.plot(run.sparsity, timing.p99, "_", color=style.color, markersize=9)
            label = "_"  # one entry of the legend for all its runs
    for period in sorted({periods[run.path] for run in section.runs if run.path in periods}):
        axes.axhline(period, color=INK, linestyle=(0, (6, 3)), linewidth=1.6)
        text = f"control period: {period:g} ms"
        where: dict[str, Any] = {
            "xycoords": axes.get_yaxis_transform(),
            "textcoords": "offset points",
            "ha": "right",
        }
        axes.annotate(text, (0.99, period), (0, 4), **where, color=INK, fontsize=9)
    axes.set(xlabel=SPARSITY, ylabel="ms per control step", yscale="log", xlim=(-0.03, 1))
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.5)
    plain_ticks(axes.yaxis)
    _legend(figure, axes)


def pareto(figure: Figure, section: Section, results: Sequence[GroupResult]) -> None:
    """The outcome in the end against what it costs; groups that no other beats are ringed and joined."""
    costs = [(name, key) for name, key in COSTS.items() if pareto_points(results, key)]
    look = looks(section)
    grid = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (name, cost) in zip(grid, costs, strict=True):
        shown = pareto_points(results, cost)
        for result, x, end in shown:
            style = look[result.group.label]
            axes.vlines(x, end.low, end.high, color=style.color, linewidth=1.2, alpha=0.7)
            axes.plot(x, end.value, **style.point, markersize=6, label=result.group.label)
        best = pareto_front([(x, section.sign * end.value) for _, x, end in shown])
        line = [(shown[i][1], shown[i][2].value) for i in best]
        axes.plot(
            *zip(*line, strict=True),
            color=INK,
            marker="o",
            markersize=12,
            markerfacecolor="none",
            linewidth=1,
            alpha=0.6,
            label="not beaten",
        )
        axes.set(xlabel=name, xscale="log")
        _widen(axes)
        plain_ticks(axes.xaxis)
    _outcome_axis(grid[0], section)
    _legend(figure, grid[0])


COSTS: dict[str, Callable[[GroupResult], float | None]] = {
    "parameters": lambda result: result.parameters,
    "ms per control step": lambda result: result.ms,
}
"""What a controller costs."""


def pareto_points(results: Sequence[GroupResult], cost: Callable[[GroupResult], float | None]) -> list[Any]:
    """Groups whose cost and outcome are known: (result, cost, outcome)."""
    return [(r, x, r.end) for r in results if (x := cost(r)) is not None and r.end is not None]


# What they share


def panels(figure: Figure, count: int, *, sharey: bool = True) -> list[Axes]:
    """Panels in two columns with common axes; those left over are gone."""
    columns = min(count, 2)
    rows = -(-count // columns)
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    if count % columns:  # the panel above the gap is the last of its column
        grid[count - columns].tick_params(labelbottom=True)
    return grid[:count]


def _line(axes: Axes, points: Sequence[Point], style: Look, label: str, among: int) -> None:
    """Points and the interval around them, fainter among many."""
    x = [point.x for point in points]
    axes.plot(x, [point.y.value for point in points], **style.line, label=label)
    low, high = [p.y.low for p in points], [p.y.high for p in points]
    axes.fill_between(x, low, high, color=style.color, alpha=0.18 if among <= 5 else 0.08, linewidth=0)


def _level(axes: Axes, group: RunGroup, style: Look) -> None:
    """The end of a dense group, as a line all across."""
    if end := ends(group.counted):
        axes.axhline(
            end.value, color=style.color, linestyle=style.linestyle, linewidth=1.4, label=group.label
        )
        axes.axhspan(end.low, end.high, color=style.color, alpha=0.1, linewidth=0)


def _outcome_axis(axes: Axes, section: Section) -> None:
    if section.outcome == "return":
        axes.set(ylabel="return")
    else:
        axes.set(ylabel="squared error", yscale="log")
        plain_ticks(axes.yaxis)


def steps_axis(axes: Axes, section: Section) -> None:
    """Environment steps or updates along x."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set(xlabel=section.steps)
    axes.xaxis.set_major_locator(MaxNLocator(3 if len(axes.figure.axes) > 1 else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _finish(figure: Figure, axes: Axes, section: Section) -> None:
    _outcome_axis(axes, section)
    _legend(figure, axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the figure, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = legend_columns(labels)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def legend_columns(labels: Sequence[str]) -> int:
    """As many as fit."""
    return 2 if max(map(len, labels), default=0) < 27 else 1


def _widen(axes: Axes) -> None:
    """Room around the points, lest noise looks large: a factor of two on a logarithmic x axis, a tenth of y."""
    axes.margins(0.15)
    bottom, top = axes.get_ylim()
    if top - bottom < (least := 0.1 * max(abs(bottom), abs(top))):
        axes.set_ylim((bottom + top - least) / 2, (bottom + top + least) / 2)
    low, high = axes.get_xlim()
    if high < 2 * low:
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / 2**0.5, middle * 2**0.5)


def plain_ticks(axis: Any) -> None:
    """Numbers in full on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
