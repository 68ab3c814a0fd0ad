"""Which component, and which coupling, can spare what? The return without a share of the units of one part [ours].

Everything else stays whole, so this tells parts from each other, which a score cannot: it ranks units by what they
do to the losses, and a controller may need a small loss of one network more than a large one of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.replay import Batch
from tdmpc_prune.analysis.statistics import Estimate, paired
from tdmpc_prune.analysis.validity import Moment, replay_tracker
from tdmpc_prune.pruning.compensation import BATCHES, StandIns, stand_ins
from tdmpc_prune.pruning.config import Compensation, Criterion
from tdmpc_prune.pruning.groups import Group, find_groups
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.run import seeds

MISSED = 0.1
"""Of the return: what a part's units are missed by, if the agent should keep more of them."""
Removal = Mapping[str, Tensor]
"""Units to remove, by group."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is removed, and how it is measured."""

    shares: Sequence[float]
    """Shares of a part's units, each more than 0 and less than 1."""
    criterion: Criterion
    """Score by which the lowest units of every group go."""
    compensation: Compensation
    """Whether layers take over what removed units told them."""
    ridge: float
    """How small the weights are kept that take over."""
    episodes: int
    """Paired evaluation episodes of each removal."""
    batches: int
    """Replay batches that scores from replay are an average over."""
    seed: int
    """Of batches, episodes and the criterion `random`."""


@dataclass(frozen=True)
class Part:
    """What is cut on its own: a component's own groups, or one coupling group."""

    name: str
    groups: Sequence[Group]

    @property
    def units(self) -> int:
        """Of all its groups."""
        return sum(group.units for group in self.groups)

    @property
    def coupling(self) -> bool:
        """Whether several components read or write these units."""
        return self.groups[0].coupling


@dataclass(frozen=True)
class Spared:
    """An agent without a share of a part's units."""

    part: Part
    share: float
    """What was asked for."""
    removed: int
    """Units."""
    parameters: int
    """That went with them."""
    outcome: float
    """Mean return."""
    change: Estimate
    """Of the return, episode by episode; below 0: it is missed. The interval: nan of a single episode."""


def parts(groups: Sequence[Group]) -> list[Part]:
    """Components in display order, each with the groups that it has to itself; then every coupling group."""
    own: dict[str, list[Group]] = {}
    for group in groups:
        if not group.coupling:
            own.setdefault(group.components[0], []).append(group)
    coupling = [Part(group.name, [group]) for group in groups if group.coupling]
    return [Part(name, members) for name, members in own.items()] + coupling


def lowest(part: Part, share: float, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The lowest-scored units of each of a part's groups: as many as the share says, but never all of a group."""
    removal = {}
    for group in part.groups:
        count = min(round(share * group.units), group.units - 1)
        if count:
            removal[group.name] = torch.argsort(scores[group.name].cpu(), stable=True)[:count]
    return removal


def sensitivity(
    moment: Moment, settings: Settings, tick: Callable[[], Any] = lambda: None
) -> tuple[float, list[Spared]]:
    """The return of the whole agent, and what becomes of it part by part; calls `tick` after each measurement.

    The agent is not changed; its random numbers stay where they are.
    """
    stored, agent = moment.stored, moment.stored.agent
    score_seed, batch_seed = seeds(settings.seed, 2)
    tracker = moment.tracker or replay_tracker(
        agent, moment.groups, moment.replay, batches=settings.batches, seed=score_seed
    )
    scores = tracker.scores(settings.criterion)
    evaluator = moment.evaluator(settings.episodes, settings.seed)
    batches = _batches(moment, batch_seed) if settings.compensation == "linear" else []
    parameters = _parameters(agent)
    found = []
    try:
        whole = evaluator.run(agent, stored.agent_step).returns
        for part in parts(moment.groups):
            for share in settings.shares:
                removal = lowest(part, share, scores)
                copy = agent.copy_for_acting()
                remove_units(
                    copy, find_groups(copy), removal, _taken_over(moment, removal, batches, settings.ridge)
                )
                returns = evaluator.run(copy, stored.agent_step).returns
                found.append(
                    Spared(
                        part,
                        share,
                        removed=sum(map(len, removal.values())),
                        parameters=parameters - _parameters(copy),
                        outcome=float(np.mean(returns)),
                        change=paired(returns, whole),
                    )
                )
                tick()
    finally:
        evaluator.close()
    return float(np.mean(whole)), found


def switches(whole: float, found: Sequence[Spared]) -> list[str]:
    """Switches of `train` by which parts give half as much whose loss costs `MISSED` of the return or more.

    None if no part does, beyond the episodes' scatter, or if all do: then half is as good as alike.
    """
    missed = {
        one.part.name: one.part
        for one in found
        if one.change.high < 0 and -one.change.value >= MISSED * abs(whole)
    }
    if len(missed) == len({one.part.name for one in found}):
        return []
    coupling = ["--prune.limits.coupling", "0.5"] if any(part.coupling for part in missed.values()) else []
    own = [word for name, part in missed.items() if not part.coupling for word in (name, "0.5")]
    return [*coupling, *(["--prune.limits.component", *own] if own else [])]


def _batches(moment: Moment, seed: int) -> list[Batch]:
    """What is compensated on, the same for every removal."""
    agent = moment.stored.agent
    own = torch.Generator(agent.device).manual_seed(seed)
    return [moment.replay.sample(agent.config.batch_size, own) for _ in range(BATCHES)]


def _taken_over(moment: Moment, removal: Removal, batches: Sequence[Batch], ridge: float) -> StandIns:
    """What layers take over, seen on these batches; nothing without any."""
    agent = moment.stored.agent

    def forward() -> None:
        for batch in batches:
            agent.run_on(batch)

    return stand_ins(agent, moment.groups, removal, forward, ridge) if batches else {}


def _parameters(agent: Any) -> int:
    return sum(p.numel() for component in agent.components().values() for p in component.parameters())
