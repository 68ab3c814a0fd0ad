"""Kills training runs (SIGKILL), starts them again with the same command, and looks whether anything was lost.

A sitting is a process of its own, forked from one that has imported everything and computed nothing. It dies
at a moment: a call, or the way back from one, of whatever changes a file, a network or a counter; in a write,
also with half of it done. Or its parent kills it by the clock.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from tests.run.small_runs import CARTPOLE, PENDULUM, QUIET, WALL_CLOCK, assert_same_run, steady_rows

OTHER = "starting or ending"
ACTIVITIES = {
    "collect": "collecting",
    "update": "updating",
    "evaluate": "evaluating",
    "remove": "removing",
    "removal_row": "removing",
    "save": "writing a checkpoint",
}
"""What a run is doing in each of its methods."""
WRITING = "writing a row"
ALL = [*dict.fromkeys(ACTIVITIES.values()), WRITING, OTHER]

PRUNED = [
    *("--prune.importance.warmup", "5", "--prune.events", "3", "--prune.eval-episodes", "1"),
    *("--prune.sparsity", "0.5"),
]
CASES = {
    "dense": [*CARTPOLE, "--prune.criterion", "none"],
    "pruned": [*CARTPOLE, *PRUNED],
    "pruned, checkpoints kept": [*PENDULUM, *PRUNED, "--keep-every", "20", "--checkpoint-every", "10"],
    "recovering": [*CARTPOLE, *PRUNED, "--prune.recovery", "6"],
    "autoencoder": [
        *("autoencoder", *QUIET, "--steps", "60", "--eval-every", "20", "--log-every", "10"),
        *("--checkpoint-every", "25", "--agent.hidden-dim", "16", "--agent.code-dim", "6"),
        *("--agent.batch-size", "8", *PRUNED, "--prune.limits.min-units", "2"),
    ],
}
"""Runs of a second or two."""
PRUNED_AFTER = [*CARTPOLE, *PRUNED, "--steps", "2000"]
"""To begin with what `dense` has learned."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.imported"])
ROOT = Path(__file__).parents[2]


# In the process that is killed


@dataclass(frozen=True)
class Kill:
    """The n-th moment (from 1) of an activity."""

    activity: str
    moment: int


class Watch:
    """Knows what a run is doing, counts the moments of it, and dies at one of them."""

    def __init__(self, kill: Kill | None, doing: Any) -> None:
        self.kill, self.doing = kill, doing
        self.counts: Counter[str] = Counter()
        self._enter(OTHER)

    def _enter(self, activity: str) -> None:
        self.activity = activity
        self.doing.value = ALL.index(activity)

    def moment(self, spoil: Callable[[], None] | None = None) -> None:
        """A moment to die at; `spoil` brings about what a write leaves that was cut short here."""
        self.counts[self.activity] += 1
        if self.kill == Kill(self.activity, self.counts[self.activity]):
            if spoil:
                spoil()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, activity: str | None = None) -> None:
        """Makes moments of a function's begin and end; `activity`: of all that it does, unless it is part of one."""
        real = getattr(owner, name)

        @wraps(real)
        def watched(*arguments: Any, **named: Any) -> Any:
            outermost = activity and self.activity == OTHER
            if outermost:
                self._enter(activity)
            try:
                self.moment()
                result = real(*arguments, **named)
                self.moment()
                return result
            finally:
                if outermost:
                    self._enter(OTHER)

        setattr(owner, name, watched)

    def writes(self, owner: Any, name: str, path_of: Callable[..., Path]) -> None:
        """Makes a moment of half a write."""
        real = getattr(owner, name)

        @wraps(real)
        def watched(*arguments: Any, **named: Any) -> Any:
            path = path_of(*arguments)
            before = path.stat().st_size if path.exists() else 0
            result = real(*arguments, **named)
            self.moment(lambda: os.truncate(path, (before + path.stat().st_size) // 2))
            return result

        setattr(owner, name, watched)


def watch(kill: Kill | None, doing: Any) -> Watch:
    """Lays a watch over the whole program."""
    import torch

    from tdmpc_prune import checkpoint, run_folder, train
    from tdmpc_prune.autoencoder_training import AutoencoderTraining
    from tdmpc_prune.logger import MetricsFile
    from tdmpc_prune.pruning import pruner
    from tdmpc_prune.signals import StopSignals
    from tdmpc_prune.training import Training

    seen = Watch(kill, doing)
    seen.writes(checkpoint, "save_file", lambda tensors, path: Path(path))
    seen.writes(MetricsFile, "write", lambda file, row: Path(file._file.name))
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate"):
        seen.around(os, name)
    for owner, name in (
        (checkpoint, "save_file"),
        (checkpoint, "write_json"),
        (run_folder, "write_json"),
        (train, "write_json"),
        (train, "plot_run"),
        (pruner, "remove_units"),
        (pruner.ImportanceTracker, "observe"),
        (pruner.ImportanceTracker, "keep"),
        (torch.optim.Adam, "step"),
        (StopSignals, "check"),
    ):
        seen.around(owner, name)
    seen.around(MetricsFile, "write", WRITING)
    for kind in (Training, AutoencoderTraining):
        for name, activity in ACTIVITIES.items():
            seen.around(kind, name, activity)
    return seen


def sit(arguments: Sequence[str], folder: Path, log: Path, kill: Kill | None, doing: Any) -> None:
    """One sitting: what a forked process does."""
    from tqdm import tqdm

    from tdmpc_prune.cli import main

    tqdm.set_lock(threading.RLock())  # its usual one is a semaphore that outlives who is killed
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    seen, start = watch(kill, doing), time.perf_counter()
    code = main(["train", *arguments, "--run-dir", str(folder)])
    took = {"seconds": time.perf_counter() - start, "moments": seen.counts}
    log.with_suffix(".json").write_text(json.dumps(took))
    raise SystemExit(code)


# Beside it


@dataclass
class Whole:
    """A run that nobody disturbed: what killed ones are compared with."""

    arguments: list[str]
    path: Path
    seconds: float
    moments: dict[str, int]
    """Moments of every activity."""
    rows: list[dict[str, Any]]


@dataclass
class Figures:
    """What came out of it."""

    by_clock: Counter[str] = field(default_factory=Counter)
    """Kills by the clock, by what the run was doing."""
    by_moment: Counter[str] = field(default_factory=Counter)
    """Kills at chosen moments, likewise."""
    resumed: int = 0
    """Restarts that went on from a checkpoint, the last good one."""
    begun_anew: int = 0
    """Restarts where there was none yet."""
    lines: int = 0
    """Lines of metrics.jsonl compared with the undisturbed run's."""
    checkpoints: int = 0
    """Checkpoints read in full."""
    bytes_lost: int = 0
    """Bytes of metrics.jsonl that belong to a checkpoint and are not there."""
    runs: int = 0
    """Runs that came to their end, and are bitwise the undisturbed run."""

    @property
    def kills(self) -> int:
        """All of them."""
        return self.by_clock.total() + self.by_moment.total()


def undisturbed(arguments: Sequence[str], folder: Path) -> Whole:
    """Makes the run to compare with."""
    code, _, log = _sitting(arguments, folder)
    assert code == 0, log.read_text()
    took = json.loads(log.with_suffix(".json").read_text())
    return Whole(list(arguments), folder, rows=steady_rows(folder), **took)


def kill_and_restart(
    whole: Whole, folder: Path, rng: np.random.Generator, kills: int, figures: Figures, clock: float = 0.25
) -> None:
    """Makes one run, killed up to so many times, a share of them by the clock; looks at it after every kill."""
    newest, left, before = 0, 1.0, figures.kills
    while True:
        kill, seconds = None, None
        if figures.kills - before < kills:
            if rng.random() < clock:
                seconds = float(rng.uniform(0, left * whole.seconds))
            else:
                activity = str(rng.choice(sorted(whole.moments)))
                most = max(round(left * whole.moments[activity]), 1)
                kill = Kill(activity, int(rng.integers(1, most + 1)))
        restart, state = folder.exists(), _newest_state(folder)
        over = (folder / "summary.json").exists()
        code, doing, log = _sitting(whole.arguments, folder, kill, seconds)
        if restart:
            _check_restart(state, over, log.read_text(), figures)
        if code == 0:
            assert_same_run(folder, whole.path)
            _check_end(folder, whole)
            figures.lines += len(whole.rows)
            figures.runs += 1
            return
        assert code == -signal.SIGKILL, log.read_text()
        (figures.by_moment if kill else figures.by_clock)[doing] += 1
        newest = _check_state(folder, whole, newest, figures)
        if state := _newest_state(folder):
            left = 1 - state["progress"]["env_step"] / whole.rows[-1]["env_step"]


def _sitting(
    arguments: Sequence[str], folder: Path, kill: Kill | None = None, seconds: float | None = None
) -> tuple[int, str, Path]:
    """Starts a process; returns its exit code, what it was doing in the end, and its output."""
    log = folder.with_name(f"{folder.name}.log")
    log.write_text("")
    with contextlib.chdir(ROOT):  # where the first one of them finds what to import
        forkserver.ensure_running()
    doing = FORKS.RawValue("i", ALL.index(OTHER))
    process = FORKS.Process(target=sit, args=(arguments, folder, log, kill, doing))
    process.start()
    process.join(seconds)
    if seconds is not None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode, ALL[doing.value], log


def _complete(folder: Path) -> list[Path]:
    from tdmpc_prune.checkpoint import _complete

    return _complete(folder / "checkpoints")


def _newest_state(folder: Path) -> dict[str, Any] | None:
    from tdmpc_prune.checkpoint import read_state

    existing = _complete(folder)
    return read_state(existing[-1]) if existing else None


def _check_state(folder: Path, whole: Whole, newest: int, figures: Figures) -> int:
    """After a kill: every checkpoint that can be seen can be read, none is older, and no line is lost."""
    from safetensors.torch import load_file

    existing = _complete(folder)
    numbers = [int(path.name) for path in existing]
    last = numbers[-1] if numbers else 0
    assert last >= newest, f"checkpoint {newest} is gone: {numbers}"
    assert last < 2 or last - 1 in numbers, f"the checkpoint before {last} is gone: {numbers}"
    for path in existing:
        for name in ("model.safetensors", "training.safetensors"):
            assert load_file(path / name), path
        figures.checkpoints += 1
    metrics = folder / "metrics.jsonl"
    written = metrics.read_bytes() if metrics.exists() else b""
    if state := _newest_state(folder):
        figures.bytes_lost += max(state["metrics_bytes"] - len(written), 0)
        assert written[: state["metrics_bytes"]].endswith(b"\n") or not state["metrics_bytes"]
    lines = [json.loads(line) for line in written.split(b"\n")[:-1]]  # what follows the last one is torn
    steady = [{k: v for k, v in row.items() if not k.startswith(WALL_CLOCK)} for row in lines]
    assert steady == whole.rows[: len(steady)], "lines are lost, doubled or others"
    figures.lines += len(steady)
    return last


def _check_restart(state: dict[str, Any] | None, over: bool, said: str, figures: Figures) -> None:
    """A restart goes on from the newest checkpoint there was, and says so first, if it came to say anything."""
    if state is None:
        assert "resumed" not in said, said
        figures.begun_anew += 1
    elif said and not over:
        assert said.startswith(f"resumed at environment step {state['progress']['env_step']} of"), said
        figures.resumed += 1


def _check_end(folder: Path, whole: Whole) -> None:
    """No litter, and the same checkpoints are kept for good."""
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.path.iterdir()}
    found, wanted = ([p for p in _complete(f) if (p / "keep").exists()] for f in (folder, whole.path))
    assert len(_complete(folder)) == len(list((folder / "checkpoints").iterdir()))
    for one, other in zip(found, wanted, strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
