"""From an agent's components to pruning groups: what can only be removed together.

torch-pruning traces the dependency graph (DepGraph, Fang et al. 2023); what is a unit, which groups couple
components, and what is never pruned is decided here (Sundaram et al. 2025, arXiv 2504.13296).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch_pruning
from torch import Tensor, nn

from tdmpc_prune.pruning.layers import ENTRYWISE, PRUNABLE, entries, followed, one_for_all

COUPLING_NAME = "latent"


class Prunable(Protocol):
    """What pruning asks of an agent."""

    def components(self) -> Mapping[str, nn.Module]:
        """The named sub-networks, in display order."""

    def trace(self) -> Sequence[Tensor]:
        """Outputs of one differentiable pass that uses every component, and goes round every loop twice.

        Whatever must keep its width (actions, rewards, reconstructions) is an output and is not passed on
        to another component: a critic gets constants for its actions. Outputs stay apart: adding them up would tie
        them to each other.
        """

    def mirrors(self) -> Sequence[Mapping[str, nn.Module]]:
        """Copies of components, under the same names, that follow them index by index (targets)."""

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimisers that train the components."""


class TraceError(ValueError):
    """The agent cannot be pruned; the message says why."""


Role = Literal["out", "in", "norm"]


@dataclass(frozen=True)
class Member:
    """One layer's part in a group: rows it produces (`out`), columns it reads (`in`), entries that it normalises or
    scales (`norm`)."""

    component: str
    layer: str
    """Path of the layer inside its component."""
    module: nn.Module
    role: Role
    index: Tensor
    """Position [U] of every unit in the layer's rows, columns or entries."""

    def slices(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """The parameters that hold the units: name in the layer, parameter, dimension of the units."""
        if self.role == "in":
            yield "weight", self.module.weight, 1  # type: ignore[misc]
            return
        for name in ("weight", "bias"):
            parameter = getattr(self.module, name, None)
            if parameter is not None:
                yield name, parameter, 0


@dataclass(frozen=True)
class Group:
    """Units that are removed one by one, each from all members at once."""

    name: str
    """`<component>.<layer>` of the layer that produces it, or `latent` for the coupling group."""
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        """Units that are left."""
        return len(self.members[0].index)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that its members are in."""
        return tuple(dict.fromkeys(m.component for m in self.members))

    @property
    def coupling(self) -> bool:
        """Whether it ties several components to each other."""
        return len(self.components) > 1

    @property
    def unit_parameters(self) -> int:
        """N_u: parameters that a unit owns now."""
        return sum(p.numel() // p.shape[dim] for m in self.members for _, p, dim in m.slices())


def find_groups(agent: Prunable) -> list[Group]:
    """The pruning groups of an agent, in display order: by producing component, the coupling ones last.

    Raises:
        TraceError: the agent cannot be traced, or has layers that cannot be cut.
    """
    components = agent.components()
    places = {
        module: (name, path)
        for name, component in components.items()
        for path, module in component.named_modules()
        if isinstance(module, PRUNABLE) or not list(module.children())
    }
    with _undisturbed(components):
        graph, called = _trace(components, agent.trace)
        groups = _groups(graph, places, called)
        for group in groups:
            _check_positions(group, agent.trace, places)
    return _with_names([g for g in groups if not g.coupling] + [g for g in groups if g.coupling])


def _groups(
    graph: torch_pruning.DependencyGraph,
    places: Mapping[nn.Module, tuple[str, str]],
    called: set[nn.Module],
) -> list[Group]:
    missing = [
        m
        for m in places
        if m not in graph.module2node
        and list(m.parameters(recurse=False))
        and not (one_for_all(m) and m in called)
    ]
    if unknown := [m for m in missing if m in called]:
        if isinstance(unknown[0], PRUNABLE):
            raise TraceError(
                f"trace() leads through {_place(*places[unknown[0]])} without gradients: no detach and no no_grad "
                "between a layer and what is returned"
            )
        raise TraceError(_no_unit_layer(unknown[0], places))
    if missing:
        raise TraceError(
            f"trace() does not lead through {_listed(missing, places)}: every layer must take part, called as a "
            "layer, not by its weight"
        )
    groups: list[Group] = []
    seen: set[nn.Module] = set()
    for producer, (component, path) in places.items():
        if not isinstance(producer, nn.Linear) or producer in seen:
            continue
        members = _members(graph, producer, places)
        seen |= {m.module for m in members if m.role == "out"}
        # What nobody reads is an output of the agent: actions, rewards, values, reconstructions.
        if any(m.role == "in" for m in members):
            groups.append(Group(_place(component, path), members))
    if not groups:
        met = _listed([m for m in places if list(m.parameters(recurse=False))], places)
        raise TraceError(
            "there is nothing to prune: units go where one Linear layer reads another one's outputs, and trace() "
            f"leads through {met or 'no layer'}"
        )
    return groups


def _listed(modules: Sequence[nn.Module], places: Mapping[nn.Module, tuple[str, str]]) -> str:
    return ", ".join(f"{_place(*places[m])} ({type(m).__name__})" for m in modules)


def _no_unit_layer(module: nn.Module, places: Mapping[nn.Module, tuple[str, str]]) -> str:
    kind = type(module).__name__
    followed = ", ".join(layer.__name__ for layer in ENTRYWISE)
    return f"{_place(*places[module])} is a {kind}: units of Linear can be removed, with their entries in {followed}"


def _place(component: str, path: str) -> str:
    return f"{component}.{path}" if path else component  # a component may be a single layer


def _with_names(groups: list[Group]) -> list[Group]:
    coupling = [g for g in groups if g.coupling]
    if len(coupling) == 1:
        groups[-1] = Group(COUPLING_NAME, coupling[0].members)
    return groups


@contextmanager
def _undisturbed(components: Mapping[str, nn.Module]) -> Iterator[None]:
    """Evaluation mode and gradients for all; what was set before, and random numbers, come back."""
    holder = nn.ModuleList(components.values())  # a dictionary of modules refuses names such as "values"
    modes = {module: module.training for module in holder.modules()}
    frozen = [p for p in holder.parameters() if not p.requires_grad]
    holder.eval().requires_grad_(True)  # the graph is read off the gradients' path
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), eager():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)


def eager() -> contextlib.AbstractContextManager[object]:
    """Has what torch.compile has compiled run as it was written: what is compiled knows nothing of hooks."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _trace(
    components: Mapping[str, nn.Module], trace: Callable[[], Sequence[Tensor]]
) -> tuple[torch_pruning.DependencyGraph, set[nn.Module]]:
    """The graph, and the modules that trace() leads through: the graph knows only those that it can cut."""
    graph = torch_pruning.DependencyGraph()
    called: set[nn.Module] = set()
    modules = {module for component in components.values() for module in component.modules()}
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in modules]
    # As a module it would tie all layers that it follows: one instance often serves many.
    slopes = [module for module in modules if one_for_all(module)]
    hooks += [module.register_forward_hook(_like_leaky_relu) for module in slopes]
    try:
        trace()  # what it raises must not leave torch-pruning's hooks behind
        graph.build_dependency(
            nn.ModuleList(components.values()),
            example_inputs=torch.zeros(1),
            forward_fn=lambda *_: trace(),
            customized_pruners=followed(modules),
            ignored_layers=slopes,
            verbose=False,
        )
    except Exception as error:
        raise TraceError(f"trace() cannot be followed: {type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return graph, called


def _like_leaky_relu(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    return nn.functional.leaky_relu(inputs[0], module.get_parameter("weight").item())


def _check_positions(
    group: Group, trace: Callable[[], Sequence[Tensor]], places: Mapping[nn.Module, tuple[str, str]]
) -> None:
    """Marks a group's first unit with NaN, then its last one: it has to arrive where members say, and nowhere else.

    The traced graph does not see constants: after cat([action, z]) it takes the actions' columns for z's. Nor does it
    see that z.flip(-1) has units change places.
    """
    for unit in dict.fromkeys((0, group.units - 1)):
        _check_position(group, unit, trace, places)


def _check_position(
    group: Group,
    unit: int,
    trace: Callable[[], Sequence[Tensor]],
    places: Mapping[nn.Module, tuple[str, str]],
) -> None:
    expected = {(m.module, m.role): {int(m.index[unit])} for m in group.members}
    arrived: dict[nn.Module, set[int]] = {module: set() for module in places}

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not inputs:
            raise TraceError(f"{_place(*places[module])} gets its input by keyword: give it first, without")
        marked = inputs[0].isnan()
        if not marked.any():
            return inputs
        arrived[module] |= set(marked.reshape(-1, marked.shape[-1]).any(0).nonzero().flatten().tolist())
        return (inputs[0].nan_to_num(), *inputs[1:])

    def write(module: nn.Module, _: object, output: Tensor) -> Tensor:
        index = expected.get((module, "norm")) or expected[module, "out"]
        return output.index_fill(-1, torch.tensor(sorted(index), device=output.device), torch.nan)

    layers = [module for module in places if isinstance(module, PRUNABLE) and not one_for_all(module)]
    writers = [m.module for m in group.members if m.role != "in"]
    hooks = [module.register_forward_pre_hook(read) for module in layers]
    hooks += [module.register_forward_hook(write) for module in writers]
    try:
        with torch.no_grad():
            outputs = trace()
    finally:
        for hook in hooks:
            hook.remove()
    marks = [output.isnan() for output in outputs]
    if any(mark.any() and not mark.all() for mark in marks):  # what sums units up may be returned
        readers = ", ".join(_place(m.component, m.layer) for m in group.members if m.role == "in")
        raise TraceError(
            f"trace() returns the units of {group.name}, and gives them to {readers}: what it returns keeps its width, "
            "so give other layers constants in its place (a critic, for its actions), or do not return it"
        )
    for module in layers:
        reads = expected.get((module, "norm")) or expected.get((module, "in")) or set()
        if arrived[module] != reads:
            raise TraceError(_misplaced(group.name, unit, _place(*places[module]), arrived[module], reads))


def _misplaced(group: str, unit: int, reader: str, arrived: set[int], expected: set[int]) -> str:
    """Says what a marked unit arriving elsewhere means."""
    found = ", ".join(map(str, sorted(arrived)[:3])) + (", ..." if len(arrived) > 3 else "")
    if len(arrived) > len(expected):
        why = (
            "what comes between them mixes units (softmax, a mean, a norm that is no layer), or they "
            "are not on the last dimension: only layers may mix units"
        )
    elif arrived:
        why = "between them units change places (flip, sort) or follow constants: torch.cat takes units first"
    else:
        why = "what comes between them does not pass it on as a number (torch.where, a comparison)"
    wanted = ", ".join(map(str, sorted(expected)))
    return f"unit {unit} of {group} reaches {reader} at [{found}], not [{wanted}]: {why}"


def _members(
    graph: torch_pruning.DependencyGraph, producer: nn.Linear, places: Mapping[nn.Module, tuple[str, str]]
) -> tuple[Member, ...]:
    """All layers that hold a part of the producer's outputs, the producer first."""
    rows = list(range(producer.out_features))
    found: dict[tuple[nn.Module, Role], Tensor] = {}
    for dependency, index in graph.get_pruning_group(producer, torch_pruning.prune_linear_out_channels, rows):
        module = dependency.target.module
        if isinstance(module, nn.Parameter):
            raise TraceError(
                f"{_place(*places[producer])} meets a bare nn.Parameter {list(module.shape)}: put it into a layer"
            )
        if module not in places:  # an operation without parameters
            continue
        reads = graph.is_in_channel_pruning_fn(dependency.handler)
        if isinstance(module, nn.Linear):
            role: Role = "in" if reads else "out"
        elif isinstance(module, ENTRYWISE):
            if entries(module) != (len(index),):
                raise TraceError(
                    f"{_place(*places[module])} has other than an entry for each of {len(index)} units of "
                    f"{_place(*places[producer])}: {module}. Give every layer a norm of its own, before any torch.cat"
                )
            role = "norm"
        elif not list(module.parameters(recurse=False)):
            continue
        else:
            raise TraceError(_no_unit_layer(module, places))
        if any(not isinstance(getattr(module, n, None), nn.Parameter | None) for n in ("weight", "bias")):
            raise TraceError(
                f"{_place(*places[module])} is reparametrised: units of plain layers can be removed"
            )
        found[module, role] = torch.as_tensor(index)
    wrong = [places[m] for (m, _), index in found.items() if len(index) != len(rows)]
    if wrong:
        raise TraceError(f"{_place(*wrong[0])} does not follow {_place(*places[producer])} unit by unit")
    order = {module: i for i, module in enumerate(places)}
    keys = sorted(found, key=lambda k: (k[0] is not producer or k[1] != "out", order[k[0]], k[1]))
    return tuple(Member(*places[m], m, role, found[m, role]) for m, role in keys)
