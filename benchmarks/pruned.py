"""What removing units brings: milliseconds of a plan and an update by what is left, in the paper's sizes.

python -m benchmarks.pruned --threads 1
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
import tyro

from tdmpc_prune.commands.common import show_rows
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_threads
from tdmpc_prune.pruning.config import Limits, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.speed import Sizes, Subject, Work, alternate, gflop, machine, new_subject

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Times agents of random weights, pruned by magnitude to several sparsities and multiples of units, in turn."""

    preset: Preset = "paper"
    """Sizes to start from."""
    obs_dim: int = 24
    """Numbers of an observation; walker-walk's."""
    action_dim: int = 6
    """Numbers of an action; walker-walk's."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """Shares of the parameters that are removed."""
    round_to: tuple[int, ...] = (1, 8, 16)
    """Widths left are multiples of these."""
    threads: int = 1
    """PyTorch's threads; 0: one per core, at most 4."""
    seconds: float = 5.0
    """Time spent on each figure."""
    json: bool = False
    """Print one JSON object."""


def pruned(options: Options, sparsity: float, round_to: int) -> Subject:
    """An agent without so many of its units."""
    subject = new_subject(PRESETS[options.preset], Sizes(options.obs_dim, options.action_dim), CPU)
    if sparsity:
        limits = Limits(round_to=round_to)
        config = PruneConfig(criterion="magnitude", sparsity=sparsity, limits=limits, start=0.0, events=1)
        pruner = Pruner(subject.agent, config, config.schedule_over(100))
        pruner.tracker.updates = config.importance.warmup
        pruner.prune(100)
    return subject


def main(options: Options) -> None:
    """Prints the table."""
    set_threads(options.threads)
    agents = {(0.0, 1): pruned(options, 0.0, 1)}
    agents |= {(s, r): pruned(options, s, r) for s in options.sparsities for r in options.round_to}
    works = {(key, "plan"): Work(agent.plan) for key, agent in agents.items()}
    works |= {(key, "update"): Work(agent.update) for key, agent in agents.items()}
    times = {key: median(values) for key, values in alternate(works, options.seconds, CPU).items()}
    needed = {(key, kind): gflop(getattr(agents[key], kind)) for key, kind in times}
    rows = []
    for key, agent in agents.items():
        row: dict[str, float | int | str] = {
            "asked for": f"{key[0]:.0%}",
            "multiples of": key[1],
            "parameters": sum(p.numel() for p in agent.agent.model.parameters()),
        }
        for kind in ("plan", "update"):
            dense, this = ((0.0, 1), kind), (key, kind)
            row[f"{kind} ms"] = round(times[this], 2)
            row[f"{kind} quicker"] = f"{times[dense] / times[this]:.1f}x"
            row[f"{kind} arithmetic"] = f"1/{needed[dense] / needed[this]:.1f}"
        rows.append(row)
    show_rows(f"{machine(CPU)}; {options.preset} sizes, medians in turn", rows, as_json=options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
