"""How long an update, a plan and pruning take here and now, on random data, and the arithmetic that they need."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.layers import module_by_module
from agents.replay import Batch, Episode, ReplayBuffer
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import TDMPCConfig
from agents.tdmpc.updates import Updates
from tdmpc_prune.processor import processor
from tdmpc_prune.pruning.compensation import BATCHES
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.importance import WAITING
from tdmpc_prune.pruning.pruner import Event, Pruner

STEPS = 125
"""Of the random replay's episodes: cartpole's."""
ROWS = 40 * (STEPS + 1)
LATE = 10**9
"""An agent step at which every schedule has ended: the planner has its full horizon."""
WARM_UP, FEWEST = 2, 5
"""Rounds that do not count, and rounds that do."""
SIDE = 1024
"""Of the matrices whose product shows what the machine can do."""
PRUNED_AGENTS = 3
"""Every one of them goes through all removals."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Work:
    """What is timed, and what it is done within, which is not."""

    call: Callable[[], object]
    within: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Sizes:
    """Of the task: how many numbers an observation and an action have. Cartpole's, unless told otherwise."""

    obs_dim: int = 5
    action_dim: int = 1


@dataclass(frozen=True)
class Speed:
    """Figures of one agent."""

    update_ms: float
    """An update, sampling and new priorities included, without the importance tracker."""
    plan_ms: float
    """A control step of the planner at its full horizon, from an observation to an action."""
    tracker_share: float
    """What the importance tracker adds to an update, as a share of it."""
    event_ms: float
    """A removal: choosing units, cutting them out, tracing what is left."""
    gflop_update: float
    """Floating-point operations in an update's matrix products, in 1e9."""
    gflop_plan: float
    """The same of a plan."""
    roofline_gflops: float
    """GFLOP/s of a large matrix product: nothing here can be quicker than its operations at this rate."""


class Subject:
    """An agent on random data, whose update and plan can be called again and again."""

    def __init__(self, agent: TDMPC, agent_step: int = LATE) -> None:
        self.agent, self.agent_step = agent, agent_step
        self.planner = agent.make_planner([torch.Generator(agent.device).manual_seed(1)])
        self.obs = np.random.default_rng(1).normal(size=(1, agent.obs_dim)).astype(np.float32)

    @cached_property
    def replay(self) -> ReplayBuffer:
        """What updates learn from."""
        return random_replay(self.agent)

    @cached_property
    def batch(self) -> Batch:
        """Sequences of it."""
        return self.replay.sample(self.agent.config.batch_size)

    @cached_property
    def _updates(self) -> Updates:
        return Updates(self.agent, self.replay)

    def update(self) -> None:
        """One update: sequences are drawn, learned from, and given new priorities."""
        self._updates()

    def plan(self) -> None:
        """One control step; plans go on from each other."""
        self.agent.plan(self.obs, self.planner, self.agent_step)


def new_subject(config: TDMPCConfig, sizes: Sizes, device: torch.device) -> Subject:
    """A new agent and its data, the same at every call."""
    return Subject(TDMPC(config, sizes.obs_dim, sizes.action_dim, seed=1, device=device))


def measure(config: TDMPCConfig, sizes: Sizes, device: torch.device, seconds: float) -> Speed:
    """Times an agent of these settings, about `seconds` for each figure."""
    subject = new_subject(config, sizes, device)
    works, matrices = {"update": Work(subject.update), "plan": Work(subject.plan)}, products(device)
    times = alternate(works | matrices, seconds, device)
    return Speed(
        update_ms=median(times["update"]),
        plan_ms=median(times["plan"]),
        tracker_share=tracker_share(config, sizes, device, seconds),
        event_ms=event_ms(config, sizes, device),
        gflop_update=gflop(subject.update),
        gflop_plan=gflop(subject.plan),
        roofline_gflops=matrix_rate([times[name] for name in matrices], device),
    )


def random_replay(agent: TDMPC, rows: int = ROWS) -> ReplayBuffer:
    """A buffer of this agent's shapes, with so many rows, full of episodes of random numbers."""
    replay = agent.make_replay(seed=1, capacity=rows)
    generator = torch.Generator().manual_seed(1)
    for _ in range(rows // (STEPS + 1)):
        obs = torch.randn(STEPS + 1, agent.obs_dim, generator=generator)
        action = 2 * torch.rand(STEPS, agent.action_dim, generator=generator) - 1
        reward = torch.rand(STEPS, generator=generator)
        replay.add(Episode(obs, action, reward, terminated=False))
    return replay


# Clocks


def alternate(works: Mapping[Key, Work], seconds: float, device: torch.device) -> dict[Key, list[float]]:
    """Milliseconds of every work, one number a round: a machine that is slow for a while is so for all of them.

    Every round does each of them once, in an order of its own. Takes about `seconds` for each, after a warm-up.
    """
    order, shuffle = list(works), random.Random(1).shuffle
    times: dict[Key, list[float]] = {key: [] for key in works}
    deadline = time.perf_counter() + seconds * len(works)
    rounds = 0
    while rounds < WARM_UP + FEWEST or time.perf_counter() < deadline:
        shuffle(order)
        for key in order:
            with works[key].within():
                times[key].append(timed(works[key].call, device))
        rounds += 1
    return {key: found[WARM_UP:] for key, found in times.items()}


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# The roofline


def gflop(call: Callable[[], object]) -> float:
    """Floating-point operations in the matrix products of a call, in 1e9."""
    return 2 * multiplications(call) / 1e9


def multiplications(call: Callable[[], object]) -> int:
    """Multiply-accumulates in the matrix products of a call; PyTorch counts only products of its own."""
    with module_by_module(), FlopCounterMode(display=False) as counter:
        call()
    operations: int = counter.get_total_flops()
    return operations // 2


def products(device: torch.device) -> dict[str, Work]:
    """Large float32 matrix products, by each library that PyTorch has here."""
    x, weight = torch.randn(SIDE, SIDE, device=device), torch.randn(SIDE, SIDE, device=device)
    bias = torch.zeros(SIDE, device=device)
    works = {"by default": Work(partial(_repeat, lambda: torch.mm(x, weight), device))}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise.default
        by_onednn = partial(linear, x, weight, bias, "none", [], "")
        works["by oneDNN"] = Work(partial(_repeat, by_onednn, device))
    return works


def matrix_rate(times: Iterable[Sequence[float]], device: torch.device) -> float:
    """GFLOP/s of the quickest of `products`, from the milliseconds of each."""
    return _products_at_once(device) * 2 * SIDE**3 / 1e6 / min(median(found) for found in times)


def _repeat(call: Callable[[], object], device: torch.device) -> None:
    for _ in range(_products_at_once(device)):
        call()


def _products_at_once(device: torch.device) -> int:
    """A GPU has finished one before anybody could wait for it."""
    return 1 if device.type == "cpu" else 32


# Pruning


def tracker_share(config: TDMPCConfig, sizes: Sizes, device: torch.device, seconds: float) -> float:
    """What the importance tracker adds to an update, as a share of it: median over pairs of with and without.

    Smoothing, done for many updates at once, is timed apart: a median would not see it.
    """
    plain, tracked = new_subject(config, sizes, device), new_subject(config, sizes, device)
    pruner = _pruner(tracked.agent)
    updates = Updates(tracked.agent, tracked.replay, pruner)

    def update() -> None:
        pruner.advance(0.5, updates().observation)

    works = {"without": Work(plain.update), "with": Work(update)}
    times = alternate(works, seconds, device)
    added = median(b / a - 1 for a, b in zip(times["without"], times["with"], strict=True))
    smoothing = []
    for _ in range(FEWEST):
        pruner.tracker.settle()
        for _ in range(WAITING - 1):
            pruner.observe(tracked.agent.model.parameters())
            pruner.advance(0.5)
        smoothing.append(timed(pruner.tracker.settle, device) / (WAITING - 1))
    return added + median(smoothing) / median(times["without"])


def event_ms(config: TDMPCConfig, sizes: Sizes, device: torch.device) -> float:
    """Milliseconds of a removal: median over all of the default schedule, on several new agents."""
    times: list[float] = []
    for _ in range(PRUNED_AGENTS):
        subject = new_subject(config, sizes, device)
        pruner = _pruner(subject.agent)
        for _ in range(FEWEST):  # heads begin at zero, and pass no gradients down
            subject.agent.update(subject.batch, pruner.observe)
            pruner.advance(0.5)
        pruner.tracker.settle()
        times += [
            timed(partial(_remove, pruner, step, subject), device) for step in pruner.schedule.event_steps()
        ]
    return median(times)


def _remove(pruner: Pruner, step: int, subject: Subject) -> Event:
    """A removal as a run makes it: what is left takes over what it can, by as many batches."""

    def run_on_data() -> None:
        for _ in range(BATCHES):
            subject.agent.run_on(subject.batch)

    return pruner.prune(step, run_on_data)


def _pruner(agent: TDMPC) -> Pruner:
    config = PruneConfig()
    return Pruner(agent, config, config.schedule_over(1_000))


# The machine


def machine(device: torch.device) -> str:
    """What a figure was measured on, in a line."""
    count = torch.get_num_threads()
    parts = [
        f"{processor()} ({os.cpu_count()} cores)",
        f"PyTorch {torch.__version__}",
        f"{count} thread{'s' if count > 1 else ''}",
    ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)
