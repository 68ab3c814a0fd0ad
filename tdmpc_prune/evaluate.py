"""Control return of an agent: episodes with fixed seeds, run side by side and planned for in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from agents.layers import alike
from agents.tdmpc.agent import TDMPC
from envs import make_env
from envs.perturbations import Perturbation

SIDE_BY_SIDE = 32
"""Environments at most: more plans at once leave the processor's cache."""

Controller = Literal["planner", "policy"]
"""planner: plan at every step; policy: the policy network alone."""


Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Actions [N, A] for observations [N, O], and a mask: which rows of the call before are still there."""


def act_with(agent: TDMPC, agent_step: int, controller: Controller, seeds: Sequence[int]) -> Act:
    """A controller for several episodes, each with a seed, that does in each what it would do alone."""
    if controller == "policy":

        def act_by_policy(obs: np.ndarray, keep: np.ndarray) -> np.ndarray:
            with alike():
                return agent.policy_action(obs)

        return act_by_policy
    generators = [torch.Generator(agent.device).manual_seed(seed) for seed in seeds]
    planner = agent.make_planner(generators)

    def act(obs: np.ndarray, keep: np.ndarray) -> np.ndarray:
        planner.keep(torch.from_numpy(keep).to(agent.device))
        with alike():
            return agent.plan(obs, planner, agent_step)

    return act


@dataclass(frozen=True)
class Evaluation:
    """What the episodes came to, in the order of their seeds."""

    returns: list[float]
    lengths: list[int]
    """Agent steps of every episode."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))


class Evaluator:
    """Keeps the evaluation environments of a task alive from one evaluation to the next."""

    def __init__(
        self,
        task: str,
        *,
        env_seed: int,
        episodes: int,
        seed: int,
        action_repeat: int | None,
        film: bool = False,
        perturbation: Perturbation | None = None,
        side_by_side: int = SIDE_BY_SIDE,
    ) -> None:
        """Builds the environments.

        Args:
            task: name of the task.
            env_seed: seed of the simulators' construction: that of the run (lqr differs with it).
            episodes: episodes of an evaluation; number i is reset with `seed` + i.
            seed: see above; also the planner's.
            action_repeat: environment steps per action; the task's usual number if None.
            film: keep the frames of episode 0 in `frames`.
            perturbation: what is different from training.
            side_by_side: episodes that run at the same time, at most.
        """
        self.episodes, self.seed = episodes, seed
        self.frames: list[np.ndarray] = []
        self.film = film
        self.envs = [
            make_env(
                task,
                seed=env_seed,
                action_repeat=action_repeat,
                render_mode="rgb_array" if film and i == 0 else None,
            )
            for i in range(min(episodes, side_by_side))
        ]
        if perturbation is not None:
            from envs.perturb import perturb

            self.envs = [perturb(env, perturbation) for env in self.envs]
        self.control_timestep: float = self.envs[0].get_wrapper_attr("control_timestep")

    def run(
        self,
        agent: TDMPC,
        agent_step: int,
        *,
        controller: Controller = "planner",
        episodes: int | None = None,
        skip: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Runs all episodes, or so many, after the first `skip`, which others are judged by.

        `check` is called at every step and may raise to end the evaluation.
        """
        returns: list[float] = []
        lengths: list[int] = []
        end = skip + (episodes or self.episodes)
        for first in range(skip, end, len(self.envs)):
            count = min(len(self.envs), end - first)
            act = act_with(agent, agent_step, controller, self._seeds(first, count))
            chunk = self._episodes(act, first, count, check)
            returns += chunk[0]
            lengths += chunk[1]
        return Evaluation(returns, lengths)

    def close(self) -> None:
        """Frees the simulators."""
        for env in self.envs:
            env.close()

    def _seeds(self, first: int, count: int) -> range:
        return range(self.seed + first, self.seed + first + count)

    def _episodes(
        self, act: Act, first: int, count: int, check: Callable[[], None]
    ) -> tuple[list[float], list[int]]:
        """Runs `count` episodes in step; those that have ended drop out of the batch."""
        returns, lengths = np.zeros(count), np.zeros(count, dtype=int)
        obs = np.stack([self.envs[i].reset(seed=seed)[0] for i, seed in enumerate(self._seeds(first, count))])
        running = np.arange(count)
        keep = np.ones(count, dtype=bool)
        while len(running):
            check()
            actions = act(obs, keep)
            steps = [self.envs[i].step(a) for i, a in zip(running, actions, strict=True)]
            if self.film and first == 0 and running[0] == 0:
                self.frames.append(np.asarray(self.envs[0].render()))
            returns[running] += [float(s[1]) for s in steps]
            lengths[running] += 1
            keep = np.array([not (s[2] or s[3]) for s in steps])
            obs = np.stack([s[0] for s in steps])[keep]
            running = running[keep]
        return returns.tolist(), lengths.tolist()
