"""Pictures of one run, drawn from its metrics.jsonl into plots/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tdmpc_prune.logger import read_metrics
from tdmpc_prune.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

HEAT_MAP = ("gradient", "fisher", "bayesian", "magnitude")


def plot_run(folder: RunFolder) -> None:
    """Draws the learning curve and, of a pruned run, return over sparsity, widths and importance."""
    from matplotlib.figure import Figure  # heavy, and needed once a run

    rows = read_metrics(folder.metrics)
    draw = {"learning_curve": _learning_curve}
    if any("prune/event" in row for row in rows):
        draw |= {"sparsity": _sparsity, "widths": _widths, "importance": _importance}
    folder.plots.mkdir(exist_ok=True)
    for name, into in draw.items():
        figure = Figure(figsize=(9, 6) if name == "importance" else (7, 4), layout="constrained")
        into(figure, rows)
        figure.suptitle(folder.path.name)
        figure.savefig(folder.plots / f"{name}.png", dpi=150)


def outcome(rows: Rows) -> tuple[str, str]:
    """What a run is judged by: its key in the rows under eval/ and train/, and its name."""
    return ("return", "return") if any("eval/return" in row for row in rows) else ("error", "squared error")


def _learning_curve(figure: Figure, rows: Rows) -> None:
    key, name = outcome(rows)
    axes = figure.subplots()
    steps, means = _series(rows, f"eval/{key}")
    _, spread = _series(rows, f"eval/{key}_std")
    trained = {"return": "train/return", "error": "train/reconstruction_loss"}[key]
    axes.plot(*_series(rows, trained), color="0.7", linewidth=1, label="training")
    axes.plot(steps, means, color="C0", marker="o", markersize=3, label="evaluation, mean")
    if spread:
        low = [m - s for m, s in zip(means, spread, strict=True)]
        high = [m + s for m, s in zip(means, spread, strict=True)]
        label = "± standard deviation over episodes"
        axes.fill_between(steps, low, high, color="C0", alpha=0.2, linewidth=0, label=label)
    _mark_events(axes, rows)
    axes.set(xlabel=_steps(rows), ylabel=name)
    axes.legend(frameon=False, fontsize=8)


def _sparsity(figure: Figure, rows: Rows) -> None:
    """The outcome over sparsity: evaluations, and right before and after every removal."""
    key, name = outcome(rows)
    axes = figure.subplots()
    seen = [(r["prune/sparsity"], r[f"eval/{key}"]) for r in rows if f"eval/{key}" in r]
    axes.plot(*zip(*seen, strict=True), color="C0", marker="o", markersize=3, label="evaluations")
    before = 0.0
    for event in (r for r in rows if f"prune/{key}_after" in r):
        label = None if before else "right before and after a removal"
        values = [event[f"prune/{key}_before"], event[f"prune/{key}_after"]]
        axes.plot([before, event["prune/sparsity"]], values, color="C1", alpha=0.7, marker=".", label=label)
        before = event["prune/sparsity"]
    axes.set(xlabel="sparsity (share of the parameters removed)", ylabel=name)
    axes.legend(frameon=False, fontsize=8)


def _widths(figure: Figure, rows: Rows) -> None:
    axes = figure.subplots()
    for i, name in enumerate(_names(rows, "prune/width/")):
        steps, widths = _series(rows, f"prune/width/{name}")
        shares = [width / widths[0] for width in widths]
        axes.step(steps, shares, where="post", label=name, linestyle="-" if i < 10 else "--")
    axes.set(xlabel=_steps(rows), ylabel="share of the units left", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _importance(figure: Figure, rows: Rows) -> None:
    """Heat maps of the groups' mean importance over time, relative to all groups, one per criterion."""
    from matplotlib.colors import LogNorm

    grid = list(figure.subplots(2, 2, sharex=True, sharey=True).flat)
    mesh = None
    for axes, criterion in zip(grid, HEAT_MAP, strict=True):
        prefix = f"importance/{criterion}/"
        names = _names(rows, prefix)
        steps, _ = _series(rows, prefix + names[0])
        values = np.array([_series(rows, prefix + name)[1] for name in names])
        values = (values / values.mean(0)).clip(1e-9)
        mesh = axes.pcolormesh(steps, range(len(names)), values, norm=LogNorm(1e-3, 1e1), shading="nearest")
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(criterion, fontsize=9)
    grid[0].invert_yaxis()
    for axes in grid[2:]:
        axes.set_xlabel(_steps(rows))
    if mesh is not None:
        label = "mean score of a group / mean over all groups"
        figure.colorbar(mesh, ax=figure.axes, label=label, extend="both")


def _steps(rows: Rows) -> str:
    """What env_step counts."""
    return "environment steps" if outcome(rows)[0] == "return" else "updates"


def _mark_events(axes: Axes, rows: Rows) -> None:
    for i, event in enumerate(r for r in rows if "prune/event" in r):
        label = None if i else "units removed"
        axes.axvline(event["env_step"], color="C3", linewidth=0.8, alpha=0.4, label=label)


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a key."""
    found = [(r["env_step"], r[key]) for r in rows if key in r]
    return [step for step, _ in found], [value for _, value in found]


def _names(rows: Rows, prefix: str) -> list[str]:
    """What follows a prefix in the rows' keys, in their order."""
    return list(dict.fromkeys(k.removeprefix(prefix) for r in rows for k in r if k.startswith(prefix)))
