"""What CUDA graphs bring: milliseconds of an update and a plan on a GPU, dense and pruned.

python -m benchmarks.gpu [--upstream PATH]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from agents.layers import module_by_module
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.updates import Updates
from benchmarks.upstream import Upstream
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.pruning.config import ImportanceConfig, Limits, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.speed import Sizes, new_subject, random_replay


@dataclass(frozen=True)
class Options:
    """Times updates (sampling, tracker and new priorities included) and plans by graph and launch by launch."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Presets to time."""
    sparsity: float = 0.9
    """Share of the parameters that the pruned agent has lost."""
    round_to: int = 8
    """Widths left are multiples of this: a GPU reads other rows in smaller pieces."""
    upstream: Path | None = None
    """A checkout of the public TD-MPC code, timed in turn."""
    repeats: int = 60
    """Timed calls of each."""
    json: bool = False
    """Print one JSON object."""


def main(options: Options) -> None:
    """Prints the table."""
    found = {preset: measure(preset, options) for preset in options.presets}
    if options.json:
        print(
            json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "presets": found})
        )
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, milliseconds, medians in turn")
    for preset, row in found.items():
        for name, value in row.items():
            print(f"{preset:8} {name:34} {value:9.3f}")


def measure(preset: Preset, options: Options) -> dict[str, float]:
    """Medians of one preset."""
    works: dict[str, Callable[[], object]] = {}
    found: dict[str, float] = {}
    for name, sparsity in (("dense", 0.0), ("pruned", options.sparsity)):
        agent = TDMPC(PRESETS[preset], 5, 1, seed=1, device="cuda")
        replay = random_replay(agent)
        prune = PruneConfig(
            sparsity=max(sparsity, 0.1),
            limits=Limits(round_to=options.round_to),
            importance=ImportanceConfig(warmup=1),
        )
        pruner = Pruner(agent, prune, prune.schedule_over(100))
        updates = Updates(agent, replay, pruner)

        def update(updates: Updates = updates, pruner: Pruner = pruner) -> None:
            pruner.advance(0.5, updates().observation)

        def bare(updates: Updates = Updates(agent, replay)) -> None:
            updates()

        planner = agent.make_planner()
        obs = np.zeros((1, 5), np.float32)

        def plan(agent=agent, planner=planner) -> None:  # type: ignore[no-untyped-def]
            agent.plan(obs, planner, 10**9)

        for _ in range(5):
            update(), bare(), plan()
        if sparsity:
            pruner.prune(100)
            found["sparsity"] = pruner.sparsity
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(3):  # two by launches, and the capture
                update()
            torch.cuda.synchronize()
            found["first three updates after a removal"] = 1e3 * (time.perf_counter() - start)
            start = time.perf_counter()
            updates._captured._capture()
            torch.cuda.synchronize()
            found["capture of an update"] = 1e3 * (time.perf_counter() - start)
            for _ in range(3):
                bare(), plan()
        works[f"{name} update, graph"], works[f"{name} plan, graph"] = update, plan
        works[f"{name} update without tracker, graph"] = bare
        works[f"{name} update, launches"], works[f"{name} plan, launches"] = _simple(update), _simple(plan)
    if options.upstream:
        public = Upstream(options.upstream, new_subject(PRESETS[preset], Sizes(), torch.device("cuda")))
        works["public code, update"], works["public code, plan"] = public.update, public.plan
    return found | medians(works, options.repeats)


def _simple(work: Callable[[], None]) -> Callable[[], None]:
    def simple() -> None:
        with module_by_module():
            work()

    return simple


def medians(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, until the device has done it, one after the other in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 3):
        for name, work in works.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[3:]) for name, values in times.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
