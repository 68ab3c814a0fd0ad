"""The one place that changes a shape: removes units from everything that knows of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.compensation import StandIns, taken_over
from tdmpc_prune.pruning.groups import Group, Prunable, TraceError, find_groups
from tdmpc_prune.pruning.layers import ENTRYWISE, entries, record, statistics

Removal = Mapping[str, Tensor]
"""Units to remove, by group: positions among the units that are left."""


def remove_units(
    agent: Prunable, groups: Sequence[Group], removal: Removal, stand_ins: StandIns | None = None
) -> list[Group]:
    """Removes units from networks, mirrors and optimisers; returns the groups of what is left.

    Parameters that lose something are replaced by new ones; the optimisers hold those, with their moments
    cut at the same indices. Gradients are dropped. Layers that have one of the `stand_ins` for this removal take
    over what they can of what they lose (see `compensation`).

    Raises:
        ValueError: a position is out of range, a group would lose all units, or an optimiser keeps something of a
            parameter that has another shape; nothing is changed.
        TraceError: what is left does not work; nothing is changed.
    """
    _check(groups, removal)
    _check_moments(agent.optimizers())
    former: list[_Former] = []
    try:
        replaced = _cut(agent, groups, removal, stand_ins or {}, former)
        left = find_groups(agent)
    except BaseException:
        _put_back(former)
        raise
    _follow(agent.optimizers(), replaced)
    return left


def check_removable(agent: Prunable, groups: Sequence[Group]) -> None:
    """Takes a unit of every group away and puts it back, to see whether what is left works.

    The traced graph does not see constants: a buffer as wide as a layer fits for as long as nothing is removed.

    Raises:
        TraceError: what is left of a group does not work. As it always does, nothing is changed.
    """
    wide = [group for group in groups if group.units > 1]
    if wide and (error := _fault(agent, groups, wide)):
        for group in wide:
            if error_of_one := _fault(agent, groups, [group]):
                raise TraceError(
                    f"{group.name} cannot lose a unit: {error_of_one}. Is the width of {group.name} "
                    "written down elsewhere, in a buffer, a constant, a reshape? Put that into a layer (nn.Linear, "
                    "nn.LayerNorm, ...), or let it be one number for all units"
                )
        raise error


def _fault(agent: Prunable, groups: Sequence[Group], wide: Sequence[Group]) -> TraceError | None:
    """What is wrong with the agent without the last unit of these groups."""
    former: list[_Former] = []
    try:
        _cut(agent, groups, {group.name: torch.tensor([group.units - 1]) for group in wide}, {}, former)
        find_groups(agent)
    except TraceError as error:
        return error
    finally:
        _put_back(former)
    return None


_Former = tuple[nn.Module, str, object]
"""An attribute of a module, and what it was."""


def _put_back(former: Sequence[_Former]) -> None:
    for module, name, value in reversed(former):
        setattr(module, name, value)


def _cut(
    agent: Prunable, groups: Sequence[Group], removal: Removal, stand_ins: StandIns, former: list[_Former]
) -> dict[nn.Parameter, tuple[nn.Parameter, Mapping[int, Tensor]]]:
    """Replaces the parameters of networks and mirrors; notes in `former` what was there.

    Returns the new parameter of every former one, with the indices that it kept, by dimension.
    """
    copies = (agent.components(), *agent.mirrors())

    def change(module: nn.Module, name: str, value: object) -> None:
        former.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    kept = _kept(groups, removal)
    taken: dict[nn.Module, dict[str, Tensor]] = {}
    for place, stand_in in stand_ins.items():
        for module in _modules(copies, *place):
            taken[module] = taken_over(module, stand_in)
            for name in taken[module]:
                kept.setdefault((*place, name), {})

    replaced: dict[nn.Parameter, tuple[nn.Parameter, Mapping[int, Tensor]]] = {}
    for (component, layer, name), cuts in kept.items():
        for module in _modules(copies, component, layer):
            old = module.get_parameter(name)
            full = taken.get(module, {}).get(name, old.detach())
            new = nn.Parameter(_select(full, cuts), requires_grad=old.requires_grad)
            change(module, name, new)
            replaced[old] = new, cuts
    # A layer's own record of its sizes follows.
    for group in groups:
        for member in group.members if len(removal.get(group.name, ())) else ():
            for module in _modules(copies, member.component, member.layer):
                if isinstance(module, ENTRYWISE):
                    stays = torch.ones(*entries(module), dtype=torch.bool)
                    stays[member.index[removal[group.name].cpu()]] = False
                    for name, seen in statistics(module):
                        change(module, name, _select(seen, {0: stays.nonzero().squeeze(1)}))
                    for name, noted in record(module, int(stays.sum())).items():
                        change(module, name, noted)
                elif isinstance(module, nn.Linear):
                    rows, columns = module.weight.shape
                    change(module, "out_features", rows)
                    change(module, "in_features", columns)
    return replaced


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


def _check_moments(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuses moments of other shapes than their parameter's: nobody here knows what of them is a unit's."""
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            if not isinstance(moments, Mapping):  # of no parameter
                continue
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                    raise ValueError(
                        f"{type(optimizer).__name__} keeps {name} {list(value.shape)} of a parameter "
                        f"{list(parameter.shape)}: choose an optimiser whose moments have the shape of their "
                        "parameter, and load its state after cut_to"
                    )


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Tries each kind of optimiser on a small parameter of its own, to see what moments it will keep.

    Raises:
        ValueError: they do not have the shape of their parameter.
    """
    for optimizer in optimizers:
        weight = nn.Parameter(torch.ones(3, 2))
        trial: torch.optim.Optimizer | None = None

        def loss(weight: Tensor = weight) -> float:
            weight.grad = torch.ones(3, 2)
            return 1.0

        # One that cannot be tried like this is looked at when units are removed.
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            trial = type(optimizer)([weight], **optimizer.defaults)
            trial.step(loss)
        if trial is not None:
            _check_moments([trial])


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


def _modules(copies: Sequence[Mapping[str, nn.Module]], component: str, layer: str) -> list[nn.Module]:
    """A layer and its mirrors; what a mirror shares with the component counts once."""
    return list(dict.fromkeys(c[component].get_submodule(layer) for c in copies if component in c))


def _follow(
    optimizers: Sequence[torch.optim.Optimizer],
    replaced: Mapping[nn.Parameter, tuple[nn.Parameter, Mapping[int, Tensor]]],
) -> None:
    """Gives the optimisers the new parameters, with moments cut like them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [replaced[p][0] if p in replaced else p for p in group["params"]]
        for old, (new, cuts) in replaced.items():
            if old in optimizer.state:
                optimizer.state[new] = {
                    # Adam's count of steps has no units.
                    key: _select(value, cuts) if getattr(value, "shape", None) == old.shape else value
                    for key, value in optimizer.state.pop(old).items()
                }


def cut_to(agent: Prunable, widths: Mapping[str, int]) -> None:
    """Gives a new agent the widths of a pruned one (`Pruner.widths`), to load that one's weights into.

    Raises:
        ValueError: a group is not known, or has fewer units than that.
    """
    groups = find_groups(agent)
    units = {group.name: group.units for group in groups}
    for name, width in widths.items():
        if name not in units:
            raise ValueError(f"there is no group {name!r}, only {', '.join(units)}")
        if not 1 <= width <= units[name]:
            raise ValueError(f"group {name!r} is to have {width} units, and has {units[name]}")
    remove_units(agent, groups, {name: torch.arange(width, units[name]) for name, width in widths.items()})


def _select(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    for dim, index in cuts.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor
