"""How large the networks would be at any widths of their groups, exactly and without building them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tdmpc_prune.pruning.groups import Group
from tdmpc_prune.pruning.layers import ENTRYWISE, entries

Ints = NDArray[np.int64]


class SizeModel:
    """Parameters and multiply-accumulates as a function of the groups' widths.

    A layer holds rows x (columns + bias) parameters, and its rows and columns are each a constant plus the
    widths of the groups that have a part in them. A norm is a layer with a row per entry, and what belongs to
    no group is a constant. That is exact at every width, so one model made at the start serves the whole run.

    Raises:
        ValueError: layers share or reparametrise their parameters, so that counting layers is not counting
            parameters.
    """

    names: tuple[str, ...]
    """The groups, in the order of the last axis of `count`."""
    widths: dict[str, int]
    """Width of every group when this model was made."""

    def __init__(self, components: Mapping[str, nn.Module], groups: Sequence[Group]) -> None:
        self.names = tuple(group.name for group in groups)
        self.widths = {group.name: group.units for group in groups}
        makes: dict[nn.Module, Ints] = {}
        reads: dict[nn.Module, Ints] = {}
        for i, group in enumerate(groups):
            for member in group.members:
                parts = reads if member.role == "in" else makes
                parts.setdefault(member.module, np.zeros(len(groups), np.int64))[i] += 1

        layers = {m: name for name, component in components.items() for m in component.modules()}
        sizes = [_shape(layer) for layer in layers]
        none = np.zeros(len(groups), np.int64)
        self._makes = np.array([makes.get(layer, none) for layer in layers])  # [layers, groups]
        self._reads = np.array([reads.get(layer, none) for layer in layers])
        rows, columns, bias = np.array(sizes, np.int64).T
        today = self._array(self.widths)
        self._rows, self._columns = rows - self._makes @ today, columns - self._reads @ today
        self._bias = bias
        self._linear = np.array([isinstance(layer, nn.Linear) for layer in layers])
        self._components = tuple(components)
        owner = np.array([self._components.index(name) for name in layers.values()])
        self._owner = (owner == np.arange(len(components))[:, None]).astype(np.int64)  # [components, layers]

        held = {p: p.numel() for component in components.values() for p in component.parameters()}
        if sum(held.values()) != self.parameters(self.widths):
            raise ValueError(
                "layers share or reparametrise their parameters: give every layer its own weight and bias"
            )

    def count(self, widths: Ints) -> Ints:
        """Parameters [...] at widths [..., G] in the order of `names`: many architectures in one call."""
        return self._layers(widths).sum(-1)

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Parameters of all components."""
        return int(self.count(self._array(widths)))

    def component_parameters(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Parameters of every component; they add up to `parameters`."""
        counts = self._owner @ self._layers(self._array(widths))
        return dict(zip(self._components, counts.tolist(), strict=True))

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates of the Linear layers, for one input through every component once."""
        rows, columns = self._sides(self._array(widths))
        return int((rows * columns)[self._linear].sum())

    def _array(self, widths: Mapping[str, int]) -> Ints:
        return np.array([widths[name] for name in self.names], np.int64)

    def _sides(self, widths: Ints) -> tuple[Ints, Ints]:
        return self._rows + widths @ self._makes.T, self._columns + widths @ self._reads.T

    def _layers(self, widths: Ints) -> Ints:
        rows, columns = self._sides(widths)
        return rows * (columns + self._bias)


def _shape(layer: nn.Module) -> tuple[int, int, int]:
    """Rows, columns and bias (0 or 1) whose rows x (columns + bias) are the layer's own parameters."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features, int(layer.bias is not None)
    own = list(layer.parameters(recurse=False))
    if isinstance(layer, ENTRYWISE):
        return int(np.prod(entries(layer))), len(own), 0
    return sum(p.numel() for p in own), 1, 0
