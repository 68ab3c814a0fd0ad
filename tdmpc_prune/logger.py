"""Where a run's measurements go: metrics.jsonl always, W&B beside it, progress on the terminal."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tdmpc_prune.config import WandbConfig
from tdmpc_prune.wandb_sink import WandbSink, wandb_mode

Row = Mapping[str, float | int]


class MetricsFile:
    """A JSON object a line; what was written after the checkpoint that a run resumes from is cut off."""

    def __init__(self, path: Path, size: int) -> None:
        """Opens the file at its first `size` bytes, of which it has as many."""
        path.touch()
        os.truncate(path, size)
        self._file = path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Appends a line and hands it to the operating system, or raises OSError and leaves none of it behind."""
        size, line = self._file.tell(), (json.dumps(row) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def sync(self) -> int:
        """Makes sure that all is on disk; returns the file's size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Logger:
    """Writes every row to all places."""

    def __init__(
        self,
        config: WandbConfig,
        *,
        folder: Path,
        metrics: Path,
        size: int,
        steps: int,
        step: int,
        settings: dict[str, Any],
    ) -> None:
        """Opens them at a checkpoint: `size` bytes of metrics, `step` of `steps` environment steps."""
        self.file = MetricsFile(metrics, size)
        mode = wandb_mode(config)
        self.wandb = (
            WandbSink(config, mode, folder=folder, metrics=metrics, settings=settings, say=self.say)
            if mode != "disabled"
            else None
        )
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def write(self, row: Row) -> None:
        """Appends a row of metrics."""
        self.file.write(row)
        if self.wandb:
            self.wandb.write(row)

    def progress(self, env_steps: int) -> None:
        """Moves the progress bar on."""
        self.bar.update(env_steps)

    def evaluation(self, env_step: int, mean: float, std: float) -> None:
        """Shows an evaluation."""
        self.bar.set_postfix_str(f"return {mean:.0f}")
        self.say(f"env step {env_step:>8,}   return {mean:7.1f} ± {std:.1f} over episodes")

    def removal(self, row: Row) -> None:
        """Shows a removal of units."""
        effect = ""
        for outcome, digits in (("return", 1), ("error", 4)):
            if row.keys() >= {f"prune/{outcome}_before", f"prune/{outcome}_after"}:
                before, after = row[f"prune/{outcome}_before"], row[f"prune/{outcome}_after"]
                effect = f"   {outcome} {before:.{digits}f} -> {after:.{digits}f}"
        against = row.get("prune/against_guard", 0)
        self.say(
            f"env step {row['env_step']:>8,}   removed {row['prune/removed_units']} units: "
            f"{row['prune/params']:,} parameters, sparsity {row['prune/sparsity']:.1%}{effect}"
            + (f"   {against} of them against the guard" if against else "")
        )

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on standard error."""
        tqdm.write(line, file=sys.stderr)

    def interrupted(self) -> None:
        """The run was asked to save and leave, and will be resumed."""
        if self.wandb:
            self.wandb.give_back()

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Closes all; `summary` is that of a finished run, or None."""
        self.bar.close()
        self.file.close()
        if self.wandb:
            self.wandb.close(summary)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl."""
    with path.open() as lines:
        return [json.loads(line) for line in lines]
