"""Which units of a group go, where those that stay take over from them [ours].

A score says what a unit is worth in the network as it is. With compensation only that part of it is lost which does
not follow from the units that stay: of two with the same output, one can go for next to nothing, and then the other
one's score must count for both. Optimal Brain Surgeon (Hassibi and Stork 1993) knows this of weights, by the inverse of
the Hessian; here it is the inverse covariance of the units' outputs, as they are while all units are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.compensation import Regression, rows, watching
from tdmpc_prune.pruning.groups import Group, Prunable

RIDGE = 1e-3
"""Added to the variances, as a share of their mean: float32 says no more of what follows from what."""
LEAST = 1e-12
"""Variance of units whose outputs never change."""


@torch.no_grad()
def covariances(agent: Prunable, groups: Sequence[Group], forward: Callable[[], object]) -> dict[str, Tensor]:
    """Covariance [U, U] of every group's units as they are read, while `forward` runs the agent on real data.

    A group that nobody reads meanwhile, or whose outputs are not finite, is left out.
    """
    seen = {group.name: Regression() for group in groups}

    def see(name: str, index: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: seen[name].add(rows(inputs[0])[:, index])

    with watching(agent) as hooks:
        hooks += [
            member.module.register_forward_pre_hook(see(group.name, member.index))
            for group in groups
            for member in group.members
            if member.role == "in"
        ]
        forward()
    return {name: found.covariance.cpu() for name, found in seen.items() if found.finite}


def least_missed(scores: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Units [count] of a group that are missed least, one after the other, in this order.

    What a unit is missed for is its score, times the share of its variance that the units which stay leave
    unexplained. Each time that one goes which adds least to the sum over all that are gone.

    Args:
        scores: of all units [U], 0 or more.
        covariance: of what they say [U, U].
        count: how many go.
    """
    eye = torch.eye(len(scores), dtype=torch.float64)
    covariance = covariance + (RIDGE * covariance.diagonal().mean() + LEAST) * eye
    precision = torch.linalg.inv(covariance)
    # Row r: unit r from those that are left. One that is left says itself.
    told = eye.clone()
    weight = scores.double().cpu() / covariance.diagonal()
    left = torch.ones(len(scores), dtype=torch.bool)
    gone: list[int] = []
    for _ in range(count):
        # Without u, what is unexplained of each grows by u's part in explaining it, times what is unexplained of u.
        added = (weight @ told.square()) / precision.diagonal()
        unit = int(torch.where(left, added, torch.inf).argmin())
        share = precision[unit] / precision[unit, unit]
        told -= torch.outer(told[:, unit], share)
        precision -= torch.outer(precision[:, unit], share)
        left[unit] = False
        gone.append(unit)
    return torch.tensor(gone, dtype=torch.long)
