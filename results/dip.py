"""Tabulates what removals did to the return, run by run, beside dense runs of the same seeds.

python -m results.dip results/dip-cartpole-swingup-90 --dense runs/dense-* --pruned runs/p90-*
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import tyro

from results.collect import provenance
from tdmpc_prune.analysis.dip import dip
from tdmpc_prune.logger import read_metrics


@dataclass(frozen=True)
class Options:
    """Writes OUT.csv, a row a run, and OUT.json: command, commit and machine of every run."""

    out: tyro.conf.Positional[Path]
    """Path of the results, without an ending."""
    dense: tuple[Path, ...]
    """Dense runs, one per seed."""
    pruned: tuple[Path, ...]
    """Pruned runs."""


def main(options: Options) -> None:
    """Writes the table and prints its means over seeds."""
    dense = {_config(run)["seed"]: run for run in options.dense}
    final = mean(_summary(run)["return"] for run in options.dense)
    rows = []
    for run in options.pruned:
        config, summary, metrics = _config(run), _summary(run), read_metrics(run / "metrics.jsonl")
        prune = config["prune"]
        steps = [r["env_step"] for r in metrics if "prune/event" in r]
        rows.append(
            {
                "allocation": prune["allocation"],
                "criterion": prune["criterion"],
                "seed": config["seed"],
                "sparsity": round(summary["sparsity"], 4),
                "parameters": summary["parameters"],
                "end_return": round(summary["return"], 1),
                **{k: v if v is None else round(v, 1) for k, v in dip(metrics, reference=final).items()},
                "dense_window_return": round(_window(dense[config["seed"]], steps[0], steps[-1]), 1),
                "calibration_episodes": sum(r.get("prune/calibration_measurements", 0) for r in metrics)
                * prune["calibration_episodes"],
            }
        )
    rows.sort(key=lambda row: (row["allocation"], row["criterion"], row["seed"]))
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    made = [provenance(run) for run in (*options.dense, *options.pruned)]
    options.out.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"dense: end {final:.0f}")
    for key in dict.fromkeys((row["allocation"], row["criterion"]) for row in rows):
        group = [row for row in rows if (row["allocation"], row["criterion"]) == key]
        shown = {
            name: mean(row[name] for row in group)
            for name in (
                "end_return",
                "lowest_return",
                "largest_drop",
                "window_return",
                "dense_window_return",
            )
        }
        print(*key, f"({len(group)} seeds)", *(f"{name} {value:.0f}" for name, value in shown.items()))


def _window(run: Path, first: int, last: int) -> float:
    rows = read_metrics(run / "metrics.jsonl")
    return mean(r["eval/return"] for r in rows if "eval/return" in r and first <= r["env_step"] <= last)


def _config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())["config"]


def _summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


if __name__ == "__main__":
    main(tyro.cli(Options))
