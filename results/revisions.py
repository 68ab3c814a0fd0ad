"""Changes of the code after which the same command gives other numbers.

What was recorded before one stays until it is made again: tables say so, and `make results` counts it as missing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.run_folder import earlier, flatten

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Revision:
    """One such change. What comes as a setting is none: runs with it have other names."""

    commit: str
    """The first that has it."""
    what: str
    """After "before ...", in a table's footnote."""
    touches: Callable[[Settings], bool]
    """Which runs, by their settings under dotted names."""


def _prunes(own: Settings) -> bool:
    return own.get("prune.criterion", "none") != "none"


def _calibrated(own: Settings) -> bool:
    return _prunes(own) and own["prune.allocation"] == "calibrated"


def _compensated_agent(own: Settings) -> bool:
    return own["task"] != AUTOENCODER and _prunes(own) and own["prune.compensation"] != "none"


REVISIONS = (
    Revision(
        "74cddbee1a40",
        "environments took their ELU from exp2",
        lambda own: own["task"] != AUTOENCODER,
    ),
    Revision(
        "660921a688a5",
        "compensation knew what LayerNorm over fewer units does",
        _compensated_agent,
    ),
    Revision(
        "418bd69b56e7",
        "`calibrated` measured before the first removal",
        _calibrated,
    ),
    Revision(
        "173e21a0bc0f",
        "`calibrated` measured anew where the return had risen by a quarter",
        # An autoencoder's decibels rise by 3% at most from one calibration to the next.
        lambda own: own["task"] != AUTOENCODER and _calibrated(own),
    ),
)


def overtaken(config: Mapping[str, Any], commit: str | None) -> Revision | None:
    """The first revision that a run was made before and that would give it other numbers.

    Args:
        config: as a run's config.json holds it.
        commit: of the code that made the run, as `provenance` says it. One that git does not know here may be
            anything, as may None: both count as today's.
    """
    own = earlier(flatten(dict(config)))
    for revision in REVISIONS:
        if _short(commit) in _before(revision.commit) and revision.touches(own):
            return revision
    return None


def _short(commit: str | None) -> str:
    found = re.search(r"([0-9a-f]{12})(-dirty)?$", commit or "")
    return found[1] if found else ""


@cache
def _before(commit: str) -> frozenset[str]:
    """All commits before one; none where there is no history to ask."""
    words = ["git", "rev-list", f"{commit}^"]
    try:
        asked = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return frozenset()
    return frozenset(line[:12] for line in asked.stdout.split())
