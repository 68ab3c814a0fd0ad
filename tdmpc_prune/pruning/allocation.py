"""Which units to remove now, so that sparsity comes as near to the schedule as it can without passing it.

Three ways to share a removal out among the groups; within a group the lowest-scored units go first (or those that
`selection` prefers: then only their number is decided here):

- `uniform`: the same share of every group's initial width.
- `global`: all units ranked together by score per parameter saved.
- `calibrated` [ours, after a coefficient per group, arXiv 2507.14882]: the widths that are predicted to cost
  the least return, by curves measured on the task.

All of them stop at the first unit that would pass the schedule, so less than one unit is missing. `global`
and `calibrated` do not spend that remainder on smaller units out of turn: repeated at every event, that would
eat up the group whose units are smallest. `uniform` may, by one unit per group: its ratios even that out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tdmpc_prune.pruning.config import Allocation, Limits, SparsityError
from tdmpc_prune.pruning.groups import Group
from tdmpc_prune.pruning.size import Ints, SizeModel

Floats = NDArray[np.float64]

COARSE_STEPS = 32
"""`calibrated` takes steps of one part in this many of a group until one does not fit, then of one unit."""

LEAST_KEPT = 1e-6
"""Smallest share of the return kept that curves tell apart: its logarithm has to be finite."""


@dataclass(frozen=True)
class Curve:
    """What masking a group's lowest-scored units did to the return."""

    width: int
    """Units of the group when it was measured."""
    shares: tuple[float, ...]
    """Shares of them masked: rising from 0, for example (0, 0.25, 0.5, 0.75)."""
    drops: tuple[float, ...]
    """Return lost at each share, 0 or more (0 at share 0)."""
    full: float
    """Return lost with all of them masked: the whole return, as nothing passes a layer without units."""

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.drops):
            raise ValueError(
                f"{len(self.shares)} shares but {len(self.drops)} drops; give one drop per share"
            )
        if not self.shares or self.shares[0] != 0 or self.shares[-1] >= 1:
            raise ValueError(f"shares are {self.shares}; let them run from 0 to below 1")
        if any(a >= b for a, b in pairwise(self.shares)):
            raise ValueError(f"shares are {self.shares}; let them rise")
        if self.drops[0] != 0 or not all(0 <= drop < math.inf for drop in (*self.drops, self.full)):
            raise ValueError(f"drops are {self.drops}, full is {self.full}; give 0 first, none below 0")

    def drop(self, left: ArrayLike) -> Floats:
        """Return lost with `left` [...] units, never less for fewer units.

        Linear between the shares measured. Beyond the last one every halving of what is left costs the same
        [ours, a heuristic: three quarters gone for nothing do not make the next unit a dear one].
        """
        left, drops = np.asarray(left), list(accumulate(self.drops, max))
        last = self.width * (1 - self.shares[-1])
        beyond = np.clip(1 - np.log1p(left) / np.log1p(last), 0, 1)
        measured = np.interp((self.width - left) / self.width, self.shares, drops)
        return measured + beyond * max(self.full - drops[-1], 0)

    def kept(self, left: ArrayLike) -> Floats:
        """Share of the return kept with `left` [...] units."""
        return 1 - self.drop(left) / (max(self.full, *self.drops) or 1.0)


def coefficient(group: Group, limits: Limits) -> float:
    """How readily a group gives: 0 protects it as it is, 1 treats it like the others.

    Multiplies the share removed (`uniform`), divides scores (`global`) or the return lost (`calibrated`).
    """
    return limits.coupling if group.coupling else limits.component.get(group.components[0], 1.0)


def smallest_width(group: Group, initial: int, limits: Limits) -> tuple[int, str]:
    """The smallest width of a group that had `initial` units, and the limit that sets it."""
    if coefficient(group, limits) == 0:
        owner = "coupling" if group.coupling else f"component {group.components[0]}"
        return initial, f"protected ({owner} 0)"
    least, reason = limits.min_units, f"at min_units {limits.min_units}"
    if group.coupling:
        # 29% of 100 are 29 units, though floating point says 28.999...
        capped = initial - math.floor(limits.coupling_cap * initial + 1e-9)
        if capped > least:
            least, reason = capped, f"held by coupling_cap {limits.coupling_cap:g}"
    rounded = -(-least // limits.round_to) * limits.round_to
    if rounded > least:
        reason += f" rounded up to a multiple of {limits.round_to}"
    return min(rounded, initial), reason


def reachable(
    size: SizeModel, initial_widths: Mapping[str, int], limits: Limits, groups: Sequence[Group]
) -> tuple[float, str]:
    """The largest sparsity that the limits allow, and what binds: "latent protected (coupling 0); ..."."""
    floors: dict[str, int] = {}
    bound: dict[str, list[str]] = {}
    for group in groups:
        floors[group.name], reason = smallest_width(group, initial_widths[group.name], limits)
        bound.setdefault(reason, []).append(group.name)
    largest = 1 - size.parameters(floors) / size.parameters(initial_widths)
    return largest, "; ".join(
        f"{', '.join(names) if len(names) <= 3 else f'{len(names)} groups'} {reason}"
        for reason, names in bound.items()
    )


def _check_components(limits: Limits, groups: Sequence[Group]) -> None:
    known = {component for group in groups for component in group.components}
    if unknown := sorted(set(limits.component) - known):
        raise SparsityError(
            f"there is no component {', '.join(unknown)} to limit; choose from {', '.join(sorted(known))}"
        )


def check_target(
    target: float, size: SizeModel, initial_widths: Mapping[str, int], limits: Limits, groups: Sequence[Group]
) -> None:
    """Refuses a sparsity that the limits do not allow.

    Raises:
        SparsityError: one line with the reason and the largest sparsity that can be reached; or the limits
            name a component that does not exist.
    """
    _check_components(limits, groups)
    largest, reason = reachable(size, initial_widths, limits, groups)
    if target > largest:
        shown = math.floor(largest * 1000) / 1000  # rounded down, so that it can be asked for
        raise SparsityError(
            f"sparsity {target:g} cannot be reached, {shown:g} at most: {reason}; lower it or loosen a limit"
        )


def predicted_loss(curves: Mapping[str, Curve], widths: Mapping[str, int]) -> float:
    """Share of the return that the curves predict to be lost at these widths.

    Groups multiply [ours]: each leaves its share of what the others leave. Added up, the losses would soon
    pass the whole return, and a group that is lost anyway would pay for all others.
    """
    return 1 - math.prod(float(curve.kept(widths[name])) for name, curve in curves.items())


def allocate(
    kind: Allocation,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    size: SizeModel,
    initial_widths: Mapping[str, int],
    initial_parameters: int,
    sparsity: float,
    limits: Limits,
    curves: Mapping[str, Curve] | None = None,
    removable: Callable[[str, int], Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """Chooses the units whose removal brings the networks to `sparsity`, or just short of it.

    Groups never grow back: what an earlier event removed beyond today's share stays removed.

    Args:
        kind: How the removal is shared out among the groups.
        groups: The groups as they are now.
        scores: Score [U] of every unit by group, the lowest to go first; for `global` normalised.
        size: The size model of these groups.
        initial_widths: Width of every group before anything was removed.
        initial_parameters: Parameters before anything was removed.
        sparsity: Share of them to be gone after this removal. Where the limits allow less, less is removed.
        limits: What must stay.
        curves: For `calibrated`, the curve of every group that may lose units.
        removable: Asked (group, n) when the n lowest units of a group would go; a mask [U] of those that may
            go now, or none for all. The others wait for a later event, and nothing goes in their place.

    Returns:
        Indices to remove, ascending, on the CPU, by group; only groups that lose units.

    Raises:
        ValueError: scores or curves are missing, of the wrong shape or not numbers, or an unknown name.
    """
    if kind not in get_args(Allocation):
        raise ValueError(f"allocation is {kind!r}; choose one of {', '.join(get_args(Allocation))}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; choose one from 0 to below 1")
    space = _Space(groups, size, initial_widths, limits, (1 - sparsity) * initial_parameters)
    ranked = {group.name: _ranking(group, scores) for group in space.groups}
    if not space.fits(space.today):
        return {}
    if kind == "uniform":
        widths = _uniform(space)
    elif kind == "global":
        widths = _global(space, scores, ranked)
    else:
        widths = _calibrated(space, curves or {})

    lowest = {}
    for group, left in zip(space.groups, widths.tolist(), strict=True):
        units = ranked[group.name][: group.units - left]
        mask = removable(group.name, len(units)) if removable is not None and len(units) else None
        lowest[group.name] = units if mask is None else units[mask.cpu()[units]]
    # What the guard holds back may leave a width that is no multiple of round_to.
    counts = space.today - space.allowed(space.today - [len(units) for units in lowest.values()])
    chosen = zip(lowest.items(), counts.tolist(), strict=True)
    return {name: units[:n].sort().values for (name, units), n in chosen if n}


def _ranking(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Units [U] of a group from the lowest score up, ties by index."""
    score = scores.get(group.name)
    if score is None or score.shape != (group.units,):
        found = "missing" if score is None else f"of shape {tuple(score.shape)}"
        raise ValueError(f"scores of {group.name} are {found}; give one for each of its {group.units} units")
    if score.isnan().any():
        raise ValueError(f"scores of {group.name} are not numbers; look for infinite gradients or losses")
    return torch.argsort(score.detach().cpu(), stable=True)


class _Space:
    """The widths that may be chosen, as arrays [G] in the order of the size model."""

    def __init__(
        self,
        groups: Sequence[Group],
        size: SizeModel,
        initial_widths: Mapping[str, int],
        limits: Limits,
        least: float,
    ) -> None:
        by_name = {group.name: group for group in groups}
        if set(by_name) != set(size.names):
            raise ValueError(
                f"the size model is of {', '.join(size.names)}, the groups are {', '.join(by_name)}"
            )
        _check_components(limits, groups)
        self.groups = [by_name[name] for name in size.names]
        self.today = np.array([group.units for group in self.groups])
        self.initial = np.array([initial_widths[group.name] for group in self.groups])
        floors = [
            smallest_width(group, initial, limits)[0]
            for group, initial in zip(self.groups, self.initial.tolist(), strict=True)
        ]
        self.floor = np.minimum(floors, self.today)
        # Every width that a group can have yet, today's first.
        self.paths = [np.arange(n, least - 1, -1) for n, least in zip(self.today, self.floor, strict=True)]
        # Only ever divides: a coefficient of 0 is in the floor already.
        self.gives = np.array([coefficient(group, limits) or 1.0 for group in self.groups])
        self.round_to = limits.round_to
        self.least = least
        self.size = size

    def fits(self, widths: Ints) -> bool:
        """Whether enough parameters are left."""
        return bool(self.size.count(widths) >= self.least)

    def ratio(self, widths: Ints) -> Floats:
        """Shares [G] of the initial widths that are gone, over the coefficients."""
        return (self.initial - widths) / (self.initial * self.gives)

    def allowed(self, widths: Ints) -> Ints:
        """The nearest allowed widths that are not below these."""
        up = -(-np.maximum(widths, self.floor) // self.round_to) * self.round_to
        return np.maximum(np.where(up < self.today, up, self.today), self.floor)

    def below(self, widths: Ints, step: Ints | int) -> Ints:
        """The allowed widths about `step` units further down; the same where the floor is reached."""
        return np.minimum(self.allowed(widths - np.maximum(step, self.round_to)), widths)

    def in_order(self, keys: Sequence[Floats]) -> Ints:
        """Removes units in the order of their keys, rising in every group, up to the first that does not fit.

        Args:
            keys: Per group, the key [today - floor] of the first unit to go, of the second and so on.
        """
        group = np.repeat(np.arange(len(keys)), [len(key) for key in keys])
        # Equal keys (a dead network's zeros) share out evenly, instead of emptying the first group.
        share = np.concatenate([np.arange(len(key)) / n for key, n in zip(keys, self.initial, strict=True)])
        order = group[np.lexsort((group, share, np.concatenate(keys)))]

        def widths(removed: int) -> Ints:
            return self.allowed(self.today - np.bincount(order[:removed], minlength=len(keys)))

        low, high = 0, len(order)  # low fits, all above high do not
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(widths(middle)) else (low, middle - 1)
        return widths(low)


def _uniform(space: _Space) -> Ints:
    """One ratio of the initial widths for all, times the coefficients; then single units to come nearer."""
    reached = [
        (initial - path[1:]) / (initial * gives)
        for path, initial, gives in zip(space.paths, space.initial, space.gives, strict=True)
    ]
    widths = space.in_order(reached)
    # All stand at one ratio, rounded down. The groups nearest to their next unit take it where it fits. Being
    # ahead by a unit does not add up over events, since the ratio is of the initial width.
    lower = space.below(widths, 1)
    for g in np.argsort(space.ratio(lower), kind="stable"):
        further = widths.copy()
        further[g] = lower[g]
        if space.fits(further):
            widths = further
    return widths


def _global(space: _Space, scores: Mapping[str, Tensor], ranked: Mapping[str, Tensor]) -> Ints:
    """All units in one ranking by score per parameter saved, over the coefficient."""
    keys = []
    for group, path, gives in zip(space.groups, space.paths, space.gives, strict=True):
        units = ranked[group.name][: len(path) - 1]
        lowest = scores[group.name].detach().cpu().double()[units]
        keys.append(lowest.numpy() / (group.unit_parameters * gives))
    return space.in_order(keys)


def _calibrated(space: _Space, curves: Mapping[str, Curve]) -> Ints:
    """The widths that the curves predict to lose least return, over the coefficients.

    Shares of the return that are kept multiply, so what is minimised is the sum of their -log.

    Greedy by loss per parameter saved is near the best only on convex curves: on a raw one it never
    looks behind a cliff. On the convex hull it does, but may stop halfway down one. So both are tried, and
    `uniform` beside them, which the outcome is therefore never predicted to be worse than.
    """
    free = [group.name for group, path in zip(space.groups, space.paths, strict=True) if len(path) > 1]
    if missing := [name for name in free if name not in curves]:
        raise ValueError(f"no curve for {', '.join(missing)}; measure them before a calibrated allocation")
    losses = [
        -np.log(np.maximum(curves[group.name].kept(path), LEAST_KEPT)) / gives
        if group.name in free
        else np.zeros(1)
        for group, path, gives in zip(space.groups, space.paths, space.gives, strict=True)
    ]
    hulls = [_convex(line) for line in losses]
    candidates = _greedy(space, hulls), _greedy(space, losses), _uniform(space)
    return min(candidates, key=lambda widths: float(_at(losses, space.today - widths).sum()))


def _greedy(space: _Space, losses: Sequence[Floats]) -> Ints:
    """Goes down in small steps, each where it loses least per parameter saved.

    `losses` are per group, at 0, 1, 2, ... units removed from today's.
    Among steps that lose equally little, above all nothing, the group that has shrunk least goes first, so
    that free groups shrink together.
    """
    widths, left = space.today, space.size.count(space.today)
    for step in (np.maximum(space.initial // COARSE_STEPS, 1), 1):
        while True:
            lower = space.below(widths, step)
            trials = np.where(np.eye(len(widths), dtype=bool), lower, widths)
            counts = space.size.count(trials)
            saved = left - counts
            more = _at(losses, space.today - lower) - _at(losses, space.today - widths)
            cost = np.where(lower < widths, more / np.maximum(saved, 1), np.inf)
            best = np.lexsort((space.ratio(lower), cost))[0]
            if cost[best] == np.inf or counts[best] < space.least:
                break
            widths, left = trials[best], counts[best]
    return widths


def _at(losses: Sequence[Floats], removed: Ints) -> Floats:
    return np.array([line[n] for line, n in zip(losses, removed, strict=True)])


def _convex(line: Floats) -> Floats:
    """The lower convex hull of values at 0, 1, 2, ... (Andrew's monotone chain)."""
    corners: list[int] = []
    for i in range(len(line)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (line[b] - line[a]) * (i - b) < (line[i] - line[b]) * (b - a):
                break
            corners.pop()
        corners.append(i)
    return np.interp(np.arange(len(line)), corners, line[corners])
