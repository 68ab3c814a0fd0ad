"""Seconds from the start of the process until help is printed, and until `train` makes its first step.

    python -m benchmarks.startup --repeats 5

`train` evaluates the new agent before it learns: its first environment step is the evaluation's, the first one that
it learns from comes after ten episodes. Both are shown. A child takes the time when they are over, and then sends
itself the SIGTERM by which a run saves and leaves. "first start" has no bytecode, as after an installation that
compiles none; the files themselves are in memory either way. CPU seconds are for machines that do other things, too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from tdmpc_prune.commands.common import print_json, show_table

ROOT = Path(__file__).parents[1]

Seconds = tuple[float, float]
"""Wall and CPU seconds since the process began."""

HELP: dict[str, list[str]] = {
    "--help": ["--help"],
    "train --help": ["train", "--help"],
    "train with an unknown task": ["train", "no-such-task"],
}
"""Commands that end by themselves, timed as a whole."""

CHILD = """
import json, os, signal, sys, time

started, times = float(sys.argv.pop(1)), {}


def timed(kind, name):
    step = kind.step

    def first(self, *arguments):
        result = step(self, *arguments)
        times[name] = time.time() - started, time.process_time()
        kind.step = step
        if name == "training step":
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    kind.step = first


from envs.wrappers import ActionRepeat
from tdmpc_prune.cli import main
from tdmpc_prune.collect import Collector

timed(ActionRepeat, "environment step")
timed(Collector, "training step")
main(sys.argv[1:])
print(json.dumps(times))
"""


@dataclass(frozen=True)
class Options:
    """Times help, and the first steps of a training."""

    task: str = "cartpole-swingup"
    """Task that is trained on."""
    wandb: tuple[str, ...] = ("disabled", "offline")
    """Modes of W&B; auto is offline where nobody is logged in."""
    threads: int = 0
    """PyTorch's threads; 0: one per core, at most 4."""
    repeats: int = 5
    """Starts of each command, in turn."""
    json: bool = False
    """Print one JSON object."""


def seconds_to_end(words: Sequence[str], environment: dict[str, str]) -> Seconds:
    """Those of a whole command."""
    start, cpu = time.perf_counter(), _cpu_of_children()
    subprocess.run(
        [sys.executable, "-m", "tdmpc_prune", *words],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
    )
    return time.perf_counter() - start, _cpu_of_children() - cpu


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_to_steps(words: Sequence[str], environment: dict[str, str]) -> dict[str, Seconds]:
    """Those until the first environment step, and the first training step, of `train WORDS` are over."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(time.time()), "train", *words, "--run-dir", f"{folder}/run"],
            cwd=ROOT,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.stdout, done.stderr
    times: dict[str, Seconds] = json.loads(done.stdout.splitlines()[-1])
    assert len(times) == 2, done.stderr
    return times


def start_all(options: Options, environment: dict[str, str]) -> dict[str, Seconds]:
    """Every command once."""
    found = {name: seconds_to_end(words, environment) for name, words in HELP.items()}
    for mode in options.wandb:
        words = [options.task, "--wandb.mode", mode, "--threads", str(options.threads)]
        for step, seconds in seconds_to_steps(words, environment).items():
            found[f"train, W&B {mode}: {step}"] = seconds
    return found


def main(options: Options) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as empty:
        first = start_all(options, {**os.environ, "PYTHONPYCACHEPREFIX": empty})
    start_all(options, dict(os.environ))  # whoever had no bytecode has it now
    warm = [start_all(options, dict(os.environ)) for _ in range(options.repeats)]
    rows = [
        {
            "seconds until": name,
            "first start": round(first[name][0], 2),
            "median": round(median(run[name][0] for run in warm), 2),
            "CPU": round(median(run[name][1] for run in warm), 2),
        }
        for name in first
    ]
    if options.json:
        print_json({"threads": options.threads, "repeats": options.repeats, "rows": rows})
    else:
        show_table(rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
