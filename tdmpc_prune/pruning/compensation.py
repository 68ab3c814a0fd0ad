"""What removed units would have said goes into the layers that read them [ours].

What a unit says, its output, is in a trained network nearly a linear function of what its neighbours say. Before it
goes, the layers that read it take that function over: their other columns and their bias get the best stand-in for the
columns that they lose, by least squares on real inputs. So do He et al. (2017, arXiv 1707.06168) with channels of
convolutions; here it is done for all groups at once, the coupling ones too, and while the network learns.

Where a norm over units stands before a layer, its other inputs change, too: they are normalised over fewer. In one and
the same `nn.Sequential` that is known before it happens, and taken over likewise; elsewhere it is not looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tdmpc_prune.pruning.groups import Group, Prunable, eager
from tdmpc_prune.pruning.layers import ENTRYWISE, NORMS, UNITWISE, on_units

BATCHES = 2
"""Replay batches that a run compensates on: at laptop size some 2,500 steps for 128 inputs. More bring little."""
DEAD = 1e-3
"""Inputs that vary less than this, as a share of what all do on average, count in the ridge as if they varied so much:
where all that stays is nearly dead, chance would be taken for a law, and weights would be thousands."""

Place = tuple[str, str]
"""Component and layer."""


@dataclass(frozen=True)
class StandIn:
    """What a layer will miss of its inputs x [I], from those that it will still read: y [M] = matrix x + constant."""

    missing: Tensor
    """Columns [M] that y stands in for: the lost ones; all, where those that stay change as well."""
    matrix: Tensor
    """[M, I], zero in the lost columns."""
    constant: Tensor
    """[M]"""


StandIns = Mapping[Place, StandIn]
"""Of every layer that loses columns."""


class Regression:
    """Least squares of y [M] from x [K], by moments of what came by so far, batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.means = self._scatter = self._spread = torch.zeros(())

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Takes rows [N, K] and [N, M] into account."""
        both = x if y is None else torch.cat([x, y], dim=1)
        if not len(both):
            return
        if not self.count:
            self.means = torch.zeros(both.shape[1], dtype=torch.float64, device=x.device)
            self._scatter = torch.zeros(x.shape[1], both.shape[1], dtype=torch.float64, device=x.device)
            self._spread = torch.zeros_like(self.means)
        count, inputs = len(both), x.shape[1]
        mean = both.mean(0)
        centred = both - mean
        step, total = mean.double() - self.means, self.count + count
        # Products of centred float32 numbers: the ridge is far more than they err.
        self._scatter += (centred[:, :inputs].t() @ centred).double()
        self._scatter += torch.outer(step[:inputs], step) * (self.count * count / total)
        self._spread += centred.square().sum(0).double() + step.square() * (self.count * count / total)
        self.means += step * (count / total)
        self.count = total

    @property
    def finite(self) -> bool:
        """Whether something came by, and all of it was finite."""
        return self.count > 0 and bool(self._scatter.isfinite().all())

    @property
    def covariance(self) -> Tensor:
        """Of x [K, K], in float64."""
        return self._scatter[:, : len(self._scatter)] / self.count

    def fit(self, ridge: float, *, constant: bool = True) -> tuple[Tensor, Tensor]:
        """y from x: matrix [M, K] and constant [M].

        Args:
            ridge: added to the variances of x, as a share of their mean: what hardly varies tells of nothing.
            constant: whether there may be one; if not, it is 0, and squares are in place of variances.
        """
        inputs, within = len(self._scatter), self.covariance
        across, spread = self._scatter[:, inputs:] / self.count, self._spread / self.count
        x, y = self.means.tensor_split([inputs])
        if not constant:
            within, across = within + torch.outer(x, x), across + torch.outer(x, y)
            spread = spread + self.means.square()
        share = torch.maximum(within.diagonal().mean(), DEAD * spread.mean())
        extra = ridge * share + torch.finfo(torch.float64).tiny
        eye = torch.eye(inputs, dtype=within.dtype, device=within.device)
        matrix = torch.linalg.solve(within + extra * eye, across).t()
        return matrix, y - matrix @ x if constant else torch.zeros_like(y)


class _Reader:
    """A layer that will lose columns, listened to while the agent runs."""

    def __init__(self, module: nn.Module, lost: Tensor) -> None:
        self.module = module
        self.width = module.get_parameter("weight").shape[1]
        stays = torch.ones(self.width, dtype=torch.bool)
        stays[lost] = False
        self.missing, self.kept = lost, stays.nonzero().squeeze(1)
        self.seen = Regression()
        self.reached = False

    def listen(self) -> list[RemovableHandle]:
        """Sees what it reads, from now on."""
        return [self.module.register_forward_pre_hook(self._reach)]

    def _reach(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.reached = True
        self.see(rows(inputs[0]))

    def see(self, x: Tensor) -> None:
        """Takes inputs [N, I] into account."""
        self.seen.add(x[:, self.kept], x[:, self.missing])

    def stand_in(self, ridge: float) -> StandIn:
        """The best one."""
        has_bias = getattr(self.module, "bias", None) is not None
        matrix, constant = self.seen.fit(ridge, constant=has_bias)
        wide = matrix.new_zeros(len(self.missing), self.width)
        wide[:, self.kept] = matrix
        return StandIn(self.missing, wide, constant)


class _NormalisedReader(_Reader):
    """One that reads what a norm has normalised: over fewer, what stays will be other numbers."""

    def __init__(
        self, module: nn.Module, lost: Tensor, norm: nn.LayerNorm | nn.RMSNorm, between: Sequence[nn.Module]
    ) -> None:
        super().__init__(module, lost)
        self.norm, self.between = norm, between
        self.missing = torch.arange(self.width)
        self._left: Tensor | None = None

    def listen(self) -> list[RemovableHandle]:
        return [self.norm.register_forward_pre_hook(self._expect), *super().listen()]

    def see(self, x: Tensor) -> None:
        left, self._left = self._left, None
        if left is None or len(left) != len(x):
            return  # it does not come right from there
        missing = x.clone()
        missing[:, self.kept] -= left
        self.seen.add(left, missing)

    def _expect(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Works out what will be left [N, K] of its next inputs."""
        x = rows(inputs[0])[:, self.kept]
        for module in (self.norm, *self.between):
            x = on_units(module, x, self.kept) if isinstance(module, ENTRYWISE) else module(x)
        self._left = x


@torch.no_grad()
def stand_ins(
    agent: Prunable,
    groups: Sequence[Group],
    removal: Mapping[str, Tensor],
    forward: Callable[[], object],
    ridge: float,
) -> dict[Place, StandIn]:
    """What takes the place of removed units in every layer that reads some of them.

    A layer that is not reached, or reads what is not finite, is left out.

    Args:
        agent: as it is now.
        groups: of it.
        removal: units to remove, by group.
        forward: runs the components on real data.
        ridge: of the fit (see `Regression.fit`); more than 0.

    Raises:
        ValueError: `forward` reaches none of these layers.
    """
    components = agent.components()
    readers: dict[Place, _Reader] = {}
    for (component, layer), lost in lost_columns(groups, removal).items():
        module = components[component].get_submodule(layer)
        before = _norm_before(components[component], layer)
        readers[component, layer] = (
            _NormalisedReader(module, lost, *before) if before else _Reader(module, lost)
        )
    if readers:
        with watching(agent) as hooks:
            hooks += [hook for reader in readers.values() for hook in reader.listen()]
            forward()
        if not any(reader.reached for reader in readers.values()):
            names = ", ".join(".".join(filter(None, place)) for place in readers)
            raise ValueError(f"forward runs none of the layers that are to take over: {names}")
    return {place: reader.stand_in(ridge) for place, reader in readers.items() if reader.seen.finite}


@contextmanager
def watching(agent: Prunable) -> Iterator[list[RemovableHandle]]:
    """A list for hooks, which are removed in the end; meanwhile nothing is dropped out, and no statistics are made."""
    copies = (agent.components(), *agent.mirrors())
    modules = dict.fromkeys(m for copy in copies for component in copy.values() for m in component.modules())
    training = [m for m in modules if m.training]
    hooks: list[RemovableHandle] = []
    for module in training:
        module.training = False
    try:
        with eager():
            yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True


def _norm_before(
    component: nn.Module, layer: str
) -> tuple[nn.LayerNorm | nn.RMSNorm, list[nn.Module]] | None:
    """The norm of a layer's inputs in the same `nn.Sequential`, and what stands between, which treats units alone."""
    path, _, name = layer.rpartition(".")
    parent = component.get_submodule(path)
    if not isinstance(parent, nn.Sequential):
        return None
    modules = dict(parent._modules)  # one that is there twice is named twice
    width = parent.get_parameter(f"{name}.weight").shape[1]
    between: list[nn.Module] = []
    for module in reversed(list(parent)[: list(modules).index(name)]):
        if isinstance(module, NORMS):
            return (module, between[::-1]) if module.normalized_shape == (width,) else None
        if module.state_dict() and not isinstance(module, UNITWISE):
            return None
        between.append(module)
    return None


def rows(x: Tensor) -> Tensor:
    """Inputs [..., I] as rows [N, I]."""
    return x.reshape(-1, x.shape[-1])


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
def taken_over(layer: nn.Module, stand_in: StandIn) -> dict[str, Tensor]:
    """Weight [O, I] and bias [O], if it has one, of a linear layer that does with less.

    The lost columns themselves are left as they are.
    """
    parameters = dict(layer.named_parameters(recurse=False))
    columns = parameters["weight"].double()[:, stand_in.missing]
    more = {"weight": columns @ stand_in.matrix, "bias": columns @ stand_in.constant}
    return {name: (p.double() + more[name]).to(p.dtype) for name, p in parameters.items()}
