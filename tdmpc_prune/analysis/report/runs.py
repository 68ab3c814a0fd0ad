"""Run folders as a report reads them: finished or not, each with all its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.errors import UserError
from tdmpc_prune.reading import (
    LARGEST_COUNT,
    printable,
    read_json,
    read_rows,
)
from tdmpc_prune.run_folder import RunFolder, earlier, flatten
from tdmpc_prune.sweep.folder import endings

WORDS = ("task", "preset", "prune.criterion", "prune.allocation", "prune.schedule")
"""Settings that are words."""
NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "seed": (int, 0, 2**31 - 1),
    "steps": (int, 1, LARGEST_COUNT),
    "action_repeat": (int, 1, 1000),
    "prune.sparsity": (float, 0, 1),
}
"""Settings that are numbers: of what kind, from what to what."""
LARGEST = 1e100
"""A larger number, like one that is not finite, says that something broke down, and its square is none."""


@dataclass(frozen=True)
class ReportRun:
    """A run, read from its folder."""

    path: Path
    """Folder of the run."""
    name: str
    """What the report calls it: its folder's name, or the whole path where two have the same."""
    settings: Mapping[str, Any]
    """All settings, under dotted names."""
    about: Mapping[str, Any]
    """Command, commit, machine and versions."""
    rows: Sequence[Mapping[str, Any]]
    """Rows of metrics.jsonl, in order; numbers that are not finite are left out."""
    summary: Mapping[str, Any] | None
    """What a finished run came to."""
    fate: str = ""
    """Why its sweep lets it end before its last step."""

    @property
    def task(self) -> str:
        """What it learned."""
        return str(self.settings["task"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.settings["seed"])

    @property
    def dense(self) -> bool:
        """Whether nothing is ever removed."""
        return self.settings.get("prune.criterion", "none") == "none"

    @property
    def outcome(self) -> str:
        """What it is judged by: `return`, or `error`, of which less is better."""
        return "error" if self.task == AUTOENCODER else "return"

    @property
    def env_step(self) -> int:
        """Environment steps so far; updates of an autoencoder."""
        return int(self.rows[-1]["env_step"]) if self.rows else 0

    @property
    def finished(self) -> bool:
        """Whether it made all its steps. One that was prolonged is not finished before its new end."""
        made = self.summary.get("env_step", 0) if self.summary else 0
        return made >= max(int(self.settings["steps"]), self.env_step)

    @cached_property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """Rows of evaluations."""
        return [row for row in self.rows if f"eval/{self.outcome}" in row]

    @cached_property
    def removals(self) -> list[Mapping[str, Any]]:
        """Rows of removals."""
        return [row for row in self.rows if "prune/event" in row]

    @property
    def last(self) -> float | None:
        """The outcome of the last evaluation, None before the first."""
        return self.evaluations[-1][f"eval/{self.outcome}"] if self.evaluations else None

    @property
    def sparsity(self) -> float:
        """Share of the parameters that is gone by now."""
        return self.newest("prune/sparsity") or 0.0

    @property
    def parameters(self) -> int | None:
        """Parameters left by now, None if it says nowhere."""
        stored = self.summary.get("parameters") if self.summary else None
        return self.newest("prune/params") or stored

    @cached_property
    def source_steps(self) -> int | None:
        """Steps of the run that it began with; None if it began with none, or that is not there any more."""
        source = self.settings.get("init_from")
        if not source:
            return None
        # A checkpoint lies below its run.
        folder = next((f for f in (Path(source), *Path(source).parents[:2]) if _is_run(f)), None)
        if folder is None:
            return None
        try:
            steps = read_json(RunFolder(folder).config)["config"]["steps"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return steps if _in(steps, *NUMBERS["steps"]) else None

    def newest(self, key: str) -> Any:
        """The last value of a metric, None if there is none."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)


def read_runs(paths: Iterable[Path]) -> list[ReportRun]:
    """Reads run folders, and all that lie below other folders; each once, in the order found.

    Raises:
        UserError: a folder is missing, holds no run, or one that cannot be read.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in _find(path)}.values())
    names = [folder.resolve().name for folder in folders]
    fates = cache(endings)
    return [
        _read(folder, printable(name if names.count(name) == 1 else str(folder)), fates)
        for folder, name in zip(folders, names, strict=True)
    ]


def _find(path: Path) -> list[Path]:
    """The run folders that a path names: itself, or all below it."""
    try:
        if not path.is_dir():
            raise UserError(f"{path} is no folder: give a run's folder, or one that holds runs")
        if _is_run(path):
            return [path]
        found = sorted(config.parent for config in path.rglob("config.json") if _is_run(config.parent))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): choose another folder") from error
    if not found:
        raise UserError(
            f"{path} is no run folder and holds none (config.json and metrics.jsonl): "
            "give the folder that `train` wrote, or leave it out"
        )
    return found


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.config.is_file() and folder.metrics.is_file()


def _read(path: Path, name: str, fates: Callable[[Path], Mapping[str, str]]) -> ReportRun:
    folder = RunFolder(path)
    try:
        about = read_json(folder.config)
        settings = {
            printable(key): _plain(value) for key, value in earlier(flatten(about.pop("config"))).items()
        }
        about = {key: printable(value) for key, value in about.items() if isinstance(value, str)}
        rows, summary = _rows(folder.metrics), _summary(folder.summary)
        fate = fates(path.resolve().parent).get(path.resolve().name, "")
        run = ReportRun(path, name, settings, about, rows, summary, fate)
        _check(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UserError(f"{path} cannot be read as a run ({reason}): leave it out") from error
    return run


def _check(run: ReportRun) -> None:
    """Refuses settings that a report cannot do without, or that no run has; raises ValueError or TypeError."""
    pruning = [] if run.dense else ["prune.criterion", "prune.allocation", "prune.sparsity"]
    lacking = [key for key in ("task", "seed", "steps", *pruning) if key not in run.settings]
    if lacking:
        raise ValueError(f"its settings have no {lacking[0]}")
    for key, value in run.settings.items():
        if key == "action_repeat" and value is None:  # the task's usual one
            continue
        if (key in WORDS and not isinstance(value, str)) or (
            key in NUMBERS and not _in(value, *NUMBERS[key])
        ):
            raise ValueError(f"its setting {key} is {str(value)[:50]!r}")


def _in(value: Any, kind: type, low: float, high: float) -> bool:
    return type(value) in (int, kind) and low <= value <= high


def _plain(value: Any) -> Any:
    """A setting as words and numbers, without what a terminal or a page could take for more."""
    return value if isinstance(value, bool | int | float | None) else printable(str(value))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, of the numbers that can be drawn."""
    return [{k: v for k, v in row.items() if abs(v) <= LARGEST} for row in read_rows(path)]


def _summary(path: Path) -> dict[str, Any] | None:
    """The numbers of a finished run's summary."""
    if not path.exists():
        return None
    return {k: v for k, v in read_json(path).items() if isinstance(v, int | float) and abs(v) <= LARGEST}
