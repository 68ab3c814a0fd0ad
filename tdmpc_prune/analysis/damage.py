"""What the loss of units does: to the training losses on a fixed batch, and to the return of whole episodes [ours].

Losses are measured with masks that compute what surgery would leave, because a thousand surgeries take
minutes; returns with surgery itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from agents.replay import Batch
from agents.tdmpc.agent import TDMPC
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.groups import Group, Member, find_groups
from tdmpc_prune.pruning.surgery import keep_indices, remove_units

POLICY = "policy"
"""The component that the policy loss trains; the model loss trains all others."""


class LossDamage:
    """The change of the training losses on one batch when units of a group are missing.

    What the losses aim at stays what it is for the undisturbed agent: target latents, TD targets y, and for the
    policy loss the latents, the Qs and the noise. So this is damage to what the rest predicts, not the
    movement of a goal. A group counts in the losses that train its components, as in the agent's update:
    the model loss (as its gradient sees it: weighted, and divided by the horizon), the policy loss, or for the
    latent their sum. A removed latent dimension is counted in the consistency error neither before nor after.

    The agent is not changed; its random numbers stay where they are.

    Args:
        agent: the undisturbed agent.
        batch: sequences to measure on.
        seed: of the policy's noise.
    """

    @torch.no_grad()
    def __init__(self, agent: TDMPC, batch: Batch, *, seed: int) -> None:
        self._batch, self._seed = batch, seed
        with seeded(agent.generator, seed):
            self._agent = _WithFixedGoals(agent, batch)
        self._before, self._latents = self._agent.model_losses(batch)
        error = (self._latents[1:] - agent.target.encode(batch.obs[1:])).double().square()
        rho = torch.tensor([agent.config.rho**t for t in range(len(error))]).to(error)
        self._consistency = torch.einsum("t,tbl->bl", rho, error)
        """Consistency error per sequence and latent dimension [B, L]."""
        self._policy_before = self._policy_loss()

    @torch.no_grad()
    def of(self, group: Group, units: Tensor) -> float:
        """How much the losses grow when these units of a group are missing; less than 0: they fall.

        Raises:
            ValueError: no unit would be left.
        """
        if len(units.unique()) >= group.units:
            raise ValueError(f"{group.name} would lose all of its {group.units} units")
        damage = 0.0
        if any(m.component != POLICY for m in group.members):
            damage += self._model_damage(group, units)
        policy = [m for m in group.members if m.component == POLICY]
        if policy:
            with as_if_removed(policy, units):
                damage += self._policy_loss() - self._policy_before
        return damage

    def _model_damage(self, group: Group, units: Tensor) -> float:
        members, before, scale = list(group.members), self._before, 1.0
        if group.coupling:
            # The target's latents lose the same dimensions: predicted and aimed at, they are 0, thus no error.
            mirrors = self._agent.mirrors()
            members += [m for mirror in mirrors for m in _mirrored(group, mirror) if m.role == "out"]
            stay = keep_indices(group, units).to(self._consistency.device)
            before = replace(before, consistency=self._consistency[:, stay].mean(-1))
            scale = group.units / len(stay)  # the mean over dimensions is one over those that stay
        with as_if_removed(members, units):
            losses, _ = self._agent.model_losses(self._batch)
        after = self._agent.weighted_loss(
            replace(losses, consistency=scale * losses.consistency), self._batch
        )
        growth = after - self._agent.weighted_loss(before, self._batch)
        return float(growth.mean()) / self._agent.config.horizon

    def _policy_loss(self) -> float:
        with seeded(self._agent.generator, self._seed):
            return float(self._agent.policy_loss(self._latents))


class ReturnDamage:
    """The return that an agent loses when units are removed from it.

    Args:
        agent: the undisturbed agent; it is not changed.
        evaluator: its episodes have fixed seeds, so that they are paired.
        agent_step: where the agent is in its schedules.
    """

    def __init__(self, agent: TDMPC, evaluator: Evaluator, agent_step: int) -> None:
        self._agent, self._evaluator, self._agent_step = agent, evaluator, agent_step
        self.undisturbed: float = self._return(agent)
        """Mean return of the whole agent."""

    def of(self, group: Group, units: Tensor) -> float:
        """Mean return of the whole agent minus that without these units of a group: above 0 if they are missed.

        Raises:
            ValueError: no unit would be left.
        """
        copy = self._agent.copy_for_acting()
        remove_units(copy, find_groups(copy), {group.name: units})
        return self.undisturbed - self._return(copy)

    def _return(self, agent: TDMPC) -> float:
        return self._evaluator.run(agent, self._agent_step).mean


@contextmanager
def as_if_removed(members: Iterable[Member], units: Tensor) -> Iterator[None]:
    """These members of a group compute what surgery would leave of them, at the width that they have.

    Removed units are 0 where they are produced and where they are read; a LayerNorm sees only the others.
    """
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(_mask(member, units))
        yield


@contextmanager
def seeded(generator: torch.Generator, seed: int) -> Iterator[None]:
    """A generator starts from a seed, and afterwards goes on where it was."""
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class _WithFixedGoals(TDMPC):
    """An agent's own networks and losses, but y stays what it is now, and sums are exact."""

    def __init__(self, agent: TDMPC, batch: Batch) -> None:
        vars(self).update(vars(agent))  # the same networks, not copies
        self._y = agent.td_target(batch.obs[1:], batch.reward, batch.terminated)

    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """The goals [H, B] of the batch that it was made with."""
        assert reward.shape == self._y.shape, f"{tuple(reward.shape)} is not {tuple(self._y.shape)}"
        return self._y

    def _rho(self, steps: int) -> Tensor:
        # Sums over time in float64: a small damage would drown in the rounding of large losses.
        return super()._rho(steps).double()


def _mirrored(group: Group, mirror: Mapping[str, nn.Module]) -> list[Member]:
    """A group's members in copies of its components."""
    return [
        replace(m, module=mirror[m.component].get_submodule(m.layer))
        for m in group.members
        if m.component in mirror
    ]


def _mask(member: Member, units: Tensor) -> RemovableHandle:
    """Hooks one layer so that it goes without these units."""
    module, gone = member.module, member.index[units.cpu()]
    device = next(module.parameters()).device
    if member.role == "norm":
        assert isinstance(module, nn.LayerNorm), f"{member.layer} is a {type(module).__name__}"
        stays = torch.ones(module.normalized_shape[0], dtype=torch.bool)
        stays[gone] = False
        kept = stays.nonzero().squeeze(1).to(device)

        def normalised(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            weight, bias = (None if p is None else p[kept] for p in (norm.weight, norm.bias))
            rest = nn.functional.layer_norm(inputs[0][..., kept], kept.shape, weight, bias, norm.eps)
            return torch.zeros_like(inputs[0]).index_copy(-1, kept, rest)

        return module.register_forward_hook(normalised)
    gone = gone.to(device)
    if member.role == "in":
        return module.register_forward_pre_hook(lambda _, x: (x[0].index_fill(-1, gone, 0.0), *x[1:]))
    return module.register_forward_hook(lambda _, x, output: output.index_fill(-1, gone, 0.0))
