"""What the commands on finished runs have in common: where to compute, and how to show a result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc_prune.config import Device, check_threads
from tdmpc_prune.errors import UserError
from tdmpc_prune.reading import printable

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
"""JSON values by name."""
PICTURES = (".png", ".svg")
"""Endings of files that are drawn into."""


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """Where to compute, and how to show what was found."""

    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""
    device: Device = "auto"
    """auto: a CUDA GPU where there is one."""
    threads: int = 0
    """PyTorch's threads on the CPU; 0: OMP_NUM_THREADS where it is set, else one per core, at most 4."""

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def compute_on(self) -> torch.device:
        """Sets the threads and returns the device.

        Raises:
            UserError: CUDA was asked for and is not there.
        """
        from tdmpc_prune.device import choose_device, set_threads

        set_threads(self.threads)
        return choose_device(self.device)


def print_json(result: Result) -> None:
    """Prints one strict JSON object on a line: what is no finite number is null."""
    print(json.dumps(_strict(result), allow_nan=False))


def _strict(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _strict(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_strict(inner) for inner in value]
    return value


def show(result: Result, *, as_json: bool) -> None:
    """Prints a result as one JSON object, or its single values as a table."""
    if as_json:
        print_json(result)
        return
    shown = {k: v for k, v in result.items() if v is not None and not isinstance(v, list | dict)}
    width = max((len(k) for k in shown), default=0)
    for key, value in shown.items():
        print(f"{printable(key.replace('_', ' ')):<{width}}  {value if key == 'seed' else formatted(value)}")


def show_rows(heading: str, rows: Sequence[Result], *, as_json: bool) -> None:
    """Prints rows and what they were measured on, as one JSON object or as a table."""
    if as_json:
        print_json({"measured on": heading, "rows": list(rows)})
        return
    print(f"{heading}\n")
    show_table(rows)


def show_table(rows: Sequence[Result]) -> None:
    """Prints rows, which have the same keys, as a table with aligned columns; None is left blank."""
    from tabulate import tabulate

    text = [
        {printable(key.replace("_", " ")): formatted(value) for key, value in row.items()} for row in rows
    ]
    numbers = [all(isinstance(row[key], int | float | None) for row in rows) for key in rows[0]]
    align = ["right" if number else "left" for number in numbers]
    print(tabulate(text, headers="keys", tablefmt="simple", disable_numparse=True, colalign=align))


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a figure where `--plot` says.

    Raises:
        UserError: there is no writing there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"--plot {path}: cannot write ({error.strerror})") from error


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without what they have in common in front; a single one as its last part."""
    parts = [Path(path).parts for path in paths]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [str(Path(*p[shared:])) for p in parts]


def formatted(value: Any) -> str:
    """A value as people read it: 12,345, 857.12, 0.0123."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4g}"
        case int():
            return f"{value:,}"
    return printable(str(value))
