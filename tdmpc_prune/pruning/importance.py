"""How much every unit matters, for all criteria at once, from one read of the gradients per update.

Gradient Accumulation is the published metric of Sundaram, Ulmen and Görges (arXiv 2601.19794). Of its Fisher
and Bayesian metrics only the description is public: their formulas here are this project's reading, marked
[ours]. Taylor and magnitude are the usual baselines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.config import ImportanceConfig, require
from tdmpc_prune.pruning.groups import Group
from tdmpc_prune.pruning.posterior import Average, GammaPosterior
from tdmpc_prune.pruning.slices import Slices, one_thread

GRADIENT_CRITERIA = ("gradient", "fisher", "fisher-saliency", "bayesian", "bayesian-saliency", "taylor")
CRITERIA = (*GRADIENT_CRITERIA, "magnitude", "random")

WAITING = 32
"""Updates that wait to be smoothed together: one by one, most of the time would go into calls and cold caches."""


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
        self.updates = self._updates_here = 0
        """Updates seen so far."""
        self._waiting: list[tuple[Tensor, float]] = []
        self._slices = Slices(self.groups)
        units, device = self._slices.units, self._slices.device
        self._averages = Average((4, units), device)
        self._energy = GammaPosterior(self._sizes, device)
        self._cost = GammaPosterior(self._sizes, device)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.updates >= self.config.warmup

    @property
    def blind_updates(self) -> int:
        """Updates since the last removal, if none of them brought a gradient of what is left; else 0."""
        return 0 if self._slices.observed else self._updates_here

    # Once per update

    @torch.no_grad()
    def observe(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the gradients of these parameters to this update's; those without a gradient add nothing."""
        self._slices.add(parameters)

    @torch.no_grad()
    def take(self) -> Tensor:
        """What was observed in this update, to `advance` with: for those who capture both in a CUDA graph."""
        return self._slices.take()

    @torch.no_grad()
    def advance(self, progress: float, taken: Tensor | None = None) -> None:
        """Ends an update at `progress` = t/T of training: what was observed in it counts from now on."""
        self._updates_here += 1
        if taken is None:
            taken = self._slices.take()
        elif taken.is_cuda:  # a graph writes to it again
            taken = taken.clone()
        self._waiting.append((taken, self.config.beta(progress)))
        self.updates += 1
        if len(self._waiting) == WAITING:
            self.settle()

    def discard(self) -> None:
        """Forgets what was observed since the last update ended."""
        self._slices.take()

    @torch.no_grad()
    def settle(self) -> None:
        """Smooths the updates that wait: the same numbers, bit by bit, whenever it is done."""
        if not self._waiting:
            return
        taken, betas = zip(*self._waiting, strict=True)
        self._waiting = []
        with one_thread():
            self._smooth(torch.stack(taken), betas)

    def _smooth(self, taken: Tensor, betas: Sequence[float]) -> None:
        """Smooths what T updates brought, one after the other."""
        absolute, square, first_order, saliency = self._slices.totals(taken).unbind(1)
        size, fast = self._slices.size, self.config.beta_start
        energies, costs = square / size, first_order.square()
        # theta^2 g^2 is smoothed per unit: a smoothed diagonal F per parameter would cost a second model.
        values = torch.stack([absolute / size, energies, saliency / 2, first_order.abs()], dim=1)
        for value, energy, cost, beta in zip(values, energies, costs, betas, strict=True):
            self._averages.update(value, beta)
            self._energy.update(energy, beta, fast)
            self._cost.update(cost, beta, fast)

    # Reading

    @torch.no_grad()
    def scores(self, criterion: str) -> dict[str, Tensor]:
        """Raw scores [U] by group, higher: more important. They count once the tracker is `ready`."""
        self.settle()
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
    def expected_energy(self, name: str, criterion: str = "bayesian") -> Tensor:
        """Posterior mean of the energy of a group's units [U]: the scale that a cut is chosen on.

        The energy of gradients, or that of removal costs for `bayesian-saliency`.
        """
        self.settle()
        return self._by_group(self._posterior(criterion).expected())[name]

    @torch.no_grad()
    def removable(self, name: str, cut: float, guard: float, criterion: str = "bayesian") -> Tensor:
        """Which of a group's units may go [U]: those with P(expected energy < cut) >= guard [ours].

        The probability is the posterior's; `cut` is on the scale of `expected_energy`, and a higher one never
        forbids a unit. With a guard of 0 all may go.
        """
        self.settle()
        return self._by_group(self._posterior(criterion).probability_below(cut) >= guard)[name]

    # Surgery and storing

    @torch.no_grad()
    def keep(self, kept: Mapping[str, Tensor], groups: Sequence[Group]) -> None:
        """Follows a surgery, between two updates: the units that stay, and the groups as they are now.

        Args:
            kept: by group, the former indices of the units that stay, ascending; without an entry all stay.
            groups: the groups traced again, each with as many units as stay.
        """
        self.settle()
        former = dict(zip(self._names, torch.arange(self._slices.units).split(self._sizes), strict=True))
        for name in set(kept) | {group.name for group in groups}:
            require(name in former, f"group {name!r} is new; there were {', '.join(former)}")
        staying = {name: units[kept[name].cpu()] if name in kept else units for name, units in former.items()}
        for name, units in staying.items():
            now = next((group.units for group in groups if group.name == name), 0)
            require(now == len(units), f"group {name!r} has {now} units now, but {len(units)} were kept")
        self.groups = list(groups)
        if sum(len(units) for units in staying.values()) == self._slices.units:
            return  # a CUDA graph may go on writing to these slices
        self._slices, self._updates_here = Slices(self.groups), 0
        index = torch.cat([staying[name] for name in self._names]).to(self._slices.device)
        self._averages.keep(index)
        self._energy.keep(index, self._sizes)
        self._cost.keep(index, self._sizes)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update continues from, taken between two updates."""
        self.settle()
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
        for name, tensor in state.items():
            require(bool(tensor.isfinite().all()), f"tensor {name} holds numbers that are not finite")
        self.updates, self._waiting = int(state["updates"]), []
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

    def _posterior(self, criterion: str) -> GammaPosterior:
        return self._cost if criterion == "bayesian-saliency" else self._energy

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
            case "bayesian" | "bayesian-saliency":
                return self._posterior(criterion).score(self.config.credible)
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
