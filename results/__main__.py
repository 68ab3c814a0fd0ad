"""`make results`: the studies' trainings and measurements that are not recorded yet, then tables and figures."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from results import figures, headline, tables
from results.run import Measurement, Runner, missing
from results.store import Store
from results.studies import STUDIES


@dataclass(frozen=True)
class Options:
    """Answers questions by experiments. What is recorded under results/ is not made again unless --again is
    given. Stop whenever you like: the same command goes on.

    Studies: agent, criteria, walker, validity, removals, selection, harder, allocation, deadline, stability,
    robustness, autoencoder.
    """

    studies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all if none."""
    jobs: int = os.cpu_count() or 1
    """Trainings at once, one thread each; 0: make none, only tables and figures."""
    most: int | None = None
    """Make no more than so many, and go on another day."""
    again: bool = False
    """Make all that is asked for, recorded or not; what is in runs/results/ already is taken from there."""
    add: tuple[Path, ...] = ()
    """Record these finished run folders, too."""
    dry_run: bool = False
    """Make nothing: show what is not recorded yet."""


def main(options: Options) -> int:
    """Makes, records, tabulates and draws."""
    if unknown := [name for name in options.studies if name not in STUDIES]:
        print(f"error: {unknown[0]!r} is no study: choose of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    store = Store()
    for folder in options.add:
        print(f"recorded: {store.add(folder)}")
    asked = [one for name in options.studies or STUDIES for one in STUDIES[name].work()]
    everything = missing(asked, None)
    todo = (everything if options.again else missing(asked, store))[: options.most]
    if options.dry_run:
        for one in todo:
            before = one.overtaken if isinstance(one, Measurement) else store.overtaken(one.name)
            reason = f" (recorded before {before.what})" if before else ""
            print("measure" if isinstance(one, Measurement) else "train  ", one.name + reason)
        print(f"{len(todo)} of {len(everything)} are to be made")
        return 0
    try:
        failures = Runner(store, options.jobs).run(todo) if options.jobs and todo else []
    except KeyboardInterrupt:
        failures = ["stopped: the same command goes on"]
        print(*failures, file=sys.stderr)
    tables.write(store)
    headline.write(store)
    figures.write(store)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
