"""Multi-layer perceptrons as plain `nn.Linear` stacks, so that every width can be read and changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from agents.layers import MLP


def mlp(sizes: Sequence[int], *, normalise_first: bool = False, zero_last: bool = False) -> MLP:
    """Linear layers of the given widths (inputs first), ELU between them, none after the last.

    Args:
        sizes: input, hidden and output widths, at least two numbers.
        normalise_first: LayerNorm and Tanh after the first layer in place of ELU (TD-MPC's Q-functions).
        zero_last: start the last layer at zero, so that the first predictions are zero.

    Weights are orthogonal with gain 1, biases zero, as in TD-MPC.
    """
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(width_in, width_out)
        last = i == len(sizes) - 2
        if last and zero_last:
            nn.init.zeros_(linear.weight)
        else:
            nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if last:
            break
        layers += [nn.LayerNorm(width_out), nn.Tanh()] if normalise_first and i == 0 else [nn.ELU()]
    return MLP(*layers)


def widths(network: nn.Module) -> list[int]:
    """Widths of a stack of linear layers, inputs first: what `mlp` needs to build it again."""
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return [linears[0].in_features, *(m.out_features for m in linears)]


def straight_through_clamp(x: Tensor, limit: float) -> Tensor:
    """`x` clamped to [-limit, limit], with the gradient of `x` itself."""
    clamped = x.clamp(-limit, limit)
    return x + (clamped - x).detach() if x.requires_grad else clamped
