"""Resident memory over many removals: python -m benchmarks.removals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import psutil
import torch
import tyro

from agents.layers import alike
from agents.tdmpc.updates import Updates
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_threads
from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.speed import LATE, Sizes, new_subject

UPDATES, PLANS = 15, 3


@dataclass(frozen=True)
class Options:
    """Removes half of an agent in many small steps, with updates and plans in between."""

    preset: Preset = "laptop"
    """Sizes to start from."""
    removals: int = 60
    """Removals."""
    threads: int = 1
    """PyTorch's threads; 0: one per core, at most 4."""


def main(options: Options) -> None:
    """Prints the memory after every sixth removal."""
    set_threads(options.threads)
    subject = new_subject(PRESETS[options.preset], Sizes(), torch.device("cpu"))
    agent, count = subject.agent, options.removals
    importance = ImportanceConfig(warmup=1)
    config = PruneConfig(
        sparsity=0.5, compensation="none", start=0.0, end=1.0, events=count, importance=importance
    )
    pruner = Pruner(agent, config, config.schedule_over(10 * count))
    updates, process = Updates(agent, subject.replay, pruner), psutil.Process()
    for event in range(1, count + 1):
        for _ in range(UPDATES):
            pruner.advance(event / count, updates().observation)
        for environments in (1, 3, 10):
            planner = agent.make_planner()
            obs = np.zeros((environments, agent.obs_dim), np.float32)
            for _ in range(PLANS):
                agent.plan(obs, planner, LATE)
                with alike():
                    agent.plan(obs, planner, LATE)
        pruner.prune(10 * event)
        if event == 1 or event % 6 == 0:
            print(f"{event:4} removals {process.memory_info().rss / 2**20:7.0f} MiB", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
