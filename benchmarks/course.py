"""What a run that prunes saves on the way: seconds of its plans, updates and removals, against the same run dense.

Added up from measured parts: a plan and an update at every sparsity of the schedule, as often as the run makes them.
Evaluations are left out: they are a matter of settings.

python -m benchmarks.course
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
import tyro

from benchmarks.pruned import Options as PrunedOptions
from benchmarks.pruned import pruned, sizes_and_period
from envs import find_task
from tdmpc_prune.commands.common import show_rows
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_threads
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.speed import Work, alternate, event_ms, machine

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Times a run's parts, pruned by the default schedule, in turn with dense ones."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Sizes to start from."""
    task: str = "cartpole-swingup"
    """Task that the sizes are of."""
    steps: int = 40_000
    """Environment steps of the run."""
    random_steps: int = 1_000
    """Agent steps of its random phase, which are not planned; the updates that they are owed come after it."""
    sparsity: float = 0.8
    """What it comes to."""
    threads: int = 1
    """PyTorch's threads; 0: one per core, at most 4."""
    seconds: float = 2.0
    """Time spent on each part."""
    json: bool = False
    """Print one JSON object."""


def stages(options: Options) -> list[tuple[float, int, int]]:
    """Sparsity, plans and updates of each part of the run."""
    repeat = find_task(options.task).action_repeat
    schedule = PruneConfig(sparsity=options.sparsity).schedule_over(options.steps)
    bounds = [0, *schedule.event_steps(), options.steps]
    sparsities = [0.0, *map(schedule.sparsity, schedule.event_steps())]
    random = options.random_steps * repeat
    found = []
    for sparsity, (start, end) in zip(sparsities, pairwise(bounds), strict=True):
        planned = max(end - max(start, random), 0) // repeat
        owed = options.random_steps if start <= random < end else 0
        found.append((sparsity, planned, planned + owed))
    return found


def measure(preset: Preset, options: Options) -> dict[str, float | str]:
    """A row of the table."""
    sizes, _ = sizes_and_period(options.task)
    parts = stages(options)
    agents = {s: pruned(PrunedOptions(preset=preset), sizes, s, 1) for s in {s for s, _, _ in parts}}
    works = {(s, "plan"): Work(agent.plan) for s, agent in agents.items()}
    works |= {(s, "update"): Work(agent.update) for s, agent in agents.items()}
    ms = {key: median(values) for key, values in alternate(works, options.seconds, CPU).items()}
    removal = event_ms(PRESETS[preset], sizes, CPU)
    removals = removal * (len(parts) - 1)
    dense = sum(plans * ms[0.0, "plan"] + updates * ms[0.0, "update"] for _, plans, updates in parts)
    sparse = sum(plans * ms[s, "plan"] + updates * ms[s, "update"] for s, plans, updates in parts)
    return {
        "preset": preset,
        "dense s": round(dense / 1e3, 1),
        "pruned s": round((sparse + removals) / 1e3, 1),
        "of these removals s": round(removals / 1e3, 1),
        "share": f"{(sparse + removals) / dense:.2f}",
    }


def main(options: Options) -> None:
    """Prints the table."""
    set_threads(options.threads)
    rows = [measure(preset, options) for preset in options.presets]
    heading = f"{options.task}, {options.steps:,} steps, pruned to {options.sparsity:.0%}; added up from measured parts"
    show_rows(f"{machine(CPU)}; {heading}", rows, as_json=options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
