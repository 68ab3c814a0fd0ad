"""`tdmpc-prune benchmark`: how quick this machine is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tdmpc_prune.commands.common import CommandConfig, print_json, short_names, show_table
from tdmpc_prune.config import PRESETS, Preset, check_count

if TYPE_CHECKING:
    import torch

    from tdmpc_prune.speed import Sizes

LONGEST = 3_600.0


@dataclass(frozen=True)
class SpeedConfig(CommandConfig):
    """What is timed, and for how long."""

    presets: tuple[Preset, ...] = ("laptop", "paper")
    """Sizes of the agents, which see random data."""
    obs_dim: int = 5
    """Numbers of an observation; cartpole's are 5, walker's 24."""
    action_dim: int = 1
    """Numbers of an action; cartpole has 1, walker 6."""
    seconds: float = 5.0
    """Time spent on each figure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("obs_dim", "action_dim"):
            check_count(name, getattr(self, name), most=8_192)
        if not 0 < self.seconds <= LONGEST:
            raise ValueError(f"seconds is {self.seconds}; choose more than 0, and at most {LONGEST:,.0f}")

    @property
    def sizes(self) -> Sizes:
        """Of the task."""
        from tdmpc_prune.speed import Sizes

        return Sizes(self.obs_dim, self.action_dim)


@dataclass(frozen=True)
class BenchmarkConfig(SpeedConfig):
    """Times an update, a plan and pruning here and now, beside the rate of a large matrix product.

    Nothing else should run meanwhile. --json prints one object: the figures of every preset by its name, and
    those of the runs under "runs", if there are any.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders, or checkpoints: their planners are timed, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.presets or self.runs):
            raise ValueError("there is nothing to time: give a preset, or a run folder")


def run(config: BenchmarkConfig) -> int:
    """Times what was asked for and shows what was found."""
    from tdmpc_prune.speed import machine, measure

    device = config.compute_on()
    plans = _plans(config, device)
    found = {
        preset: asdict(measure(PRESETS[preset], config.sizes, device, config.seconds))
        for preset in dict.fromkeys(config.presets)
    }
    if config.json:
        print_json(found | ({"runs": plans} if plans else {}))
        return 0
    print(f"{machine(device)}; medians\n")
    if found:
        show_table([_shown(preset, speed) for preset, speed in found.items()])
    if plans:
        print("\n" if found else "", end="")
        names = short_names([row["run"] for row in plans])
        show_table([row | {"run": name} for row, name in zip(plans, names, strict=True)])
    return 0


def _shown(preset: str, speed: Mapping[str, float]) -> dict[str, Any]:
    """An agent's figures as its row of the table."""
    return {
        "preset": preset,
        "update ms": speed["update_ms"],
        "plan ms": speed["plan_ms"],
        "tracker": f"{speed['tracker_share']:.1%}",
        "removal ms": speed["event_ms"],
        "GFLOP per update": speed["gflop_update"],
        "GFLOP per plan": speed["gflop_plan"],
        "roofline GFLOP/s": round(speed["roofline_gflops"]),
    }


def _plans(config: BenchmarkConfig, device: torch.device) -> list[dict[str, Any]]:
    """Every run's planner: size, multiply-accumulates of a control step, and its median milliseconds, in turn.

    Raises:
        UserError: a run has no checkpoint, it cannot be read, or it is an autoencoder.
    """
    from statistics import median

    from tdmpc_prune.checkpoint import load_agent
    from tdmpc_prune.speed import Subject, Work, alternate, multiplications

    stored = {path: load_agent(path, device) for path in dict.fromkeys(config.runs)}
    subjects = {path: Subject(one.agent, one.agent_step) for path, one in stored.items()}
    times = alternate({path: Work(s.plan) for path, s in subjects.items()}, config.seconds, device)
    return [
        {
            "run": str(path),
            "task": one.task,
            "sparsity": one.sparsity,
            "parameters": one.parameters,
            "plan_macs": multiplications(subjects[path].plan),
            "plan_ms": median(times[path]),
        }
        for path, one in stored.items()
    ]
