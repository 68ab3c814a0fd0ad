"""Where a run's measurements go: metrics.jsonl always, W&B beside it, progress on the terminal."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tdmpc_prune.config import WandbConfig

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


class WandbSink:
    """Mirrors metrics.jsonl to W&B, line by line.

    Line n of the file is step n of the W&B run. So a resumed run knows what W&B has: online, the lines
    that it lacks are sent; offline, where W&B can only begin anew, a run with the same id is written from
    the first line on, and replaces the one before.
    """

    def __init__(
        self, config: WandbConfig, mode: str, folder: Path, metrics: Path, settings: dict[str, Any]
    ) -> None:
        import wandb

        if mode == "offline":
            shutil.rmtree(folder / "wandb", ignore_errors=True)
        identity = folder / "wandb_id.txt"
        if not identity.exists() or not identity.read_text():
            identity.write_text(secrets.token_hex(4))
        self.run = wandb.init(
            id=identity.read_text(),
            resume="allow" if mode == "online" else None,
            mode=mode,  # type: ignore[arg-type]
            dir=folder,
            project=config.project,
            entity=config.entity,
            group=config.group or settings["task"],
            name=folder.name,
            tags=config.tags,
            config=settings,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("env_step")
        self.run.define_metric("*", step_metric="env_step")
        self.run.define_metric("pareto/*", step_metric="prune/sparsity")
        self._known = self.run.step
        self._line = 0
        with metrics.open() as lines:
            for line in lines:
                self.write(json.loads(line))

    def write(self, row: Row) -> None:
        """Logs the next line of metrics.jsonl, unless W&B has it."""
        if self._line >= self._known:
            self.run.log(dict(row) | _pareto(row))
        self._line += 1

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the W&B run; without a summary it counts as not finished."""
        if summary:
            self.run.summary.update(dict(summary))
        self.run.finish(exit_code=0 if summary else 1)


def _pareto(row: Row) -> dict[str, float | int]:
    """An evaluation of a pruned agent once more, for W&B's charts with sparsity on the x axis."""
    if "prune/sparsity" not in row:
        return {}
    return {f"pareto/{key}": row[f"eval/{key}"] for key in ("return", "error") if f"eval/{key}" in row}


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
        self.wandb = WandbSink(config, mode, folder, metrics, settings) if mode != "disabled" else None
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)
        if mode == "offline":
            self.say(f"W&B: offline; to send the run later: wandb sync {folder}/wandb/offline-run-*")
        elif self.wandb:
            self.say(f"W&B: {self.wandb.run.url}")

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
            if f"prune/{outcome}_before" in row:
                before, after = row[f"prune/{outcome}_before"], row[f"prune/{outcome}_after"]
                effect = f"   {outcome} {before:.{digits}f} -> {after:.{digits}f}"
        self.say(
            f"env step {row['env_step']:>8,}   removed {row['prune/removed_units']} units: "
            f"{row['prune/params']:,} parameters, sparsity {row['prune/sparsity']:.1%}{effect}"
        )

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on standard error."""
        tqdm.write(line, file=sys.stderr)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Closes all; `summary` is that of a finished run, or None."""
        self.bar.close()
        self.file.close()
        if self.wandb:
            self.wandb.close(summary)


def wandb_mode(config: WandbConfig) -> str:
    """`auto` decided: online where the user is logged in, else offline. Imports nothing."""
    if config.mode != "auto":
        return config.mode
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline", "disabled"):
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_entry() else "offline"


def _has_netrc_entry() -> bool:
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = base.split("//")[-1].split("/")[0].split(":")[0]
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc(path).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl."""
    with path.open() as lines:
        return [json.loads(line) for line in lines]
