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

OUTCOMES = ("return", "return_std", "error", "psnr")


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
        prune = config.get("prune", {"criterion": "none", "allocation": ""})
        for row in read_metrics(run / "metrics.jsonl"):
            found = {name: round(row[f"eval/{name}"], 5) for name in OUTCOMES if f"eval/{name}" in row}
            if found:
                rows.append(
                    {
                        "task": config["task"],
                        "seed": config["seed"],
                        "criterion": prune["criterion"],
                        "allocation": prune["allocation"] if prune["criterion"] != "none" else "",
                        "env_step": row["env_step"],
                        "sparsity": round(row.get("prune/sparsity", 0.0), 4),
                        **found,
                    }
                )
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
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
