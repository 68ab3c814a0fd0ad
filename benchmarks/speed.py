"""Milliseconds and arithmetic of one update and one plan, for the presets: `python -m benchmarks.speed`.

GFLOP are counted by PyTorch over its matrix products; the matrix rate is measured in the same run, so
that "of peak" compares like with like. Medians; nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from agents.replay import Episode, ReplayBuffer
from agents.tdmpc.agent import TDMPC
from tdmpc_prune.config import PRESETS, Device, Preset
from tdmpc_prune.device import choose_device, set_threads

OBS_DIM, ACTION_DIM, EPISODE = 5, 1, 125  # cartpole


@dataclass(frozen=True)
class Options:
    """Times an update and a plan of every preset, at cartpole's sizes."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Presets to time."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: one per core, at most 4."""
    seconds: float = 5.0
    """Time spent on each figure."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Speed:
    """Figures of one preset."""

    preset: str
    update_ms: float
    plan_ms: float
    sample_ms: float
    gflop_update: float
    gflop_plan: float
    matrix_gflops: float
    """Rate of a large float32 matrix product, GFLOP/s."""


def measure(preset: Preset, device: torch.device, seconds: float) -> Speed:
    """Times one preset on random data, with the planner at its full horizon."""
    agent = TDMPC(PRESETS[preset], OBS_DIM, ACTION_DIM, seed=1, device=device)
    replay = random_replay(agent)
    planner = agent.make_planner()
    one_obs, late = np.zeros((1, OBS_DIM), dtype=np.float32), 10**9
    batch = replay.sample(agent.config.batch_size)

    def sample() -> None:
        replay.sample(agent.config.batch_size)

    def update() -> None:
        agent.update(batch)

    def plan() -> None:
        agent.plan(one_obs, planner, late)

    return Speed(
        preset=preset,
        update_ms=median_ms(update, seconds, device),
        plan_ms=median_ms(plan, seconds, device),
        sample_ms=median_ms(sample, seconds / 5, device),
        gflop_update=gflop(update),
        gflop_plan=gflop(plan),
        matrix_gflops=matrix_rate(device, seconds / 5),
    )


def random_replay(agent: TDMPC) -> ReplayBuffer:
    """A buffer with 40 episodes of random numbers."""
    replay = agent.make_replay(seed=1)
    for _ in range(40):
        obs, action = torch.randn(EPISODE + 1, OBS_DIM), torch.rand(EPISODE, ACTION_DIM) * 2 - 1
        replay.add(Episode(obs, action, torch.rand(EPISODE), terminated=False))
    return replay


def median_ms(work: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Median milliseconds of `work`, after a warm-up."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times) < 5:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def gflop(work: Callable[[], None]) -> float:
    """Floating-point operations in the matrix products of `work`, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def matrix_rate(device: torch.device, seconds: float) -> float:
    """GFLOP/s of a float32 matrix product of 1024 x 1024."""
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / 1e6 / median_ms(lambda: torch.mm(a, b), seconds, device)


def main(options: Options) -> None:
    """Prints the table."""
    device = choose_device(options.device)
    set_threads(options.threads)
    rows = [measure(preset, device, options.seconds) for preset in options.presets]
    if options.json:
        print(json.dumps({row.preset: asdict(row) for row in rows}))
        return
    print(f"{device}, {torch.get_num_threads()} threads, float32, median")
    print(f"{'preset':8} {'what':7} {'ms':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'of peak':>8}")
    for row in rows:
        for what, ms, work in (
            ("update", row.update_ms, row.gflop_update),
            ("plan", row.plan_ms, row.gflop_plan),
        ):
            rate = 1e3 * work / ms
            print(
                f"{row.preset:8} {what:7} {ms:8.1f} {work:8.2f} {rate:8.0f} {rate / row.matrix_gflops:8.0%}"
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
