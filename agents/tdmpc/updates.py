"""Updates of an agent from its replay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from agents.cuda_graphs import Captured
from agents.layers import as_a_whole
from agents.replay import ReplayBuffer
from agents.tdmpc.agent import TDMPC


class Observer(Protocol):
    """Who watches the gradients, such as `tdmpc_prune.pruning.pruner.Pruner`."""

    def observe(self, parameters: Iterable[nn.Parameter]) -> None:
        """Reads the gradients of these parameters; called several times in an update."""

    def take(self) -> Tensor:
        """What was read in this update."""


@dataclass(frozen=True)
class Update:
    """What an update brought."""

    losses: dict[str, Tensor]
    """Scalars, by name."""
    observation: Tensor | None
    """What the observer took."""


class Updates:
    """Makes updates: samples, learns, gives new priorities back. On CUDA by one launch, without waiting for it.

    There, nothing is raised: steps with gradients that are not finite are left out on the device, with losses and
    an observation of 0, and `skipped` says how many. What an update brings stands until the next one.
    """

    def __init__(
        self, agent: TDMPC, replay: ReplayBuffer, observer: Observer | None = None, *, in_a_row: int = 0
    ) -> None:
        """Of an agent whose last `in_a_row` updates were skipped."""
        self._agent, self._replay, self._observer = agent, replay, observer
        self._skipped = torch.tensor([0.0, in_a_row, in_a_row], device=replay.device)
        self._captured = Captured(self._learn, [agent.generator, replay.generator])

    def __call__(self) -> Update:
        """Makes one update.

        Raises:
            NonFiniteGradients: on a CPU, as `TDMPC.update`.
        """
        self._agent.updates += 1
        graph = self._replay.device.type == "cuda" and as_a_whole()
        update = self._captured(self._agent.model.parameters()) if graph else self._learn()
        self._agent.follow(update.losses["skipped"])
        return update

    def skipped(self) -> tuple[int, int, int]:
        """Updates that were skipped on CUDA since this was last asked; how many were the last ones; most in a row.

        Waits for the device.
        """
        count, in_a_row, most = (int(number) for number in self._skipped.tolist())
        self._skipped[0], self._skipped[2] = 0, in_a_row
        return count, in_a_row, most

    def _learn(self) -> Update:
        agent, replay, observer = self._agent, self._replay, self._observer
        batch = replay.sample(agent.config.batch_size)
        losses, priority = agent.learn(batch, observer.observe if observer else None)
        observation = observer.take() if observer else None
        if not (skipped := losses["skipped"]).is_cuda:
            replay.update_priorities(batch.index, priority)
            return Update(losses, observation)
        bad = skipped > 0
        replay.update_priorities(batch.index, priority, unless=bad)
        count, in_a_row, most = self._skipped.unbind()
        count.add_(skipped)
        in_a_row.add_(1).mul_(skipped)
        torch.maximum(most, in_a_row, out=most)
        losses = {name: torch.where(bad, 0, value) for name, value in losses.items()} | {"skipped": skipped}
        return Update(losses, None if observation is None else torch.where(bad, 0, observation))
