"""Settings of pruning. Imports nothing heavy: the command's help needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

from tdmpc_prune.pruning.schedule import Kind, Schedule

Criterion = Literal[
    "gradient",
    "fisher",
    "fisher-saliency",
    "bayesian",
    "bayesian-saliency",
    "taylor",
    "magnitude",
    "random",
]
Allocation = Literal["uniform", "global", "calibrated"]
Compensation = Literal["linear", "none"]
Selection = Literal["scores", "surgeon", "residual"]
Normalisation = Literal["component", "loss", "none"]


class SparsityError(ValueError):
    """The limits do not allow the sparsity asked for; the message says why, and how much they allow."""


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_count(name: str, value: Any, least: int, most: int) -> None:
    """Raises ValueError unless it is a whole number in this range."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(
        whole and least <= value <= most, f"{name} is {value!r}; choose a whole number, {least} to {most}"
    )


def require_numbers(settings: object, *names: str) -> None:
    """Raises ValueError unless these are numbers; what range they may have is asked elsewhere."""
    for name in names:
        value = getattr(settings, name)
        require(isinstance(value, Real), f"{name} is {value!r}; choose a number")


@dataclass(frozen=True)
class ImportanceConfig:
    """How gradients are smoothed into scores."""

    beta_start: float = 0.9
    """Smoothing factor at the start of training, and of the current energy in the Bayesian score."""
    beta_end: float = 0.999
    """Smoothing factor at its end; a cosine in between."""
    warmup: int = 200
    """Updates before scores count: zero-initialised heads pass no gradients down at first."""
    normalisation: Normalisation = "component"
    """Scores are divided by their mean over the component, over all units of the same loss, or not at all."""
    credible: float = 0.9
    """Bayesian: the quantile of the expected energy that counts (the upper end of its credible interval)."""
    guard: float = 0.95
    """Bayesian: probability that a unit's expected energy is below the cut, before it may go first; 0: off."""
    guard_end: float = 0.5
    """The same at the last removal; in between it falls evenly, or what it kept back would all go at the end."""

    def __post_init__(self) -> None:
        require_numbers(self, "beta_start", "beta_end", "credible", "guard", "guard_end")
        require(
            0 <= self.beta_start <= self.beta_end < 1,
            f"beta_start is {self.beta_start}, beta_end {self.beta_end}; choose 0 <= start <= end < 1",
        )
        require_count("warmup", self.warmup, 1, 10**9)
        require(
            self.normalisation in get_args(Normalisation),
            f"normalisation is {self.normalisation!r}; choose {', '.join(get_args(Normalisation))}",
        )
        require(0 < self.credible < 1, f"credible is {self.credible}; choose more than 0 and less than 1")
        for name in ("guard", "guard_end"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; choose 0 (off) or more and less than 1")

    def beta(self, progress: float) -> float:
        """The smoothing factor at `progress` = t/T: quick to adapt early, steady late."""
        require(not math.isnan(progress), "progress is nan; give the share of training that is over")
        p = min(max(progress, 0.0), 1.0)
        return self.beta_end - (self.beta_end - self.beta_start) * (1 + math.cos(math.pi * p)) / 2

    def guard_at(self, event: int, events: int) -> float:
        """The probability that removal number `event` of so many asks for; 0: off."""
        share = (event - 1) / max(events - 1, 1)
        return self.guard + (self.guard_end - self.guard) * share if self.guard else 0.0


@dataclass(frozen=True)
class Limits:
    """What every allocation respects."""

    coupling: float = 1.0
    """Coefficient of coupling groups: 0 protects them, 1 treats them like the others."""
    coupling_cap: float = 1.0
    """Largest share of a coupling group that may go."""
    component: Mapping[str, float] = field(default_factory=dict)
    """Coefficient per component, where it is not 1."""
    min_units: int = 4
    """Units that every group keeps."""
    round_to: int = 1
    """Widths left are multiples of this: some processors are quicker then."""

    def __post_init__(self) -> None:
        require_numbers(self, "coupling", "coupling_cap")
        require(
            isinstance(self.component, Mapping),
            f"component is {self.component!r}; choose names and coefficients, {{'dynamics': 0.5}} for example",
        )
        named = {"coupling": self.coupling} | {f"component {k}": c for k, c in self.component.items()}
        for name, coefficient in named.items():
            fits = isinstance(coefficient, Real) and 0 <= coefficient < math.inf
            require(fits, f"{name} is {coefficient!r}; choose 0 (protected) or more")
        require(
            0 <= self.coupling_cap <= 1, f"coupling_cap is {self.coupling_cap}; choose a share from 0 to 1"
        )
        for name in ("min_units", "round_to"):
            require_count(name, getattr(self, name), 1, 10**6)


@dataclass(frozen=True)
class PruneConfig:
    """Pruning while training: units are removed for good, on a schedule, by importance."""

    criterion: Literal[Criterion, "none"] = "taylor"
    """Score that decides which units go; none: train dense."""
    sparsity: float = 0.8
    """Share of the parameters to remove."""
    allocation: Allocation = "uniform"
    """uniform: the same share of every group; global: all groups ranked together; calibrated: by return."""
    compensation: Compensation = "linear"
    """linear: layers take over what removed units told them, as far as it follows from the others; or none."""
    ridge: float = 0.1
    """linear: how small the weights are kept that take over. Less keeps more of the outcome at a removal."""
    selection: Selection = "scores"
    """Within a group. scores: the lowest go; surgeon: those that are missed least once the others have taken over,
    by their scores; residual: likewise, whatever their scores."""
    schedule: Kind = "geometric"
    """Course of the sparsity between `start` and `end`."""
    start: float = 0.2
    """Share of training after which removals begin; never before something is learned."""
    end: float = 0.8
    """Share of training after which the sparsity is reached."""
    events: int = 12
    """Removals in between, evenly spaced."""
    recovery: int = 0
    """Updates right after every removal, before the agent acts again; they come on top of those of training, and what
    is measured right after a removal is measured after them."""
    eval_episodes: int = 3
    """Episodes right before and right after every removal; 0: none."""
    calibrations: int = 3
    """calibrated: how many removals, the first one included, measure anew what the return can spare; others do where
    the return is a quarter higher than when it was last measured."""
    calibration_episodes: int = 3
    """calibrated: episodes per measurement."""
    limits: Limits = field(default_factory=Limits)
    """What every allocation respects."""
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    """How gradients become scores."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("criterion", (*get_args(Criterion), "none")),
            ("allocation", get_args(Allocation)),
            ("compensation", get_args(Compensation)),
            ("selection", get_args(Selection)),
            ("schedule", get_args(Kind)),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} is {value!r}; choose {', '.join(choices)}")
        require_numbers(self, "sparsity", "ridge", "start", "end")
        require(0 < self.sparsity < 1, f"sparsity is {self.sparsity}; choose more than 0 and less than 1")
        require(
            0 <= self.start < self.end <= 1,
            f"start is {self.start} and end {self.end}; choose shares of training, 0 <= start < end <= 1",
        )
        guarded = self.criterion.startswith("bayesian") and self.importance.guard > 0
        for counts_on_scores, why in (
            (self.compensation == "none", "counts on compensation, but that is 'none'"),
            (
                self.allocation == "calibrated",
                "takes other units than allocation 'calibrated' measures ('uniform' measures none)",
            ),
            (guarded, f"has no regard for the guard of {self.criterion!r} (importance.guard 0 is without)"),
        ):
            require(
                self.selection == "scores" or not counts_on_scores,
                f"selection is {self.selection!r}, which {why}: choose 'scores'",
            )
        # Moments are sums of float32 products: less would fit their rounding.
        require(1e-4 <= self.ridge <= 1e4, f"ridge is {self.ridge}; choose 0.0001 to 10000, 0.1 for example")
        for name, least in (
            ("events", 1),
            ("recovery", 0),
            ("eval_episodes", 0),
            ("calibrations", 1),
            ("calibration_episodes", 1),
        ):
            require_count(name, getattr(self, name), least, 10_000)

    @property
    def enabled(self) -> bool:
        """Whether anything is pruned."""
        return self.criterion != "none"

    def schedule_over(self, steps: int, earliest: int = 0) -> Schedule:
        """The schedule of a run of `steps` environment steps, which learns from step `earliest` on.

        Removals begin after that where it leaves a step for each.

        Raises:
            ValueError: no time is left for removals.
        """
        start, end = round(self.start * steps), round(self.end * steps)
        start = max(start, earliest if self.schedule == "one-shot" else min(earliest, end - self.events))
        require(
            earliest <= end or self.schedule == "one-shot",
            f"removals end at step {end} (end {self.end} of {steps}), but nothing is learned before {earliest}: "
            "choose more steps, a higher end, or fewer random_steps",
        )
        return Schedule(kind=self.schedule, start=start, end=end, events=self.events, final=self.sparsity)
