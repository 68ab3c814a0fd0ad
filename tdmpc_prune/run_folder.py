"""The folder that a run owns: created, recognised, and refused where it holds something else."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tdmpc_prune import __version__
from tdmpc_prune.config import AnyTrainConfig, TrainConfig
from tdmpc_prune.errors import UserError
from tdmpc_prune.processor import processor
from tdmpc_prune.reading import printable, read_json

# What may differ between a run and the command that resumes it: where and how long, never what is learned.
# The number of steps is free only where no schedule of removals hangs on it.
FREE_ON_RESUME = (
    "steps",
    "run_dir",
    "device",
    "threads",
    "deterministic",
    "checkpoint_every",
    "keep_every",
    "skip_limit",
    "wandb",
    "json",
    "dry_run",
)
PARTIAL = ".partial"
LOCK = "lock"
"""A file that is there while a run is at work, and after one that was killed."""


class RunFolder:
    """Paths inside one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"
        self.summary = path / "summary.json"
        self._folders = (self.checkpoints, self.checkpoints / "partial", self.plots)
        self._files = (self.config, self.metrics, self.summary, path / LOCK)

    def check(self, config: AnyTrainConfig) -> None:
        """Refuses a folder that this run cannot use; changes nothing.

        Raises:
            UserError: it holds something else, a run with other settings, or cannot be written to.
        """
        try:
            self._check(config)
        except OSError as error:  # no leave to look, or a name too long
            raise UserError(
                f"{self.path} cannot be read ({error.strerror}): choose another --run-dir"
            ) from error

    def _check(self, config: AnyTrainConfig) -> None:
        content = list(self.path.iterdir()) if self.path.is_dir() else []
        inner = [part for part in (self.checkpoints, self.plots) if part.is_dir()]
        parts = [path for part in inner for path in part.iterdir()]
        if links := [path.name for path in [*content, *parts] if path.is_symlink()]:
            raise UserError(
                f"{self.path} holds a link ({links[0]}) by which a run would write elsewhere: put what it points "
                "to in its place, or choose another --run-dir"
            )
        for path in [*content, *parts]:
            wanted = "folder" if path in self._folders else "file"
            own = path in (*self._folders, *self._files) or (path in content and path.name.endswith(PARTIAL))
            fits = path.is_dir() if wanted == "folder" else path.is_file()
            if own and not fits and path.exists():  # another run that ends just now may have taken it away
                raise UserError(
                    f"{path} is no {wanted}, and a run keeps one there: take it away, or choose another --run-dir"
                )
        # A run killed while it wrote its very first file leaves a partial one and its lock, no more.
        if any(path.name != LOCK and not path.name.endswith(PARTIAL) for path in content):
            self._check_same(config)
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another folder with --run-dir")
        nearest = next(p for p in [self.path, *self.path.absolute().parents] if p.exists())
        if not os.access(nearest, os.W_OK):
            raise UserError(f"cannot write to {nearest}: choose another folder with --run-dir")

    @contextmanager
    def locked(self, config: AnyTrainConfig) -> Iterator[None]:
        """Creates the folder and keeps all other runs out; it goes again if nothing is written to it.

        The operating system holds the lock, and gives it back whatever this process dies of.

        Raises:
            UserError: another run is at work in it, or it cannot be used.
        """
        created = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = FileLock(self.path / LOCK)
        with self._written():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise UserError(
                    f"another run is at work in {self.path}: wait for its end, or choose another --run-dir"
                ) from None
        try:
            self.check(config)  # another run may have come and gone since it was checked
            yield
        finally:
            # While it is held: who has opened this file by now finds that it is gone, and makes a new one.
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                for path in created:
                    path.rmdir()

    def create(self, config: TrainConfig) -> None:
        """Writes the settings of a new run, and of one that is to make more steps than it was.

        Raises:
            UserError: it cannot be written to.
        """
        before = []
        if self.config.exists():
            stored = read_json(self.config)
            steps = stored.pop("config").get("steps")
            if steps == config.steps:
                return
            # Else reports would count it as a run of its former length, made by its former command.
            before = [*stored.pop("before", []), {"steps": steps, **stored}]
        settings = {"config": to_json(config), **provenance()}
        with self._written():
            write_json(self.config, settings | ({"before": before} if before else {}))

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror}): choose another folder with --run-dir"
            ) from error

    def finished_summary(self, config: TrainConfig) -> dict[str, Any] | None:
        """The summary of this run, if it has made all its steps."""
        if not self.summary.is_file():
            return None
        try:
            summary = read_json(self.summary)
            return summary if summary["env_step"] >= config.steps else None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.summary} cannot be read ({error}): choose another --run-dir") from error

    def _check_same(self, config: AnyTrainConfig) -> None:
        if not self.config.is_file():
            raise UserError(
                f"{self.path} holds something that is no run (there is no config.json): "
                "choose another folder with --run-dir"
            )
        try:
            stored = flatten(read_json(self.config)["config"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.config} cannot be read ({error}): choose another --run-dir") from error
        # A setting that an earlier version did not know was what it is by default, but for some.
        usual = flatten(to_json(type(config)(task=config.task)))
        stored, wanted = (
            _placed(usual | earlier(settings)) for settings in (stored, flatten(to_json(config)))
        )
        free = [name for name in FREE_ON_RESUME if name != "steps" or not config.prune.enabled]
        differing = [
            f"{printable(key[:80])} (stored {repr(stored.get(key))[:80]}, now {repr(wanted.get(key))[:80]})"
            for key in dict.fromkeys([*wanted, *stored])
            if key.split(".")[0] not in free and stored.get(key) != wanted.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.path} holds a run with other settings: {', '.join(differing[:4])}"
                f"{' and more' if len(differing) > 4 else ''}; choose another --run-dir"
            )


def _placed(settings: dict[str, Any]) -> dict[str, Any]:
    """The same place is the same, however its path was written."""
    source = settings.get("init_from")
    return settings | ({"init_from": os.path.abspath(source)} if isinstance(source, str) else {})


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Settings as plain JSON values."""
    return json.loads(json.dumps(asdict(config), default=str))


def earlier(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run under dotted names, with what it did before there were all of today's.

    How calibrations are made is left out where none are: its default was another once.
    """
    criterion = settings.get("prune.criterion", "none")
    if criterion == "none" or settings.get("prune.allocation") != "calibrated":
        settings = {k: v for k, v in settings.items() if not k.startswith("prune.calibration")}
    if criterion == "none":
        return settings
    known = {"prune.compensation": "none", "prune.selection": "scores", "prune.recovery": 0} | settings
    if known["prune.compensation"] != "none":
        known = {"prune.ridge": 1e-3} | known
    guard = known.get("prune.importance.guard")
    if str(criterion).startswith("bayesian") and guard is not None:  # a damaged one may be anything
        known = {"prune.importance.guard_end": guard} | known
    return known


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def provenance() -> dict[str, Any]:
    """What a result needs to be made again: command, commit, versions, machine."""
    import torch

    return {
        "version": __version__,
        "command": shlex.join(["tdmpc-prune", *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {processor()}",
    }


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, if it runs from one; `-dirty` where more than results differ."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)

    commit = git("describe", "--always", "--abbrev=12").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)results").returncode == 1
    return (commit + ("-dirty" if changed else "")) or None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is either the old one or the new one, never half of it."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
