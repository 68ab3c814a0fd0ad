"""`tdmpc-prune sweep`: many trainings from one file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tdmpc_prune.commands.common import print_json, show_table
from tdmpc_prune.config import check_seed
from tdmpc_prune.errors import UserError

if TYPE_CHECKING:
    from tdmpc_prune.sweep.definition import Definition

CHECKED_FOR_WANDB = 50
"""Random trials that are checked before W&B gets a sweep."""
SHOWN = 20
"""Rows of the final table; trials.csv has all."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Runs the trials of a sweep file, in W&B's format, side by side. The same command again continues them.

    Every trial has a run folder below the sweep's folder, which `report` takes as it is. A trial that fails is
    tried again, then reported, and stops no other.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Sweep file; `sweeps/` has some."""
    engine: Literal["auto", "ray", "wandb"] = "auto"
    """ray: Ray Tune, here or on a cluster, no account; wandb: create the sweep at W&B and be an agent of it;
    auto: wandb where you are logged in, else ray."""
    sweep_dir: Path | None = None
    """ray: folder of the sweep; runs/sweep-FILE (of FILE.yaml) if none. On a cluster, one that all machines share."""
    count: int | None = None
    """ray: trials of the whole sweep, the file's run_cap if none; wandb: trials that this agent makes."""
    seed: int = 1
    """ray: seed of random and Bayesian search; the trials' own seeds are a matter of the file."""
    cpus_per_trial: float = 1
    """ray: cores of a trial, and PyTorch's threads. As many trials run at once as there are cores for."""
    gpus_per_trial: float = 0
    """ray: GPUs of a trial; 0.25 lets four share one."""
    address: str | None = None
    """ray: a running cluster (HOST:PORT, or auto for the one that this machine belongs to); this machine if none."""
    retries: int = 2
    """ray: how often a trial that fails is tried again."""
    join: str | None = None
    """wandb: be an agent of this existing sweep ([[ENTITY/]PROJECT/]ID) instead of creating one."""
    dry_run: bool = False
    """Run nothing: show the trials."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("count", "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; choose more than 0")
        if not 0 <= self.gpus_per_trial < float("inf"):
            raise ValueError(f"gpus_per_trial is {self.gpus_per_trial}; choose 0 or more")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; choose 0 or more")


def run(config: SweepConfig) -> int:
    """Runs or continues a sweep and shows what it came to."""
    from tdmpc_prune.config import WandbConfig
    from tdmpc_prune.logger import wandb_mode
    from tdmpc_prune.sweep.definition import read

    definition = read(config.file)
    engine = config.engine
    if engine == "auto":
        engine = "wandb" if config.join or wandb_mode(WandbConfig()) == "online" else "ray"
    if engine == "wandb" and not config.dry_run:
        return _with_wandb(config, definition)
    return _with_ray(config, definition)


def _with_ray(config: SweepConfig, definition: Definition) -> int:
    from tdmpc_prune.sweep.driver import Sweep
    from tdmpc_prune.sweep.folder import SweepFolder
    from tdmpc_prune.sweep.trial import Resources

    if config.join is not None:
        raise UserError("--join is for W&B's sweeps: choose --engine wandb")
    if missing := [name for name in ("ray", "optuna") if find_spec(name) is None]:
        raise UserError(f"{missing[0]} is missing: pip install 'tdmpc-prune[scale]'")
    folder = SweepFolder(config.sweep_dir or Path("runs") / f"sweep-{definition.path.stem}")
    resources = Resources(config.cpus_per_trial, config.gpus_per_trial)
    sweep = Sweep(definition, folder, seed=config.seed, count=config.count, resources=resources)
    if config.dry_run:
        _show(config, sweep.planned(), sweep.total)
        return 0
    from tdmpc_prune.sweep import ray_engine

    folder.open(definition, config.seed)
    try:
        sweep.begin()
        try:
            if not sweep.complete() or sweep.failures():
                ray_engine.run(sweep, address=config.address, retries=config.retries)
        finally:
            sweep.close()
            if rows := sweep.rows():
                folder.write_table(rows)
    finally:
        folder.close()
    _show(config, sweep.rows(), sweep.total, folder.path)
    return 1 if sweep.failures() else 0


def _with_wandb(config: SweepConfig, definition: Definition) -> int:
    from tdmpc_prune.sweep import wandb_engine
    from tdmpc_prune.sweep.driver import checked
    from tdmpc_prune.sweep.search import search

    grid = search(definition, config.seed) if definition.method == "grid" else None
    total = (grid.size if grid else None) or CHECKED_FOR_WANDB
    first_decision = checked(definition, total, config.seed, grid)
    if definition.hyperband and definition.hyperband.first < first_decision:
        raise UserError(
            f"{config.file}: W&B would stop trials after {definition.hyperband.first} evaluations, in the middle of "
            f"their removals; choose early_terminate.min_iter: {first_decision}"
        )
    wandb_engine.run(definition.raw, join=config.join, count=config.count)
    return 0


def _show(config: SweepConfig, rows: list[dict[str, Any]], total: int, folder: Path | None = None) -> None:
    if config.json:
        print_json({"sweep": str(folder) if folder else None, "total": total, "trials": rows})
        return
    if rows:
        shown = [key for key in rows[0] if any(row[key] is not None for row in rows)]
        show_table([{key: row[key] for key in shown} for row in rows[:SHOWN]])
    count = len(rows) if folder else total
    if count > SHOWN:
        print(f"... and {count - SHOWN} more{f', all in {folder}/trials.csv' if folder else ''}")
    if folder:
        print(
            f"\npictures: {shlex.join(['tdmpc-prune', 'report', str(folder), '--out', f'{folder}/report'])}"
        )
