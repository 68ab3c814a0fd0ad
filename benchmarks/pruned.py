"""What removing units brings: milliseconds of a plan and an update by what is left, and the time that the task gives.

python -m benchmarks.pruned --task walker-walk
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch
import tyro

from envs import make_env
from tdmpc_prune.commands.common import show_rows
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_threads
from tdmpc_prune.pruning.config import Limits, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.speed import LATE, Sizes, Subject, Work, alternate, gflop, machine, new_subject

CPU = torch.device("cpu")

# A run has one agent at a time, for whose shapes the compiled products that oneDNN keeps suffice (agents/layers.py).
# Here a dozen take turns. With as few, each would find its own thrown out: a tenth more for a plan, a fifth for an
# update.
for _setting in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ[_setting] = "4096"


@dataclass(frozen=True)
class Options:
    """Times agents of random weights, pruned by magnitude to several sparsities and multiples of units, in turn."""

    preset: Preset = "paper"
    """Sizes to start from."""
    task: str = "walker-walk"
    """Task that decides how many numbers an observation and an action have, and how long a control step is."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """Shares of the parameters that are removed."""
    round_to: tuple[int, ...] = (1, 8, 16)
    """Widths left are multiples of these."""
    threads: int = 1
    """PyTorch's threads; 0: one per core, at most 4."""
    exported: bool = False
    """Also time the exported planners in ONNX Runtime, on one thread."""
    seconds: float = 5.0
    """Time spent on each figure."""
    json: bool = False
    """Print one JSON object."""


def sizes_and_period(task: str) -> tuple[Sizes, float]:
    """Of a task's observations and actions, and milliseconds of a control step."""
    env = make_env(task, seed=0)
    [obs], [action] = env.observation_space.shape, env.action_space.shape
    env.close()
    return Sizes(obs, action), 1e3 * env.get_wrapper_attr("control_timestep")


def pruned(options: Options, sizes: Sizes, sparsity: float, round_to: int) -> Subject:
    """An agent without so many of its units."""
    subject = new_subject(PRESETS[options.preset], sizes, CPU)
    if sparsity:
        limits = Limits(round_to=round_to)
        config = PruneConfig(
            criterion="magnitude", sparsity=sparsity, compensation="none", limits=limits, start=0.0, events=1
        )
        pruner = Pruner(subject.agent, config, config.schedule_over(100))
        pruner.tracker.updates = config.importance.warmup
        pruner.prune(100)
    return subject


def exported(subject: Subject) -> Callable[[], object]:
    """A control step of its planner as ONNX Runtime takes it."""
    from tdmpc_prune.export.graphs import PlannerGraph, to_onnx  # takes seconds, and an extra
    from tdmpc_prune.export.runtime import stepper

    graph = PlannerGraph(subject.agent, LATE)
    act, observation = stepper(graph, to_onnx(graph)), graph.example()[0].numpy()
    return lambda: act(observation)


def main(options: Options) -> None:
    """Prints the table."""
    set_threads(options.threads)
    sizes, period = sizes_and_period(options.task)
    agents = {(0.0, 1): pruned(options, sizes, 0.0, 1)}
    agents |= {(s, r): pruned(options, sizes, s, r) for s in options.sparsities for r in options.round_to}
    works = {(key, "plan"): Work(agent.plan) for key, agent in agents.items()}
    works |= {(key, "update"): Work(agent.update) for key, agent in agents.items()}
    if options.exported:
        works |= {(key, "exported plan"): Work(exported(agent)) for key, agent in agents.items()}
    measured = alternate(works, options.seconds, CPU)
    times = {key: median(values) for key, values in measured.items()}
    needed = {(key, kind): gflop(getattr(agents[key], kind)) for key in agents for kind in ("plan", "update")}
    rows = []
    for key, agent in agents.items():
        row: dict[str, float | int | str] = {
            "asked for": f"{key[0]:.0%}",
            "multiples of": key[1],
            "parameters": sum(p.numel() for p in agent.agent.model.parameters()),
        }
        for kind in dict.fromkeys(kind for _, kind in times):
            dense, this = ((0.0, 1), kind), (key, kind)
            row[f"{kind} ms"] = round(times[this], 2)
            row[f"{kind} quicker"] = f"{times[dense] / times[this]:.1f}x"
            if this in needed:
                row[f"{kind} arithmetic"] = f"1/{needed[dense] / needed[this]:.1f}"
            if kind.endswith("plan"):
                late, which = quantiles(measured[this], n=100)[-1], kind.removesuffix("plan")
                row[f"{which}p99"], row[f"{which}in time"] = round(late, 2), late <= period
        rows.append(row)
    heading = f"{machine(CPU)}; {options.task}, {options.preset} sizes, medians in turn"
    show_rows(f"{heading}; a control step has {period:g} ms", rows, as_json=options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
