"""The only part of pruning that a training loop meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.allocation import Curve, allocate, check_target
from tdmpc_prune.pruning.compensation import StandIns, stand_ins
from tdmpc_prune.pruning.config import PruneConfig, require
from tdmpc_prune.pruning.groups import Group, Prunable, find_groups
from tdmpc_prune.pruning.importance import ImportanceTracker
from tdmpc_prune.pruning.schedule import Schedule
from tdmpc_prune.pruning.selection import covariances, least_missed
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.pruning.surgery import Removal, check_optimizers, check_removable, keep_indices, remove_units

LOGGED_CRITERIA = (
    "gradient",
    "fisher",
    "fisher-saliency",
    "bayesian",
    "bayesian-saliency",
    "taylor",
    "magnitude",
)
"""All but `random`, which would say nothing, and whose draws decide what is removed."""
SHARES = (0.25, 0.5, 0.75)
"""Shares of a group's units that a calibration goes without."""
GAIN = 0.25
"""An agent that returns more by this share than when it was calibrated has learned since: what it could spare then, it
may miss now."""
WITHOUT_GRADIENTS = ("magnitude", "random")
"""Criteria that need none."""


@dataclass(frozen=True)
class Event:
    """What one removal did."""

    number: int
    """1 for the first; where a loop came late, several events are one."""
    scheduled: float
    """Sparsity that was due."""
    sparsity: float
    """Sparsity that is reached."""
    removed: dict[str, int]
    """Units removed, by group."""
    postponed: int
    """Units that the Bayesian guard kept for now."""
    against_guard: int
    """Units that went although the guard would have kept them: the schedule ends here."""

    idle: bool
    """Whether nothing went, although more was due than the largest step holds and no guard objected."""


class Pruner:
    """Scores an agent's units while it learns, and removes them on schedule.

    A training loop calls `observe` after each backward pass, `advance` once per update and, where it fits
    between updates, `prune` when `due`.
    """

    def __init__(
        self,
        agent: Prunable,
        config: PruneConfig,
        schedule: Schedule,
        *,
        losses: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        """Traces the agent.

        Args:
            agent: what to prune.
            config: how.
            schedule: when.
            losses: the loss that trains each component, for `importance.normalisation="loss"`.
            seed: of the criterion `random`.

        Raises:
            TraceError: the agent cannot be traced.
            ValueError: its optimisers do not hold all that it learns, or keep what cannot follow a removal.
        """
        _check_components(agent)
        _check_optimizers(agent)
        self.agent, self.config, self.schedule = agent, config, schedule
        self.groups: list[Group] = find_groups(agent)
        check_removable(agent, self.groups)
        self.size = SizeModel(agent.components(), self.groups)
        self.initial_widths = self.size.widths
        self.tracker = ImportanceTracker(self.groups, config.importance, losses=losses, seed=seed)
        self.events = 0
        self.curves: dict[str, Curve] | None = None
        self._calibrated_at: float | None = None  # the return of the whole when the curves were measured
        self._looked = 0  # removals before which it was asked whether the curves still hold

    def check_target(self) -> None:
        """Refuses a schedule that the limits do not allow.

        Raises:
            SparsityError: says why, and how far they go.
        """
        check_target(self.schedule.final, self.size, self.initial_widths, self.config.limits, self.groups)

    # While learning

    def observe(self, parameters: Iterable[nn.Parameter]) -> None:
        """Reads the gradients of these parameters: after backward, before clipping."""
        self.tracker.observe(parameters)

    def take(self) -> Tensor:
        """What was read in this update, to `advance` with: for those who capture both in a CUDA graph."""
        return self.tracker.take()

    def advance(self, progress: float, taken: Tensor | None = None) -> None:
        """Ends an update; `progress`: share of training that is over, 0 to 1."""
        self.tracker.advance(progress, taken)

    def discard(self) -> None:
        """Forgets what was observed of an update that was given up."""
        self.tracker.discard()

    # Removing

    def due(self, step: int) -> bool:
        """Whether a removal is due at this step of the schedule, and scores count by now."""
        return self.config.enabled and self.tracker.ready and self.schedule.due(step, self.events)

    def calibration_due(self, step: int) -> bool:
        """Whether a removal is to come that should know what the return can spare, and scores count by now."""
        asked = self.config.enabled and self.config.allocation == "calibrated" and self.tracker.ready
        return asked and self._events_by(step) > self._looked

    def calibrate(self, step: int, measure: Callable[[Mapping[str, Tensor]], float]) -> int:
        """Measures what the return can spare, group by group [ours]; returns how often it measured.

        Once, the whole, where what is known still holds: between the calibrations that the settings ask for, unless
        the agent returns more by `GAIN` than it did at the last.

        Args:
            step: step of the schedule.
            measure: from units to remove, by group, to the return without them; {}: of the whole.
        """
        whole = measure({})
        events = self._events_by(step)
        scheduled = self._calibrations_by(events) > self._calibrations_by(self._looked)
        if self.curves is not None and not scheduled and not self._has_learned(whole):
            self._looked = events
            return 1
        curves: dict[str, tuple[list[int], list[float]]] = {}
        state = self.tracker.state_dict()
        scores = self.tracker.scores(self._criterion)
        # `random` draws: the removal is to draw the same, also where a measurement was interrupted.
        self.tracker.load_state_dict(state)
        for group in self.groups:
            order = torch.argsort(scores[group.name].cpu(), stable=True)
            counts = sorted({min(round(s * group.units), group.units - 1) for s in SHARES} - {0})
            curves[group.name] = counts, [max(whole - measure({group.name: order[:n]}), 0.0) for n in counts]
        # One for all groups: where returns are below 0, what each loses at most would say nothing of the others.
        full = max(whole, 0.0, *(drop for _, drops in curves.values() for drop in drops))
        self.curves = {
            group.name: Curve(
                width=group.units,
                shares=(0.0, *(n / group.units for n in curves[group.name][0])),
                drops=(0.0, *curves[group.name][1]),
                full=full,
            )
            for group in self.groups
        }
        self._calibrated_at, self._looked = whole, events
        return 1 + sum(len(counts) for counts, _ in curves.values())

    def stand_ins(self, removal: Mapping[str, Tensor], forward: Callable[[], object]) -> StandIns:
        """What layers take over of what they lose in a removal, seen while `forward` runs the agent on real data.

        Nothing where the settings ask for no compensation.
        """
        config = self.config
        if config.compensation == "none":
            return {}
        return stand_ins(self.agent, self.groups, removal, forward, config.ridge)

    def prune(self, step: int, forward: Callable[[], object] | None = None) -> Event:
        """Removes what is due at this step of the schedule.

        Args:
            step: step of the schedule.
            forward: runs the agent on real data, every component, for what is left to take over what it can. Called
                twice where the selection is not by scores, and not at all where units are only cut.

        Raises:
            ValueError: the allocation is `calibrated`, and a calibration is due that was not made; layers are to take
                over, and there is no `forward`; or no gradient was observed since the last removal.
        """
        require(
            forward is not None or self.config.compensation == "none",
            f"compensation is {self.config.compensation!r}: give prune what runs the agent on real data, or "
            "choose 'none'",
        )
        blind = self.tracker.blind_updates
        require(
            self._criterion in WITHOUT_GRADIENTS or not blind,
            f"no gradient of this agent's parameters was observed in {blind} updates: call observe after every "
            "backward pass, with agent.parameters() asked for anew, since removals replace them",
        )
        require(
            not self.calibration_due(step),
            "allocation is 'calibrated': call calibrate first, where it is due",
        )
        scheduled, events = self.schedule.sparsity(step), self._events_by(step)
        last = events == len(self.schedule.event_steps())
        wanted = self.choose(scheduled)
        guard = self._guard(events)
        held = self.choose(scheduled, guard=guard) if guard else wanted
        kept_back = _count(wanted) - _count(held)
        removal = wanted if last else held
        if forward and self.config.selection != "scores":
            removal = self._least_missed(removal, forward)
        kept = {g.name: keep_indices(g, removal[g.name]) for g in self.groups if g.name in removal}
        taken_over = self.stand_ins(removal, forward) if forward else {}
        self.groups = remove_units(self.agent, self.groups, removal, taken_over)
        self.tracker.keep(kept, self.groups)
        self.events = events
        missing = self.initial_parameters * (scheduled - self.sparsity)
        step_size = self.config.limits.round_to * max(g.unit_parameters for g in self.groups)
        return Event(
            number=self.events,
            scheduled=scheduled,
            sparsity=self.sparsity,
            removed={name: len(units) for name, units in removal.items()},
            postponed=0 if last else kept_back,
            against_guard=kept_back if last else 0,
            idle=not wanted and missing > step_size,
        )

    def choose(self, sparsity: float, *, guard: float = 0.0) -> dict[str, Tensor]:
        """Units to remove, by group, to come to a sparsity; `guard`: how sure the evidence must be, 0: not at all.

        Where the selection is not by scores, it decides how many of every group.
        """
        ranked = self.tracker.normalised if self.config.allocation == "global" else self.tracker.scores
        return allocate(
            self.config.allocation,
            self.groups,
            ranked(self._criterion),
            self.size,
            self.initial_widths,
            self.initial_parameters,
            sparsity,
            self.config.limits,
            curves=self.curves,
            removable=partial(self._removable, guard) if guard else None,
        )

    def _least_missed(self, removal: Removal, forward: Callable[[], object]) -> dict[str, Tensor]:
        """As many units of every group, but those that the others stand in for best."""
        seen, scores = covariances(self.agent, self.groups, forward), self.tracker.scores(self._criterion)
        left = dict(removal)
        for name in removal.keys() & seen.keys():
            score = scores[name] if self.config.selection == "surgeon" else seen[name].diagonal()
            left[name] = least_missed(score, seen[name], len(removal[name]))
        return left

    def _events_by(self, step: int) -> int:
        return sum(event <= step for event in self.schedule.event_steps())

    def _calibrations_by(self, events: int) -> int:
        """Calibrations whose time has come: the first before anything goes, the others evenly spread."""
        count, calibrations = len(self.schedule.event_steps()), self.config.calibrations
        return sum(1 + count * i // calibrations <= events for i in range(calibrations))

    def _has_learned(self, whole: float) -> bool:
        """Whether the agent returns much more than when its curves were measured; no, if that is not known."""
        before = self._calibrated_at
        return before is not None and whole > before + GAIN * abs(before)

    @property
    def _criterion(self) -> str:
        return self.config.criterion

    def _guard(self, event: int) -> float:
        """How sure removal number `event` must be; 0: not at all."""
        if not self._criterion.startswith("bayesian"):
            return 0.0
        return self.config.importance.guard_at(event, len(self.schedule.event_steps()))

    def _removable(self, guard: float, name: str, count: int) -> Tensor:
        """Units whose expected energy is below that of the first unit to stay, with this probability."""
        energies = self.tracker.expected_energy(name, self._criterion).sort().values
        cut = float(energies[min(count, len(energies) - 1)])
        return self.tracker.removable(name, cut, guard, self._criterion)

    # What is left

    @property
    def widths(self) -> dict[str, int]:
        """Units left, by group."""
        return {g.name: g.units for g in self.groups}

    @property
    def initial_parameters(self) -> int:
        """Parameters of the online networks before anything was removed."""
        return self.size.parameters(self.initial_widths)

    @property
    def sparsity(self) -> float:
        """Share of those parameters that is gone."""
        return 1 - self.size.parameters(self.widths) / self.initial_parameters

    def metrics(self) -> dict[str, float | int]:
        """Sparsity, widths, parameters and multiply-accumulates, under their names in metrics.jsonl."""
        widths = self.widths
        first = self.size.component_parameters(self.initial_widths)
        now = self.size.component_parameters(widths)
        return {
            "prune/sparsity": self.sparsity,
            "prune/events": self.events,
            "prune/params": self.size.parameters(widths),
            "prune/macs": self.size.macs(widths),
            **{f"prune/sparsity/{name}": 1 - now[name] / count for name, count in first.items() if count},
            **{f"prune/width/{name}": width for name, width in widths.items()},
        }

    def importance_metrics(self) -> dict[str, float]:
        """Mean importance of every group under every criterion, raw and normalised."""
        if not self.tracker.updates:
            return {}
        metrics: dict[str, float] = {}
        for criterion in LOGGED_CRITERIA:
            raw = self.tracker.group_means(criterion)
            normalised = self.tracker.group_means_normalised(criterion)
            metrics |= {f"importance/{criterion}/{name}": value for name, value in raw.items()}
            metrics |= {f"importance_normalised/{criterion}/{name}": v for name, v in normalised.items()}
        return metrics

    # Storing

    def state_dict(self) -> dict[str, Tensor]:
        """The tracker's tensors."""
        return self.tracker.state_dict()

    def record(self) -> dict[str, Any]:
        """Everything else, as JSON values."""
        return {
            "events": self.events,
            "calibrated_at": self._calibrated_at,
            "initial_widths": dict(self.initial_widths),
            "curves": self.curves and {name: asdict(curve) for name, curve in self.curves.items()},
        }

    def load(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `record` and `state_dict`; the agent has its widths of then already.

        Raises:
            ValueError: they are not those of this agent.
        """
        for name, first in ((name, record["initial_widths"].get(name, 0)) for name in self.widths):
            require(
                self.widths[name] <= first, f"group {name} had {first} units, and has {self.widths[name]} now"
            )
        events, most = record["events"], len(self.schedule.event_steps())
        require(events <= most, f"it made {events:,} events, of {most:,} on the schedule")
        self.events = self._looked = events
        self._calibrated_at = record.get("calibrated_at")  # earlier versions did not keep it
        self.initial_widths = dict(record["initial_widths"])
        self.curves = record["curves"] and {
            name: Curve(curve["width"], tuple(curve["shares"]), tuple(curve["drops"]), curve["full"])
            for name, curve in record["curves"].items()
        }
        require(not self.curves or self.curves.keys() >= self.widths.keys(), "a group has no curve")
        self.tracker.load_state_dict(dict(tensors))


def _check_components(agent: Prunable) -> None:
    components = agent.components()
    require(
        isinstance(components, Mapping) and all(isinstance(m, nn.Module) for m in components.values()),
        f"components() gives a {type(components).__name__}: give a dictionary from names to modules",
    )
    for copy in agent.mirrors():
        for component, module in copy.items():
            own = {name: p.shape for name, p in components[component].named_parameters()}
            require(
                {name: p.shape for name, p in module.named_parameters()} == own,
                f"mirrors() gives a {component} whose parameters are not those of the component: it has to follow it "
                "index by index",
            )


def _check_optimizers(agent: Prunable) -> None:
    """Refuses what would go on training former parameters, or some of the new ones not at all."""
    optimizers, again = list(agent.optimizers()), list(agent.optimizers())
    require(
        [id(one) for one in optimizers] == [id(one) for one in again],
        "optimizers() makes new ones at every call: give those that train the agent, whose moments have to follow",
    )
    check_optimizers(optimizers)
    held = {p for one in optimizers for group in one.param_groups for p in group["params"]}
    for component, module in agent.components().items():
        for name, parameter in module.named_parameters():
            require(
                parameter in held or not parameter.requires_grad,
                f"{component}.{name} is in none of optimizers(): after a removal nothing would train it; give its "
                "optimiser, too, or freeze it (requires_grad False)",
            )


def _count(removal: Mapping[str, Tensor]) -> int:
    return sum(len(units) for units in removal.values())
