"""`tdmpc-prune validate`: are the importance scores right?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tdmpc_prune.commands.common import CommandConfig, show, show_table
from tdmpc_prune.config import check_count, check_seed
from tdmpc_prune.errors import UserError
from tdmpc_prune.places import check_folder
from tdmpc_prune.reading import printable

if TYPE_CHECKING:
    from tdmpc_prune.analysis.validity import Found

NOTES = (
    "gradient is the paper's (arXiv 2601.19794); fisher and bayesian are this project's reading of its "
    "description; the saliency variants are ours; taylor, magnitude and random are baselines.",
    "Mean Spearman correlation within groups of score and measured damage, 1 where a criterion ranks right; "
    "low and high: 95% bootstrap over removals, drawn anew within every group. The comparison is ours.",
    "Loss damage: one unit removed, the losses on a fixed batch, towards the undisturbed agent's targets.",
)
RETURN_NOTE = (
    "Return damage: undisturbed return minus that without a random half of a group's units, removed physically, "
    "on the same episodes."
)
OVERALL = {"overall": "rho", "low": "low", "high": "high"}
"""Columns of the mean over all groups."""


@dataclass(frozen=True)
class ValidateConfig(CommandConfig):
    """Compares every criterion's scores with the damage that removing units really does, over a run's checkpoints.

    `train --keep-every N` keeps the checkpoints. Cost of a moment at laptop size on one core: the loss damage of
    all 1,440 units 10 to 20 seconds; the return damage 12 groups x subsets x episodes, by default about 3 minutes.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or one of its checkpoints."""
    moments: int = 3
    """Checkpoints to measure, evenly spread; the newest is always one of them."""
    batch_size: int = 256
    """Sequences of the replay batch that the loss damage of every unit is measured on."""
    subsets: int = 4
    """Random halves of every group whose return damage is measured; 0: none. The costly part."""
    episodes: int = 3
    """Evaluation episodes per subset."""
    scores: Literal["auto", "stored", "replay"] = "auto"
    """stored: what the pruned run had observed; replay: afresh, at frozen weights; auto: stored if there are."""
    batches: int = 200
    """Replay batches that scores from replay are averaged over."""
    seed: int = 0
    """Seed of the batches, the noise, the subsets, the episodes and the criterion random."""
    out: Path | None = None
    """Folder for validity.csv and scatter plots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        for name in ("moments", "batch_size", "episodes", "batches"):
            check_count(name, getattr(self, name), most=65_536)
        check_count("subsets", self.subsets, least=0, most=1_000)
        if self.subsets in (1, 2):
            raise ValueError(
                f"subsets is {self.subsets}; choose 0 (no return damage), or 3 or more to correlate"
            )


def run(config: ValidateConfig) -> int:
    """Measures the moments of a run and shows how well the scores predicted what was found."""
    from tqdm import tqdm

    from tdmpc_prune import checkpoint
    from tdmpc_prune.analysis.validity import (
        Settings,
        load_moment,
        measurements,
        spread,
        validate,
    )
    from tdmpc_prune.analysis.validity_report import as_json

    if config.out is not None:
        check_folder("--out", config.out)
    device = config.compute_on()
    paths = checkpoint.moments(config.run)
    chosen = spread(paths, config.moments)
    settings = Settings(
        batch_size=config.batch_size,
        subsets=config.subsets,
        episodes=config.episodes,
        batches=config.batches,
        seed=config.seed,
    )
    moments = [load_moment(path, device, config.scores, seed=config.seed) for path in chosen]
    if len(chosen) < config.moments and paths[0] != config.run:
        print(
            printable(f"{config.run} holds {len(chosen)} of {config.moments} checkpoints: ")
            + "train with --keep-every to keep more",
            file=sys.stderr,
        )
    total = sum(measurements(moment, settings) for moment in moments)
    with tqdm(total=total, unit="removal", disable=None, leave=False, dynamic_ncols=True) as bar:
        found = [validate(moment, settings, bar.update) for moment in moments]
    result = {
        "run": str(config.run),
        "task": moments[0].stored.task,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "subsets": config.subsets,
        "episodes": config.episodes if config.subsets else None,
        "notes": [*NOTES, RETURN_NOTE] if config.subsets else list(NOTES),
        "moments": [as_json(f) for f in found],
    }
    if config.json:
        show(result, as_json=True)
    else:
        _show_tables(result)
    if config.out is not None:  # last: what was measured has been shown, come what may
        _write(found, config.out)
    return 0


def _write(found: Sequence[Found], folder: Path) -> None:
    from tdmpc_prune.analysis.validity_report import plot, write_csv

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(found, folder / "validity.csv")
        for one in found:
            for kind in one.pairs:
                plot(one, kind, folder / f"{kind}_damage_{one.moment.path.name}.png")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write ({error.strerror}), choose another folder") from error


def _show_tables(result: Mapping[str, Any]) -> None:
    """A table per moment and kind of damage: criteria over components."""
    print(printable(f"{result['task']}: {result['run']}"))
    for moment in result["moments"]:
        for kind, by_criterion in moment["damage"].items():
            what = (
                f"{moment['units']:,} units, one at a time"
                if kind == "loss"
                else f"{result['subsets']} random halves of every group, {result['episodes']} episodes each, "
                f"undisturbed {moment['return']:.1f}"
            )
            print(f"\nenv step {moment['env_step']:,}, {kind} damage ({what}); scores: {moment['scores']}")
            show_table([_row(criterion, found) for criterion, found in by_criterion.items()])
            if below := moment["below_magnitude"][kind]:
                print(f"Ranks worse than magnitude here: {', '.join(below)}")
    print()
    for note in result["notes"]:
        print(f"- {note}")


def _row(criterion: str, found: Mapping[str, Any]) -> dict[str, str | None]:
    overall = {name: _text(found["overall"][key]) for name, key in OVERALL.items()}
    return {"criterion": criterion, **overall} | {
        name: _text(estimate["rho"]) for name, estimate in found["components"].items()
    }


def _text(rho: float | None) -> str | None:
    """A correlation, its sign always there, so that columns align."""
    return None if rho is None else f"{rho:+.2f}"
