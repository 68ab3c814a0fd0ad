"""The TD-MPC agent: acts by planning, learns model, values and policy from replayed sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from agents.gradients import adam, drop_gradients, finite_norm, gradient_norm, step
from agents.layers import as_a_whole, brief
from agents.replay import Batch, ReplayBuffer
from agents.tdmpc.config import TDMPCConfig
from agents.tdmpc.plan_graphs import PlanGraphs
from agents.tdmpc.planner import Planner
from agents.tdmpc.world_model import Architecture, WorldModel, architecture

LOSS_LIMIT = 1e4

Observe = Callable[[Iterable[nn.Parameter]], None]


@dataclass(frozen=True)
class ModelLosses:
    """Losses per sequence [B], summed over time with rho^t, and the new priorities [B]."""

    consistency: Tensor
    reward: Tensor
    value: Tensor
    priority: Tensor


class TDMPC:
    """Temporal-difference learning for model-predictive control (Hansen et al. 2022, arXiv 2203.04955)."""

    def __init__(
        self,
        config: TDMPCConfig,
        obs_dim: int,
        action_dim: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        widths: Architecture | None = None,
    ) -> None:
        """Builds a new agent, or one of other `widths` (a stored one's) to load weights into."""
        if obs_dim < 1 or action_dim < 1:
            raise ValueError(f"obs_dim is {obs_dim} and action_dim {action_dim}; choose at least 1 of each")
        self.config = config
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = WorldModel(widths or architecture(config, obs_dim, action_dim)).to(self.device)
        self.target = deepcopy(self.model).requires_grad_(False)
        self.model_optimizer = adam(self.model_parameters(), config.lr)
        self.policy_optimizer = adam(self.model.policy.parameters(), config.lr)
        self._plans = PlanGraphs() if self.device.type == "cuda" else None
        self._powers = torch.tensor([[config.rho**t] for t in range(config.horizon + 1)], device=self.device)
        self.updates = 0

    def copy_for_acting(self) -> TDMPC:
        """An agent with a copy of the online networks, random numbers and optimisers of its own."""
        sizes = self.model.architecture()
        copy = TDMPC(self.config, self.obs_dim, self.action_dim, device=self.device, widths=sizes)
        copy.model.load_state_dict(self.model.state_dict())
        return copy

    def model_parameters(self) -> list[nn.Parameter]:
        """Everything the model loss trains: all components but the policy."""
        return [p for name, c in self.components().items() if name != "policy" for p in c.parameters()]

    def make_replay(self, seed: int, capacity: int | None = None) -> ReplayBuffer:
        """A replay buffer of this agent's shapes, with room for what its settings say or for `capacity` rows."""
        replay = self.config.replay
        return ReplayBuffer(
            obs_dim=self.obs_dim,
            action_dim=self.action_dim,
            capacity=replay.capacity if capacity is None else capacity,
            horizon=self.config.horizon,
            alpha=replay.alpha,
            beta=replay.beta,
            generator=torch.Generator(self.device).manual_seed(seed),
        )

    # Acting

    def make_planner(self, generators: Sequence[torch.Generator] = ()) -> Planner:
        """A planner with random numbers of its own (see `Planner`) or the agent's."""
        return Planner(
            self.model,
            self.config.planner,
            action_dim=self.action_dim,
            discount=self.config.discount,
            policy_std=self.config.policy_std,
            generators=generators or [self.generator],
        )

    @torch.inference_mode()
    def plan(
        self, obs: np.ndarray, planner: Planner, agent_step: int, *, explore: bool = False
    ) -> np.ndarray:
        """Plans actions [N, A] for observations [N, O], at this point of the agent's schedules."""
        observation = self._tensor(obs)
        horizon, min_std = self.config.horizon_at(agent_step), self.config.std_at(agent_step)
        if self._plans and as_a_whole():
            action = self._plans.plan(planner, observation, horizon=horizon, min_std=min_std, explore=explore)
        else:
            with brief():
                z = self._encode(observation)
                action = planner.plan(z, horizon=horizon, min_std=min_std, explore=explore)
        return action.cpu().numpy()

    @torch.inference_mode()
    def policy_action(self, obs: np.ndarray) -> np.ndarray:
        """Actions [N, A] of the policy alone, without noise, for observations [N, O]."""
        # A row for each environment, as `alike` wants it.
        z = self.model.encode(self._tensor(obs).unsqueeze(1))
        return self.model.act(z).squeeze(1).cpu().numpy()

    def random_action(self) -> np.ndarray:
        """One uniform random action [A]."""
        uniform = torch.rand(self.action_dim, generator=self.generator, device=self.device)
        return (2 * uniform - 1).cpu().numpy()

    def _encode(self, obs: Tensor) -> Tensor:
        """Latent states [N, L] of observations [N, O], one of each environment: as `alike` wants them."""
        return self.model.encode(obs.unsqueeze(1)).squeeze(1)

    def _tensor(self, obs: np.ndarray) -> Tensor:
        return torch.as_tensor(obs, dtype=torch.float32, device=self.device)

    # Learning

    def update(self, batch: Batch, observe: Observe | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """One step of model, policy and target; returns its losses (scalars) and new priorities [B].

        `observe` is called after each backward pass and before clipping, with the parameters whose
        gradients it brought: the model's, then the policy's.

        On CUDA it does not wait for the device, and raises nothing: a step with gradients that are not finite is
        left out, and `skipped` among the losses is 1.

        Raises:
            NonFiniteGradients: the model's gradients are not finite, and nothing but `updates` has changed; or
                the policy's are not, and only the model has made its step.
        """
        self.updates += 1
        losses, priority = self.learn(batch, observe)
        self.follow(losses["skipped"])
        return losses, priority

    def learn(self, batch: Batch, observe: Observe | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """What an update does on the device, but for `follow`: the same launches each time."""
        config = self.config
        norm_of = gradient_norm if self.device.type == "cuda" else finite_norm
        # Asked of the optimisers, who have a list: to walk through the modules takes as long as ten small layers.
        parameters, policy_parameters = (o.param_groups[0]["params"] for o in self.optimizers())
        drop_gradients(parameters)
        losses, latents = self.model_losses(batch)
        weighted = self.weighted_loss(losses, batch).mean()
        (weighted / config.horizon).backward()
        grad_norm = norm_of(parameters)
        if observe:
            observe(parameters)
        skipped = step(self.model_optimizer, parameters, grad_norm, config.grad_clip)

        drop_gradients(policy_parameters)
        with frozen(self.model.q):
            policy_loss = self.policy_loss(latents)
            policy_loss.backward()
        policy_norm = norm_of(policy_parameters)
        if observe:
            observe(policy_parameters)
        # No step of the policy where the model made none.
        policy_norm = torch.where(skipped > 0, torch.inf, policy_norm)
        skipped = step(self.policy_optimizer, policy_parameters, policy_norm, config.grad_clip)
        metrics = {
            "consistency_loss": losses.consistency.mean(),
            "reward_loss": losses.reward.mean(),
            "value_loss": losses.value.mean(),
            "policy_loss": policy_loss,
            "total_loss": weighted,
            "grad_norm": grad_norm,
            "skipped": skipped,
        }
        return {k: v.detach() for k, v in metrics.items()}, losses.priority

    def follow(self, skipped: Tensor) -> None:
        """Moves the target, every few updates: the last of them has been counted in `updates`."""
        if (self.updates - 1) % self.config.target_every == 0:
            self.update_target(skipped)

    def model_losses(self, batch: Batch) -> tuple[ModelLosses, Tensor]:
        """Consistency, reward and value losses of a batch, and its detached latents [H+1, B, L]."""
        rho = self._rho(self.config.horizon)
        with torch.no_grad():
            target_latents = self.target.encode(batch.obs[1:])
            y = self.td_target(batch.obs[1:], batch.reward, batch.terminated)

        rollout, rewards = self.model.rollout(self.model.encode(batch.obs[0]), batch.action)
        latents = torch.stack(rollout)
        values = self.model.values(latents[:-1], batch.action)  # [E, H, B]

        consistency = (latents[1:] - target_latents).square().mean(-1)
        value_error = values - y
        losses = ModelLosses(
            consistency=(rho * consistency).sum(0),
            reward=(rho * (rewards - batch.reward).square()).sum(0),
            value=(rho * value_error.square().sum(0)).sum(0),
            priority=(rho * value_error.detach().abs().sum(0)).sum(0).clamp(max=LOSS_LIMIT),
        )
        return losses, latents.detach()

    def weighted_loss(self, losses: ModelLosses, batch: Batch) -> Tensor:
        """What the model is trained on, per sequence [B]: the losses by their coefficients and replay weights."""
        config = self.config
        total = (
            config.consistency_coef * losses.consistency.clamp(max=LOSS_LIMIT)
            + config.reward_coef * losses.reward.clamp(max=LOSS_LIMIT)
            + config.value_coef * losses.value.clamp(max=LOSS_LIMIT)
        )
        return total * batch.weight

    @torch.no_grad()
    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """y = r + gamma * min_i Qtarget_i(z', pi(z')); nothing follows a true end, a time limit is none.

        `next_obs` [..., O]; `reward`, `terminated` and the result [...]. z' is the online encoder's.
        """
        z = self.model.encode(next_obs)
        action = self._noisy_action(z)
        return reward + self.config.discount * (1 - terminated) * self.target.value(z, action)

    def policy_loss(self, latents: Tensor) -> Tensor:
        """-sum_t rho^t * mean min_i Q_i(z_t, pi(z_t)) over detached latents [H+1, B, L]."""
        action = self._noisy_action(latents)
        value = self.model.value(latents, action)
        return -(self._rho(len(latents)) * value).mean(1).sum()

    @torch.no_grad()
    def run_on(self, batch: Batch) -> None:
        """Runs every component on what a batch leads to, as learning and planning do, without noise."""
        self.model.encode(batch.obs[1:])
        latents = torch.stack(self.model.rollout(self.model.encode(batch.obs[0]), batch.action)[0])
        self.model.values(latents[:-1], batch.action)
        self.model.values(latents, self.model.act(latents))

    def _noisy_action(self, z: Tensor) -> Tensor:
        """Actions [..., A] of the policy with its noise, for latents [..., L]."""
        shape = (*z.shape[:-1], self.action_dim)
        noise = torch.randn(shape, generator=self.generator, device=z.device, dtype=z.dtype)
        return self.model.act(z, self.config.policy_std, noise)

    @torch.no_grad()
    def update_target(self, skipped: Tensor | None = None) -> None:
        """Moves the target towards the online model by tau; not at all if `skipped` is 1, on CUDA."""
        target: list[Tensor] = list(self.target.parameters())
        online: list[Tensor] = list(self.model.parameters())
        if skipped is None or not skipped.is_cuda:
            torch._foreach_lerp_(target, online, self.config.tau)
            return
        ways = list(torch._foreach_mul(torch._foreach_sub(online, target), self.config.tau * (1 - skipped)))
        torch._foreach_add_(target, ways)

    def _rho(self, steps: int) -> Tensor:
        """Weights rho^t as a column [steps, 1]."""
        return self._powers[:steps]

    # What others need to know of it, to store it or to change its widths

    def components(self) -> Mapping[str, nn.Module]:
        """The named sub-networks, in display order."""
        return self.model.components()

    def mirrors(self) -> Sequence[Mapping[str, nn.Module]]:
        """Copies that follow the components index by index: the target networks."""
        return [self.target.components()]

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimisers: model, policy."""
        return [self.model_optimizer, self.policy_optimizer]

    def trace(self) -> Sequence[Tensor]:
        """Outputs of an imagined rollout of two steps, through every component.

        Two, because only the second step reads what the dynamics wrote. Actions are given: they are an
        output of the policy, whose width is fixed.
        """
        z = self.model.encode(torch.zeros(1, self.obs_dim, device=self.device))
        action = torch.zeros(1, self.action_dim, device=self.device)
        outputs: list[Tensor] = []
        for _ in range(2):
            outputs += [*self.model.values(z, action).unbind(), self.model.policy(z)]
            latents, rewards = self.model.rollout(z, action.unsqueeze(0))
            z = latents[-1]
            outputs.append(rewards)
        return outputs


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keeps gradients out of a module's parameters, but lets them pass through."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
