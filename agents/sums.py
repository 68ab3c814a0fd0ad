"""Sums whose order is fixed."""

from __future__ import annotations

import torch
from torch import Tensor


def running_sum(values: Tensor, dim: int) -> Tensor:
    """Sums so far along a dimension; by the CPU where PyTorch is to be deterministic: CUDA has no such algorithm."""
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(dim).to(values.device)
    return values.cumsum(dim)
