"""The figures of results/answers/: those of `tdmpc-prune report`, and learning curves beside published ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from results.store import Store
from results.studies import CARTPOLE, TASKS
from results.tables import published, recorded, recorded_names
from tdmpc_prune.analysis.report.groups import RunGroup
from tdmpc_prune.analysis.report.numbers import learning_curve
from tdmpc_prune.analysis.report.page import make_report

FIGURES = Path(__file__).parent / "figures"
SHOWN = {
    "criteria": ("side-by-side",),
    "walker": ("side-by-side",),
    "validity": ("importance",),
    "removals": ("learning-curves", "removals"),
    "allocation": ("learning-curves", "widths"),
    "autoencoder": ("side-by-side", "taylor-uniform-cut-only-80"),
}
"""Which of a report's figures are kept for a study, by what their names hold."""


HEADLINE = (
    "dense",
    "taylor uniform 0.95",
    "taylor uniform 0.95 prune.compensation=none",
    "taylor uniform 0.98",
    "taylor uniform 0.98 prune.selection=surgeon",
)
"""The project's own first picture: dense agents, and what compensation and selection do."""


def write(store: Store) -> None:
    """Draws all that there are numbers for."""
    FIGURES.mkdir(exist_ok=True)
    _agent(store)
    headline = [
        name for name in store.entries if name.startswith(tuple(f"{CARTPOLE} {h} seed" for h in HEADLINE))
    ]
    _report("headline", headline, ("learning-curves", "removals"), store)
    for study, kinds in SHOWN.items():
        _report(study, recorded_names(study, store), kinds, store)


def _report(prefix: str, names: Sequence[str], kinds: Sequence[str], store: Store) -> None:
    """Keeps some figures of a report on recorded runs."""
    for path in FIGURES.glob(f"{prefix}-*.png"):
        path.unlink()
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = store.unpack(names, Path(folder, "runs"))
        made = make_report(runs, Path(folder, "report"), "none", torch.device("cpu"))
        for path in map(Path, made["figures"]):
            if any(kind in path.name for kind in kinds):
                shutil.copy(path, FIGURES / f"{prefix}-{path.name}")


def _agent(store: Store) -> None:
    """A panel a task: our seeds' interquartile mean and interval, and the published mean."""
    parts = {section.task: section for section in recorded("agent", store)}
    tasks = [task for task in TASKS if task in parts]
    if not tasks:
        return
    rows = -(-len(tasks) // 4)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, min(len(tasks), 4), squeeze=False).flat
    for axes, task in zip(grid, tasks, strict=False):
        for number, group in enumerate(parts[task].groups):
            points = learning_curve(group)
            steps = [point.x for point in points]
            axes.plot(steps, [p.y.value for p in points], color=f"C{number}", label=_label(group))
            low, high = [p.y.low for p in points], [p.y.high for p in points]
            axes.fill_between(steps, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        theirs = [row for row in published() if row["task"] == task and int(row["env_step"]) <= 100_000]
        x, y = [int(row["env_step"]) for row in theirs], [float(row["return"]) for row in theirs]
        if theirs:
            axes.plot(x, y, "k--", marker="s", markersize=3, label="published")
        axes.set(title=task, xlabel="environment steps", ylim=(-20, 1020))
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    figure.savefig(FIGURES / "agent.png", dpi=110)


def _label(group: RunGroup) -> str:
    seeds, preset = len(group.runs), group.settings.get("preset", "laptop")
    return f"{preset}, {group.settings['agent.schedule_steps']:,}, {seeds} seed{'s' if seeds > 1 else ''}"
