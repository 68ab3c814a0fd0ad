"""Multi-layer perceptrons as plain `nn.Linear` stacks, so that every width can be read and changed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_ROWS = 16
"""From this many rows and two outputs on, a row of a matrix product is the same bit by bit (seen, MKL on a CPU)."""

Network = TypeVar("Network", bound=nn.Module)


def mlp(sizes: Sequence[int], *, normalise_first: bool = False, zero_last: bool = False) -> nn.Sequential:
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
    return nn.Sequential(*layers)


def widths(network: nn.Module) -> list[int]:
    """Widths of a stack of linear layers, inputs first: what `mlp` needs to build it again."""
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return [linears[0].in_features, *(m.out_features for m in linears)]


def straight_through_clamp(x: Tensor, limit: float) -> Tensor:
    """`x` clamped to [-limit, limit], with the gradient of `x` itself."""
    return x + (x.clamp(-limit, limit) - x).detach()


class RowInvariantLinear(nn.Module):
    """A linear layer in which no row of a batch feels how many others there are, bit by bit (on a CPU, with MKL).

    Matrix libraries take other kernels, which round otherwise, for a few rows and for a single output. So
    there are never few: zeros fill up. Planners decide by sorting values, where the last bit can matter.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.outputs = layer.out_features
        missing = max(2 - layer.out_features, 0)
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
        self.register_buffer("weight", F.pad(layer.weight.detach(), (0, 0, 0, missing)))
        self.register_buffer("bias", F.pad(bias.detach(), (0, missing)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs [..., in]."""
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if count < FEWEST_ROWS:
            rows = F.pad(rows, (0, 0, 0, FEWEST_ROWS - count))
        y = F.linear(rows, self.weight, self.bias)
        return y[:count, : self.outputs].reshape(*x.shape[:-1], self.outputs)


class RowInvariantELU(nn.Module):
    """An ELU that rounds alike everywhere: PyTorch's own does the last few numbers of a tensor by another routine.

    It is as exact where numbers are near 1, and 1e-7 off near 0, by an exponential five times as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        """ELU of any tensor."""
        y = x.clamp(max=0).exp_().sub_(1)
        return torch.maximum(x, y, out=y)  # exp(x) - 1 >= x


def row_invariant(network: Network) -> Network:
    """A copy of a network, as it is now, in which no row feels the others: to be used, not to be trained."""
    memo: dict[int, nn.Module] = {}
    for module in network.modules():
        if isinstance(module, nn.Linear):
            memo[id(module)] = RowInvariantLinear(module)
        elif isinstance(module, nn.ELU):
            memo[id(module)] = RowInvariantELU()
    return deepcopy(network, memo).requires_grad_(False)
