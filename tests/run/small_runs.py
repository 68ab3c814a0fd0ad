"""Runs small enough for tests, what happens in them, and when two of them are equal."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tdmpc_prune.cli import parse
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.train import train
from tdmpc_prune.training import Training

QUIET = ["--threads", "1", "--device", "cpu", "--wandb.mode", "disabled"]
# The replay ring is full in the third episode; the random phase ends within the second one.
TINY = [
    *("--preset", "debug", "--agent.horizon", "3", "--agent.schedule-steps", "60"),
    *("--agent.batch-size", "8", "--agent.replay.capacity", "60", "--agent.planner.num-samples", "16"),
    *("--agent.planner.policy-fraction", "0.25", "--eval-episodes", "2"),
]
CARTPOLE = [
    *("cartpole-swingup", *TINY, *QUIET, "--action-repeat", "40", "--agent.random-steps", "30"),
    *("--steps", "3000", "--eval-every", "2000", "--checkpoint-every", "1000"),
]
"""3 episodes of 25 agent steps."""
PENDULUM = [
    *("InvertedPendulum-v5", *TINY, *QUIET, "--agent.random-steps", "15"),
    *("--steps", "80", "--eval-every", "40", "--checkpoint-every", "40"),
]
"""Episodes of a few steps, which end because the pendulum falls."""
PRUNED = [
    *(*PENDULUM, "--prune.importance.warmup", "5", "--prune.events", "3"),
    *("--prune.eval-episodes", "1", "--prune.calibration-episodes", "1"),
]
"""The same, and units are removed three times. The others end before their first removal."""
ARGUMENTS = {"cartpole": CARTPOLE, "pendulum": PENDULUM, "pruned": PRUNED}

WALL_CLOCK = ("time/", "eval/plan_ms")
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"


@dataclass(frozen=True)
class Observed:
    """A run and the names of what it did; `check`: it looked whether a signal came."""

    path: Path
    events: list[str]


def train_small(arguments: list[str], folder: Path, *more: str) -> dict[str, Any]:
    """Runs `tdmpc-prune train` in this process, without the command's way to report errors."""
    return train(parse(["train", *arguments, "--run-dir", str(folder), *more]))


def observe(patch) -> list[str]:
    """From now on, notes every check for signals and every step of a run in the list returned."""
    events: list[str] = []

    def noted(name, method):
        def wrapper(*arguments):
            events.append(name)
            result = method(*arguments)
            if name in ("evaluate", "remove"):
                events.append(f"{name}d")
            return result

        return wrapper

    patch.setattr(StopSignals, "check", noted("check", StopSignals.check))
    for name in ("collect", "update", "evaluate", "episode_row", "save", "remove"):
        patch.setattr(Training, name, noted(name, getattr(Training, name)))
    return events


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steady_rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    return [{k: v for k, v in row.items() if not k.startswith(WALL_CLOCK)} for row in rows(folder)]


def checkpoints(folder: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"checkpoints/[0-9]*/{STATE}"))


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint's JSON without what the clock decides."""
    stored = json.loads((checkpoints(folder)[-1] / STATE).read_text())
    del stored["progress"]["elapsed"], stored["metrics_bytes"]  # the latter: digits of wall-clock times
    return stored


def assert_same_run(folder: Path, other: Path) -> None:
    """Equal metrics, and bitwise equal networks, optimisers, replay, random states and counters."""
    assert steady_rows(folder) == steady_rows(other)
    last, wanted = checkpoints(folder)[-1], checkpoints(other)[-1]
    assert (last / MODEL).read_bytes() == (wanted / MODEL).read_bytes()
    for name in (MODEL, TRAINING):
        tensors, expected = load_file(last / name), load_file(wanted / name)
        assert tensors.keys() == expected.keys()
        different = [key for key, value in tensors.items() if not torch.equal(value, expected[key])]
        assert not different, f"{name}: {different}"
    assert state(folder) == state(other)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is under a folder; of files, when they were written, and what they hold."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        if path.is_file()
        else (0, b"")
        for path in sorted(folder.rglob("*"))
    }
