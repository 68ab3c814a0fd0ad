"""Model-predictive path integral control in latent space, for one or many environments at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from agents.sums import running_sum
from agents.tdmpc.config import PlannerConfig


class LatentModel(Protocol):
    """What a planner needs of a model; see `WorldModel` for the shapes."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def encode(self, obs: Tensor) -> Tensor: ...
    def next(self, z: Tensor, action: Tensor) -> Tensor: ...
    def rollout(self, z: Tensor, actions: Tensor) -> tuple[list[Tensor], Tensor]: ...
    def act(self, z: Tensor, std: float = 0.0, noise: Tensor | None = None) -> Tensor: ...
    def value(self, z: Tensor, action: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Noise:
    """Every random number of one control step: standard normal, one row per environment."""

    samples: Tensor
    """Of the sampled sequences [N, I, H, S, A], in each of I iterations."""
    proposals: Tensor
    """Of the sequences that the policy proposes [N, H, P, A]."""
    ends: Tensor
    """Of the policy's action after the last step [N, I, S + P, A], in each iteration."""
    explore: Tensor
    """Added to the action [N, A] in training."""
    choice: Tensor
    """Chooses one of the elites [N, 1]."""


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
        generators: Sequence[torch.Generator],
    ) -> None:
        """A planner with no plan yet.

        Args:
            model: what to plan in.
            config: how.
            action_dim: A.
            discount: gamma.
            policy_std: standard deviation of the policy's noise.
            generators: of the random numbers: one for all environments, or one for each, so that what an
                environment gets does not depend on the others.
        """
        self.model = model
        self.config = config
        self.action_dim = action_dim
        self.discount = discount
        self.policy_std = policy_std
        self.generators = list(generators)
        self.mean: Tensor | None = None

    def reset(self) -> None:
        """Forgets the last plan; call it where an episode begins."""
        self.mean = None

    def keep(self, index: Tensor) -> None:
        """Goes on with these environments only: a boolean mask [N]."""
        if self.mean is not None:
            self.mean = self.mean[index]
        if len(self.generators) > 1:
            self.generators = [g for g, kept in zip(self.generators, index.tolist(), strict=True) if kept]

    @torch.no_grad()
    def plan(self, z: Tensor, *, horizon: int, min_std: float, explore: bool = False) -> Tensor:
        """First actions [N, A] of the best sequences from latent states z [N, L].

        Args:
            z: latent states, one per environment.
            horizon: steps to look ahead, at least 1.
            min_std: lower bound of the sampling standard deviation.
            explore: add noise of the final standard deviation to the action, for training.
        """
        noise, mean = self.draw(len(z), horizon, z)
        action, self.mean = self.step(z, mean, self.noise(noise, horizon), min_std=min_std, explore=explore)
        return action

    def draw(self, n: int, horizon: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What a plan for n environments begins with: new noise [N, `noise_size`], and the mean [N, H, A]."""
        return self._draw(n, horizon, like), self._warm_start(n, horizon, like)

    def step(
        self, z: Tensor, mean: Tensor, noise: Noise, *, min_std: float | Tensor, explore: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One control step as a pure function: actions [N, A], and the mean [N, H, A] of the plan.

        Args:
            z: latent states [N, L].
            mean: what to begin with [N, H, A]: the last plan's, one step on, and zeros.
            noise: all that is random.
            min_std: lower bound of the sampling standard deviation.
            explore: add noise of the final standard deviation to the action.
        """
        config, (n, latent) = self.config, z.shape
        horizon = mean.shape[1]
        proposals = self._policy_sequences(z, noise.proposals)
        start = z.unsqueeze(1).expand(n, config.num_samples + proposals.shape[2], latent)
        std = torch.full_like(mean, config.max_std)
        for i in range(config.iterations):
            sampled = (mean.unsqueeze(2) + std.unsqueeze(2) * noise.samples[:, i]).clamp(-1, 1)
            actions = torch.cat([sampled, proposals], dim=2)
            value = self.estimate_value(start, actions, noise.ends[:, i]).nan_to_num(0)

            # Refit to the elites, the best ones weighing most.
            top_value, top = value.topk(config.num_elites, dim=1)
            index = top[:, None, :, None].expand(n, horizon, config.num_elites, self.action_dim)
            elites = actions.gather(2, index)
            score = torch.softmax(config.temperature * top_value, dim=1)
            weight = score[:, None, :, None]
            elite_mean = (weight * elites).sum(2)
            variance = (weight * (elites - elite_mean.unsqueeze(2)) ** 2).sum(2)
            mean = config.momentum * mean + (1 - config.momentum) * elite_mean
            std = variance.sqrt().clamp(max=config.max_std).clamp(min=min_std)

        # One elite sequence, drawn by its weight, is the plan; its first action is used.
        uniform = 0.5 * (1 + torch.erf(noise.choice / math.sqrt(2)))
        chosen = (running_sum(score, 1) < uniform).sum(1, keepdim=True).clamp(max=config.num_elites - 1)
        action = elites[:, 0].gather(1, chosen[:, :, None].expand(n, 1, self.action_dim)).squeeze(1)
        if explore:
            action = action + std[:, 0] * noise.explore
        return action.clamp(-1, 1), mean

    def estimate_value(self, z: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """Predicted returns [N, S] of action sequences [N, H, S, A] from latent states [N, S, L].

        `noise` [N, S, A] is that of the policy's action after the last step.
        """
        latents, rewards = self.model.rollout(z, actions.transpose(0, 1))
        total, discount = torch.zeros_like(rewards[0]), 1.0
        for reward in rewards:
            total = total + discount * reward
            discount *= self.discount
        last = self.model.act(latents[-1], self.policy_std, noise)
        return total + discount * self.model.value(latents[-1], last)

    def noise_size(self, horizon: int) -> int:
        """Random numbers of one control step of one environment."""
        return sum(math.prod(shape) for shape in self._noise_shapes(horizon))

    def noise(self, flat: Tensor, horizon: int) -> Noise:
        """Rows of standard normal numbers [N, `noise_size`] by their use."""
        shapes = self._noise_shapes(horizon)
        parts = flat.split([math.prod(shape) for shape in shapes], dim=1)
        return Noise(*(part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)))

    def _noise_shapes(self, horizon: int) -> list[tuple[int, ...]]:
        config, a = self.config, self.action_dim
        i, s, p = config.iterations, config.num_samples, config.num_policy_samples
        return [(i, horizon, s, a), (horizon, p, a), (i, s + p, a), (a,), (1,)]

    def _draw(self, n: int, horizon: int, like: Tensor) -> Tensor:
        """Standard normal numbers [N, `noise_size`]."""
        size = self.noise_size(horizon)
        rows = n if len(self.generators) == 1 else 1
        drawn = [
            torch.randn((rows, size), generator=generator, device=like.device, dtype=like.dtype)
            for generator in self.generators
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def _policy_sequences(self, z: Tensor, noise: Tensor) -> Tensor:
        """Sequences [N, H, P, A] that the policy proposes, with `noise` of that shape."""
        _, horizon, count, _ = noise.shape
        if count == 0:
            return noise
        z = z.unsqueeze(1).expand(z.shape[0], count, z.shape[1])
        actions = []
        for t in range(horizon):
            actions.append(self.model.act(z, self.policy_std, noise[:, t]))
            if t + 1 < horizon:
                z = self.model.next(z, actions[t])
        return torch.stack(actions, dim=1)

    def _warm_start(self, n: int, horizon: int, like: Tensor) -> Tensor:
        """The last plan's mean, one step on, with zeros where it has nothing to say: [N, H, A]."""
        mean = like.new_zeros((n, horizon, self.action_dim))
        if self.mean is not None:
            shifted = self.mean[:, 1 : horizon + 1]
            mean[:, : shifted.shape[1]] = shifted
        return mean
