"""An autoencoder of two components, which share the code between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.autoencoder_config import AutoencoderConfig
from agents.gradients import adam, finite_norm, step
from agents.networks import mlp, widths

Observe = Callable[[Iterable[nn.Parameter]], None]
Architecture = Mapping[str, Sequence[int]]
"""Widths of both components, inputs first: {"encoder": [64, 128, 16], "decoder": [16, 128, 64]}."""


class Autoencoder:
    """Learns to give back inputs [N, P], numbers from 0 to 1, through a code [N, C], by mean squared error."""

    def __init__(
        self,
        config: AutoencoderConfig,
        input_dim: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        architecture: Architecture | None = None,
    ) -> None:
        """Builds a new one for inputs of `input_dim` numbers, or one of a stored one's widths."""
        if input_dim < 1:
            raise ValueError(f"input_dim is {input_dim}; choose at least 1")
        self.config = config
        self.device = torch.device(device)
        sizes = architecture or new_architecture(config, input_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = mlp(sizes["encoder"]).to(self.device)
            self.decoder = mlp(sizes["decoder"]).to(self.device)
        self.optimizer = adam(self._parameters(), config.lr)
        self.updates = 0

    @property
    def input_dim(self) -> int:
        """Numbers of an input."""
        return widths(self.encoder)[0]

    def copy(self) -> Autoencoder:
        """One with copies of the networks, and an optimiser that has seen nothing."""
        copy = Autoencoder(self.config, self.input_dim, device=self.device, architecture=self.architecture())
        copy.encoder.load_state_dict(self.encoder.state_dict())
        copy.decoder.load_state_dict(self.decoder.state_dict())
        return copy

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """What inputs [N, P] become: [N, P], between 0 and 1 like them."""
        return torch.sigmoid(self.decoder(self.encoder(inputs)))

    def update(self, batch: Tensor, observe: Observe | None = None) -> dict[str, Tensor]:
        """One step of both components on inputs [B, P]; returns the losses (scalars).

        `observe` is called after the backward pass and before clipping, with all parameters.

        Raises:
            NonFiniteGradients: the gradients are not finite, and nothing but `updates` has changed.
        """
        self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.mse_loss(self.reconstruct(batch), batch)
        loss.backward()
        parameters = self._parameters()
        grad_norm = finite_norm(parameters)
        if observe:
            observe(parameters)
        step(self.optimizer, parameters, grad_norm, self.config.grad_clip)
        return {"reconstruction_loss": loss.detach(), "grad_norm": grad_norm.detach()}

    def architecture(self) -> dict[str, list[int]]:
        """Today's widths: what rebuilds it."""
        return {name: widths(component) for name, component in self.components().items()}

    # What pruning needs to know of it

    def components(self) -> Mapping[str, nn.Module]:
        """The named sub-networks, in display order."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def trace(self) -> Sequence[Tensor]:
        """One pass through both components; it has no loop that would need a second."""
        return [self.reconstruct(torch.zeros(1, self.input_dim, device=self.device))]

    def mirrors(self) -> Sequence[Mapping[str, nn.Module]]:
        """Nothing follows the components."""
        return []

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The one optimiser."""
        return [self.optimizer]

    def _parameters(self) -> list[nn.Parameter]:
        return [p for component in self.components().values() for p in component.parameters()]


def new_architecture(config: AutoencoderConfig, input_dim: int) -> dict[str, list[int]]:
    """Widths of a new autoencoder, the decoder the mirror image of the encoder."""
    sizes = [input_dim, config.hidden_dim, config.code_dim]
    return {"encoder": sizes, "decoder": sizes[::-1]}
