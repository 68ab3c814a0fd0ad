"""Settings of a run. Importing this module is quick: the command's help needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.tdmpc.config import DEBUG, LAPTOP, PAPER, TDMPCConfig
from envs import TASKS, resolve_task
from tdmpc_prune.pruning.config import PruneConfig

Device = Literal["auto", "cpu", "cuda"]
Preset = Literal["laptop", "paper", "debug"]


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, beside the run folder's own files."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where you are logged in, else offline; disabled: W&B is not even imported."""
    project: str = "tdmpc-prune"
    """Project that the run appears in."""
    entity: str | None = None
    """Team or user; W&B's own default if none."""
    group: str | None = None
    """Group that the run appears in; the task if none."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""


@dataclass(frozen=True)
class TrainConfig:
    """Trains a TD-MPC agent on a simulated control task. The same command again resumes the run."""

    task: Annotated[str, tyro.conf.Positional]
    """Task, for example cartpole-swingup (DMControl) or InvertedPendulum-v5 (Gymnasium)."""
    preset: Preset = "laptop"
    """Sizes that the other settings start from: laptop (minutes), paper (Hansen et al.), debug (seconds)."""
    seed: int = 1
    """Seed of everything that is random."""
    run_dir: Path | None = None
    """Folder of the run; runs/TASK-PRESET-sSEED if none."""
    steps: int = 40_000
    """Environment steps to train for (agent steps times action repeat; 1,000 a DMControl episode)."""
    action_repeat: int | None = None
    """Environment steps per agent step; the task's usual number if none."""
    eval_every: int = 4_000
    """Environment steps between two evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation, each with a seed of its own, the same every time."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints; SIGINT and SIGTERM save one, too."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: one per core, at most 4."""
    json: bool = False
    """Print the summary as one JSON object, and nothing else, on standard output."""
    agent: TDMPCConfig = field(default_factory=TDMPCConfig)
    """The agent; its defaults are the preset's."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """Pruning while training; --prune.criterion none trains dense."""
    init_from: Path | None = None
    """Start from this finished run (agent, optimisers, replay) in place of a new agent: prunes after training."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        if self.task is tyro.MISSING:  # a preset, before a command line has completed it
            return
        for name in ("steps", "eval_every", "eval_episodes", "checkpoint_every"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; choose at least 1")
        if self.action_repeat is not None and self.action_repeat < 1:
            raise ValueError(f"action_repeat is {self.action_repeat}; choose at least 1")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; choose 0 (one per core) or more")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; choose 0 to 2147483647")
        self._check_steps()
        if self.prune.enabled:
            self.prune.schedule_over(self.steps)

    @property
    def env_steps_per_action(self) -> int:
        """Environment steps per agent step: the setting, or the task's usual number."""
        return self.action_repeat or TASKS[resolve_task(self.task)].action_repeat

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.run_dir or Path("runs") / f"{resolve_task(self.task)}-{self.preset}-s{self.seed}"

    def _check_steps(self) -> None:
        """Refuses a run that would end before its first update."""
        if self.init_from is not None:  # which has its random phase behind it
            return
        random_steps = self.agent.random_steps * self.env_steps_per_action
        if self.steps <= random_steps:
            raise ValueError(
                f"steps is {self.steps}, but the first {random_steps} environment steps are random "
                f"({self.agent.random_steps} agent steps x action repeat {self.env_steps_per_action}): "
                "raise --steps or lower --agent.random-steps"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluates a stored run: its return over episodes, with the planner or the policy alone."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or one of its checkpoints."""
    episodes: int = 10
    """Episodes to run."""
    seed: int = 0
    """Seed of the episodes and of the planner."""
    controller: Literal["planner", "policy"] = "planner"
    """planner: plan at every step; policy: the policy network alone."""
    video: Path | None = None
    """Film the first episode into this mp4 file."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: one per core, at most 4."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; choose at least 1")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; choose 0 (one per core) or more")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; choose 0 to 2147483647")
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"--video {self.video}: the file's name must end in .mp4")


PRESETS: dict[Preset, TDMPCConfig] = {"laptop": LAPTOP, "paper": PAPER, "debug": DEBUG}
PRESET_RUNS: dict[Preset, dict[str, Any]] = {
    "laptop": {},
    "paper": {"steps": 100_000, "eval_every": 10_000},
    "debug": {"steps": 3_000, "eval_every": 1_000, "eval_episodes": 2, "checkpoint_every": 1_000},
}


def preset_defaults(preset: Preset, task: str = tyro.MISSING) -> TrainConfig:
    """The settings that a preset starts from; without a task, to be completed by a command line."""
    return TrainConfig(task=task, preset=preset, agent=PRESETS[preset], **PRESET_RUNS[preset])
