"""Draws the learning curves under results/ beside the published ones: python -m results.plot"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
TASKS = ("cartpole-swingup", "walker-walk", "InvertedPendulum-v5")
Curve = dict[int, list[float]]


def ours(path: Path) -> Curve:
    """Returns of all seeds by environment step."""
    curve: Curve = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            curve[int(row["env_step"])].append(float(row["return"]))
    seeds = max(len(returns) for returns in curve.values())
    # Episodes that terminate end at different steps in every seed: round to what the seeds share.
    if any(len(returns) < seeds for returns in curve.values()):
        rounded: Curve = defaultdict(list)
        for step, returns in curve.items():
            rounded[round(step / 1000) * 1000] += returns
        curve = rounded
    return dict(sorted(curve.items()))


def published(task: str) -> list[tuple[int, float]]:
    """Mean return of the public TD-MPC code over 5 seeds, by environment step."""
    with (HERE / "published_tdmpc.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == task]
    return [(int(r["env_step"]), float(r["return"])) for r in rows]


def draw(axes: Axes, curve: Curve, what: str, color: str) -> None:
    """Mean and range over seeds."""
    steps, seeds = list(curve), max(map(len, curve.values()))
    label = f"{what}, {seeds} seeds: mean and range" if seeds > 1 else f"{what}, one seed"
    axes.plot(steps, [mean(curve[s]) for s in steps], color, marker="o", markersize=3, label=label)
    low, high = [min(curve[s]) for s in steps], [max(curve[s]) for s in steps]
    axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def main() -> None:
    """Writes results/learning_curves.png."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        dense = ours(HERE / f"dense-{task}.csv")
        draw(axes, dense, "dense", "C0")
        pruned = HERE / f"pruned-80-{task}.csv"
        if pruned.exists():
            draw(axes, ours(pruned), "pruned to 80%", "C1")
        reference = [(s, r) for s, r in published(task) if s <= max(dense)]
        if reference:
            label = "published TD-MPC, dense, paper sizes"
            axes.plot(*zip(*reference, strict=True), "k--", marker="s", markersize=3, label=label)
        axes.set(title=task, xlabel="environment steps", ylim=(-250, 1050), yticks=range(0, 1001, 200))
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("evaluation return")
    figure.savefig(HERE / "learning_curves.png", dpi=130)


if __name__ == "__main__":
    main()
