"""Tables and numbers as results/answers/ writes them."""

from __future__ import annotations

from collections.abc import Sequence

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


def cell(found: Estimate | None, digits: int = 0, seeds: int | None = None) -> str:
    """An interquartile mean with its interval, and how many seeds it is of."""
    if found is None:
        return NOTHING
    text = f"{found.value:.{digits}f}"
    if seeds != 1:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text if seeds is None else f"{text} ({seeds})"
