"""How much every unit matters, for all criteria at once, from one read of the gradients per update.

Gradient Accumulation is the published metric of Sundaram, Ulmen and Görges (arXiv 2601.19794). Of its Fisher
and Bayesian metrics only the description is public: their formulas here are this project's reading, marked
[ours]. Taylor and magnitude are the usual baselines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from scipy.special import gammaincc, gammaincinv
from torch import Tensor, nn

from tdmpc_prune.pruning.config import ImportanceConfig, require
from tdmpc_prune.pruning.groups import Group

GRADIENT_CRITERIA = ("gradient", "fisher", "fisher-saliency", "bayesian", "bayesian-saliency", "taylor")
CRITERIA = (*GRADIENT_CRITERIA, "magnitude", "random")

SHAPE_RANGE = (0.1, 100.0)
"""Range of k_u [ours]: energies that scatter by 3.2 times their mean down to by a tenth of it. A few hundred
updates cannot tell more, and a unit without any energy yet gets the lower end: the least evidence."""

PRIOR_RANGE = (1.0, 100.0)
"""Range of a0 [ours]: at least 1, so that the expected energy k b / (a - 1) is finite for any evidence, and
not so much that the prior outweighs a unit's own history where all units of a group look alike."""

WEAK_PRIOR = (1.0, 0.0)
"""(a0, b0) where fewer than two units are active [ours]: expects exactly the mean of a unit's own energies."""

INACTIVE = 1e-12
"""Share of its group's highest mean energy below which a unit says nothing about the group's rates [ours]."""

CACHED = 2**15
"""Entries of a parameter that are worked on at a time: their four terms fit the processor's cache."""

TINY = torch.finfo(torch.float64).tiny


class ImportanceTracker:
    """Watches the gradients of all units while an agent learns.

    One flat vector [U] per statistic holds the units of all groups, one group after the other. An agent calls
    `observe` after each backward pass and before clipping, a training loop `advance` once per update; neither
    waits for the device. Scores are float64.

    Args:
        groups: the pruning groups.
        config: how to smooth.
        losses: the loss that trains each component, for `normalisation="loss"`; all the same if none.
        seed: of the `random` criterion.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        config: ImportanceConfig,
        *,
        losses: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.groups, self.losses = config, list(groups), losses
        for component in {group.components[0] for group in groups}:
            require(losses is None or component in losses, f"losses says not which loss trains {component!r}")
        self.updates = 0
        """Updates seen so far."""
        self._slices = _Slices(self.groups)
        units, device = self._slices.units, self._slices.device
        self._averages = Average((4, units), device)
        self._energy = GammaPosterior(self._sizes, device)
        self._cost = GammaPosterior(self._sizes, device)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.updates >= self.config.warmup

    # Once per update

    @torch.no_grad()
    def observe(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the gradients of these parameters to this update's; those without a gradient add nothing."""
        for parameter in parameters:
            self._slices.add(parameter)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Ends an update at `progress` = t/T of training: smooths what was observed in it."""
        beta, size = self.config.beta(progress), self._slices.size
        absolute, square, first_order, saliency = self._slices.totals()
        energy = square / size
        # theta^2 g^2 is smoothed per unit: a smoothed diagonal F per parameter would cost a second model.
        self._averages.update(torch.stack([absolute / size, energy, saliency / 2, first_order.abs()]), beta)
        self._energy.update(energy, beta, fast=self.config.beta_start)
        self._cost.update(first_order.square(), beta, fast=self.config.beta_start)
        self.updates += 1

    # Reading

    @torch.no_grad()
    def scores(self, criterion: str) -> dict[str, Tensor]:
        """Raw scores [U] by group, higher: more important. They count once the tracker is `ready`."""
        return self._by_group(self._flat(criterion))

    @torch.no_grad()
    def normalised(self, criterion: str) -> dict[str, Tensor]:
        """Scores [U] by group, divided by their mean as `normalisation` says; zeros stay zeros.

        A coupling group is a component of its own; under "loss" it belongs to that of its producing component.
        """
        scores = self.scores(criterion)
        if self.config.normalisation == "none":
            return scores
        pools: dict[str, list[Tensor]] = {}
        for group in self.groups:
            pools.setdefault(self._pool(group), []).append(scores[group.name])
        means = {pool: torch.cat(parts).mean() for pool, parts in pools.items()}
        scales = {pool: torch.where(mean > 0, mean, 1.0) for pool, mean in means.items()}
        return {group.name: scores[group.name] / scales[self._pool(group)] for group in self.groups}

    def group_means(self, criterion: str) -> dict[str, float]:
        """Mean raw score of every group."""
        return {name: float(score.mean()) for name, score in self.scores(criterion).items()}

    def group_means_normalised(self, criterion: str) -> dict[str, float]:
        """Mean normalised score of every group."""
        return {name: float(score.mean()) for name, score in self.normalised(criterion).items()}

    @torch.no_grad()
    def expected_energy(self, name: str) -> Tensor:
        """Posterior mean of the gradient energy of a group's units [U]: the scale that a cut is chosen on."""
        return self._by_group(self._energy.expected())[name]

    @torch.no_grad()
    def removable(self, name: str, cut: float) -> Tensor:
        """Which of a group's units may go [U]: those with P(expected energy < cut) >= guard [ours].

        The probability is the posterior's, of raw gradient energies whatever the criterion; `cut` is on the
        scale of `expected_energy`, and a higher one never forbids a unit. With the guard off (0) all may go.
        """
        if self.config.guard == 0:
            return torch.ones_like(self._by_group(self._slices.size)[name], dtype=torch.bool)
        return self._by_group(self._energy.probability_below(cut) >= self.config.guard)[name]

    # Surgery and storing

    @torch.no_grad()
    def keep(self, kept: Mapping[str, Tensor], groups: Sequence[Group]) -> None:
        """Follows a surgery, between two updates: the units that stay, and the groups as they are now.

        Args:
            kept: by group, the former indices of the units that stay, ascending; without an entry all stay.
            groups: the groups traced again, each with as many units as stay.
        """
        former = dict(zip(self._names, torch.arange(self._slices.units).split(self._sizes), strict=True))
        for name in set(kept) | {group.name for group in groups}:
            require(name in former, f"group {name!r} is new; there were {', '.join(former)}")
        staying = {name: units[kept[name].cpu()] if name in kept else units for name, units in former.items()}
        for name, units in staying.items():
            now = next((group.units for group in groups if group.name == name), 0)
            require(now == len(units), f"group {name!r} has {now} units now, but {len(units)} were kept")
        self.groups = list(groups)
        self._slices = _Slices(self.groups)
        index = torch.cat([staying[name] for name in self._names]).to(self._slices.device)
        self._averages.keep(index)
        self._energy.keep(index, self._sizes)
        self._cost.keep(index, self._sizes)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update continues from, taken between two updates."""
        state = {"updates": torch.tensor(self.updates), "generator": self._generator.get_state()}
        for name, part in self._parts.items():
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a stored state of the same groups."""
        units = state["averages.raw"].shape[-1]
        require(
            units == self._slices.units,
            f"the state is of {units} units, the groups have {self._slices.units}",
        )
        self.updates = int(state["updates"])
        self._generator.set_state(state["generator"].cpu())
        for name, part in self._parts.items():
            start = f"{name}."
            part.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})

    @property
    def _parts(self) -> dict[str, Average | GammaPosterior]:
        return {"averages": self._averages, "energy": self._energy, "cost": self._cost}

    @property
    def _names(self) -> list[str]:
        return [group.name for group in self.groups]

    @property
    def _sizes(self) -> list[int]:
        return [group.units for group in self.groups]

    def _by_group(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, flat.split(self._sizes), strict=True))

    def _flat(self, criterion: str) -> Tensor:
        """Raw scores [U] of all units."""
        match criterion:
            case "gradient":
                return self._averages.value[0]
            case "fisher":
                return self._averages.value[1]
            case "fisher-saliency":
                return self._averages.value[2]
            case "taylor":
                return self._averages.value[3]
            case "bayesian":
                return self._energy.score(self.config.credible)
            case "bayesian-saliency":
                return self._cost.score(self.config.credible)
            case "magnitude":
                return self._slices.norms()
            case "random":
                uniform = torch.rand(self._slices.units, generator=self._generator, dtype=torch.float64)
                return uniform.to(self._slices.device)
        raise ValueError(f"criterion is {criterion!r}; choose {', '.join(CRITERIA)}")

    def _pool(self, group: Group) -> str:
        """The units whose mean a group's scores are divided by."""
        if self.config.normalisation == "loss":
            return self.losses[group.components[0]] if self.losses else ""
        return group.name if group.coupling else group.components[0]


class _Slices:
    """The slices S_u of all units: where each row and column of each parameter adds up.

    An entry that lies in the slices of two units counts for both.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        owners: dict[nn.Parameter, dict[int, Tensor]] = {}
        starts = [0, *accumulate(group.units for group in groups)]
        self.units = starts[-1]
        for group, start in zip(groups, starts, strict=False):
            for member in group.members:
                for _, parameter, dim in member.slices():
                    owner = owners.setdefault(parameter, {})
                    # What is of no unit (actions among a layer's inputs) goes to one more, dropped later.
                    owner.setdefault(dim, torch.full((parameter.shape[dim],), self.units))
                    owner[dim][member.index] = start + torch.arange(group.units)
        self.device = next(iter(owners)).device
        positions = [owner for by_dim in owners.values() for owner in by_dim.values()]
        self._unit = torch.cat(positions).to(self.device)
        self._pieces = torch.zeros(4, len(self._unit), device=self.device)
        pieces = iter(self._pieces.split([len(p) for p in positions], dim=1))
        self._places = {p: {dim: next(pieces) for dim in by_dim} for p, by_dim in owners.items()}
        scratch = torch.empty(4 * max(CACHED, *(p[0].numel() for p in owners)), device=self.device)
        self._plan = {p: _blocks(p, places, scratch) for p, places in self._places.items()}
        self.size = torch.tensor(
            [group.unit_parameters for group in groups for _ in range(group.units)],
            dtype=torch.float64,
            device=self.device,
        )
        """N_u [U]."""

    def add(self, parameter: nn.Parameter) -> None:
        """Adds the sums of |g|, g^2, theta g and (theta g)^2 over each row and column of a parameter."""
        if parameter.grad is None or parameter not in self._plan:
            return
        rows, blocks = self._plan[parameter]
        parts = zip(_split(parameter, rows), _split(parameter.grad, rows), blocks, strict=True)
        for theta, gradient, (sheet, terms, pieces) in parts:
            absolute, square, first_order, saliency = terms
            torch.abs(gradient, out=absolute)
            torch.mul(gradient, gradient, out=square)
            torch.mul(theta, gradient, out=first_order)
            torch.mul(first_order, first_order, out=saliency)
            for dim, piece in pieces:
                piece += sheet if theta.dim() == 1 else sheet.sum(2 - dim)

    def totals(self) -> Tensor:
        """The four sums [4, U] over all slices, and starts anew."""
        totals = torch.zeros(4, self.units + 1, dtype=torch.float64, device=self.device)
        totals.index_add_(1, self._unit, self._pieces.double())
        self._pieces.zero_()
        return totals[:, :-1]

    def norms(self) -> Tensor:
        """L2 norms [U] of the slices as they are now."""
        squares = [
            p.square() if p.dim() == 1 else p.square().sum(1 - dim)
            for p, places in self._places.items()
            for dim in places
        ]
        totals = torch.zeros(self.units + 1, dtype=torch.float64, device=self.device)
        return totals.index_add_(0, self._unit, torch.cat(squares).double())[:-1].sqrt()


_Block = tuple[Tensor, tuple[Tensor, ...], list[tuple[int, Tensor]]]
"""Scratch for the four terms of some rows of a parameter, together and apart, and where their sums go, by dimension."""


def _split(tensor: Tensor, rows: int) -> Sequence[Tensor]:
    # A split that changes nothing would cost a third of the whole at laptop size.
    return (tensor,) if len(tensor) <= rows else tensor.split(rows)


def _blocks(
    parameter: nn.Parameter, places: Mapping[int, Tensor], scratch: Tensor
) -> tuple[int, list[_Block]]:
    """Rows per block, and a parameter's blocks. Views are made once: a view costs as much as a small sum."""
    rows = max(1, CACHED // parameter[0].numel())
    blocks: list[_Block] = []
    for start in range(0, len(parameter), rows):
        part = parameter[start : start + rows]
        sheet = scratch[: 4 * part.numel()].view(4, *part.shape)
        pieces = [(d, p[:, start : start + rows] if d == 0 else p) for d, p in places.items()]
        blocks.append((sheet, sheet.unbind(), pieces))
    return rows, blocks


class Average:
    """Exponential average of vectors [..., U] with a varying factor, unbiased from the first one on."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._raw = torch.zeros(shape, dtype=torch.float64, device=device)
        self._start = 1.0  # what the zero at the start still weighs: prod(beta)

    def update(self, value: Tensor, beta: float) -> None:
        """Adds the next vectors [..., U]."""
        self._raw.lerp_(value, 1 - beta)
        self._start *= beta

    @property
    def value(self) -> Tensor:
        """The average [..., U]; zero before the first update."""
        return self._raw / ((1 - self._start) or 1.0)

    def keep(self, index: Tensor) -> None:
        """Drops all units but these."""
        self._raw = self._raw.index_select(-1, index)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything."""
        return {"raw": self._raw.clone(), "start": torch.tensor(self._start, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a copy."""
        self._raw.copy_(state["raw"])
        self._start = float(state["start"])


class GammaPosterior:
    """Empirical-Bayes model of the units' energies [U], with forgetting [ours].

    Energies E_u(t) ~ Gamma(k_u, rate lambda_u), rates lambda_u ~ Gamma(a0, b0). From (a0, b0) the posterior is

        a <- rho a + (1 - rho) a0 + k_u        b <- rho b + (1 - rho) b0 + E_u(t)

    It is kept unrolled: a = a0 + k_u n and b = b0 + s, with n <- rho n + 1 and s <- rho s + E_u(t), and k_u, a0
    and b0 are estimated when it is read. A prior of former days would be on the scale of former gradients,
    and these change by orders of magnitude in training; so would a sum of former estimates of k_u be off.

    Args:
        sizes: units of each group, U in all.
        device: of the vectors.
        shape_range: limits of k_u.
    """

    def __init__(
        self, sizes: Sequence[int], device: torch.device, shape_range: tuple[float, float] = SHAPE_RANGE
    ) -> None:
        units = sum(sizes)
        self._sizes, self._shape_range = list(sizes), shape_range
        self._current = Average((units,), device)
        self._moments = Average((2, units), device)
        self._count = 0.0
        self._sum = torch.zeros(units, dtype=torch.float64, device=device)

    def update(self, energy: Tensor, rho: float, fast: float) -> None:
        """Takes in the next energies [U]; `fast`: the factor of the current energy."""
        self._current.update(energy, fast)
        self._moments.update(torch.stack([energy, energy.square()]), rho)
        self._count = rho * self._count + 1
        self._sum.mul_(rho).add_(energy)

    def shape(self) -> Tensor:
        """k_u [U], mean^2/variance of a unit's own energies: bursty ones carry less evidence."""
        mean, square = self._moments.value
        return (mean.square() / (square - mean.square()).clamp(min=TINY)).clamp(*self._shape_range)

    def prior(self) -> Tensor:
        """(a0, b0) [2, U], by moments of the rates k/mean over the units of each group (empirical Bayes)."""
        pairs = zip(self.shape().split(self._sizes), self._moments.value[0].split(self._sizes), strict=True)
        return torch.cat([_gamma_moments(k, m)[:, None].expand(2, len(k)) for k, m in pairs], dim=1)

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """k, a and b [U]."""
        k, (a0, b0) = self.shape(), self.prior()
        return k, a0 + k * self._count, b0 + self._sum

    def expected(self) -> Tensor:
        """Expected energy k b / (a - 1) [U]."""
        k, a, b = self.posterior()
        return k * b / (a - 1).clamp(min=TINY)

    def upper(self, credible: float) -> Tensor:
        """Quantile `credible` of the expected energy k / lambda [U]: lambda's lower one, inverted."""
        k, a, b = self.posterior()
        return k * b / torch.from_numpy(gammaincinv(a.cpu().numpy(), 1 - credible)).to(b)

    def probability_below(self, cut: float) -> Tensor:
        """P(k / lambda < cut) [U]."""
        k, a, b = self.posterior()
        if cut <= 0:
            return torch.zeros_like(k)
        return torch.from_numpy(gammaincc(a.cpu().numpy(), (k * b / cut).cpu().numpy())).to(b)

    def score(self, credible: float) -> Tensor:
        """sqrt(current energy * upper quantile) [U]: high only where sensitive now, and before or unknown."""
        return self._current.value.sqrt() * self.upper(credible).sqrt()

    def keep(self, index: Tensor, sizes: Sequence[int]) -> None:
        """Drops all units but these, of groups that have these sizes now."""
        self._sizes = list(sizes)
        self._current.keep(index)
        self._moments.keep(index)
        self._sum = self._sum[index]

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything."""
        return {
            **{f"current.{key}": value for key, value in self._current.state_dict().items()},
            **{f"moments.{key}": value for key, value in self._moments.state_dict().items()},
            "count": torch.tensor(self._count, dtype=torch.float64),
            "sum": self._sum.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a copy."""
        for name, average in (("current", self._current), ("moments", self._moments)):
            average.load_state_dict({key: state[f"{name}.{key}"] for key in ("raw", "start")})
        self._count = float(state["count"])
        self._sum.copy_(state["sum"])


def _gamma_moments(shape: Tensor, mean: Tensor) -> Tensor:
    """(a0, b0) [2] of the rates k/mean of one group's units, WEAK_PRIOR where fewer than two are active."""
    scale = mean.max()
    active = mean > INACTIVE * scale
    count = active.sum().clamp(min=1)
    # In units of the highest mean: a unit that went silent long ago must not overflow the squares.
    rate = torch.where(active, shape * scale / mean, 0.0)
    average = rate.sum() / count
    variance = torch.where(active, (rate - average).square(), 0.0).sum() / count
    a0 = (average.square() / variance.clamp(min=TINY)).clamp(*PRIOR_RANGE)
    b0 = a0 * scale / average.clamp(min=TINY)
    return torch.where(active.sum() >= 2, torch.stack([a0, b0]), a0.new_tensor(WEAK_PRIOR))
