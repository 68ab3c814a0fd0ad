"""How well scores predicted damage, as JSON, as rows and as pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tdmpc_prune.analysis.statistics import Estimate
from tdmpc_prune.analysis.validity import Floats, Found
from tdmpc_prune.pruning.importance import CRITERIA, GRADIENT_CRITERIA


def as_json(found: Found) -> dict[str, Any]:
    """Everything but the single removals, as JSON values: None where a correlation is undefined."""
    moment = found.moment
    return {
        "checkpoint": moment.path.name,
        "env_step": moment.stored.env_step,
        "scores": moment.source,
        "units": sum(group.units for group in moment.groups),
        "return": found.undisturbed,
        "mean_damage": {
            kind: {pair.group: _mean(pair.measured) for pair in pairs} for kind, pairs in found.pairs.items()
        },
        "damage": {
            kind: {
                criterion: {
                    "overall": _interval(validity.overall),
                    "components": {name: _interval(e) for name, e in validity.components.items()},
                    "groups": {name: _interval(e) for name, e in validity.groups.items()},
                }
                for criterion, validity in by_criterion.items()
            }
            for kind, by_criterion in found.validity.items()
        },
        "below_magnitude": {
            kind: _below_magnitude({name: validity.overall.value for name, validity in by_criterion.items()})
            for kind, by_criterion in found.validity.items()
        },
    }


def _below_magnitude(overall: Mapping[str, float]) -> list[str]:
    """Criteria from gradients that rank worse than the norms of weights, which cost nothing."""
    return [name for name in GRADIENT_CRITERIA if overall[name] < overall["magnitude"]]


def write_csv(found: Sequence[Found], path: Path) -> None:
    """One row per moment, kind of damage, criterion and group; undefined correlations are blank."""
    rows = [
        {
            "checkpoint": f.moment.path.name,
            "env_step": f.moment.stored.env_step,
            "scores": f.moment.source,
            "damage": kind,
            "criterion": criterion,
            "group": pair.group,
            "component": pair.component,
            "removals": len(pair.measured),
            "mean_damage": _mean(pair.measured),
            **_interval(validity.groups[pair.group]),
        }
        for f in found
        for kind, by_criterion in f.validity.items()
        for criterion, validity in by_criterion.items()
        for pair in f.pairs[kind]
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot(found: Found, kind: str, path: Path) -> None:
    """Draws rank within the group by score against rank by damage, a panel per criterion, a colour per component."""
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    grid = list(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    pairs = found.pairs[kind]
    components = list(dict.fromkeys(pair.component for pair in pairs))
    for axes, criterion in zip(grid, CRITERIA, strict=True):
        for i, component in enumerate(components):
            own = [pair for pair in pairs if pair.component == component]
            x = np.concatenate([_rank_shares(pair.predicted[criterion]) for pair in own])
            y = np.concatenate([_rank_shares(pair.measured) for pair in own])
            axes.scatter(x, y, s=6, color=f"C{i}", alpha=0.6, linewidths=0, label=component)
        overall = found.validity[kind][criterion].overall
        axes.set_title(f"{criterion}: mean correlation {overall.value:.2f}", fontsize=9)
        axes.set_aspect("equal")
    figure.supxlabel("rank in its group by score")
    figure.supylabel(f"rank in its group by measured {kind} damage")
    figure.suptitle(f"{found.moment.stored.task}, environment step {found.moment.stored.env_step:,}")
    figure.legend(handles=grid[0].collections, loc="outside right center", frameon=False, markerscale=3)
    figure.savefig(path, dpi=150)


def _rank_shares(values: Floats) -> Floats:
    """Ranks from 0, the lowest, to 1."""
    return (stats.rankdata(values) - 1) / max(len(values) - 1, 1)


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {"rho": _number(estimate.value), "low": _number(estimate.low), "high": _number(estimate.high)}


def _mean(measured: Floats) -> float | None:
    return _number(float(measured.mean())) if len(measured) else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
