"""Model-predictive path integral control in latent space, for one or many environments at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from agents.tdmpc.config import PlannerConfig


class LatentModel(Protocol):
    """What a planner needs of a model; see `WorldModel` for the shapes."""

    def next(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor]: ...
    def act(self, z: Tensor, std: float = 0.0, generator: torch.Generator | None = None) -> Tensor: ...
    def value(self, z: Tensor, action: Tensor) -> Tensor: ...


class Planner:
    """Chooses actions by sampling sequences in the model and refitting a Gaussian to the best ones.

    Holds the mean of its last plan [N, H, A], which warm-starts the next one; `reset` forgets it.
    """

    def __init__(
        self,
        model: LatentModel,
        config: PlannerConfig,
        *,
        action_dim: int,
        discount: float,
        policy_std: float,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.config = config
        self.action_dim = action_dim
        self.discount = discount
        self.policy_std = policy_std
        self.generator = generator
        self.mean: Tensor | None = None

    def reset(self) -> None:
        """Forgets the last plan; call it where an episode begins."""
        self.mean = None

    def keep(self, index: Tensor) -> None:
        """Goes on with these environments only: a boolean mask or indices into N."""
        if self.mean is not None:
            self.mean = self.mean[index]

    @torch.no_grad()
    def plan(self, z: Tensor, *, horizon: int, min_std: float, explore: bool = False) -> Tensor:
        """First actions [N, A] of the best sequences from latent states z [N, L].

        Args:
            z: latent states, one per environment.
            horizon: steps to look ahead, at least 1.
            min_std: lower bound of the sampling standard deviation.
            explore: add noise of the final standard deviation to the action, for training.
        """
        config, (n, latent) = self.config, z.shape
        shape = (n, horizon, config.num_samples, self.action_dim)
        proposals = self._policy_sequences(z, horizon)
        start = z.unsqueeze(1).expand(n, config.num_samples + proposals.shape[2], latent)
        mean = self._warm_start(n, horizon, z)
        std = torch.full_like(mean, config.max_std)
        for _ in range(config.iterations):
            sampled = (mean.unsqueeze(2) + std.unsqueeze(2) * self._noise(shape, z)).clamp_(-1, 1)
            actions = torch.cat([sampled, proposals], dim=2)
            value = self.estimate_value(start, actions).nan_to_num_(0)

            # Refit to the elites, the best ones weighing most.
            top_value, top = value.topk(config.num_elites, dim=1)
            index = top[:, None, :, None].expand(n, horizon, config.num_elites, self.action_dim)
            elites = actions.gather(2, index)
            score = torch.softmax(config.temperature * top_value, dim=1)
            weight = score[:, None, :, None]
            elite_mean = (weight * elites).sum(2)
            variance = (weight * (elites - elite_mean.unsqueeze(2)) ** 2).sum(2)
            mean = config.momentum * mean + (1 - config.momentum) * elite_mean
            std = variance.sqrt().clamp_(min_std, config.max_std)
        self.mean = mean

        # One elite sequence, drawn by its weight, is the plan; its first action is used.
        chosen = torch.multinomial(score, 1, generator=self.generator)
        action = elites[:, 0].gather(1, chosen[:, :, None].expand(n, 1, self.action_dim)).squeeze(1)
        if explore:
            action = action + std[:, 0] * self._noise((n, self.action_dim), z)
        return action.clamp(-1, 1)

    def estimate_value(self, z: Tensor, actions: Tensor) -> Tensor:
        """Predicted returns [N, S] of action sequences [N, H, S, A] from latent states [N, S, L]."""
        total = torch.zeros(z.shape[:-1], device=z.device, dtype=z.dtype)
        discount = 1.0
        for t in range(actions.shape[1]):
            z, reward = self.model.next(z, actions[:, t])
            total = total + discount * reward
            discount *= self.discount
        last = self.model.act(z, self.policy_std, self.generator)
        return total + discount * self.model.value(z, last)

    def _policy_sequences(self, z: Tensor, horizon: int) -> Tensor:
        """Sequences [N, H, P, A] that the policy proposes."""
        count = self.config.num_policy_samples
        z = z.unsqueeze(1).expand(z.shape[0], count, z.shape[1])
        actions = z.new_empty((z.shape[0], horizon, count, self.action_dim))
        if count == 0:
            return actions
        for t in range(horizon):
            actions[:, t] = self.model.act(z, self.policy_std, self.generator)
            if t + 1 < horizon:
                z, _ = self.model.next(z, actions[:, t])
        return actions

    def _warm_start(self, n: int, horizon: int, like: Tensor) -> Tensor:
        """The last plan's mean, one step on, with zeros where it has nothing to say: [N, H, A]."""
        mean = like.new_zeros((n, horizon, self.action_dim))
        if self.mean is not None:
            shifted = self.mean[:, 1 : horizon + 1]
            mean[:, : shifted.shape[1]] = shifted
        return mean

    def _noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=like.device, dtype=like.dtype)
