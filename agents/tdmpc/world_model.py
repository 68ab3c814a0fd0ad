"""The task-oriented latent dynamics model (TOLD): encoder h, dynamics d, reward R, policy pi, Q_1 ... Q_E."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.networks import mlp, straight_through_clamp, widths
from agents.tdmpc.config import TDMPCConfig

Architecture = Mapping[str, Sequence[int]]
"""Widths of every component, inputs first, for example {"encoder": [5, 128, 32], ...}."""

AT_ONCE = 2**16
"""Numbers in a hidden layer, up to which a plan's rewards of all steps are predicted at once: in fewer calls. Of more,
what a layer has written has left the processor's cache when the next one reads it."""
ACTION_LIMIT = 1 - 1e-6
NOISE_CLIP = 0.3


def architecture(config: TDMPCConfig, obs_dim: int, action_dim: int) -> dict[str, list[int]]:
    """Widths of a new model for observations of `obs_dim` and actions of `action_dim` numbers."""
    latent, hidden = config.latent_dim, [config.hidden_dim] * 2
    sizes = {
        "encoder": [obs_dim, config.encoder_dim, latent],
        "dynamics": [latent + action_dim, *hidden, latent],
        "reward": [latent + action_dim, *hidden, 1],
        "policy": [latent, *hidden, action_dim],
    }
    return sizes | {f"q{i + 1}": [latent + action_dim, *hidden, 1] for i in range(config.num_q)}


class WorldModel(nn.Module):
    """The networks of TD-MPC, each a component of its own, built at any widths.

    Every method takes and returns tensors with any leading batch shape [...].
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = mlp(architecture["encoder"])
        self.dynamics = mlp(architecture["dynamics"])
        self.reward = mlp(architecture["reward"], zero_last=True)
        self.policy = mlp(architecture["policy"])
        names = sorted((n for n in architecture if n.startswith("q")), key=lambda n: int(n[1:]))
        self.q = nn.ModuleList(mlp(architecture[n], normalise_first=True, zero_last=True) for n in names)

    def components(self) -> dict[str, nn.Module]:
        """The named sub-networks, in display order."""
        named: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "dynamics": self.dynamics,
            "reward": self.reward,
            "policy": self.policy,
        }
        return named | {f"q{i + 1}": q for i, q in enumerate(self.q)}

    def architecture(self) -> dict[str, list[int]]:
        """Today's widths: what rebuilds this model."""
        return {name: widths(component) for name, component in self.components().items()}

    def encode(self, obs: Tensor) -> Tensor:
        """Encodes observations [..., O] into latent states z [..., L] (h)."""
        return self.encoder(obs)

    def next(self, z: Tensor, action: Tensor) -> Tensor:
        """Predicts the next latent state [..., L] (d)."""
        return self.dynamics(torch.cat([z, action], dim=-1))

    def rollout(self, z: Tensor, actions: Tensor) -> tuple[list[Tensor], Tensor]:
        """Predicts H + 1 latent states [..., L], `z` the first, and rewards [H, ...] (R) for actions [H, ..., A].

        Rewards are predicted when all latent states are: what comes after does not wait for them.
        """
        latents, inputs = [z], []
        for action in actions:
            inputs.append(torch.cat([latents[-1], action], dim=-1))
            latents.append(self.dynamics(inputs[-1]))
        if self._at_once(inputs[0]):
            rewards = self.reward(torch.stack(inputs))
        else:
            rewards = torch.stack([self.reward(x) for x in inputs])
        return latents, rewards.squeeze(-1)

    def _at_once(self, x: Tensor) -> bool:
        """Whether rewards of several such inputs [..., L + A] are predicted by one call."""
        if torch.compiler.is_exporting():
            return False  # calls cost ONNX Runtime next to nothing
        if not torch.is_inference_mode_enabled() or not x.is_cpu or torch.compiler.is_compiling():
            return True
        hidden: Tensor = self.reward[0].weight  # type: ignore[assignment]
        return x.numel() // x.shape[-1] * len(hidden) <= AT_ONCE

    def act(self, z: Tensor, std: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """Actions [..., A] of the policy (pi); standard normal `noise` [..., A] is scaled and clipped to +-0.3."""
        mean = torch.tanh(self.policy(z))
        if noise is None:
            return mean
        return straight_through_clamp(mean + (noise * std).clamp(-NOISE_CLIP, NOISE_CLIP), ACTION_LIMIT)

    def values(self, z: Tensor, action: Tensor) -> Tensor:
        """Predicts every Q: [E, ...]."""
        za = torch.cat([z, action], dim=-1)
        return torch.stack([q(za).squeeze(-1) for q in self.q])

    def value(self, z: Tensor, action: Tensor) -> Tensor:
        """The lowest of all Q: [...]."""
        return self.values(z, action).amin(0)
