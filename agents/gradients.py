"""Gradients that a step can be made with."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn


class NonFiniteGradients(ArithmeticError):
    """A backward pass brought numbers that are not finite: no step was made with them."""


def finite_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, as for clipping, which needs it anyway.

    To look at the number costs nothing on the CPU. On CUDA it waits for the device, once per call: the price
    of leaving out a step before it is made.

    Raises:
        NonFiniteGradients: it is not finite, so some gradient is not, or they are too large to be summed.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not math.isfinite(norm.item()):
        raise NonFiniteGradients(f"the norm of the gradients is {norm.item()}")
    return norm
