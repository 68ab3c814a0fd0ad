"""What scoring costs: an update with and without the importance tracker, in turn, and a removal event.

python -m benchmarks.tracker
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass

import torch
import tyro

from agents.tdmpc.agent import TDMPC
from benchmarks.speed import ACTION_DIM, OBS_DIM, random_replay
from tdmpc_prune.config import PRESETS, Device, Preset
from tdmpc_prune.device import choose_device, set_threads
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.importance import WAITING
from tdmpc_prune.pruning.pruner import Pruner


@dataclass(frozen=True)
class Options:
    """Times the tracker of every preset, at cartpole's sizes."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Presets to time."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: one per core, at most 4."""
    pairs: int = 60
    """Pairs of updates, with and without."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Cost:
    """Figures of one preset."""

    preset: str
    update_ms: float
    """An update without the tracker."""
    tracker_ms: float
    """What the tracker adds: median over pairs, and an update's part of the smoothing, done for many at once."""
    tracker_share: float
    """The same over the update: median over pairs, and likewise."""
    readout_ms: float
    """Scores of all groups under all logged criteria, once per episode."""
    event_ms: float
    """Removing half of all units."""


def measure(preset: Preset, device: torch.device, pairs: int) -> Cost:
    """Times one preset; with and without alternate, so that both see the same machine."""
    agent = TDMPC(PRESETS[preset], OBS_DIM, ACTION_DIM, seed=1, device=device)
    batch = random_replay(agent).sample(agent.config.batch_size)
    pruner = Pruner(
        agent, PruneConfig(sparsity=0.5), PruneConfig(sparsity=0.5, schedule="one-shot").schedule_over(1)
    )

    def timed(*, tracked: bool) -> float:
        start = time.perf_counter()
        agent.update(batch, pruner.observe if tracked else None)
        if tracked:
            pruner.advance(0.5)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    for _ in range(3):
        timed(tracked=True)
    smoothing = []
    for _ in range(5):
        pruner.tracker.settle()
        for _ in range(WAITING - 1):
            pruner.observe(agent.model.parameters())
            pruner.advance(0.5)
        start = time.perf_counter()
        pruner.tracker.settle()
        smoothing.append(1e3 * (time.perf_counter() - start) / (WAITING - 1))
    settled = statistics.median(smoothing)
    plain, added = [], []
    for i in range(pairs):
        pruner.tracker.settle()
        first, second = timed(tracked=bool(i % 2)), timed(tracked=not i % 2)
        without, with_tracker = (second, first) if i % 2 else (first, second)
        plain.append(without)
        added.append(with_tracker - without)
    start = time.perf_counter()
    pruner.importance_metrics()
    readout = 1e3 * (time.perf_counter() - start)
    start = time.perf_counter()
    pruner.prune(step=1)
    event = 1e3 * (time.perf_counter() - start)
    update = statistics.median(plain)
    share = statistics.median(a / p for a, p in zip(added, plain, strict=True))
    tracker = statistics.median(added) + settled
    return Cost(preset, update, tracker, share + settled / update, readout, event)


def main(options: Options) -> None:
    """Prints the table."""
    device = choose_device(options.device)
    set_threads(options.threads)
    rows = [measure(preset, device, options.pairs) for preset in options.presets]
    if options.json:
        print(json.dumps({row.preset: asdict(row) for row in rows}))
        return
    print(f"{device}, {torch.get_num_threads()} threads, medians of {options.pairs} pairs")
    print(
        f"{'preset':8} {'update ms':>10} {'tracker ms':>11} {'share':>7} {'read-out ms':>12} {'event ms':>9}"
    )
    for row in rows:
        print(
            f"{row.preset:8} {row.update_ms:10.1f} {row.tracker_ms:11.2f} {row.tracker_share:7.1%} "
            f"{row.readout_ms:12.1f} {row.event_ms:9.1f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
