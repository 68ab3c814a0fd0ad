"""Evaluation episodes side by side against one after the other: how much sooner, and whether with the same returns.

python -m benchmarks.evaluation runs/dense
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import tyro

from tdmpc_prune.checkpoint import StoredAgent, load_agent
from tdmpc_prune.device import set_threads
from tdmpc_prune.evaluate import Evaluator


@dataclass(frozen=True)
class Options:
    """Times the planner's episodes of a stored run."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one of its checkpoints."""
    episodes: int = 20
    """Episodes, side by side and one after the other."""
    repeats: int = 3
    """Times that both are done, in turn."""
    threads: int = 0
    """PyTorch's threads; 0: one per core, at most 4."""
    json: bool = False
    """Print one JSON object."""


def episodes(stored: StoredAgent, count: int, side_by_side: int) -> tuple[list[float], float]:
    """Returns of the episodes, and the seconds that they took."""
    evaluator = Evaluator(
        stored.task,
        env_seed=stored.seed,
        episodes=count,
        seed=0,
        action_repeat=stored.action_repeat,
        side_by_side=side_by_side,
    )
    start = time.perf_counter()
    found = evaluator.run(stored.agent, stored.agent_step)
    seconds = time.perf_counter() - start
    evaluator.close()
    return found.returns, seconds


def main(options: Options) -> None:
    """Prints the comparison."""
    set_threads(options.threads)
    stored = load_agent(options.run, torch.device("cpu"))
    pairs = [
        (episodes(stored, options.episodes, options.episodes), episodes(stored, options.episodes, 1))
        for _ in range(options.repeats)
    ]
    parallel, in_a_row = (median(pair[i][1] for pair in pairs) for i in (0, 1))
    result = {
        "episodes": options.episodes,
        "threads": torch.get_num_threads(),
        "parallel_s": round(parallel, 2),
        "in_a_row_s": round(in_a_row, 2),
        "ratio": round(median(pair[1][1] / pair[0][1] for pair in pairs), 2),
        "same_returns": all(pair[0][0] == pair[1][0] for pair in pairs),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{options.episodes} episodes, {result['threads']} threads, medians of {options.repeats}: side by side "
        f"{parallel:.1f} s, one after the other {in_a_row:.1f} s ({result['ratio']:.1f}x); "
        f"returns {'equal bit by bit' if result['same_returns'] else 'DIFFER'}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
