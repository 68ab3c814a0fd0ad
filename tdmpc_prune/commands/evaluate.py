"""`tdmpc-prune evaluate`: what a stored controller is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdmpc_prune.commands.common import CommandConfig, check_seed, show
from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.errors import UserError


@dataclass(frozen=True)
class EvaluateConfig(CommandConfig):
    """Evaluates a stored run: its return over episodes, with the planner or the policy alone.

    Of an autoencoder: its error on the test split; only device, threads and json mean something there.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; choose at least 1")
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"--video {self.video}: the file's name must end in .mp4")


def run(config: EvaluateConfig) -> int:
    """Evaluates a run and shows what was found."""
    from tdmpc_prune.checkpoint import task_of
    from tdmpc_prune.evaluate import evaluate_run
    from tdmpc_prune.video import check_video

    if config.video is not None:
        check_video(config.video)
    device = config.compute_on()
    if task_of(config.run) == AUTOENCODER:
        from tdmpc_prune.reconstruction import evaluate_autoencoder

        if config.video is not None:
            raise UserError(f"{config.run} is an autoencoder, there is nothing to film: leave --video out")
        show(evaluate_autoencoder(config.run, device), as_json=config.json)
        return 0
    result = evaluate_run(
        config.run,
        episodes=config.episodes,
        seed=config.seed,
        controller=config.controller,
        device=device,
        video=config.video,
    )
    show(result, as_json=config.json)
    return 0
