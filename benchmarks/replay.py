"""Milliseconds and memory of prioritised replay, by the rows in it: `python -m benchmarks.replay`.

Every buffer is full. They take turns, so that none has the machine, or its caches, to itself. Medians, in
which an update of the priorities follows every draw, as in training.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass

import torch
import tyro

from agents.replay import Episode, ReplayBuffer
from tdmpc_prune.config import Device
from tdmpc_prune.device import choose_device, set_threads

OBS_DIM, ACTION_DIM, EPISODE = 5, 1, 125  # cartpole
HORIZON, ALPHA, BETA = 5, 0.6, 0.4


@dataclass(frozen=True)
class Options:
    """Times draws and new priorities at cartpole's sizes, in episodes of 125 steps."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Rows of the buffers; ratios are to the first."""
    batch_size: int = 256
    """Sequences per draw."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: one per core, at most 4."""
    rounds: int = 2_000
    """Draws from each buffer."""
    json: bool = False
    """Print one JSON object."""


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
    buffers = [full_replay(rows, device) for rows in options.rows]
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
            bytes_per_step=replay.nbytes / (len(replay) // (EPISODE + 1) * EPISODE),
            data_bytes_per_step=4 * (OBS_DIM + ACTION_DIM + 2),
        )
        for i, replay in enumerate(buffers)
    ]


def full_replay(rows: int, device: torch.device) -> ReplayBuffer:
    """A buffer with no room for another episode, of random numbers."""
    replay = ReplayBuffer(
        obs_dim=OBS_DIM,
        action_dim=ACTION_DIM,
        capacity=rows,
        horizon=HORIZON,
        alpha=ALPHA,
        beta=BETA,
        generator=torch.Generator(device).manual_seed(1),
    )
    for _ in range(rows // (EPISODE + 1)):
        obs, action = torch.randn(EPISODE + 1, OBS_DIM), torch.rand(EPISODE, ACTION_DIM) * 2 - 1
        replay.add(Episode(obs, action, torch.rand(EPISODE), terminated=False))
    return replay


def milliseconds(device: torch.device) -> float:
    """The time, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def main(options: Options) -> None:
    """Prints the table."""
    device = choose_device(options.device)
    set_threads(options.threads)
    costs = measure(options, device)
    if options.json:
        print(json.dumps({cost.rows: asdict(cost) for cost in costs}))
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
