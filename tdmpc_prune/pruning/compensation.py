"""What removed units would have said goes into the layers that read them [ours].

What a unit of a trained network says is nearly a linear function of what its neighbours say. Before it goes, the
layers that read it take that function over: their other columns and their bias get the best stand-in for the
columns that they lose, by least squares on real inputs. So do He et al. (2017, arXiv 1707.06168) with channels of
convolutions; here it is done for all groups at once, the coupling ones too, and while the network learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.groups import Group

BATCHES = 2
"""Replay batches that a run compensates on: at laptop size some 2,500 steps for 128 inputs. More bring little."""

Place = tuple[str, str]
"""Component and layer."""


@dataclass(frozen=True)
class Moments:
    """Mean [I] and covariance [I, I] of a layer's inputs."""

    mean: Tensor
    covariance: Tensor
    ridge: float
    """Added to the variances, as a share of their mean: inputs that hardly vary stand in for nobody."""

    def stand_in(self, lost: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs x[lost] [R] from the others: matrix [R, I], zero in the lost columns, and constant [R]."""
        stays = torch.ones(len(self.mean), dtype=torch.bool)
        stays[lost] = False
        kept = stays.nonzero().squeeze(1)
        within = self.covariance[kept][:, kept]
        ridge = self.ridge * within.diagonal().mean() + torch.finfo(torch.float64).tiny
        across = self.covariance[kept][:, lost]
        eye = torch.eye(len(kept), dtype=within.dtype, device=within.device)
        matrix = self.covariance.new_zeros(len(lost), len(self.mean))
        matrix[:, kept] = torch.linalg.solve(within + ridge * eye, across).t()
        return matrix, self.mean[lost] - matrix @ self.mean


Inputs = Mapping[Place, Moments]
"""Of every layer that reads units."""


class _Seen:
    """Moments of what came by so far, batch by batch (Chan et al. 1979)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Takes inputs [N, I] into account."""
        count = len(x)
        mean = x.mean(0)
        centred = x - mean
        step, total = mean.double() - self.mean, self.count + count
        # Products of centred float32 numbers: the ridge is far more than they err.
        self.scatter += (centred.t() @ centred).double()
        self.scatter += torch.outer(step, step) * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total


@torch.no_grad()
def inputs_of(groups: Sequence[Group], forward: Callable[[], object], ridge: float) -> dict[Place, Moments]:
    """Moments of the inputs of every layer that reads units, while `forward` runs the components on real data.

    A layer that is not reached, or reads what is not finite, is left out.

    Args:
        groups: whose readers are watched.
        forward: runs them.
        ridge: of the fit (see `Moments`); more than 0.
    """
    readers = {m.module: (m.component, m.layer) for g in groups for m in g.members if m.role == "in"}
    seen: dict[nn.Module, _Seen] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        if module not in seen:
            seen[module] = _Seen(x.shape[1], x.device)
        seen[module].add(x)

    hooks = [module.register_forward_pre_hook(note) for module in readers]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        place: Moments(seen[module].mean, seen[module].scatter / seen[module].count, ridge)
        for module, place in readers.items()
        if module in seen and bool(seen[module].scatter.isfinite().all())
    }


def lost_columns(groups: Sequence[Group], removal: Mapping[str, Tensor]) -> dict[Place, Tensor]:
    """Columns that every layer loses which reads removed units."""
    lost: dict[Place, list[Tensor]] = {}
    for group in groups:
        units = removal.get(group.name, torch.empty(0, dtype=torch.long)).unique().cpu()
        for member in group.members:
            if member.role == "in" and len(units):
                lost.setdefault((member.component, member.layer), []).append(member.index[units])
    return {place: torch.cat(columns).unique() for place, columns in lost.items()}


@torch.no_grad()
def taken_over(layer: nn.Module, lost: Tensor, moments: Moments) -> dict[str, Tensor]:
    """Weight [O, I] and bias [O], if it has one, of a linear layer that does without these columns.

    The lost columns themselves are left as they are.
    """
    matrix, constant = moments.stand_in(lost)
    parameters = dict(layer.named_parameters(recurse=False))
    columns = parameters["weight"].double()[:, lost]
    more = {"weight": columns @ matrix, "bias": columns @ constant}
    return {name: (p.double() + more[name]).to(p.dtype) for name, p in parameters.items()}
