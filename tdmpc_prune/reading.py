"""Reads files that a stranger may have written: of a known size, from a real file, and shown without tricks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

JSON_BYTES = 1 << 20
"""A JSON file of a run, or a line of its metrics, has a few kilobytes: this is plenty."""
METRICS_BYTES = 1 << 29
"""Of a metrics.jsonl: some hundred thousand rows."""
DIGITS = 20
"""A whole number with more is none that a run has written."""
LARGEST_COUNT = 10**15
"""Of steps, updates or episodes."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file (a pipe would make us wait, a device would never end), or longer.
    """
    check_size(path, limit)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # some files, in /proc say, have no size
        raise ValueError(f"{path.name} has more than {limit:,} bytes")
    return content


def check_size(path: Path, limit: int) -> None:
    """Refuses what is no file of at most `limit` bytes; reads nothing.

    Raises:
        ValueError: see there.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing, or no file")
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{path.name} has {size:,} bytes, more than {limit:,}")


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The value that a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer, or no JSON.
    """
    return parse_json(read_bytes(path, limit), path.name)


def parse_json(text: bytes, name: str) -> Any:
    """The value that a JSON text stands for; `name`: what the message calls it.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds a number too long to be one.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def printable(text: str) -> str:
    r"""Text that does to a terminal, a page or a file what it looks like: all else is escaped, as \x1b is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere
        return 8 << 30


def read_rows(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, or of its first `size` bytes; a last line without its end does not count.

    Only numbers are kept: no other values are written there. They are read line by line.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file or too long, or a line is no row of metrics.
    """
    check_size(path, METRICS_BYTES)
    left = path.stat().st_size if size is None else size
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        while left > 0 and (line := file.readline(min(left, JSON_BYTES))).endswith(b"\n"):
            left -= len(line)
            rows.append(_row(line, f"line {len(rows) + 1} of {path.name}"))
        if left > JSON_BYTES or (size is not None and left):
            raise ValueError(f"line {len(rows) + 1} of {path.name} has no end")
    return rows


def _row(line: bytes, name: str) -> dict[str, Any]:
    row = parse_json(line, name)
    step = row.get("env_step") if isinstance(row, dict) else None
    if type(step) is not int or not 0 <= step <= LARGEST_COUNT:
        raise ValueError(f"{name} is no row of metrics")
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
