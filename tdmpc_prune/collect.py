"""Collects episodes, one agent step at a time, so that a run can stop and go on anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from agents.replay import Episode

Choose = Callable[[np.ndarray, bool], np.ndarray]
"""From observations [n, O], and whether they are the first of their episodes, to actions [n, A]."""


@dataclass(frozen=True)
class Step:
    """What an agent step came to in the n environments that made it."""

    env_steps: int
    """Environment steps, all together."""
    going_on: list[bool]
    """Of each of the n, in their order: whether its episode goes on."""
    episodes: list[Episode]
    """All episodes of the round if it is over, else none."""


class Collector:
    """Steps environments in rounds: their episodes begin together, and those that end early wait for the others.

    Every episode is a function of the run's seed, its number and its actions. So a simulator's state is never
    stored: a resumed run resets the episodes with their seeds and plays their actions again.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], seed: int) -> None:
        """A collector before its first episode; `envs` are alike."""
        self.envs = envs
        self.seed = seed
        self.episode = 0
        """Episodes of the rounds that are over, and the number of the next one."""
        self.round: list[_Recording] = []

    @property
    def between_episodes(self) -> bool:
        """Whether no episode is under way."""
        return not self.round

    @property
    def running(self) -> int:
        """Episodes of the round that are not over."""
        return sum(not recording.over for recording in self.round)

    def step(self, choose: Choose, episodes: int = 1) -> Step:
        """Makes one agent step in every environment whose episode goes on.

        Args:
            choose: what to do in all of them at once.
            episodes: how many a new round has; they take the first of the environments.

        Raises:
            SimulatorError: a simulator fails; `state_dict` is as before, and what follows begins with
                `load_state_dict`.
        """
        first = self.between_episodes
        recordings = self._begin(episodes) if first else self.round
        running = [recording for recording in recordings if not recording.over]
        chosen = choose(np.stack([recording.observations[-1] for recording in running]), first)
        actions = np.clip(chosen, -1, 1).astype(np.float32)
        # All of them step before any step is noted: one may fail.
        results = [recording.env.step(a) for recording, a in zip(running, actions, strict=True)]
        for recording, action, result in zip(running, actions, results, strict=True):
            recording.note(action, result)
        self.round = recordings
        return Step(
            env_steps=sum(int(info["env_steps"]) for *_, info in results),
            going_on=[not recording.over for recording in running],
            episodes=[] if self.running else self._finish(),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The number of the round's first episode, and what all of them have seen so far, one after the other.

        `lengths` says how many agent steps each has made, where there are several.
        """
        state = {
            "episode": torch.tensor(self.episode),
            "actions": _stack(a for recording in self.round for a in recording.actions),
            "rewards": torch.tensor([r for rec in self.round for r in rec.rewards], dtype=torch.float64),
            "observations": _stack(obs for recording in self.round for obs in recording.observations),
        }
        if len(self.round) > 1:
            state["lengths"] = torch.tensor([len(recording.actions) for recording in self.round])
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Brings the simulators back to where they were.

        Raises:
            ValueError: what is stored is no part of a round of these environments.
            RuntimeError: the simulators do not repeat the stored episodes (another version of them?).
        """
        lengths, steps = _lengths(state), len(state["actions"])
        if min(lengths, default=1) < 1 or sum(lengths) != steps or len(lengths) > len(self.envs):
            raise ValueError(
                f"the stored episodes have {lengths} steps and {steps} actions, for {len(self.envs)} environments"
            )
        if len(state["rewards"]) != steps or len(state["observations"]) != steps + len(lengths):
            raise ValueError(f"the stored episode has {steps} actions, and other numbers of the rest")
        if (episode := int(state["episode"])) < 0:
            raise ValueError(f"the stored episode has the number {episode}")
        self.episode = episode
        self.round = []
        if not lengths:
            return
        recordings = self._begin(len(lengths))
        for recording, actions in zip(recordings, state["actions"].split(lengths), strict=True):
            for action in actions.numpy():
                if recording.over or action not in recording.env.action_space:
                    raise ValueError(
                        f"the stored episode has the action {action.tolist()}, which none can have"
                    )
                recording.note(action, recording.env.step(action))
        if all(recording.over for recording in recordings):
            raise ValueError("the stored episodes are over")
        observations = _stack(obs for recording in recordings for obs in recording.observations)
        if not np.array_equal(observations.numpy(), state["observations"].numpy()):
            raise RuntimeError(
                "the simulator does not repeat the stored episode bit by bit: resume with the versions of "
                "mujoco, dm-control and gymnasium that the run began with"
            )
        self.round = recordings

    def close(self) -> None:
        """Frees the simulators."""
        for env in self.envs:
            env.close()

    def _begin(self, episodes: int) -> list[_Recording]:
        """Resets as many environments, each with the seed of its episode."""
        recordings = []
        for i, env in enumerate(self.envs[:episodes]):
            seed = np.random.SeedSequence([self.seed, self.episode + i]).generate_state(1)[0]
            obs, _ = env.reset(seed=int(seed) % 2**31)
            recordings.append(_Recording(env, [obs]))
        return recordings

    def _finish(self) -> list[Episode]:
        episodes = [recording.finish() for recording in self.round]
        self.episode += len(episodes)
        self.round = []
        return episodes


@dataclass
class _Recording:
    """An episode as it is made in `env`: T actions and rewards, and T + 1 observations."""

    env: gymnasium.Env
    observations: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    over: bool = False

    def note(self, action: np.ndarray, result: tuple[Any, Any, bool, bool, dict[str, Any]]) -> None:
        """Adds an action and what the environment's `step` returned."""
        obs, reward, self.terminated, truncated, _ = result
        self.over = self.terminated or truncated
        self.observations.append(obs)
        self.actions.append(action)
        self.rewards.append(float(reward))

    def finish(self) -> Episode:
        """The episode, which is over."""
        return Episode(
            obs=_stack(self.observations),
            action=_stack(self.actions),
            reward=torch.tensor(self.rewards, dtype=torch.float32),
            terminated=self.terminated,
        )


def _lengths(state: dict[str, Tensor]) -> list[int]:
    """Agent steps of each stored episode."""
    if "lengths" in state:
        return [int(length) for length in state["lengths"]]
    return [len(state["actions"])] if len(state["actions"]) else []


def _stack(rows: Iterable[np.ndarray]) -> Tensor:
    rows = list(rows)
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0)
