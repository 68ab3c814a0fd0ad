"""Figures of what lies inside a group: importance, widths and sparsities of its parts over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tdmpc_prune.analysis.report.canvas import COLOURS
from tdmpc_prune.analysis.report.figures import panels, steps_axis
from tdmpc_prune.analysis.report.groups import RunGroup, Section
from tdmpc_prune.analysis.report.numbers import HeatMap, component_sparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

CLIP = 1e-9
"""Stands for a score of zero on a logarithmic scale."""


def criteria(group: RunGroup) -> list[str]:
    """The criteria that a group's runs logged."""
    keys = (key for run in group.runs for row in run.rows for key in row if key.startswith("importance/"))
    return list(dict.fromkeys(key.split("/")[1] for key in keys))


def importances(figure: Figure, section: Section, maps: Mapping[str, HeatMap]) -> None:
    """A heat map for each criterion: score of a pruning group relative to the mean over all, over time."""
    from matplotlib.colors import LogNorm

    grid = panels(figure, len(maps))
    for axes, (name, found) in zip(grid, maps.items(), strict=True):
        mesh = _mesh(axes, found, found.values.clip(CLIP), LogNorm(1e-3, 1e1))
        axes.set_title(name)
    _steps(grid, section)
    _bar(figure, mesh, "score of a pruning group / mean over all", extend="both")


def all_widths(figure: Figure, section: Section, maps: Mapping[str, HeatMap]) -> None:
    """A heat map for each group: share of the units left, over time, and how many are left in the end."""
    from matplotlib.colors import Normalize

    alike = len({tuple(found.names) for found in maps.values()}) == 1
    grid = panels(figure, len(maps), sharey=alike)
    for axes, (label, found) in zip(grid, maps.items(), strict=True):
        mesh = _mesh(axes, found, found.values / found.values[:, :1], Normalize(0, 1))
        for row, last in enumerate(found.values[:, -1]):
            where = axes.get_yaxis_transform()
            axes.text(1.015, row, f"{last:.3g}", transform=where, va="center", fontsize=7)
        axes.set_title(label)
    _steps(grid, section)
    _bar(figure, mesh, "share of the units left", extend="neither")


def components(figure: Figure, section: Section, groups: Sequence[RunGroup]) -> None:
    """Sparsity of each component over time, a panel for each group."""
    found_by_group = [(group, found) for group in groups if (found := component_sparsity(group))]
    grid = panels(figure, len(found_by_group))
    names: list[str] = []
    for axes, (group, found) in zip(grid, found_by_group, strict=True):
        names += [name for name in found.names if name not in names]
        for name, values in zip(found.names, found.values, strict=True):
            turn, color = divmod(names.index(name), len(COLOURS))
            axes.step(
                found.steps,
                values,
                where="post",
                color=COLOURS[color],
                linestyle=("-", "--", ":", "-.")[(turn + names.index(name)) % 4],
                label=name,
            )
        axes.set_title(group.label)
        axes.set(ylim=(0, 1))
    for axes in grid[::2]:
        axes.set(ylabel="share removed")
    _steps(grid, section)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def height(rows: int, count: int) -> float:
    """Inches for `count` heat maps of as many rows, in two columns."""
    return max(1.5, 0.13 * rows + 0.35) * -(-count // 2) + 0.9


def _mesh(axes: Axes, found: HeatMap, values: np.ndarray, norm: Normalize) -> QuadMesh:
    rows = range(len(found.names))
    # As an image within the SVG: thousands of rectangles would make a page of megabytes.
    mesh = axes.pcolormesh(found.steps, rows, values, norm=norm, shading="nearest", rasterized=True)
    axes.set_yticks(rows, found.names, fontsize=7)
    axes.grid(visible=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return mesh


def _steps(grid: Sequence[Axes], section: Section) -> None:
    for axes in grid[-2:]:
        steps_axis(axes, section)


def _bar(figure: Figure, mesh: QuadMesh, label: str, extend: str) -> None:
    """A colour bar below all panels."""
    from matplotlib.ticker import FuncFormatter

    bar = figure.colorbar(
        mesh,
        format=FuncFormatter(lambda value, _: f"{value:g}"),
        ax=figure.axes,
        label=label,
        extend=extend,
        location="bottom",
        aspect=45,
        shrink=0.8,
        pad=0.15 / figure.get_figheight(),
    )
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
