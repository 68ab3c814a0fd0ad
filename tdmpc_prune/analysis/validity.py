"""Are the scores right? Every criterion's prediction against the damage measured, at a moment of a run [ours]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from agents.replay import ReplayBuffer
from agents.tdmpc.agent import TDMPC, frozen
from tdmpc_prune import checkpoint
from tdmpc_prune.analysis.damage import LossDamage, ReturnDamage, seeded
from tdmpc_prune.analysis.statistics import CONFIDENCE, Estimate, standard_ranks
from tdmpc_prune.errors import UserError
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.config import ImportanceConfig
from tdmpc_prune.pruning.groups import Group, find_groups
from tdmpc_prune.pruning.importance import CRITERIA, ImportanceTracker
from tdmpc_prune.reading import read_json
from tdmpc_prune.run import seeds
from tdmpc_prune.run_folder import RunFolder

Floats = NDArray[np.float64]
Source = Literal["auto", "stored", "replay"]
Scores = Mapping[str, Mapping[str, Tensor]]
"""Raw scores [U] by criterion and group."""
Tick = Callable[[], Any]
"""Called after every measurement."""

SHARE = 0.5
"""Share of a group's units in a random subset: the same in all, or their size would decide, whatever the score."""
RESAMPLES = 1_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a moment is measured."""

    batch_size: int
    """Sequences of the batch that the loss damage is measured on."""
    subsets: int
    """Random subsets per group whose return damage is measured."""
    episodes: int
    """Paired evaluation episodes of each."""
    batches: int
    """Replay batches that scores from replay are an average over."""
    seed: int
    """Of the batches, the noise, the subsets, the episodes and the criterion `random`."""


@dataclass(frozen=True)
class Moment:
    """A checkpoint as it is measured."""

    path: Path
    stored: checkpoint.StoredAgent
    groups: list[Group]
    replay: ReplayBuffer
    tracker: ImportanceTracker | None
    """What the run itself had observed by then; none: scores come from the replay."""

    @property
    def source(self) -> str:
        """Where the scores come from."""
        return "stored" if self.tracker else "replay"

    def evaluator(self, episodes: int, seed: int) -> Evaluator:
        """Of the run's own world; number i of the episodes is reset with `seed` + i."""
        stored = self.stored
        return Evaluator(
            stored.task,
            env_seed=stored.seed,
            episodes=episodes,
            seed=seed,
            action_repeat=stored.action_repeat,
        )


@dataclass(frozen=True)
class Pairs:
    """Predicted and measured damage of the same N removals from one group."""

    group: str
    component: str
    """Component that makes the units; a coupling group is one of its own."""
    predicted: Mapping[str, Floats]
    """Sum of the removed units' scores [N], by criterion."""
    measured: Floats
    """Damage [N]; higher is worse."""


@dataclass(frozen=True)
class Validity:
    """Spearman's rank correlations of one criterion, nan where they are undefined.

    Intervals: percentile bootstrap, removals drawn anew within every group.
    """

    groups: dict[str, Estimate]
    components: dict[str, Estimate]
    """Mean over the component's groups."""
    overall: Estimate
    """Mean over all groups."""


@dataclass(frozen=True)
class Found:
    """What was found at one moment, for damage to the `loss` and, if it was measured, to the `return`."""

    moment: Moment
    undisturbed: float | None
    """Return of the whole agent."""
    pairs: dict[str, list[Pairs]]
    validity: dict[str, dict[str, Validity]]
    """By kind of damage and criterion."""


def validate(moment: Moment, settings: Settings, tick: Tick = lambda: None) -> Found:
    """Measures a moment; see `measurements` for how often it calls `tick`."""
    score_seed, noise_seed, batch_seed, subset_seed, resample_seed = seeds(settings.seed, 5)
    tracker = moment.tracker or replay_tracker(
        moment.stored.agent, moment.groups, moment.replay, batches=settings.batches, seed=score_seed
    )
    scores = {criterion: tracker.scores(criterion) for criterion in CRITERIA}
    with seeded(moment.replay.generator, batch_seed):
        batch = moment.replay.sample(settings.batch_size)
    loss = LossDamage(moment.stored.agent, batch, seed=noise_seed)
    pairs: dict[str, list[Pairs]] = {"loss": []}
    for group in moment.groups:
        units = [torch.tensor([u]) for u in range(group.units)] if group.units > 1 else []
        pairs["loss"].append(_measure(group, scores, units, partial(loss.of, group), tick))
    undisturbed = None
    if settings.subsets:
        undisturbed, pairs["return"] = _return_pairs(moment, scores, settings, subset_seed, tick)
    validity = {kind: correlate(found, seed=resample_seed) for kind, found in pairs.items()}
    return Found(moment, undisturbed, pairs, validity)


def measurements(moment: Moment, settings: Settings) -> int:
    """How many removals are measured at a moment."""
    prunable = [group.units for group in moment.groups if group.units > 1]
    return sum(prunable) + settings.subsets * len(prunable)


# A run's moments


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` checkpoints at the ends of equal parts of the list, thus the newest among them."""
    count = min(count, len(paths))
    return [paths[round(len(paths) * (i + 1) / count) - 1] for i in range(count)]


def load_moment(path: Path, device: torch.device, scores: Source, *, seed: int) -> Moment:
    """Loads a checkpoint with what is measured on, and the scores asked for; `seed`: of the criterion `random`.

    Raises:
        UserError: it cannot be read, holds an autoencoder, its replay has nothing to measure on, or there are
            no stored scores.
    """
    stored = checkpoint.load_agent(path, device)
    groups = find_groups(stored.agent)
    tracker: ImportanceTracker | None = None
    with checkpoint.readable(path):
        state, tensors = checkpoint.read_state(path), checkpoint.load_training(path)
        replay = stored.agent.make_replay(seed, capacity=len(tensors["replay.priority"]))
        replay.load_state_dict(checkpoint.select("replay", tensors))
        if state["pruner"] and scores != "replay":
            tracker = ImportanceTracker(groups, _importance_config(path))
            # The control is drawn by our seed, not by the run's.
            fresh = torch.Generator().manual_seed(seed).get_state()
            tracker.load_state_dict(checkpoint.select("pruner", tensors) | {"generator": fresh})
    if not replay.ready:
        raise UserError(f"{path} has no sequence in its replay to measure on: give a later checkpoint")
    if tracker and not tracker.ready:
        tracker = None
    if scores == "stored" and tracker is None:
        raise UserError(f"{path} stores no scores, its run was dense or warming up: use --scores replay")
    return Moment(path, stored, groups, replay, tracker)


def _importance_config(path: Path) -> ImportanceConfig:
    """How the run reads its scores; the defaults for a checkpoint that lies elsewhere."""
    file = RunFolder(path.resolve().parent.parent).config
    if not file.is_file():
        return ImportanceConfig()
    stored = read_json(file)["config"]["prune"]["importance"]
    return TypeAdapter(ImportanceConfig).validate_python(stored)


# Scores


def replay_tracker(
    agent: TDMPC, groups: Sequence[Group], replay: ReplayBuffer, *, batches: int, seed: int
) -> ImportanceTracker:
    """A fresh tracker that has seen the gradients of `batches` replay batches; the agent stays as it is."""
    tracker = ImportanceTracker(groups, ImportanceConfig(), seed=seed)
    noise_seed, batch_seed = seeds(seed, 2)
    with _borrowed(agent), seeded(agent.generator, noise_seed), seeded(replay.generator, batch_seed):
        for _ in range(batches):
            batch = replay.sample(agent.config.batch_size)
            model = agent.model_parameters()
            losses, latents = agent.model_losses(batch)
            (agent.weighted_loss(losses, batch).mean() / agent.config.horizon).backward()
            tracker.observe(model)
            with frozen(agent.model.q):
                agent.policy_loss(latents).backward()
            tracker.observe(agent.model.policy.parameters())
            agent.model.zero_grad(set_to_none=True)
            # At the end of the schedule the average is nearly a plain mean, which weights that rest deserve.
            tracker.advance(1.0)
    return tracker


@contextmanager
def _borrowed(agent: TDMPC) -> Iterator[None]:
    """Gives an agent back with the gradients that it had."""
    gradients = {p: p.grad for p in agent.model.parameters()}
    agent.model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


# Damage


def _return_pairs(
    moment: Moment, scores: Scores, settings: Settings, seed: int, tick: Tick
) -> tuple[float, list[Pairs]]:
    """The return of the whole agent, and the return damage of random subsets of every group."""
    stored, rng = moment.stored, np.random.default_rng(seed)
    evaluator = moment.evaluator(settings.episodes, settings.seed)
    try:
        damage = ReturnDamage(stored.agent, evaluator, stored.agent_step)
        pairs = []
        for group in moment.groups:
            count = settings.subsets if group.units > 1 else 0
            subsets = [random_subset(group.units, rng) for _ in range(count)]
            pairs.append(_measure(group, scores, subsets, partial(damage.of, group), tick))
    finally:
        evaluator.close()
    return damage.undisturbed, pairs


def random_subset(units: int, rng: np.random.Generator) -> Tensor:
    """Half of a group's units, drawn at random: at least one and never all of them."""
    count = min(max(round(SHARE * units), 1), units - 1)
    return torch.from_numpy(np.sort(rng.permutation(units)[:count]))


def _measure(
    group: Group, scores: Scores, removals: Sequence[Tensor], damage: Callable[[Tensor], float], tick: Tick
) -> Pairs:
    measured = []
    for units in removals:
        measured.append(damage(units))
        tick()
    predicted = {
        criterion: np.array([float(by_group[group.name].cpu()[units].sum()) for units in removals])
        for criterion, by_group in scores.items()
    }
    component = group.name if group.coupling else group.components[0]
    return Pairs(group.name, component, predicted, np.array(measured))


# Agreement


def correlate(pairs: Sequence[Pairs], *, seed: int, resamples: int = RESAMPLES) -> dict[str, Validity]:
    """Rank correlation of every criterion's prediction with the measured damage."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Floats]] = {}
    for pair in pairs:
        count = len(pair.measured)
        # The first row is the removals themselves.
        rows = np.vstack([np.arange(count), rng.integers(max(count, 1), size=(resamples, count))])
        measured = standard_ranks(pair.measured[rows])
        for criterion, predicted in pair.predicted.items():
            rho = (standard_ranks(predicted[rows]) * measured).sum(1).clip(-1, 1)
            found.setdefault(criterion, {})[pair.group] = rho
    components: dict[str, list[str]] = {}
    for pair in pairs:
        components.setdefault(pair.component, []).append(pair.group)
    return {
        criterion: Validity(
            groups={name: _estimate([rho]) for name, rho in rhos.items()},
            components={c: _estimate([rhos[name] for name in names]) for c, names in components.items()},
            overall=_estimate(list(rhos.values())),
        )
        for criterion, rhos in found.items()
    }


def _estimate(rhos: Sequence[Floats]) -> Estimate:
    """Mean over groups of their correlations [1 + R], the first the value itself; undefined groups are left out."""
    defined = np.array([rho for rho in rhos if not np.isnan(rho[0])])
    if not len(defined):
        return Estimate(np.nan, np.nan, np.nan)
    counts = (~np.isnan(defined)).sum(0)
    mean = np.nansum(defined, 0)[counts > 0] / counts[counts > 0]
    tail = (1 - CONFIDENCE) / 2
    # Of only a few pairs it may happen that no resample has an order.
    low, high = np.quantile(mean[1:], [tail, 1 - tail]) if len(mean) > 1 else (np.nan, np.nan)
    return Estimate(float(mean[0]), float(low), float(high))
