"""Environment steps per second with several environments at once, of collection alone and with its updates.

python -m benchmarks.envs
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro

from tdmpc_prune.commands.common import CommandConfig, print_json
from tdmpc_prune.config import PRESETS, Preset, preset_defaults
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.run_folder import RunFolder
from tdmpc_prune.training import Training


@dataclass(frozen=True)
class Options(CommandConfig):
    """Times rounds of training: all episodes of a round, then the updates that they are worth; no evaluation."""

    task: tyro.conf.Positional[str] = "cartpole-swingup"
    """Task."""
    preset: Preset = "laptop"
    """Sizes; the planner is at its full horizon."""
    envs: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of environments; the others are compared with the first."""
    repeats: int = 5
    """Rounds of each, in turn."""
    updates: int = 100
    """Updates that are made of those that a round is worth; the others count as if they took as long."""


@dataclass(frozen=True)
class Round:
    """Figures of one round."""

    env_steps: int
    collect_s: float
    updates_s: float

    @property
    def collection(self) -> float:
        """Environment steps per second of collection alone."""
        return self.env_steps / self.collect_s

    @property
    def training(self) -> float:
        """The same with the updates."""
        return self.env_steps / (self.collect_s + self.updates_s)


def begin(options: Options, envs: int, device: torch.device, folder: Path) -> Training:
    """A dense run with its first round, and its random phase, behind it."""
    settings = replace(
        preset_defaults(options.preset, options.task),
        agent=replace(PRESETS[options.preset], random_steps=1, schedule_steps=0),
        prune=PruneConfig(criterion="none"),
        steps=10**9,
        eval_episodes=1,
        envs=envs,
        run_dir=folder / str(envs),
    )
    run = Training(settings, RunFolder(settings.folder), device)
    measure(run, updates=0)
    return run


def measure(run: Training, updates: int) -> Round:
    """Times one round."""
    start, before = time.perf_counter(), run.progress.env_step
    run.collect()
    while not run.between_episodes:
        run.collect()
    collected, owed = time.perf_counter(), run.pending_updates
    for _ in range(made := min(updates, owed)):
        run.update()
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    updated = time.perf_counter()
    run.agent.updates = run.progress.agent_step  # it owes none of them any more
    return Round(
        env_steps=run.progress.env_step - before,
        collect_s=collected - start,
        updates_s=(updated - collected) * owed / max(made, 1),
    )


def main(options: Options) -> None:
    """Prints the table."""
    device = options.compute_on()
    with tempfile.TemporaryDirectory() as folder:
        runs = [begin(options, envs, device, Path(folder)) for envs in options.envs]
        turns = [[measure(run, options.updates) for run in runs] for _ in range(options.repeats)]
        for run in runs:
            run.close()
    rows = []
    for envs, *rounds in zip(options.envs, *turns, strict=True):
        pairs = list(zip(rounds, (turn[0] for turn in turns), strict=True))
        rows.append(
            {
                "envs": envs,
                "collection": median(now.collection for now in rounds),
                "collection_ratio": median(now.collection / first.collection for now, first in pairs),
                "training": median(now.training for now in rounds),
                "training_ratio": median(now.training / first.training for now, first in pairs),
            }
        )
    threads = torch.get_num_threads()
    if options.json:
        print_json({"device": str(device), "threads": threads, "rows": rows})
        return
    print(
        f"{options.task}, {options.preset}, {device}, {threads} threads, medians of {options.repeats} rounds"
    )
    print(f"{'':5}{'env steps per second':^32}")
    print(f"{'envs':>4} {'collection':>12}{'':8}{'with updates':>14}")
    for row in rows:
        print(
            f"{row['envs']:>4} {row['collection']:12,.0f} {row['collection_ratio']:5.2f}x "
            f"{row['training']:14,.0f} {row['training_ratio']:5.2f}x"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
