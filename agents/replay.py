"""Prioritised replay of short sequences that never cross an episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.sums import SumTree

PRIORITY_FLOOR = 1e-6
COLUMNS = ("obs", "action", "reward", "terminated", "priority")


@dataclass(frozen=True)
class Episode:
    """T agent steps: `obs` [T+1, O], `action` [T, A], `reward` [T]; `terminated` if its end is a real one."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: bool

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Batch:
    """B sequences of H steps, time first.

    `obs` [H+1, B, O], `action` [H, B, A], `reward` and `terminated` [H, B] (1.0: no value follows),
    `index` [B] to give new priorities back with, `weight` [B] importance weights, the largest 1.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    index: Tensor
    weight: Tensor


class ReplayBuffer:
    """A ring of agent steps, from which sequences are drawn by priority (Schaul et al. 2016).

    An episode of T steps takes T + 1 rows, the last one for its last observation. An episode that truly
    terminated is continued by H steps in an absorbing state (same observation, random actions, no reward,
    terminated), so that its end is part of sequences, and of what the model learns [ours; after Kostrikov
    et al. 2019]. As in the public TD-MPC code, no sequence starts in the last H steps of an episode that
    was merely cut off. New episodes get the highest priority at hand. Unlike there, draws are always with
    replacement. `ready` says whether any sequence can be drawn.
    """

    def __init__(
        self,
        *,
        obs_dim: int,
        action_dim: int,
        capacity: int,
        horizon: int,
        alpha: float,
        beta: float,
        generator: torch.Generator,
    ) -> None:
        self.horizon, self.alpha, self.beta = horizon, alpha, beta
        self.generator = generator
        self.device = generator.device
        self._tree = SumTree(capacity, alpha, self.device)
        # Side by side, so that a sequence is one piece of memory: far from the caches, every piece costs.
        self._steps = torch.zeros(capacity, obs_dim + action_dim + 1, device=self.device)
        self._widths = (obs_dim, action_dim, 1)
        obs, action, reward = self._steps.split(self._widths, 1)
        self.storage = TensorDict(
            {
                "obs": obs,
                "action": action,
                "reward": reward.squeeze(1),
                "terminated": torch.zeros(capacity, device=self.device, dtype=torch.bool),
                "priority": self._tree.priority,
            },
            batch_size=[capacity],
        )
        self.cursor = 0
        self.size = 0
        self.ready = False
        self._ahead = torch.arange(horizon, device=self.device).unsqueeze(1)

    def __len__(self) -> int:
        """Rows in use."""
        return self.size

    @property
    def capacity(self) -> int:
        """Rows at most."""
        return self.storage.batch_size[0]

    @property
    def nbytes(self) -> int:
        """Memory of all rows and of the sums that they are drawn by."""
        columns = (self.storage[name] for name in COLUMNS if name != "priority")
        return self._tree.nbytes + sum(column.nbytes for column in columns)

    def add(self, episode: Episode) -> None:
        """Stores an episode; the oldest rows go when there is no room.

        Raises:
            ValueError: the episode does not fit into the buffer, has other shapes than it, or holds numbers
                that are not finite.
        """
        self._check(episode)
        rows = self._rows(episode)
        count = rows.batch_size[0]
        if count > self.capacity:
            raise ValueError(
                f"an episode of {len(episode)} steps takes {count} rows, but replay.capacity is "
                f"{self.capacity}: raise it"
            )
        highest = float(self._tree.priority[: self.size].max()) if self.size else 0.0
        starts = len(episode) if episode.terminated else max(len(episode) - self.horizon, 0)
        rows["priority"][:starts] = highest or 1.0

        if self.cursor + count > self.capacity:
            self.cursor = 0
        self.storage[self.cursor : self.cursor + count] = rows
        self._tree.rebuild(self.cursor, self.cursor + count)
        self.cursor += count
        self.size = max(self.size, self.cursor)
        self.ready = self._tree.any()

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draws sequences with probability proportional to priority^alpha, with replacement.

        Like `update_priorities`, it can be captured in a CUDA graph, which then goes on with the rows at hand.

        Args:
            batch_size: sequences.
            generator: of random numbers; the buffer's own if none.

        Raises:
            ValueError: no sequence can be drawn.
        """
        if not self.ready:
            raise ValueError(
                f"none of the {self.size} rows of the replay starts a sequence: add episodes first"
            )
        source = generator or self.generator
        uniform = torch.rand(batch_size, generator=source, device=self.device, dtype=torch.float64)
        index = self._tree.draw(uniform)
        priority = self._tree.priority.index_select(0, index).pow(self.alpha)
        weight = (priority / priority.min()).pow(-self.beta)

        width = self._steps.shape[1]
        shape = (self.capacity - self.horizon, (self.horizon + 1) * width)
        steps = self._steps.as_strided(shape, (width, 1)).index_select(0, index)
        steps = steps.view(batch_size, self.horizon + 1, width).transpose(0, 1)
        obs, action, reward = steps.split(self._widths, 2)
        terminated = self.storage["terminated"].index_select(0, (index + self._ahead).view(-1))
        return Batch(
            obs=obs.contiguous(),
            action=action[:-1].contiguous(),
            reward=reward[:-1].squeeze(2).contiguous(),
            terminated=terminated.view(self.horizon, batch_size).float(),
            index=index,
            weight=weight,
        )

    def update_priorities(self, index: Tensor, priority: Tensor, unless: Tensor | None = None) -> None:
        """New priorities [B], not below 0, of the sequences that `sample` drew; none if `unless` (a scalar) is true."""
        # A value that is not a number must not make all that follows it unreachable.
        priority = priority.nan_to_num(0).clamp(min=0) + PRIORITY_FLOOR
        if unless is not None:
            priority = torch.where(unless, self._tree.priority[index], priority)
        self._tree.priority[index] = priority
        self._tree.refresh(index)

    def state_dict(self) -> dict[str, Tensor]:
        """The rows in use and the cursor, as tensors that do not share memory with the buffer."""
        rows = {name: self.storage[name][: self.size].to(torch.float32, copy=True) for name in COLUMNS}
        return rows | {"cursor": torch.tensor(self.cursor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state_dict`.

        Raises:
            ValueError: the stored rows do not fit this buffer.
        """
        size, cursor = len(state["priority"]), int(state["cursor"])
        if not 0 <= cursor <= size <= self.capacity:
            raise ValueError(
                f"stored replay has {size} rows and its cursor at {cursor}; agent.replay.capacity is {self.capacity}"
            )
        for name in COLUMNS:
            column = self.storage[name]
            if state[name].shape[1:] != column.shape[1:] or len(state[name]) != size:
                raise ValueError(
                    f"stored replay column {name!r} has shape {tuple(state[name].shape)}, "
                    f"expected ({size}, {', '.join(map(str, column.shape[1:]))})"
                )
            if not state[name].isfinite().all():
                raise ValueError(f"stored replay column {name!r} holds numbers that are not finite")
        priority = state["priority"]
        if (priority < 0).any() or priority[max(size - self.horizon, 0) :].any():
            raise ValueError("stored replay has priorities below 0, or where no sequence can start")
        for name in COLUMNS:
            self.storage[name][:size] = state[name].to(self.device)
        self._tree.priority[size:] = 0
        self._tree.rebuild(0, self.capacity)
        self.cursor, self.size = cursor, size
        self.ready = self._tree.any()

    def _check(self, episode: Episode) -> None:
        steps = len(episode)
        for name, rows in (("obs", steps + 1), ("action", steps), ("reward", steps)):
            given, wanted = getattr(episode, name), (rows, *self.storage[name].shape[1:])
            if given.shape != wanted:
                raise ValueError(f"the episode's {name} has shape {tuple(given.shape)}, expected {wanted}")
            if not given.isfinite().all():
                raise ValueError(f"the episode's {name} holds numbers that are not finite")

    def _rows(self, episode: Episode) -> TensorDict:
        """An episode as rows: its steps, its last observation, and the absorbing steps of a real end."""
        steps = len(episode)
        extra = self.horizon if episode.terminated else 1
        rows = TensorDict(
            {
                name: torch.zeros(steps + extra, *self.storage[name].shape[1:], device=self.device)
                for name in COLUMNS
            },
            batch_size=[steps + extra],
        )
        rows["obs"][: steps + 1] = episode.obs.to(self.device)
        rows["action"][:steps] = episode.action.to(self.device)
        rows["reward"][:steps] = episode.reward.to(self.device)
        if episode.terminated:
            rows["obs"][steps + 1 :] = rows["obs"][steps].clone()
            rows["action"][steps:].uniform_(-1, 1, generator=self.generator)
            rows["terminated"][steps - 1 :] = 1
        return rows
