"""The folder that a sweep owns: what was to be tried, what came of it, and a run folder for every trial.

    sweep.json     the sweep's definition, seed, command, commit, machine
    trials.jsonl   what happened to the trials, in order, an event a line: the only memory of a sweep
    trials.csv     a row a trial: parameters and outcome; made anew at the end of every sitting
    runs/0001/     run folders, as `train` writes them
    logs/0001.txt  what the trials' processes said

One process writes here, whichever machine it runs on; trials write to their own run folders.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from tdmpc_prune.errors import UserError
from tdmpc_prune.places import check_folder
from tdmpc_prune.reading import METRICS_BYTES, parse_json, printable, read_bytes, read_json
from tdmpc_prune.run_folder import provenance, write_json
from tdmpc_prune.sweep.definition import Definition
from tdmpc_prune.sweep.search import Proposal

Status = Literal["open", "finished", "stopped", "failed"]
"""open: not at its end; stopped: early, because it lagged behind."""
EVENTS = "trials.jsonl"
MAY_CHANGE = ("name", "description", "run_cap")
"""Keys of a file that may change while a sweep goes on: how it is called, and how far it goes."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int
    """From 1."""
    proposal: Proposal
    status: Status = "open"
    value: float | None = None
    """Last value of the sweep's metric."""
    history: tuple[float, ...] = ()
    """All its values, where trials may be stopped early."""
    error: str | None = None

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return run_name(self.number)


def run_name(number: int) -> str:
    """Name of a trial's run folder."""
    return f"{number:04d}"


def endings(runs: Path) -> dict[str, str]:
    """Why trials whose run folders lie in `runs` are not to come to their ends, by the folders' names.

    Nothing where there is no sweep, or what it noted is damaged: that is no fault of its runs.
    """
    found: dict[str, str] = {}
    try:
        for line in read_bytes(runs.parent / EVENTS, METRICS_BYTES).splitlines():
            event = parse_json(line, EVENTS)
            if status := event.get("status"):
                reasons = {"stopped": "stopped early by its sweep", "failed": f"failed: {event.get('error')}"}
                found[run_name(event["trial"])] = printable(reasons.get(status, ""))[:200]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return found


class SweepFolder:
    """A sweep's folder, held by one process at a time.

    Use it as a context: inside, the folder is ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about = path / "sweep.json"
        self.events = path / EVENTS
        self.table = path / "trials.csv"
        self.trials: dict[int, Trial] = {}
        self._lock = FileLock(path / "lock")

    def open(self, definition: Definition, seed: int) -> None:
        """Takes the folder: a new one, or one of the same sweep, whose trials are then known.

        Raises:
            UserError: it cannot be written to, holds something else, or another process holds it.
        """
        check_folder("--sweep-dir", self.path)
        if self.path.is_dir() and any(self.path.iterdir()):
            self._check_same(definition, seed)
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process runs the sweep in {self.path}: let it end, or choose another --sweep-dir"
            ) from None
        try:
            self._begin(definition, seed)
        except BaseException:
            self.close()
            raise

    def _begin(self, definition: Definition, seed: int) -> None:
        if not self.about.exists():
            about = {"definition": definition.raw, "file": str(definition.path), "seed": seed}
            write_json(self.about, about | provenance())
        self._read()

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.release()

    def run(self, trial: Trial) -> Path:
        """Run folder of a trial."""
        return self.path / "runs" / trial.name

    def log(self, trial: Trial) -> Path:
        """File with what a trial's process said."""
        return self.path / "logs" / f"{trial.name}.txt"

    def propose(self, number: int, proposal: Proposal) -> Trial:
        """Notes what a new trial is to try."""
        trial = self.trials[number] = Trial(number, proposal)
        self._append({"trial": number, "values": dict(proposal.values), "point": dict(proposal.point)})
        return trial

    def end(
        self,
        number: int,
        status: Status,
        *,
        value: float | None = None,
        history: Sequence[float] = (),
        error: str | None = None,
    ) -> Trial:
        """Notes what became of a trial."""
        outcome: dict[str, Any] = {"status": status, "value": value, "history": list(history), "error": error}
        self._append({"trial": number, **outcome})
        trial = self.trials[number] = replace(self.trials[number], **outcome | {"history": tuple(history)})
        return trial

    def write_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the table of all trials."""
        partial = self.table.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.table)

    def _check_same(self, definition: Definition, seed: int) -> None:
        if not self.about.is_file():
            if {path.name for path in self.path.iterdir()} <= {"lock", "sweep.json.partial"}:
                return  # it was killed while it wrote its very first file
            raise UserError(f"{self.path} holds something that is no sweep: choose another --sweep-dir")
        try:
            about = read_json(self.about)
            stored, stored_seed = dict(about["definition"]), about["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.about} cannot be read ({error}): choose another --sweep-dir") from error
        wanted = json.loads(json.dumps(definition.raw, default=str))
        keys = [key for key in dict.fromkeys([*wanted, *stored]) if key not in MAY_CHANGE]
        differing = [key for key in keys if stored.get(key) != wanted.get(key)]
        if seed != stored_seed:
            differing.append(f"seed (stored {stored_seed}, now {seed})")
        if differing:
            raise UserError(
                f"{self.path} holds a sweep with other {', '.join(differing)}: choose another --sweep-dir"
            )

    def _read(self) -> None:
        """Reads the events; a line that was cut off by a crash is taken away."""
        if not self.events.exists():
            return
        content = self.events.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.events, len(whole))
        try:
            for line in whole.splitlines():
                self._replay(parse_json(line, "a line"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.events} cannot be read ({error}): choose another --sweep-dir") from error

    def _replay(self, event: dict[str, Any]) -> None:
        number = event.pop("trial")
        if "values" in event:
            self.trials[number] = Trial(number, Proposal(event["values"], event["point"]))
        else:
            event["history"] = tuple(event["history"])
            self.trials[number] = replace(self.trials[number], **event)

    def _append(self, event: Mapping[str, Any]) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps(event, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
