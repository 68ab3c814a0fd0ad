"""Milliseconds of an update and a plan: ours, the simple way, the public code, and what the machine allows.

    python -m benchmarks.speed --tricks --upstream PATH

All of them take turns, and so does the matrix product whose rate is the roofline; medians. The simple way is the
same agent with every module called one by one. Nothing else should run meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from agents import layers
from agents.layers import module_by_module
from agents.tdmpc import world_model
from agents.tdmpc.world_model import WorldModel
from benchmarks.upstream import Upstream
from tdmpc_prune.commands.benchmark import SpeedConfig
from tdmpc_prune.commands.common import print_json, show_table
from tdmpc_prune.config import PRESETS, Preset
from tdmpc_prune.errors import UserError
from tdmpc_prune.speed import (
    Sizes,
    Subject,
    Work,
    alternate,
    event_ms,
    gflop,
    machine,
    matrix_rate,
    new_subject,
    products,
    random_replay,
    tracker_share,
)

OBS_DIM, ACTION_DIM = Sizes().obs_dim, Sizes().action_dim
KINDS = ("update", "plan")
BOTH = "update + plan"

Times = Mapping[tuple[str, str], Sequence[float]]
"""Milliseconds, round by round, of who did what."""

__all__ = ["ACTION_DIM", "OBS_DIM", "random_replay"]  # what other benchmarks take from here


@dataclass(frozen=True)
class Options(SpeedConfig):
    """Times an update and a plan of every preset, and of whom they are compared with, in turn."""

    upstream: Path | None = None
    """A checkout of the public TD-MPC code, to be timed, too."""
    tricks: bool = False
    """Also how much slower it is without each of the tricks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.presets:
            raise ValueError("there is nothing to time: give a preset")


# Tricks


@contextmanager
def rewards_step_by_step() -> Iterator[None]:
    """Predicts the rewards of a rollout one step at a time."""

    def rollout(self: WorldModel, z: Tensor, actions: Tensor) -> tuple[list[Tensor], Tensor]:
        latents, rewards = [z], []
        for action in actions:
            inputs = torch.cat([latents[-1], action], dim=-1)
            rewards.append(self.reward(inputs).squeeze(-1))
            latents.append(self.dynamics(inputs))
        return latents, torch.stack(rewards)

    with patch.object(WorldModel, "rollout", rollout):
        yield


TRICKS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "networks as a whole": module_by_module,
    "products by oneDNN": lambda: patch.object(layers, "ONEDNN", False),
    "base-2 exponentials": lambda: patch.multiple(layers, elu_=F.elu_, tanh_=torch.tanh_),
    "rewards of a rollout at once": rewards_step_by_step,
    "but of large plans step by step": lambda: patch.object(world_model, "AT_ONCE", 10**12),
}
"""What makes it quick, and how each is turned off. Those of one kind are not independent: shares do not add up."""
if layers.MKL_IS_QUICK:
    TRICKS["products and exponentials by MKL"] = lambda: patch.object(layers, "MKL_IS_QUICK", False)
if layers.BFLOAT16:
    TRICKS["plans in bfloat16"] = lambda: patch.object(layers, "BFLOAT16", False)


# Measuring


@dataclass(frozen=True)
class Found:
    """What was measured of one preset."""

    rounds: int
    speed: list[dict[str, Any]]
    """A row per update, plan and both."""
    tricks: list[dict[str, Any]]
    """A row per trick: time without it over time with all of them, median over rounds."""
    pruning: dict[str, Any]


def measure(preset: Preset, options: Options, device: torch.device) -> Found:
    """Times one preset, with all that it is compared with.

    Raises:
        UserError: the public code is not where it was said to be.
    """
    config, sizes = PRESETS[preset], options.sizes
    ours = new_subject(config, sizes, device)
    works = _works(ours) | _works(new_subject(config, sizes, device), "simple", module_by_module)
    if options.upstream is not None:
        works |= _works(Upstream(options.upstream, ours), "upstream")
    tricks = TRICKS if options.tricks else {}
    for name, without in tricks.items():
        works |= _works(new_subject(config, sizes, device), name, without)
    matrices = {(name, "product"): work for name, work in products(device).items()}
    times = alternate(works | matrices, options.seconds, device)
    rate = matrix_rate([times[key] for key in matrices], device)
    needed = {kind: gflop(getattr(ours, kind)) for kind in KINDS}
    needed[BOTH] = sum(needed.values())
    for name in {name for name, _ in works}:
        both = zip(*(times[name, kind] for kind in KINDS), strict=True)
        times[name, BOTH] = [sum(pair) for pair in both]
    rows = [_row(kind, times, needed[kind], rate) for kind in needed]
    return Found(
        rounds=len(times["ours", BOTH]),
        speed=[{"preset": preset} | row for row in rows],
        tricks=[
            {"preset": preset, "without": name} | {kind: _ratio(times, name, "ours", kind) for kind in needed}
            for name in tricks
        ],
        pruning={
            "preset": preset,
            "tracker_share": tracker_share(config, sizes, device, options.seconds),
            "event_ms": event_ms(config, sizes, device),
        },
    )


def _works(
    subject: Subject | Upstream,
    name: str = "ours",
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[tuple[str, str], Work]:
    return {(name, kind): Work(getattr(subject, kind), within) for kind in KINDS}


def _row(kind: str, times: Times, needed: float, rate: float) -> dict[str, Any]:
    """Milliseconds of everyone who did this, and how ours compares; None: nobody did it."""
    names = ("upstream", "simple", "ours")
    row: dict[str, Any] = {"what": kind}
    row |= {f"{name}_ms": median(times[name, kind]) if (name, kind) in times else None for name in names}
    low, _, high = quantiles(times["ours", kind], n=4)
    roofline = 1e3 * needed / rate
    return row | {
        "ours_quartiles_ms": (low, high),
        "roofline_ms": roofline,
        "gflop": needed,
        "roofline_gflops": rate,
        "ours_to_upstream": _ratio(times, "ours", "upstream", kind),
        "ours_to_simple": _ratio(times, "ours", "simple", kind),
        "share_of_roofline": roofline / row["ours_ms"],
    }


def _ratio(times: Times, name: str, other: str, kind: str) -> float | None:
    """Time of the one over time of the other, median over rounds."""
    if (other, kind) not in times:
        return None
    return median(a / b for a, b in zip(times[name, kind], times[other, kind], strict=True))


# Showing


def show(found: Sequence[Found], device: torch.device) -> None:
    """Prints the tables."""
    rounds = " and ".join(str(one.rounds) for one in found)
    kind = (
        "float32 (large products of plans: bfloat16)"
        if layers.BFLOAT16 and device.type == "cpu"
        else "float32"
    )
    print(
        f"{machine(device)}, {device}, {kind}; medians of {rounds} rounds, ratios are medians over rounds\n"
    )
    show_table([_shown(row) for one in found for row in one.speed])
    if any(one.tricks for one in found):
        print("\nTime without one of the tricks, over time with all:\n")
        show_table([_rounded(row) for one in found for row in one.tricks])
    print("\nWhat pruning adds:\n")
    show_table(
        [
            {
                "preset": one.pruning["preset"],
                "importance tracker": f"{one.pruning['tracker_share']:.1%} of an update",
                "removal ms": round(one.pruning["event_ms"], 1),
            }
            for one in found
        ]
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as its table shows it: without the public code where it was not timed."""
    low, high = row["ours_quartiles_ms"]
    shown = {
        "preset": row["preset"],
        "ms": row["what"],
        "upstream": row["upstream_ms"],
        "simple": row["simple_ms"],
        "ours": row["ours_ms"],
        "quartiles": f"{low:.1f} to {high:.1f}",
        "roofline": row["roofline_ms"],
        "ours / upstream": row["ours_to_upstream"],
        "ours / simple": row["ours_to_simple"],
        "of roofline": f"{row['share_of_roofline']:.0%}",
    }
    return _rounded({k: v for k, v in shown.items() if v is not None})


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}


def main(options: Options) -> int:
    """Prints the tables; returns the exit code."""
    try:
        device = options.compute_on()
        found = [measure(preset, options, device) for preset in dict.fromkeys(options.presets)]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print_json(
            {"machine": machine(device), "device": str(device), "presets": [asdict(one) for one in found]}
        )
    else:
        show(found, device)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
