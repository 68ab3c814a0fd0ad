"""An autoencoder run in training: images, and the autoencoder that learns to give them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.autoencoder import Autoencoder, new_architecture
from agents.gradients import NonFiniteGradients
from tdmpc_prune import checkpoint
from tdmpc_prune.config import AutoencoderTrainConfig
from tdmpc_prune.images import load_images
from tdmpc_prune.logger import Logger
from tdmpc_prune.origin import check_origin
from tdmpc_prune.pruning.compensation import StandIns
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.reconstruction import Reconstruction, reconstruct
from tdmpc_prune.run import Check, Progress, Row, Run, seeds

MOST_IMAGES = 10_000
"""Training images that a removal is compensated on."""


@dataclass
class AutoencoderProgress(Progress):
    """Counters of an autoencoder run; its environment steps are updates but for those of recovery."""

    logged_at: int = 0
    """Step of the last row of losses."""
    eval_error: float = 1.0
    """Error of the last evaluation."""


class AutoencoderTraining(Run):
    """A run that learns images: a step asks for an update, so `env_step` counts updates.

    Its episodes are `log_every` updates long, and any moment is a moment for evaluations and removals.
    """

    outcome = "error"
    memory = "--agent.batch-size"
    config: AutoencoderTrainConfig
    agent: Autoencoder
    progress: AutoencoderProgress

    def _build(self, state: Mapping[str, Any] | None) -> None:
        config = self.config
        agent_seed, batch_seed = seeds(config.seed, 2)
        images = load_images(config.data)
        self.train, self.test = images.train.to(self.device), images.test.to(self.device)
        pixels = self.train.shape[1]
        if state and not self.resumed:
            check_origin(config, state, new_architecture(config.agent, pixels))
        self.progress = AutoencoderProgress()
        self.agent = Autoencoder(
            config.agent,
            pixels,
            seed=agent_seed,
            device=self.device,
            architecture=state["architecture"] if state else None,
        )
        self.generator = torch.Generator(self.device).manual_seed(batch_seed)

    def _losses_of_components(self) -> dict[str, str]:
        return dict.fromkeys(self.agent.components(), "reconstruction")

    def _networks(self) -> Mapping[str, nn.Module]:
        return self.agent.components()

    @property
    def episode_unlogged(self) -> bool:
        """Whether `log_every` updates were made since the last row, or the run ends."""
        last = self.progress.logged_at
        ends = self.finished and self.progress.env_step > last
        return ends or self._passed(self.config.log_every, last)

    def collect(self) -> int:
        """Asks for one update."""
        self.progress.env_step += 1
        self.progress.agent_step += 1
        return 1

    def update(self) -> None:
        """Makes one update on images drawn at random, with replacement."""
        count = self.config.agent.batch_size
        index = torch.randint(len(self.train), (count,), generator=self.generator, device=self.device)
        try:
            losses = self.agent.update(self.train[index], self.pruner.observe if self.pruner else None)
        except NonFiniteGradients:
            self._skipped()
        else:
            self._updated(losses)

    def _evaluate(self, check: Check) -> Row:
        found = reconstruct(self.agent, self.test)
        self.progress.eval_error = found.error
        return {"eval/error": found.error, "eval/psnr": found.psnr}

    def show_evaluation(self, log: Logger) -> None:
        """Shows the last evaluation's error."""
        error, psnr = self._results().values()
        log.say(f"update {self.progress.env_step:>8,}   error {error:.5f}   PSNR {psnr:.2f} dB")

    def _outcome(self, check: Check) -> float:
        return reconstruct(self.agent, self.test).error

    def _return_without(self, removal: Mapping[str, Tensor], stand_ins: StandIns, check: Check) -> float:
        check()
        copy = self.agent.copy()
        if removal:
            remove_units(copy, find_groups(copy), removal, stand_ins)
        # As many images as are in the test split, which must not have a say in what is removed.
        return reconstruct(copy, self.train[: len(self.test)]).psnr

    def _run_on_data(self) -> None:
        self.agent.reconstruct(self.train[:MOST_IMAGES])

    def _episode_metrics(self) -> Row:
        self.progress.logged_at = self.progress.env_step
        return {}

    def _results(self) -> Row:
        found = Reconstruction(self.progress.eval_error)
        return {"error": found.error, "psnr": found.psnr}

    def _tensors(self) -> dict[str, Tensor]:
        return {"rng.batch": self.generator.get_state()}

    def _record(self) -> dict[str, Any]:
        return {
            "data": self.config.data,
            "architecture": self.agent.architecture(),
            "agent": asdict(self.agent.config),
        }

    def _load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.load_generator(self.generator, tensors["rng.batch"])

    def _begin_after(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def _load_own(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def close(self) -> None:
        """There is nothing to free."""
