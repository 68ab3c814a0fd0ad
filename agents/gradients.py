"""Gradients that a step can be made with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class NonFiniteGradients(ArithmeticError):
    """A backward pass brought numbers that are not finite: no step was made with them."""


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam, in one kernel where there is one; on CUDA it can be captured in a graph."""
    parameters = list(parameters)
    kind = parameters[0].device.type
    return torch.optim.Adam(parameters, lr=lr, fused=kind in ("cpu", "cuda"), capturable=kind == "cuda")


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Forgets the gradients of an earlier backward pass."""
    for parameter in parameters:
        parameter.grad = None


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, as for clipping."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def finite_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The same, looked at: on a CPU that costs nothing, on CUDA it waits for the device.

    Raises:
        NonFiniteGradients: it is not finite, so some gradient is not, or they are too large to be summed.
    """
    norm = gradient_norm(parameters)
    if not math.isfinite(norm.item()):
        raise NonFiniteGradients(f"the norm of the gradients is {norm.item()}")
    return norm


def step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, limit: float
) -> Tensor:
    """Makes a step with gradients clipped to `limit`, unless their `norm` is not finite: whether it was not, 0 or 1."""
    skipped = (~norm.isfinite()).to(norm.dtype)
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    if norm.is_cuda:  # PyTorch's mixed precision leaves out steps in this way, without waiting for the device
        optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    return skipped
