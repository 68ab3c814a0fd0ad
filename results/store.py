"""What was measured, in files small enough to keep: a CSV and a JSON for every task, under results/recorded/.

TASK.csv has a row for every evaluation and every removal, TASK.json an entry for every run (command, commit, versions,
machine, all settings, outcome), TASK-importance.csv scores over time of the few runs that keep them. Together they
are as much of a run folder as `tdmpc-prune report` reads, and `unpack` makes folders of them again.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results.revisions import Revision, overtaken
from results.trials import name_of
from tdmpc_prune.logger import read_metrics
from tdmpc_prune.run_folder import RunFolder

HERE = Path(__file__).parent / "recorded"
KEPT = ("eval/", "prune/")
LEFT_OUT = ("prune/sparsity/", "prune/scheduled", "prune/events", "eval/plan_ms")
"""Follows from the widths, or says something about the machine."""
DIGITS = 6
Row = dict[str, Any]


class Store:
    """All recorded runs, by name."""

    def __init__(self, folder: Path = HERE) -> None:
        self.folder = folder
        self.entries: dict[str, Row] = {}
        for path in sorted(folder.glob("*.json")):
            self.entries |= {entry["run"]: entry for entry in json.loads(path.read_text())}

    def has(self, name: str, *, scores: bool = False) -> bool:
        """Whether a run is recorded, if asked for with its scores over time."""
        if name not in self.entries or not scores:
            return name in self.entries
        task = self.entries[name]["config"]["task"]
        return any(row["run"] == name for row in _read(self.folder / f"{task}-importance.csv"))

    def overtaken(self, name: str) -> Revision | None:
        """The change of the code that would give a recorded run other numbers today; None if there is none."""
        entry = self.entries.get(name)
        return overtaken(entry["config"], entry.get("commit")) if entry else None

    def add(self, run: Path, *, scores: bool = False) -> str:
        """Records a finished run folder, in place of an earlier run of the same name; returns the name."""
        folder = RunFolder(run)
        about, summary = json.loads(folder.config.read_text()), json.loads(folder.summary.read_text())
        name, task = name_of(about["config"]), about["config"]["task"]
        # Where a run was kept is of no use to others.
        command = re.sub(r" --run-dir[ =]\S+", "", about["command"])
        about["config"]["run_dir"] = None
        numbers = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        entry = {"run": name, **about, "command": command, "summary": numbers}
        metrics = read_metrics(folder.metrics)
        shown = [row for row in metrics if "prune/event" in row or any(k.startswith("eval/") for k in row)]
        rows = list(map(_kept, shown))
        self._write(self.folder / f"{task}.csv", name, rows)
        if scores:
            self._write(self.folder / f"{task}-importance.csv", name, list(map(_scores, _scored(metrics))))
        self.entries[name] = entry
        entries = [e for e in self.entries.values() if e["config"]["task"] == task]
        lines = [json.dumps(e) for e in sorted(entries, key=lambda e: e["run"])]
        (self.folder / f"{task}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return name

    def rows(self, task: str) -> Mapping[str, list[Row]]:
        """Rows of all runs of a task, by name: evaluations, removals and scores, in order."""
        found: dict[str, list[Row]] = defaultdict(list)
        for path in (self.folder / f"{task}.csv", self.folder / f"{task}-importance.csv"):
            for row in _read(path):
                found[row.pop("run")].append({key: _value(text) for key, text in row.items() if text})
        return {name: sorted(rows, key=lambda row: row["env_step"]) for name, rows in found.items()}

    def unpack(self, names: Iterable[str], into: Path) -> list[Path]:
        """Makes a run folder of each, without checkpoints."""
        wanted = [self.entries[name] for name in names]
        rows: dict[str, list[Row]] = {}
        for task in {entry["config"]["task"] for entry in wanted}:
            rows |= self.rows(task)
        folders = []
        for number, entry in enumerate(wanted, start=1):
            folder = RunFolder(into / f"{number:04d}")
            folder.path.mkdir(parents=True)
            about = {key: value for key, value in entry.items() if key not in ("run", "summary")}
            folder.config.write_text(json.dumps(about))
            folder.summary.write_text(json.dumps(entry["summary"]))
            folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows[entry["run"]]))
            folders.append(folder.path)
        return folders

    def _write(self, path: Path, name: str, rows: list[Row]) -> None:
        """Puts a run's rows into a CSV, which may get new columns by it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        others = [row for row in _read(path) if row["run"] != name]
        table = sorted([*others, *({"run": name} | row for row in rows)], key=lambda row: row["run"])
        columns = list(dict.fromkeys(key for row in [*others, *table] for key in row))
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        partial.replace(path)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _kept(row: Mapping[str, Any]) -> Row:
    kept = {
        k: _short(v)
        for k, v in row.items()
        if k.startswith(KEPT) and not k.startswith(LEFT_OUT) and v is not None
    }
    return {"env_step": row["env_step"], **kept}


def _scored(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if any(key.startswith("importance/") for key in row)]


def _scores(row: Mapping[str, Any]) -> Row:
    scores = {k: _short(v) for k, v in row.items() if k.startswith("importance/")}
    return {"env_step": row["env_step"], **scores}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def _value(text: str) -> float:
    return float(text) if "." in text or "e" in text or "n" in text else int(text)
