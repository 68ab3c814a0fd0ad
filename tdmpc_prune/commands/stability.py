"""`tdmpc-prune stability`: up to which sparsity controllers still hold an equilibrium."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tdmpc_prune.commands.common import PICTURES, CommandConfig, save_picture, show, show_table
from tdmpc_prune.config import check_count, check_seed
from tdmpc_prune.places import check_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StabilityConfig(CommandConfig):
    """Judges stored runs at their task's equilibrium: how often a Lyapunov function fails to fall.

    The function is that of the reference's linearised loop. Empirical evidence, and no certificate.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or checkpoints, of one task: of different sparsities."""
    reference: Path | None = None
    """The run to compare with; by default the least sparse of the runs."""
    controller: Literal["planner", "policy"] = "planner"
    """planner: plan at every step; policy: the policy network alone."""
    starts: int = 32
    """States to start from, the same for every run."""
    steps: int = 50
    """Control steps from each, at most: one that leaves the region is over."""
    alpha: float = 0.001
    """V must fall by at least this share of itself in every step, or the step is a violation."""
    ball: float = 0.01
    """Nothing counts where V is below this share of its value where it first touches the region's end."""
    delta: float = 0.05
    """A run is safe if it violates, and leaves the region, at most this much more often than the reference."""
    seed: int = 0
    """Seed of the starts, the planner and the intervals."""
    plot: Path | None = None
    """Draw the violation rate over sparsity into this png or svg file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if not self.runs:
            raise ValueError("there is no run to judge: give at least one run folder")
        for name in ("starts", "steps"):
            check_count(name, getattr(self, name), most=10_000)
        for name in ("alpha", "delta"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; choose 0 or more, below 1")
        if not 0 < self.ball < 1:
            raise ValueError(f"ball is {self.ball}; choose more than 0, below 1")
        if self.plot is not None and self.plot.suffix not in PICTURES:
            raise ValueError(f"--plot {self.plot}: the file's name must end in {' or '.join(PICTURES)}")


def run(config: StabilityConfig) -> int:
    """Judges the runs and shows what was found."""
    from tdmpc_prune.analysis.stability import stability

    if config.plot is not None:
        check_file("--plot", config.plot)
    result = stability(
        config.runs,
        reference=config.reference,
        controller=config.controller,
        starts=config.starts,
        steps=config.steps,
        alpha=config.alpha,
        ball=config.ball,
        delta=config.delta,
        seed=config.seed,
        device=config.compute_on(),
    )
    if config.json:
        show(result, as_json=True)
    else:
        _show_tables(result)
    if config.plot is not None:  # last: what was measured has been shown, come what may
        save_picture(draw(result), config.plot)
    return 0


def _show_tables(result: dict[str, Any]) -> None:
    boundary = result["boundary"]
    show({**result, "boundary": "none" if boundary is None else boundary}, as_json=False)
    print()
    show_table([_shown(row) for row in result["runs"]])
    for warning in result["warnings"]:
        print(f"\n{warning}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A run's figures as its row of the table."""
    return {
        "run": row["run"],
        "sparsity": row["sparsity"],
        "parameters": row["parameters"],
        "violation_rate": row["violation_rate"],
        "95%": f"{row['violation_low']:.3f} to {row['violation_high']:.3f}",
        "left": row["left"],
        "distance": row["distance"],
        "policy_radius": row["spectral_radius"],
        "policy_offset": row["policy_offset"],
    }


def draw(result: dict[str, Any]) -> Figure:
    """The violation rate over sparsity, its intervals, and the safe compression boundary."""
    from matplotlib.figure import Figure  # heavy, and needed only here

    rows = result["runs"]
    sparsity, rate = [row["sparsity"] for row in rows], [row["violation_rate"] for row in rows]
    errors = [
        [max(0.0, row["violation_rate"] - row["violation_low"]) for row in rows],
        [max(0.0, row["violation_high"] - row["violation_rate"]) for row in rows],
    ]
    safe = next(row["violation_rate"] for row in rows if row["reference"]) + result["delta"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(sparsity, rate, errors, color="C0", fmt="o", markersize=4, capsize=3, label="runs, 95%")
    axes.axhline(safe, color="0.6", linestyle="--", linewidth=1, label="reference + delta")
    if result["boundary"] is not None:
        axes.axvline(result["boundary"], color="C3", linewidth=1, label="safe compression boundary")
    axes.set(xlabel="sparsity (share of the parameters removed)", ylabel="violation rate")
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result['task']}, {result['controller']}: empirical, no certificate", fontsize=10)
    return figure
