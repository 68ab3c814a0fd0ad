"""`tdmpc-prune report`: a page that shows runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdmpc_prune.commands.common import CommandConfig, print_json
from tdmpc_prune.config import Device
from tdmpc_prune.reading import printable


@dataclass(frozen=True, kw_only=True)
class ReportConfig(CommandConfig):
    """Shows runs side by side: one HTML page that needs nothing else, and its figures as PNG files.

    Runs that differ in their seed alone are taken together. Unfinished ones are shown, and said to be so.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, and folders that hold run folders."""
    out: Path
    """Folder of the report; one that holds a report is written anew."""
    latency: Literal["measured", "logged", "none"] = "measured"
    """Milliseconds per control step: measured here and now, or as the runs logged them on their machines."""
    device: Device = "cpu"
    """Where to measure."""
    threads: int = 1
    """PyTorch's threads on the CPU; 0: OMP_NUM_THREADS where it is set, else one per core, at most 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("there is no run: give at least one run folder")


def run(config: ReportConfig) -> int:
    """Writes a report and prints where its page is."""
    from tdmpc_prune.analysis.report.page import make_report

    device = config.compute_on()
    report = make_report(config.runs, config.out, config.latency, device)
    if config.json:
        print_json(report)
    else:
        print(printable(report["page"]))
    return 0
