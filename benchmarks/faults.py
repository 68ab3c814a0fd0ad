"""Kills small runs again and again (SIGKILL), restarts them, and says what was lost: nothing, or it fails.

python -m benchmarks.faults --kills 100 --seed 1
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tabulate import tabulate

from tests.faults.harness import ALL, CASES, PRUNED_AFTER, Figures, Whole, kill_and_restart, undisturbed


@dataclass(frozen=True)
class Options:
    """How often, and where chance begins."""

    kills: int = 100
    """Kills in all, shared out among runs of every kind."""
    seed: int = 1
    """Seed of the moments."""
    per_run: int = 8
    """Kills of one run at most, before it may come to its end."""


def main(options: Options) -> None:
    """Prints the figures."""
    start, rng, figures = time.perf_counter(), np.random.default_rng(options.seed), Figures()
    with tempfile.TemporaryDirectory() as place:
        for number, whole in enumerate(itertools.cycle(wholes(Path(place)))):
            left = min(options.kills - figures.kills, options.per_run)
            if not left:
                break
            kill_and_restart(whole, Path(place) / f"run {number}", rng, left, figures)
    rows = [
        (activity, figures.by_moment[activity], figures.by_clock[activity])
        for activity in ALL
        if figures.by_moment[activity] + figures.by_clock[activity]
    ]
    total = ("all", figures.by_moment.total(), figures.by_clock.total())
    print(tabulate([*rows, total], headers=["killed while", "at a moment", "by the clock"]))
    print()
    print(f"restarts from the last checkpoint    {figures.resumed}")
    print(f"restarts before there was one        {figures.begun_anew}")
    print(f"checkpoints read in full             {figures.checkpoints}")
    print(f"lines of metrics.jsonl compared      {figures.lines:,}")
    print(f"bytes of it lost                     {figures.bytes_lost}")
    print(f"runs that came to their end, equal   {figures.runs}, bit by bit")
    print(f"minutes                              {(time.perf_counter() - start) / 60:.1f}")


def wholes(place: Path) -> list[Whole]:
    """One undisturbed run of every kind."""
    runs = {name: undisturbed(arguments, place / name) for name, arguments in CASES.items()}
    after = undisturbed([*PRUNED_AFTER, "--init-from", str(runs["dense"].path)], place / "pruned after")
    return [*runs.values(), after]


if __name__ == "__main__":
    main(tyro.cli(Options))
