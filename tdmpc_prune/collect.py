"""Collects episodes, one agent step at a time, so that a run can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.replay import Episode

Choose = Callable[[np.ndarray, bool], np.ndarray]
"""From an observation [O], and whether it is an episode's first, to an action [A]."""


class Collector:
    """Steps one environment; every episode is a function of the run's seed, its number and its actions.

    So a simulator's state is never stored: a resumed run resets the episode with its seed and plays its
    actions again.
    """

    def __init__(self, env: gymnasium.Env, seed: int) -> None:
        self.env = env
        self.seed = seed
        self.episode = 0
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    @property
    def between_episodes(self) -> bool:
        """Whether no episode is under way."""
        return not self.actions

    def step(self, choose: Choose) -> tuple[int, Episode | None]:
        """Makes one agent step; returns its environment steps, and the episode if it ended there."""
        if self.between_episodes:
            self._reset()
        action = np.clip(choose(self.observations[-1], self.between_episodes), -1, 1).astype(np.float32)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.observations.append(obs)
        self.actions.append(action)
        self.rewards.append(float(reward))
        episode = self._finish(terminated) if terminated or truncated else None
        return int(info["env_steps"]), episode

    def state_dict(self) -> dict[str, Tensor]:
        """The number of the episode under way and what it has seen so far."""
        return {
            "episode": torch.tensor(self.episode),
            "actions": _stack(self.actions),
            "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            "observations": _stack(self.observations if self.actions else []),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Brings the simulator back to where it was.

        Raises:
            ValueError: what is stored is no part of an episode of this environment.
            RuntimeError: the simulator does not repeat the stored episode (another version of it?).
        """
        steps = len(state["actions"])
        if len(state["rewards"]) != steps or len(state["observations"]) != steps + (steps > 0):
            raise ValueError(f"the stored episode has {steps} actions, and other numbers of the rest")
        if (episode := int(state["episode"])) < 0:
            raise ValueError(f"the stored episode has the number {episode}")
        self.episode = episode
        self.observations, self.actions, self.rewards = [], [], []
        if not len(state["actions"]):
            return
        self._reset()
        ended = False
        for action in state["actions"].numpy():
            if ended or action not in self.env.action_space:
                raise ValueError(f"the stored episode has the action {action.tolist()}, which none can have")
            obs, reward, terminated, truncated, _ = self.env.step(action)
            ended = terminated or truncated
            self.observations.append(obs)
            self.actions.append(action)
            self.rewards.append(float(reward))
        if not np.array_equal(np.stack(self.observations), state["observations"].numpy()):
            raise RuntimeError(
                "the simulator does not repeat the stored episode bit by bit: resume with the versions of "
                "mujoco, dm-control and gymnasium that the run began with"
            )

    def _reset(self) -> None:
        seed = np.random.SeedSequence([self.seed, self.episode]).generate_state(1)[0]
        obs, _ = self.env.reset(seed=int(seed) % 2**31)
        self.observations = [obs]

    def _finish(self, terminated: bool) -> Episode:
        episode = Episode(
            obs=_stack(self.observations),
            action=_stack(self.actions),
            reward=torch.tensor(self.rewards, dtype=torch.float32),
            terminated=terminated,
        )
        self.episode += 1
        self.observations, self.actions, self.rewards = [], [], []
        return episode


def _stack(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0)
