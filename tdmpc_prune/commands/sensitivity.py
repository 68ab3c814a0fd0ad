"""`tdmpc-prune sensitivity`: which component, and which coupling, can spare what?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tdmpc_prune.commands.common import PICTURES, CommandConfig, formatted, save_picture, show, show_table
from tdmpc_prune.config import check_count, check_seed
from tdmpc_prune.places import check_file
from tdmpc_prune.pruning.config import Compensation, Criterion, PruneConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tdmpc_prune.analysis.sensitivity import Spared

MOST_SHARES = 20
NOTES = (
    "Mean return without a share of the units of one part, the lowest-scored of each of its groups, all other parts "
    "whole, and nothing learned afterwards. The measurement is ours.",
    "*: the return falls, and the 95% interval of the change (Student's, over paired episodes) lies below 0. Of forty "
    "cells where nothing falls, one has a star.",
    "of all parameters: what the largest share takes with it.",
)


@dataclass(frozen=True)
class SensitivityConfig(CommandConfig):
    """Cuts one component, or one coupling group, of a stored agent at a time: whose units does the controller need?

    Ends with the switches by which `train` takes half as much where a tenth of the return or more was lost. An agent
    that learns on makes up for some of it. Cost at laptop size on one core: parts x shares x episodes, by default 4
    to 12 minutes.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or one of its checkpoints."""
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of a part's units to remove, each on its own."""
    criterion: Criterion = "taylor"
    """Score by which the lowest units go."""
    compensation: Compensation = PruneConfig.compensation
    """linear: layers take over what removed units told them, as in training; none: cut only."""
    ridge: float = PruneConfig.ridge
    """linear: how small the weights are kept that take over."""
    episodes: int = 10
    """Paired evaluation episodes of every removal."""
    batches: int = 200
    """Replay batches that scores are averaged over, of a run that has observed none."""
    seed: int = 0
    """Seed of the batches, the episodes and the criterion random."""
    plot: Path | None = None
    """Draw the return over the share removed into this png or svg file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        for name in ("episodes", "batches"):
            check_count(name, getattr(self, name), most=65_536)
        if not 1 <= len(self.shares) <= MOST_SHARES:
            raise ValueError(f"shares are {len(self.shares)}; choose 1 to {MOST_SHARES}, 0.2 0.4 for example")
        if wrong := [share for share in self.shares if not 0 < share < 1]:
            raise ValueError(f"shares hold {wrong[0]}; choose more than 0, and less than 1")
        if len(set(self.shares)) < len(self.shares):
            raise ValueError("shares hold one twice: give each once")
        PruneConfig(ridge=self.ridge)  # the same bounds
        if self.plot is not None and self.plot.suffix not in PICTURES:
            raise ValueError(f"--plot {self.plot}: the file's name must end in {' or '.join(PICTURES)}")


def run(config: SensitivityConfig) -> int:
    """Measures every part, and shows what its loss does."""
    from tqdm import tqdm

    from tdmpc_prune import checkpoint
    from tdmpc_prune.analysis.sensitivity import Settings, parts, sensitivity, switches
    from tdmpc_prune.analysis.validity import load_moment

    if config.plot is not None:
        check_file("--plot", config.plot)
    device = config.compute_on()
    moment = load_moment(checkpoint.moments(config.run)[-1], device, "auto", seed=config.seed)
    settings = Settings(
        shares=sorted(config.shares),
        criterion=config.criterion,
        compensation=config.compensation,
        ridge=config.ridge,
        episodes=config.episodes,
        batches=config.batches,
        seed=config.seed,
    )
    total = len(parts(moment.groups)) * len(settings.shares)
    with tqdm(total=total, unit="removal", disable=None, leave=False, dynamic_ncols=True) as bar:
        whole, found = sensitivity(moment, settings, bar.update)
    result = {
        "run": str(config.run),
        "task": moment.stored.task,
        "env_step": moment.stored.env_step,
        "criterion": config.criterion,
        "scores": moment.source,
        "compensation": config.compensation,
        "ridge": config.ridge if config.compensation == "linear" else None,
        "batches": config.batches if moment.source == "replay" else None,
        "episodes": config.episodes,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in moment.stored.agent.model.parameters()),
        "return": whole,
        "notes": list(NOTES),
        "parts": [_as_json(one) for one in found],
        "switches": switches(whole, found),
    }
    if config.json:
        show(result, as_json=True)
    else:
        _show_tables(result)
    if config.plot is not None:  # last: what was measured has been shown, come what may
        save_picture(_draw(result), config.plot)
    return 0


def _as_json(one: Spared) -> dict[str, Any]:
    return {
        "part": one.part.name,
        "units": one.part.units,
        "share": one.share,
        "removed": one.removed,
        "parameters": one.parameters,
        "return": one.outcome,
        "change": one.change.value,
        "change_low": one.change.low,
        "change_high": one.change.high,
    }


def _show_tables(result: dict[str, Any]) -> None:
    """A row a part, a column a share."""
    show(result, as_json=False)
    print()
    rows: dict[str, dict[str, Any]] = {}
    for one in result["parts"]:
        row = rows.setdefault(one["part"], {"part": one["part"], "units": one["units"]})
        row["of all parameters"] = f"{one['parameters'] / result['parameters']:.1%}"
        cut = formatted(one["return"]) + "*" * (one["change_high"] < 0)
        row[f"-{one['share']}"] = cut if one["removed"] else "-"
    show_table(list(rows.values()))
    print()
    if not all(one["removed"] for one in result["parts"]):
        print("- -: the share is less than half a unit of every group: nothing was removed.")
    if result["episodes"] == 1:
        print(
            "- One episode has no interval, so no fall has a star, and no switches follow: give --episodes 10."
        )
    for note in result["notes"]:
        print(f"- {note}")
    if result["switches"]:
        print(
            "\nTo spare by half what a tenth of the return or more is lost with, say to `tdmpc-prune train`:"
        )
        print(f"  {' '.join(result['switches'])}")


def _draw(result: dict[str, Any]) -> Figure:
    """The return over the share removed, a line a part."""
    from matplotlib.figure import Figure  # heavy, and needed only here

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    names: Sequence[str] = list(dict.fromkeys(one["part"] for one in result["parts"]))
    for number, name in enumerate(names):
        own = [one for one in result["parts"] if one["part"] == name and one["removed"]]
        shares, returns = [one["share"] for one in own], [one["return"] for one in own]
        axes.plot(
            [0, *shares],
            [result["return"], *returns],
            color=f"C{number % 10}",
            linestyle="-:"[number // 10 % 2],
            marker="o",
            markersize=3,
            label=name,
        )
    axes.axhline(result["return"], color="0.6", linestyle="--", linewidth=1)
    axes.set(xlabel="share of the part's units removed", ylabel="return")
    if axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{result['task']}, environment step {result['env_step']:,}: one part cut, all others whole",
        fontsize=10,
    )
    return figure
