"""One trial: its settings, checked before anything runs, and the process that trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc_prune.arguments import parse_training
from tdmpc_prune.config import AnyTrainConfig, WandbConfig
from tdmpc_prune.errors import UserError
from tdmpc_prune.reading import read_rows
from tdmpc_prune.sweep.command import words
from tdmpc_prune.sweep.definition import Definition

SECONDS_TO_SAVE = 60
"""What a training gets to save itself, before it is killed."""
GRACE_EVALUATIONS = 2
"""Evaluations after the last removal before a trial may be stopped: it recovers from the dip first."""


@dataclass(frozen=True)
class Resources:
    """What one trial may use."""

    cpus: float = 1
    gpus: float = 0

    @property
    def threads(self) -> int:
        """PyTorch's threads of a trial: as many as its cores."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Plan:
    """How a trial is trained."""

    words: list[str]
    """`train ...`, without what the engine adds: run folder, threads, W&B's names."""
    config: AnyTrainConfig

    @property
    def grace(self) -> int:
        """Evaluations, from the untrained agent's on, before this trial may be stopped early.

        The return dips after a removal and comes back: who is stopped in a dip says nothing of its settings.
        """
        config = self.config
        if not config.prune.enabled:
            return 1
        return int(config.prune.end * config.steps) // config.eval_every + 1 + GRACE_EVALUATIONS

    @property
    def evaluations(self) -> int:
        """Evaluations until the end, at most."""
        return self.config.steps // self.config.eval_every + 2


def plan(definition: Definition, values: Mapping[str, Any], resources: Resources | None) -> Plan:
    """The settings of a trial; without `resources`, it may ask for any.

    Raises:
        UserError: the file's command or a setting is wrong, or cannot be honoured.
    """
    where = f"{definition.path}"
    try:
        line = words(definition, values)
        config = parse_training(line)
    except (UserError, ValueError) as error:
        named = ", ".join(f"{name} {values[name]}" for name in definition.varied)
        raise UserError(f"{where}{f' ({named})' if named else ''}: {error}") from error
    except SystemExit as asked:
        raise UserError(f"{where}: its command asks for help; take --help out") from asked
    if config.run_dir is not None:
        raise UserError(f"{where}: run_dir is set, but every trial has a folder of its own: leave it out")
    if config.dry_run:
        raise UserError(f"{where}: dry_run is set, so nothing would be trained: leave it out")
    if resources is None:
        return Plan(line, config)
    if config.threads > resources.threads:
        raise UserError(
            f"{where}: threads is {config.threads}, but a trial has {resources.cpus:g} cores: "
            f"choose --cpus-per-trial {config.threads}"
        )
    if config.device == "cuda" and not resources.gpus:
        raise UserError(f"{where}: device is cuda, but trials have no GPU: choose --gpus-per-trial 1")
    if config.device == "cpu" and resources.gpus:
        raise UserError(f"{where}: device is cpu, and trials would hold GPUs: choose --gpus-per-trial 0")
    return Plan(line, config)


def command_line(definition: Definition, planned: Plan, run: Path, resources: Resources) -> list[str]:
    """The whole command line of a trial, as a user could type it."""
    line = [*planned.words, "--run-dir", str(run)]
    wandb, unset = planned.config.wandb, WandbConfig()
    if not planned.config.threads:
        line += ["--threads", str(resources.threads)]
    if wandb.group is None:
        line += ["--wandb.group", definition.name]
    for key in ("project", "entity"):
        if key in definition.raw and getattr(wandb, key) == getattr(unset, key):
            line += [f"--wandb.{key}", definition.raw[key]]
    return line


class TrialProcess:
    """A training in a process of its own: it may crash, or be stopped, and nothing else is touched.

    It saves itself and leaves when whoever started it is gone (see `sweep.child`), and begins only when no
    other process trains in its folder any more.
    """

    def __init__(self, line: list[str], *, run: Path, log: Path, threads: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.run, self.log = run, log
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tdmpc_prune.sweep.child", str(os.getpid()), *line],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ray kills its workers by their group, and this one is to save itself
                env=os.environ | dict.fromkeys(variables, str(threads)),
            )

    def wait(self, seconds: float) -> int | None:
        """Waits, at most so long, for its end; returns its exit code, None while it runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ends it: it saves itself, if it can in time."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        if self.wait(SECONDS_TO_SAVE) is None:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The last line that it said."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-500:] if lines else "it said nothing"


def values_of(metrics: Path, name: str) -> list[tuple[int, float]]:
    """Environment step and value of a metric, of all whole lines that have it."""
    if not metrics.exists():
        return []
    return [(row["env_step"], row[name]) for row in read_rows(metrics) if name in row]
