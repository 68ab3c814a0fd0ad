"""Milliseconds and memory of prioritised replay, by the rows in it: `python -m benchmarks.replay`.

Every buffer is full. They take turns, so that none has the machine, or its caches, to itself. Medians, in
which an update of the priorities follows every draw, as in training.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import torch
import tyro

from agents.tdmpc.config import LAPTOP
from tdmpc_prune.commands.common import CommandConfig, print_json
from tdmpc_prune.speed import STEPS, Sizes, new_subject, random_replay


@dataclass(frozen=True)
class Options(CommandConfig):
    """Times draws and new priorities at cartpole's sizes, in episodes of 125 steps."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Rows of the buffers; ratios are to the first."""
    batch_size: int = 256
    """Sequences per draw."""
    rounds: int = 2_000
    """Draws from each buffer."""


@dataclass(frozen=True)
class Cost:
    """Figures of one buffer."""

    rows: int
    sample_ms: float
    update_priorities_ms: float
    bytes_per_step: float
    data_bytes_per_step: int
    """Observation, action, reward and end of a step as an episode hands them over, in float32."""


def measure(options: Options, device: torch.device) -> list[Cost]:
    """Times all buffers, in turns."""
    agent = new_subject(LAPTOP, Sizes(), device).agent
    buffers = [random_replay(agent, rows) for rows in options.rows]
    sample_ms: list[list[float]] = [[] for _ in buffers]
    update_ms: list[list[float]] = [[] for _ in buffers]
    for _ in range(options.rounds):
        for i, replay in enumerate(buffers):
            priority = torch.rand(options.batch_size, device=device)
            start = milliseconds(device)
            index = replay.sample(options.batch_size).index
            drawn = milliseconds(device)
            replay.update_priorities(index, priority)
            sample_ms[i].append(drawn - start)
            update_ms[i].append(milliseconds(device) - drawn)
    return [
        Cost(
            rows=replay.capacity,
            sample_ms=statistics.median(sample_ms[i]),
            update_priorities_ms=statistics.median(update_ms[i]),
            bytes_per_step=replay.nbytes / (len(replay) // (STEPS + 1) * STEPS),
            data_bytes_per_step=4 * (agent.obs_dim + agent.action_dim + 2),
        )
        for i, replay in enumerate(buffers)
    ]


def milliseconds(device: torch.device) -> float:
    """The time, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def main(options: Options) -> None:
    """Prints the table."""
    device = options.compute_on()
    costs = measure(options, device)
    if options.json:
        print_json({str(cost.rows): asdict(cost) for cost in costs})
        return
    print(f"{device}, {torch.get_num_threads()} threads, {options.batch_size} sequences, medians")
    print(
        f"{'rows':>10} {'sample ms':>10} {'':6} {'priorities ms':>13} {'':6} {'bytes/step':>10} {'of data':>8}"
    )
    for cost in costs:
        sample = cost.sample_ms / costs[0].sample_ms
        update = cost.update_priorities_ms / costs[0].update_priorities_ms
        print(
            f"{cost.rows:10,} {cost.sample_ms:10.3f} {sample:5.2f}x {cost.update_priorities_ms:13.3f} "
            f"{update:5.2f}x {cost.bytes_per_step:10.1f} {cost.bytes_per_step / cost.data_bytes_per_step:8.1%}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
