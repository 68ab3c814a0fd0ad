"""How the units' statistics are smoothed over time: averages, and an empirical-Bayes model of energies [ours]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.special import gammaincc, gammaincinv
from torch import Tensor

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

TINY = torch.finfo(torch.float64).tiny


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
