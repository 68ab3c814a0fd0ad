"""Does `torch.compile` pay? What compiling an update and a plan takes, and what they take then, in turn with ours.

Compiled are the losses, with their gradients, and the value of a plan's sequences: where the time goes. A removal
changes the widths, and everything is compiled again. Needs a C++ compiler.

python -m benchmarks.compiled
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
import tyro

from tdmpc_prune.commands.common import show_rows
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.device import set_threads
from tdmpc_prune.speed import Sizes, Subject, Work, alternate, machine, new_subject, timed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """Times updates and plans, ours and compiled ones, in turn."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Sizes to time."""
    threads: int = 1
    """PyTorch's threads; 0: one per core, at most 4."""
    seconds: float = 10.0
    """Time spent on each figure."""
    json: bool = False
    """Print one JSON object."""


def compiled(subject: Subject) -> Subject:
    """The same, to be compiled when it is first called."""
    agent, planner = subject.agent, subject.planner
    agent.model_losses = torch.compile(agent.model_losses)  # type: ignore[method-assign]
    agent.policy_loss = torch.compile(agent.policy_loss)  # type: ignore[method-assign]
    planner.estimate_value = torch.compile(planner.estimate_value)  # type: ignore[method-assign]
    return subject


def measure(preset: Preset, seconds: float) -> list[dict[str, object]]:
    """Rows of the table."""
    subjects = {
        "ours": new_subject(PRESETS[preset], Sizes(), CPU),
        "compiled": compiled(new_subject(PRESETS[preset], Sizes(), CPU)),
    }
    kinds = ("update", "plan")
    first = {(kind, name): timed(getattr(subjects[name], kind), CPU) for kind in kinds for name in subjects}
    works = {(kind, name): Work(getattr(subjects[name], kind)) for kind in kinds for name in subjects}
    times = alternate(works, seconds, CPU)
    return [
        {
            "preset": preset,
            "ms": kind,
            "ours": round(median(times[kind, "ours"]), 2),
            "compiled": round(median(times[kind, "compiled"]), 2),
            "compiled / ours": round(
                median(b / a for a, b in zip(times[kind, "ours"], times[kind, "compiled"], strict=True)), 2
            ),
            "compiling s": round((first[kind, "compiled"] - first[kind, "ours"]) / 1e3, 1),
        }
        for kind in kinds
    ]


def main(options: Options) -> None:
    """Prints the table."""
    set_threads(options.threads)
    rows = [row for preset in options.presets for row in measure(preset, options.seconds)]
    show_rows(machine(CPU), rows, as_json=options.json)


if __name__ == "__main__":
    main(tyro.cli(Options))
