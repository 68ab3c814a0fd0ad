"""Collects runs into a CSV of returns and a JSON of how they were made, both to be kept under results/.

python -m results.collect results/dense-cartpole-swingup runs/a runs/b runs/c
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import tyro

from tdmpc_prune.logger import read_metrics

COLUMNS = ("task", "preset", "seed", "env_step", "return", "return_std")


def main(out: tyro.conf.Positional[Path], runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Writes OUT.csv, a row an evaluation, and OUT.json, an entry a run: command, commit, machine.

    Args:
        out: path of the results, without an ending.
        runs: finished run folders.
    """
    rows, made = [], []
    for run in runs:
        config = json.loads((run / "config.json").read_text())["config"]
        made.append(provenance(run))
        for row in read_metrics(run / "metrics.jsonl"):
            if "eval/return" in row:
                fixed = [config["task"], config["preset"], config["seed"], row["env_step"]]
                rows.append([*fixed, round(row["eval/return"], 2), round(row["eval/return_std"], 2)])
    with out.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    out.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n")


def provenance(run: Path) -> dict[str, str | float | None]:
    """How a run was made: command, commit, versions, machine, and the minutes that it took."""
    record = json.loads((run / "config.json").read_text())
    del record["config"]
    # Where a run was kept is of no use to others.
    record["command"] = re.sub(r" --run-dir[ =]\S+", "", record["command"])
    return record | {"minutes": json.loads((run / "summary.json").read_text())["minutes"]}


if __name__ == "__main__":
    tyro.cli(main)
