"""The one place that changes a shape: removes units from everything that knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.groups import Group, Prunable, find_groups

Removal = Mapping[str, Tensor]
"""Units to remove, by group: positions among the units that are left."""


def remove_units(agent: Prunable, groups: Sequence[Group], removal: Removal) -> list[Group]:
    """Removes units from networks, mirrors and optimisers; returns the groups of what is left.

    Parameters that lose something are replaced by new ones; the optimisers hold those, with their moments
    cut at the same indices. Gradients are dropped.

    Raises:
        ValueError: a position is out of range, or a group would lose all units; nothing is changed.
    """
    _check(groups, removal)
    kept = _kept(groups, removal)
    copies = (agent.components(), *agent.mirrors())
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for (component, layer, name), cuts in kept.items():
        for copy in copies:
            if component in copy:
                module = copy[component].get_submodule(layer)
                old = module.get_parameter(name)
                new = nn.Parameter(_select(old.detach(), cuts), requires_grad=old.requires_grad)
                setattr(module, name, new)
                replaced[old] = new
                _cut_moments(agent.optimizers(), old, new, cuts)
    for optimizer in agent.optimizers():
        for group in optimizer.param_groups:
            group["params"] = [replaced.get(p, p) for p in group["params"]]
    for copy in copies:
        for module in (m for component in copy.values() for m in component.modules()):
            _update_sizes(module)
    return find_groups(agent)


def keep_indices(group: Group, removed: Tensor) -> Tensor:
    """Positions of the units that stay, ascending."""
    stays = torch.ones(group.units, dtype=torch.bool)
    stays[removed.cpu()] = False
    return stays.nonzero().squeeze(1)


def _check(groups: Sequence[Group], removal: Removal) -> None:
    by_name = {g.name: g for g in groups}
    for name, removed in removal.items():
        if name not in by_name:
            raise ValueError(f"there is no group {name!r}, only {', '.join(by_name)}")
        units = by_name[name].units
        if len(removed) and not 0 <= int(removed.min()) <= int(removed.max()) < units:
            raise ValueError(f"{name} has {units} units; cannot remove {removed.tolist()}")
        if len(removed.unique()) >= units:
            raise ValueError(f"{name} would lose all of its {units} units")


def _kept(groups: Sequence[Group], removal: Removal) -> dict[tuple[str, str, str], dict[int, Tensor]]:
    """What stays of what loses something: (component, layer, parameter) -> dimension -> indices."""
    masks: dict[tuple[str, str, str], dict[int, Tensor]] = {}
    for group in groups:
        removed = removal.get(group.name)
        if removed is None or not len(removed):
            continue
        for member in group.members:
            for name, parameter, dim in member.slices():
                place = masks.setdefault((member.component, member.layer, name), {})
                mask = place.setdefault(dim, torch.ones(parameter.shape[dim], dtype=torch.bool))
                mask[member.index[removed.cpu()]] = False
    return {
        place: {dim: mask.nonzero().squeeze(1) for dim, mask in dims.items()} for place, dims in masks.items()
    }


def _cut_moments(
    optimizers: Sequence[torch.optim.Optimizer],
    old: nn.Parameter,
    new: nn.Parameter,
    cuts: Mapping[int, Tensor],
) -> None:
    for optimizer in optimizers:
        if old in optimizer.state:
            optimizer.state[new] = {
                # Adam's count of steps has no units.
                key: _select(value, cuts) if getattr(value, "shape", None) == old.shape else value
                for key, value in optimizer.state.pop(old).items()
            }


def _select(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    for dim, index in cuts.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def _update_sizes(module: nn.Module) -> None:
    """Lets a layer's own record of its sizes follow its parameters."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
