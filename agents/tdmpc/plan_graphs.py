"""Plans on CUDA, each launched as one graph.

Their matrix products are TF32's: a plan compares hundreds of random sequences, and what it gets wrong in the fourth
digit of their values is far less than the model does. What learns, and what scores units, is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.cuda_graphs import Captured, tf32
from agents.tdmpc.planner import Planner

MOST_GRAPHS = 8
"""Kept at a time: of several numbers of environments and horizons, in training and not."""


class PlanGraphs:
    """Plans of the planners of one agent: a graph for every number of environments, horizon and purpose."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[int, int, bool], _PlanGraph] = {}

    def plan(self, planner: Planner, obs: Tensor, *, horizon: int, min_std: float, explore: bool) -> Tensor:
        """As `Planner.plan`, from observations [N, O]; the actions [N, A] stand until the next plan."""
        key = len(obs), horizon, explore
        graph = self._graphs.pop(key, None) or _PlanGraph(explore)
        self._graphs[key] = graph  # the last one used is the last one to go
        if len(self._graphs) > MOST_GRAPHS:  # evaluations whose episodes end one by one go before training
            del self._graphs[min(self._graphs, key=lambda key: key[2])]
        return graph.plan(planner, obs, horizon, min_std)


class _PlanGraph:
    """Plans of one shape."""

    def __init__(self, explore: bool) -> None:
        self._explore = explore
        self._planner: Planner | None = None
        self._inputs: list[Tensor] = []
        self._captured = Captured(self._step)

    def plan(self, planner: Planner, obs: Tensor, horizon: int, min_std: float) -> Tensor:
        """Actions [N, A]."""
        noise, mean = planner.draw(len(obs), horizon, obs)
        inputs = [obs, mean, noise, torch.full((), min_std, device=obs.device)]
        if self._planner is None or self._planner.model is not planner.model:
            self._planner, self._inputs = planner, [x.clone() for x in inputs]
            self._captured = Captured(self._step)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        action, mean = self._captured(planner.model.parameters())
        planner.mean = mean.clone()
        return action

    @torch.no_grad()
    def _step(self) -> tuple[Tensor, Tensor]:
        """Plans from the inputs; a planner's own state is none of its business."""
        obs, mean, noise, min_std = self._inputs
        planner = self._planner
        assert planner is not None, "plan sets it"
        noises = planner.noise(noise, mean.shape[1])
        with tf32():
            z = planner.model.encode(obs)
            return planner.step(z, mean, noises, min_std=min_std, explore=self._explore)
