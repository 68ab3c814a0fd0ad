"""Trains and prunes for a given time, and watches memory and the time of a step.

python -m benchmarks.soak --minutes 60 --csv soak.csv
"""

from __future__ import annotations

import contextlib
import csv
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from tdmpc_prune.cli import parse
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.train import train
from tdmpc_prune.training import Training

RUN = ["--steps", "3000000", "--prune.start", "0", "--prune.end", "1", "--prune.events", "100"]
"""Longer than any soak, with a removal every 30,000 environment steps from the beginning on."""


@dataclass(frozen=True)
class Options:
    """How long, and what."""

    minutes: float = 60
    """Time to train for."""
    task: str = "cartpole-swingup"
    """Task to train on."""
    capacity: int = 10_000
    """Rows of the replay buffer: memory should grow no more once it is full."""
    threads: int = 1
    """PyTorch's threads: with more of them, whatever else runs here shows in the time of a step."""
    every: float = 1.0
    """Seconds between two samples."""
    csv: Path = Path("soak.csv")
    """Where the samples go."""


class Watch:
    """Samples a run: seconds, steps and updates so far, rows in replay, resident memory."""

    def __init__(self, options: Options) -> None:
        self.options, self.process, self.start = options, psutil.Process(), time.perf_counter()
        self.samples: list[dict[str, float]] = []
        self.run: Training | None = None

    def look(self) -> None:
        """Takes a sample if it is time for one, and ends the run if its time is over."""
        seconds = time.perf_counter() - self.start
        if self.run is None or (self.samples and seconds < self.samples[-1]["seconds"] + self.options.every):
            return
        self.samples.append(
            {
                "seconds": round(seconds, 2),
                "agent_step": self.run.progress.agent_step,
                "update": self.run.agent.updates,
                "replay_rows": len(self.run.replay),
                "rss_mib": round(self.process.memory_info().rss / 2**20, 2),
            }
        )
        if seconds > 60 * self.options.minutes:
            raise Interrupted("time is over")


def main(options: Options) -> None:
    """Trains, writes the samples and prints what they say."""
    watch = Watch(options)
    check, build = StopSignals.check, Training._build

    def checked(self: StopSignals) -> None:
        watch.look()
        check(self)

    def built(self: Training, state: object) -> None:
        watch.run = self
        build(self, state)

    StopSignals.check, Training._build = checked, built
    with tempfile.TemporaryDirectory() as place:
        words = ["--run-dir", f"{place}/run", "--wandb.mode", "disabled", "--threads", str(options.threads)]
        words += ["--agent.replay.capacity", str(options.capacity), *RUN]
        with contextlib.suppress(Interrupted):
            train(parse(["train", options.task, *words]))
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, watch.samples[0].keys())
        writer.writeheader()
        writer.writerows(watch.samples)
    report(watch.samples)


def report(samples: list[dict[str, float]]) -> None:
    """Prints memory once the replay is full against the end, its slope, and first against last step times."""
    largest = max(s["replay_rows"] for s in samples)
    full = [s for s in samples if s["replay_rows"] >= 0.99 * largest]
    slope = statistics.linear_regression([s["seconds"] for s in full], [s["rss_mib"] for s in full]).slope
    print(f"samples                        {len(samples)}, over {samples[-1]['seconds'] / 60:.1f} minutes")
    print(f"memory when the replay is full {full[0]['rss_mib']:.1f} MiB, at {full[0]['seconds']:.0f} s")
    print(f"memory in the end              {full[-1]['rss_mib']:.1f} MiB")
    print(f"slope in between               {3600 * slope:+.2f} MiB per hour")
    quarter = max(len(full) // 4, 2)
    for name, part in (("first", full[:quarter]), ("last", full[-quarter:])):
        seconds = part[-1]["seconds"] - part[0]["seconds"]
        updates = part[-1]["update"] - part[0]["update"]
        print(
            f"{name} quarter after that: {1e3 * seconds / max(updates, 1):9.2f} ms per update, all included"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
