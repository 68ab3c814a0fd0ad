"""How long a controller thinks: milliseconds per control step, measured here and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from agents.tdmpc.agent import TDMPC

WARM_UP = 2


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time from an observation to an action, milliseconds."""

    p50: float
    p95: float
    p99: float


def plan_latency(agent: TDMPC, agent_step: int, *, plans: int = 100) -> Latency:
    """Times the planner for one observation at a time, on PyTorch's threads as they are set."""
    planner = agent.make_planner([torch.Generator(agent.device).manual_seed(0)])
    return measure(lambda obs: agent.plan(obs, planner, agent_step), agent.obs_dim, plans)


def policy_latency(agent: TDMPC, *, steps: int = 100) -> Latency:
    """Times the policy alone, likewise."""
    return measure(agent.policy_action, agent.obs_dim, steps)


def measure(act: Callable[[np.ndarray], np.ndarray], obs_dim: int, steps: int) -> Latency:
    """Times a controller, from an observation [1, O] to an action; what it costs is the same for all."""
    observations = np.random.default_rng(0).normal(size=(WARM_UP + steps, 1, obs_dim)).astype(np.float32)
    times = []
    for obs in observations:
        start = time.perf_counter()
        act(obs)
        times.append(1e3 * (time.perf_counter() - start))
    p50, p95, p99 = np.percentile(times[WARM_UP:], [50, 95, 99])
    return Latency(float(p50), float(p95), float(p99))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
