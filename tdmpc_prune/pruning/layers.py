"""Layers with an entry for every unit: what of them has to follow when units go.

Those that normalise over units see fewer of them afterwards; those that treat every unit alone do not notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Normalise over the units."""
UNITWISE = (nn.BatchNorm1d, nn.PReLU)
"""Treat every unit alone."""
ENTRYWISE = (*NORMS, *UNITWISE)
"""Have an entry for every unit."""
PRUNABLE = (nn.Linear, *ENTRYWISE)
"""All that can be cut."""


def entries(layer: nn.Module) -> tuple[int, ...]:
    """Shape of what one of `ENTRYWISE` has entries for: (U,) if for U units."""
    match layer:
        case nn.LayerNorm() | nn.RMSNorm():
            return tuple(layer.normalized_shape)
        case nn.BatchNorm1d():
            return (layer.num_features,)
        case nn.PReLU():
            return (layer.num_parameters,)
    raise TypeError(f"{type(layer).__name__} has no entries")


def one_for_all(layer: nn.Module) -> bool:
    """Whether it is a PReLU with one slope for all units: a function of one unit, whatever the layer it follows."""
    return isinstance(layer, nn.PReLU) and layer.num_parameters == 1


def statistics(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers [U] of what was seen of every unit, by name."""
    if isinstance(layer, nn.BatchNorm1d):
        for name in ("running_mean", "running_var"):
            if (buffer := getattr(layer, name)) is not None:
                yield name, buffer


def record(layer: nn.Module, units: int) -> dict[str, Any]:
    """What one of `ENTRYWISE` itself notes of its size, for so many units."""
    match layer:
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": (units,)}
        case nn.BatchNorm1d():
            return {"num_features": units}
        case nn.PReLU():
            return {"num_parameters": units}
    raise TypeError(f"{type(layer).__name__} has no entries")


def on_units(layer: nn.Module, x: Tensor, units: Tensor) -> Tensor:
    """What one of `ENTRYWISE`, cut to these units, would make of theirs [N, len(units)]; its statistics stay."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[units]

    match layer:
        case nn.LayerNorm():
            return F.layer_norm(x, (len(units),), of(layer.weight), of(layer.bias), layer.eps)
        case nn.RMSNorm():
            return F.rms_norm(x, (len(units),), of(layer.weight), layer.eps)
        case nn.BatchNorm1d():
            mean, var = of(layer.running_mean), of(layer.running_var)
            scale, shift = of(layer.weight), of(layer.bias)
            return F.batch_norm(x, mean, var, scale, shift, training=mean is None, eps=layer.eps)
        case nn.PReLU():
            return F.prelu(x, layer.weight if one_for_all(layer) else layer.weight[units])
    raise TypeError(f"{type(layer).__name__} has no entries")


class _FollowRMSNorm(torch_pruning.BasePruningFunc):
    """Tells torch-pruning, which does not know RMSNorm, that its entries are units; it cuts nothing here."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.RMSNorm) -> int:
        return layer.normalized_shape[-1]

    get_in_channels = get_out_channels


def followed(modules: Iterable[nn.Module]) -> dict[type[nn.Module], torch_pruning.BasePruningFunc]:
    """torch-pruning's `customized_pruners` of an agent's modules."""
    return {type(module): _FollowRMSNorm() for module in modules if isinstance(module, nn.RMSNorm)}
