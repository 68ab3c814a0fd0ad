"""Settings of a run. Importing this module is quick: the command's help needs nothing else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.autoencoder_config import AutoencoderConfig
from agents.tdmpc.config import DEBUG, LAPTOP, PAPER, SCHEDULE_STEPS, TDMPCConfig
from envs import find_task, resolve_task
from tdmpc_prune.errors import UserError
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.schedule import Schedule

Device = Literal["auto", "cpu", "cuda"]
Preset = Literal["laptop", "paper", "debug"]

AUTOENCODER = "autoencoder"
"""The task that is no control task."""
DIGITS = "digits"
"""The images that need no folder."""


MOST_STEPS, MOST_EPISODES, MOST_THREADS, MOST_ENVS = 10**12, 100_000, 1_024, 64
"""More would take years, or is more than a machine has."""
DMCONTROL_SCHEDULE = 24_000
"""Environment steps of exploring less and less on DMControl's tasks, unless told otherwise."""


def check_count(name: str, value: int, *, least: int = 1, most: int) -> None:
    """Refuses a number of things below `least`, or beyond all reason; raises ValueError."""
    if not (isinstance(value, int) and least <= value <= most):
        raise ValueError(f"{name} is {value}; choose at least {least}, and at most {most:,}")


def check_seed(seed: int) -> None:
    """Refuses a seed that not all generators take; raises ValueError."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}; choose 0 to 2147483647")


def check_threads(threads: int) -> None:
    """Refuses a number of threads that no machine starts; raises ValueError."""
    if not 0 <= threads <= MOST_THREADS:
        raise ValueError(f"threads is {threads}; choose 0 (one per core) to {MOST_THREADS}")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, beside the run folder's own files."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: as WANDB_MODE says, else online where you are logged in, and offline where not; disabled: W&B is not even
    imported."""
    project: str = "tdmpc-prune"
    """Project that the run appears in."""
    entity: str | None = None
    """Team or user; W&B's own default if none."""
    group: str | None = None
    """Group that the run appears in; the task if none."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training is set by. The same command again resumes the run."""

    task: Annotated[str, tyro.conf.Positional]
    """What is learned."""
    seed: int = 1
    """Seed of everything that is random."""
    run_dir: Path | None = None
    """Folder of the run; made of its task and seed if none."""
    steps: int
    """Steps to train for."""
    eval_every: int
    """Steps between two evaluations."""
    checkpoint_every: int
    """Steps between two checkpoints; SIGINT and SIGTERM save one, too."""
    keep_every: int = 0
    """Steps between two checkpoints that stay for good, for `validate`; 0: only the last two checkpoints stay."""
    skip_limit: int = 20
    """Updates in a row that are skipped, since their gradients are not finite, before the run ends."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: OMP_NUM_THREADS where it is set, else one per core, at most 4."""
    deterministic: bool = False
    """The same bits again on a GPU, too, and whatever the number of cores: slower algorithms, and 1 thread if 0."""
    json: bool = False
    """Print the summary as one JSON object, and nothing else, on standard output."""
    dry_run: bool = False
    """Train nothing and write nothing: show the pruning groups, the sizes and the schedule."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """Pruning while training; --prune.criterion none trains dense."""
    init_from: Path | None = None
    """Start from this dense run (all that it learned, and its optimisers) in place of a new agent."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        if self.task is tyro.MISSING:  # a preset, before a command line has completed it
            return
        self._check()
        if self.prune.enabled:
            _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        """By when how much is to be gone.

        Raises:
            ValueError: there is no time for it.
        """
        return self.prune.schedule_over(self.steps, self._first_update)

    @property
    def _first_update(self) -> int:
        """The step from which on something is learned."""
        return 0

    @property
    def folder(self) -> Path:
        """Folder of the run; a trial of a W&B sweep has one of its own."""
        trial = sweep_trial()
        return self.run_dir or Path("runs", *([f"sweep-{trial[0]}", trial[1]] if trial else [self._name]))

    @property
    def _name(self) -> str:
        return f"{self.task}-s{self.seed}"

    def _check(self) -> None:
        """Refuses values that no run can have."""
        self._check_at_least_1("steps", "eval_every", "checkpoint_every", "skip_limit")
        check_threads(self.threads)
        check_seed(self.seed)
        if self.keep_every < 0:
            raise ValueError(f"keep_every is {self.keep_every}; choose 0 (keep none) or more steps")
        if self.init_from is not None and self.init_from.absolute() == self.folder.absolute():
            raise ValueError(
                f"init_from is {self.init_from}, the run's own folder: choose another --run-dir, or leave "
                "--init-from out to resume it"
            )

    def _check_at_least_1(self, *names: str) -> None:
        for name in names:
            check_count(name, getattr(self, name), most=MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class TDMPCTrainConfig(TrainConfig):
    """Trains a TD-MPC agent on a simulated control task. The same command again resumes the run.

    `train autoencoder` trains an autoencoder in its place, with the same pruning: `train autoencoder --help`.
    """

    task: Annotated[str, tyro.conf.Positional]
    """Task, for example cartpole-swingup (DMControl), InvertedPendulum-v5 (Gymnasium), or one of your own."""
    preset: Preset = "laptop"
    """Sizes that the other settings start from: laptop (minutes), paper (Hansen et al.), debug (seconds)."""
    run_dir: Path | None = None
    """Folder of the run; runs/TASK-PRESET-sSEED if none."""
    steps: int = 40_000
    """Environment steps to train for (agent steps times action repeat; 1,000 a DMControl episode)."""
    action_repeat: int | None = None
    """Environment steps per agent step; the task's usual number if none."""
    envs: int = 1
    """Environments at once, planned for in one batch; updates, evaluations and removals wait for all."""
    eval_every: int = 4_000
    """Environment steps between two evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation, each with a seed of its own, the same every time."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints; SIGINT and SIGTERM save one, too."""
    agent: TDMPCConfig = field(default_factory=TDMPCConfig)
    """The agent; its defaults are the preset's."""
    init_from: Path | None = None
    """Start from this dense run (agent, optimisers, replay) in place of a new agent: prunes after training."""

    @property
    def env_steps_per_action(self) -> int:
        """Environment steps per agent step: the setting, or the task's usual number."""
        return self.action_repeat or find_task(self.task).action_repeat

    @property
    def _schedule_steps(self) -> int:
        """Agent steps of exploring less and less, unless told otherwise.

        DMControl's episodes are alike, 1,000 environment steps that nothing ends early: an agent explores for 24 of
        them, however long an action lasts. Elsewhere exploring may end an episode after 20 steps.
        """
        if find_task(self.task).suite == "dmcontrol":
            return DMCONTROL_SCHEDULE // self.env_steps_per_action
        return SCHEDULE_STEPS

    @property
    def _name(self) -> str:
        return f"{self.task}-{self.preset}-s{self.seed}"

    def _check(self) -> None:
        # A task has several spellings, a run only one.
        object.__setattr__(self, "task", resolve_task(self.task))
        self._check_at_least_1("steps", "eval_every", "checkpoint_every")
        check_count("eval_episodes", self.eval_episodes, most=MOST_EPISODES)
        if self.action_repeat is not None:
            check_count("action_repeat", self.action_repeat, most=1_000)
        check_count("envs", self.envs, most=MOST_ENVS)
        if self.agent.schedule_steps is None:
            object.__setattr__(self, "agent", replace(self.agent, schedule_steps=self._schedule_steps))
        super()._check()
        self._check_steps()

    @property
    def _first_update(self) -> int:
        if self.init_from is not None:  # which has its random phase behind it
            return 0
        return self.agent.random_steps * self.env_steps_per_action

    def _check_steps(self) -> None:
        """Refuses a run that would end before its first update."""
        random_steps = self._first_update
        if self.steps <= random_steps:
            raise ValueError(
                f"steps is {self.steps}, but the first {random_steps} environment steps are random "
                f"({self.agent.random_steps} agent steps x action repeat {self.env_steps_per_action}): "
                "raise --steps or lower --agent.random-steps"
            )


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainConfig(TrainConfig):
    """Trains an autoencoder on images, and prunes it as a controller is pruned: a step is an update.

    The prune.* settings mean the same, with the whole test split in place of episodes, and where a return is
    asked for (allocation calibrated) the peak signal-to-noise ratio.
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="autoencoder")]
    """The word autoencoder."""
    data: str = DIGITS
    """digits (scikit-learn's, 8 x 8), or a folder with MNIST's files (train-images-idx3-ubyte, also .gz)."""
    run_dir: Path | None = None
    """Folder of the run; runs/autoencoder-sSEED if none."""
    steps: int = 8_000
    """Updates to train for, but for those of recovery; env_step counts them in the metrics."""
    eval_every: int = 500
    """Updates between two evaluations."""
    log_every: int = 100
    """Updates between two rows of losses and importance."""
    checkpoint_every: int = 2_000
    """Updates between two checkpoints; SIGINT and SIGTERM save one, too."""
    agent: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The autoencoder."""
    prune: PruneConfig = field(default_factory=partial(PruneConfig, allocation="calibrated"))
    """Pruning. What each group can spare is measured unless told otherwise: the code next to nothing."""

    def _check(self) -> None:
        super()._check()
        self._check_at_least_1("log_every")
        if self.data != DIGITS and not Path(self.data).is_dir():
            raise ValueError(
                f"data is {self.data!r}, and there is no such folder; choose {DIGITS} or MNIST's folder"
            )


def sweep_trial() -> tuple[str, str] | None:
    """The sweep and the run that this process is a trial of, as a W&B agent says in its environment.

    Raises:
        UserError: they are no names of folders.
    """
    trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if not all(trial):
        return None
    for name in trial:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(name)):
            raise UserError(f"{name!r} is no id of a W&B sweep or run: unset WANDB_SWEEP_ID and WANDB_RUN_ID")
    return str(trial[0]), str(trial[1])


AnyTrainConfig = TDMPCTrainConfig | AutoencoderTrainConfig


PRESETS: dict[Preset, TDMPCConfig] = {"laptop": LAPTOP, "paper": PAPER, "debug": DEBUG}
PRESET_RUNS: dict[Preset, dict[str, Any]] = {
    "laptop": {},
    "paper": {"steps": 100_000, "eval_every": 10_000},
    "debug": {"steps": 3_000, "eval_every": 1_000, "eval_episodes": 2, "checkpoint_every": 1_000},
}


def preset_defaults(preset: Preset, task: str = tyro.MISSING) -> TDMPCTrainConfig:
    """The settings that a preset starts from; without a task, to be completed by a command line."""
    return TDMPCTrainConfig(task=task, preset=preset, agent=PRESETS[preset], **PRESET_RUNS[preset])
