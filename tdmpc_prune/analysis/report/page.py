"""The report itself: one page that needs nothing beside it, and its figures as PNG files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from tqdm import tqdm

from tdmpc_prune import __version__
from tdmpc_prune.analysis.report import words
from tdmpc_prune.analysis.report.canvas import Picture, slug
from tdmpc_prune.analysis.report.groups import Section, sections
from tdmpc_prune.analysis.report.pictures import pictures
from tdmpc_prune.analysis.report.results import GroupResult, results
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.report.timing import Source, Timings, control_periods, time_runs
from tdmpc_prune.errors import UserError
from tdmpc_prune.places import check_folder

if TYPE_CHECKING:
    import torch

PAGE = "index.html"
TEMPLATE = "template.html.j2"
GENERATOR = "tdmpc-prune report"
MARK = f'<meta name="generator" content="{GENERATOR}'
"""By it a report's page is known from any other."""


@dataclass(frozen=True)
class Part:
    """What the page says about one task."""

    section: Section
    """Its runs."""
    results: Sequence[GroupResult]
    """Their numbers."""
    pictures: Sequence[Picture]
    """Its figures."""
    findings: Sequence[str]
    """What was compared and what came out."""
    remarks: Sequence[str]
    """What to know before reading the numbers."""


def make_report(paths: Sequence[Path], out: Path, source: Source, device: torch.device) -> dict[str, Any]:
    """Reads runs, times their controllers and writes the report; nothing is written before all is known.

    Args:
        paths: run folders, and folders that hold some.
        out: folder of the report; made if it is not there, written anew if it is a report.
        source: where milliseconds come from.
        device: where to measure them.

    Returns:
        `page` and `figures` (paths), `groups` (their numbers).

    Raises:
        UserError: a run cannot be read, or `out` holds something else or cannot be written to.
    """
    _check_out(out)
    parts = sections(read_runs(paths))
    runs = [run for section in parts for run in section.runs]
    timings = time_runs(runs, source, device)
    periods = {} if source == "none" else control_periods(runs)
    shown = []
    for section, prefix in zip(parts, _prefixes(parts), strict=True):
        found = results(section, timings)
        drawing = pictures(section, found, timings, periods, prefix)
        drawn = list(tqdm(drawing, desc=f"figures of {section.task}", unit="figure", disable=None))
        said = words.findings(section, found, timings, periods)
        shown.append(Part(section, found, drawn, said, words.remarks(section, found)))
    names = _write(out, _render(shown, timings), [picture for part in shown for picture in part.pictures])
    return {
        "page": str(out / PAGE),
        "figures": [str(out / name) for name in names],
        "groups": [result.to_json() for part in shown for result in part.results],
    }


def _prefixes(parts: Sequence[Section]) -> list[str]:
    """Of the files' names: the task, where there are several."""
    if len(parts) == 1:
        return [""]
    return [slug(str(number), section.task) for number, section in enumerate(parts, start=1)]


def _render(parts: Sequence[Part], timings: Timings) -> str:
    # What is not marked as safe is escaped: names, commands and tags are what somebody typed.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {name: getattr(words, name) for name in WORDS}
    template = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        generator=f"{GENERATOR} {__version__}",
        parts=parts,
        timings=timings,
        total=sum(len(part.section.runs) for part in parts),
        slug=slug,
    )


WORDS = ("number", "share", "shares", "multiples", "interval", "plural", "status", "seeds_of")
"""What the template may call."""


# The folder


def _check_out(out: Path) -> None:
    """Refuses a folder that cannot be written to, or holds something that is no report; changes nothing."""
    check_folder("--out", out)
    try:
        if out.is_dir() and any(out.iterdir()) and not _is_report(out):
            raise UserError(f"--out {out} holds something that is no report: choose another folder")
    except OSError as error:
        raise UserError(f"--out {out} cannot be read ({error.strerror}): choose another folder") from error


def _is_report(out: Path) -> bool:
    page = out / PAGE
    return page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")[:2000]


def _write(out: Path, page: str, drawn: Sequence[Picture]) -> list[str]:
    """Writes the figures and, last, the page; figures of the report before go. Returns the figures' names."""
    names = [f"{picture.name}.png" for picture in drawn]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for picture, name in zip(drawn, names, strict=True):
            (out / name).write_bytes(picture.png)
        index = out / PAGE
        before = index.read_text(encoding="utf-8", errors="replace") if index.exists() else ""
        index.write_text(page, encoding="utf-8")
        for name in set(re.findall(r'href="([\w.-]+\.png)"', before)) - set(names):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another --out") from error
    return names
