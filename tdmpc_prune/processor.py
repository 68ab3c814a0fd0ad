"""What computes here, by name."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, and on Linux its family and model: names may be as little as `AMD EPYC`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in said:
        return platform.processor() or platform.machine()
    kind = f" {said['cpu family']}/{said['model']}" if {"cpu family", "model"} <= said.keys() else ""
    return said["model name"] + kind
