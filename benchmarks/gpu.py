"""What CUDA graphs bring: milliseconds of an update and a plan on a GPU, dense and pruned.

python -m benchmarks.gpu [--deterministic] [--upstream PATH]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import tyro

from agents.layers import module_by_module
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.updates import Updates
from benchmarks.upstream import Upstream
from tdmpc_prune.commands.common import show_rows
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_deterministic
from tdmpc_prune.pruning.config import ImportanceConfig, Limits, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.speed import Sizes, Work, alternate, machine, new_subject, random_replay

CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Options:
    """Times updates (sampling, tracker and new priorities included) and plans, by graph and launch by launch."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Presets to time."""
    sparsity: float = 0.9
    """Share of the parameters that the pruned agent has lost."""
    round_to: int = 8
    """Widths left are multiples of this: a GPU reads other rows in smaller pieces."""
    deterministic: bool = False
    """Only algorithms that repeat themselves bit by bit, as `tdmpc-prune train --deterministic` has them."""
    upstream: Path | None = None
    """A checkout of the public TD-MPC code, timed in turn."""
    seconds: float = 4.0
    """Time spent on each figure."""
    json: bool = False
    """Print one JSON object."""


class Agent:
    """An agent that learns from random data, and plans."""

    def __init__(self, preset: Preset, sparsity: float, round_to: int) -> None:
        subject = new_subject(PRESETS[preset], Sizes(), CUDA)
        self.agent: TDMPC = subject.agent
        self.plan = subject.plan
        prune = PruneConfig(
            sparsity=sparsity,
            compensation="none",
            limits=Limits(round_to=round_to),
            importance=ImportanceConfig(warmup=1),
        )
        self.pruner = Pruner(self.agent, prune, prune.schedule_over(100))
        replay = random_replay(self.agent)
        self.updates, self.bare = Updates(self.agent, replay, self.pruner), Updates(self.agent, replay)

    def update(self) -> None:
        """An update that is watched by the importance tracker."""
        self.pruner.advance(0.5, self.updates().observation)

    def warm_up(self) -> None:
        """As often as it takes to capture graphs."""
        for _ in range(4):
            self.update()
            self.bare()
            self.plan()

    def prune(self) -> dict[str, float]:
        """Removes all at once; milliseconds of what that costs."""
        found = {"removal": seconds(lambda: self.pruner.prune(100))}
        # Two launch by launch, then one that is captured.
        found["first three updates after it"] = seconds(lambda: [self.update() for _ in range(3)])
        return {name: 1e3 * value for name, value in found.items()}


def seconds(work: Callable[[], object]) -> float:
    """Time until the device has done it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(preset: Preset, options: Options) -> list[dict[str, Any]]:
    """Rows of one preset's table, milliseconds."""
    dense, pruned = (Agent(preset, options.sparsity, options.round_to) for _ in range(2))
    dense.warm_up()
    pruned.warm_up()
    events = pruned.prune()
    pruned.warm_up()
    precise = Agent(preset, options.sparsity, options.round_to)
    with patch("agents.tdmpc.plan_graphs.tf32", nullcontext):  # a graph goes on as it was captured
        precise.warm_up()
    works: dict[tuple[str, str], Work] = {}
    for name, one in (("dense", dense), ("pruned", pruned)):
        works[name, "update"], works[name, "plan"] = Work(one.update), Work(one.plan)
        works[name, "update without tracker"] = Work(one.bare)
        for kind in ("update", "plan"):
            works[f"{name}, launch by launch", kind] = Work(getattr(one, kind), module_by_module)
    works["dense, float32 alone", "plan"] = Work(precise.plan)
    if options.upstream:
        public = Upstream(options.upstream, new_subject(PRESETS[preset], Sizes(), CUDA))
        works["public code", "update"], works["public code", "plan"] = Work(public.update), Work(public.plan)
    times = alternate(works, options.seconds, CUDA)
    kinds = ("update", "update without tracker", "plan")
    rows: dict[str, dict[str, Any]] = {}
    for (name, kind), values in times.items():
        rows.setdefault(name, {"preset": preset, "agent": name} | dict.fromkeys(kinds, ""))[kind] = round(
            median(values), 3
        )
    events["sparsity, %"] = 100 * pruned.pruner.sparsity
    for name, row in rows.items():
        row |= {key: round(value, 1) if name == "pruned" else "" for key, value in events.items()}
    return list(rows.values())


def main(options: Options) -> int:
    """Prints the table; returns the exit code."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU, and PyTorch sees none here", file=sys.stderr)
        return 2
    set_deterministic(options.deterministic)
    rows = [row for preset in options.presets for row in measure(preset, options)]
    show_rows(f"{machine(CUDA)}; milliseconds, medians in turn", rows, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
