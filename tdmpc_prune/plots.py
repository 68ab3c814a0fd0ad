"""Pictures of one run."""

from __future__ import annotations

from pathlib import Path

from tdmpc_prune.logger import read_metrics
from tdmpc_prune.run_folder import RunFolder


def plot_learning_curve(folder: RunFolder) -> Path:
    """Draws evaluation and training returns over environment steps into plots/learning_curve.png."""
    from matplotlib.figure import Figure  # heavy, and needed once a run

    rows = read_metrics(folder.metrics)
    evaluations = [r for r in rows if "eval/return" in r]
    episodes = [r for r in rows if "train/return" in r]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [r["env_step"] for r in episodes],
        [r["train/return"] for r in episodes],
        color="0.7",
        linewidth=1,
        label="training episodes",
    )
    steps = [r["env_step"] for r in evaluations]
    means = [r["eval/return"] for r in evaluations]
    spread = [r["eval/return_std"] for r in evaluations]
    axes.plot(steps, means, color="C0", marker="o", markersize=3, label="evaluation, mean")
    axes.fill_between(
        steps,
        [m - s for m, s in zip(means, spread, strict=True)],
        [m + s for m, s in zip(means, spread, strict=True)],
        color="C0",
        alpha=0.2,
        linewidth=0,
        label="± standard deviation over episodes",
    )
    axes.set(xlabel="environment steps", ylabel="return", title=folder.path.name)
    axes.legend(frameon=False)
    folder.plots.mkdir(exist_ok=True)
    path = folder.plots / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path
