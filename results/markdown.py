"""Tables and numbers as results/answers/ writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from tdmpc_prune.analysis.statistics import Estimate

NOTHING = "-"
Row = dict[str, str]


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table."""
    if not rows:
        return "Nothing is recorded yet."
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=align)


def cell(found: Estimate | None, digits: int = 0, seeds: int | None = None, *, counted: bool = True) -> str:
    """An interquartile mean with its interval, if it is of more than one seed, and how many it is of."""
    if found is None:
        return NOTHING
    text = f"{found.value:.{digits}f}"
    if seeds != 1:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text if seeds is None or not counted else f"{text} ({seeds})"


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table that is written anew."""
    return f"<!-- {name} -->\n", f"<!-- /{name} -->"


def put(page: Path, name: str, table: str) -> None:
    """Writes a table between its marks, in place of what stood there."""
    start, end = marks(name)
    before, found, rest = page.read_text().partition(start)
    assert found, f"{page} has no marks for {name}"
    page.write_text(f"{before}{start}{table}\n{end}{rest.partition(end)[2]}")
