"""The tables of results/answers/, from what is recorded; each stands between two marks that name its study."""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from results.markdown import NOTHING, Row, cell, markdown, marks, put
from results.measurements import MEASURED_TABLES, control, damage, sensitivity
from results.run import Measurement, Work
from results.store import Store
from results.studies import CRITERIA, STUDIES, TASKS
from results.trials import EARLY, Trial
from tdmpc_prune.analysis.dip import course, mean_between, window
from tdmpc_prune.analysis.report.groups import RunGroup, Section, percent, sections
from tdmpc_prune.analysis.report.numbers import estimate, fall
from tdmpc_prune.analysis.report.results import GroupResult, results
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.report.timing import Timings
from tdmpc_prune.analysis.statistics import Estimate

ANSWERS = Path(__file__).parent / "answers"
PUBLISHED = Path(__file__).parent / "published_tdmpc.csv"


def write(store: Store, pages: Path = ANSWERS) -> None:
    """Puts every study's table between its marks, on whichever page has them."""
    for name in STUDIES:
        [page] = (page for page in pages.glob("*.md") if marks(name)[0] in page.read_text())
        table = TABLES[name](recorded(name, store)) if name in TABLES else MEASURED_TABLES[name]()
        put(page, name, "\n\n".join([table, *footnotes(STUDIES[name].work(), store)]))


def recorded(study: str, store: Store) -> list[Section]:
    """The recorded runs of a study, sorted into tasks and groups as `tdmpc-prune report` does."""
    names = recorded_names(study, store)
    if not names:
        return []
    with tempfile.TemporaryDirectory() as folder:
        return sections(read_runs(store.unpack(names, Path(folder))))


def recorded_names(study: str, store: Store) -> list[str]:
    """What is recorded of a study's trainings."""
    trials = [one for one in STUDIES[study].work() if isinstance(one, Trial)]
    return list(dict.fromkeys(one.name for one in trials if store.has(one.name)))


def footnotes(work: Iterable[Work], store: Store) -> list[str]:
    """What a table of this work shows that today's code would give other numbers, a sentence for each reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in work:
        if isinstance(one, Measurement):
            before, name, seed = one.overtaken, f"measured/{one.name}.json", ""
        else:
            before = store.overtaken(one.name)
            name, _, seed = one.name.rpartition(" seed=")
        if before:
            seeds = found.setdefault(before.what, {}).setdefault(name, [])
            seeds.extend([seed] if seed and seed not in seeds else [])
    return [f"Made before {what}: {_listed(runs)}." for what, runs in found.items()]


def _listed(runs: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(
        f"`{name}`" + (f" (seed {', '.join(seeds)})" if seeds else "") for name, seeds in runs.items()
    )


def came_to(section: Section) -> list[GroupResult]:
    """Every group in numbers, nothing timed."""
    return results(section, Timings({}, ""))


# Parts of tables


def matrix(section: Section, value: Callable[[GroupResult], Estimate | None], digits: int = 0) -> list[Row]:
    """Criteria down, sparsities across; the number of seeds in brackets."""
    found = came_to(section)
    kept = [r for r in found if not r.group.dense]
    targets = sorted({r.group.target for r in kept})
    rows: dict[str, Row] = {}
    for result in sorted(
        kept, key=lambda r: (MANNERS.index(manner(r.group)), CRITERIA.index(criterion(r.group)))
    ):
        name = ", ".join(filter(None, (criterion(result.group), manner(result.group))))
        row = rows.setdefault(name, dict.fromkeys(map(percent, targets), NOTHING))
        row[percent(result.group.target)] = cell(value(result), digits, len(result.group.counted))
    whole = next((r for r in found if r.group.dense and not is_small(r.group, section)), None)
    for result in found:
        if result.group.dense and is_small(result.group, section) and whole and targets:
            row = rows.setdefault("dense, this small", dict.fromkeys(map(percent, targets), NOTHING))
            gone = 1 - (result.parameters or 0) / (whole.parameters or 1)
            nearest = percent(min(targets, key=lambda t: abs(t - gone)))
            row[nearest] = cell(value(result), digits, len(result.group.counted))
    if whole:
        row = rows.setdefault("dense", dict.fromkeys(map(percent, targets), ""))
        row[percent(targets[0]) if targets else percent(0)] = cell(
            value(whole), digits, len(whole.group.counted)
        )
    return [{"": name} | row for name, row in rows.items()]


def criterion(group: RunGroup) -> str:
    """What a pruned group is pruned by."""
    return str(group.settings["prune.criterion"])


MANNERS = ("", "coupling whole", "global", "calibrated", "surgeon", "residual", "cut only")
"""How units go, in the order of a table's rows; first by their scores, compensated."""


def manner(group: RunGroup) -> str:
    """Which of `MANNERS` a pruned group's is."""
    if group.settings.get("prune.compensation", "none") == "none":
        return "cut only"
    if group.settings.get("prune.limits.coupling") == 0:
        return "coupling whole"
    if (allocation := group.settings.get("prune.allocation", "uniform")) != "uniform":
        return str(allocation)
    selection = str(group.settings.get("prune.selection", "scores"))
    return "" if selection == "scores" else selection


def is_small(group: RunGroup, section: Section) -> bool:
    """Whether a group's agent was smaller than the others' from the beginning on."""
    width = "agent.hidden_dim"
    preset = group.settings.get("preset")
    alike = [g.settings.get(width, 0) for g in section.groups if g.settings.get("preset") == preset]
    return group.settings.get(width, 0) < max(alike)


def called(group: RunGroup, section: Section) -> str:
    """What a table calls a group, in short: its settings by their last names, and widths of small agents alone."""
    if not group.dense or is_small(group, section):
        return re.sub(r"prune\.(limits\.(component\.)?)?", "", group.label)
    said = ["going on"] if group.settings.get("init_from") else []
    explored = "agent.schedule_steps"
    if len({g.settings.get(explored) for g in section.groups if g.kind == group.kind}) > 1:
        said.append(f"{explored} {group.settings[explored]}")
    return f"{group.kind} ({', '.join(said)})" if said else group.kind


def window_share(result: GroupResult, section: Section) -> Estimate | None:
    """The mean return while units are removed over the dense runs' at the same time, seed by seed."""
    reference = section.reference(result.group)
    if reference is None or result.group.dense:
        return None
    if bool(reference.settings.get("init_from")) != bool(result.group.settings.get("init_from")):
        return None  # what goes on from another run counts its steps anew
    dense = {run.seed: run for run in reference.runs}
    shares = []
    for run in result.group.counted:
        if run.seed in dense and run.removals:
            own, other = (mean_between(course(one.rows), *window(run.rows)) for one in (run, dense[run.seed]))
            if own and other:
                shares.append(100 * own / other)
    return estimate(shares)


def largest_fall(result: GroupResult, section: Section) -> Estimate | None:
    """The most that the return fell at a removal, from right before to right after, over seeds."""
    falls = [fall(run, section, result.dense) for run in result.group.counted]
    return estimate([found.get("largest_drop") for found in falls])


def each_group(section: Section) -> list[Row]:
    """A row a group: the end, the pruning window and the dip."""
    return [_row(result, section) for result in came_to(section)]


def _row(result: GroupResult, section: Section) -> Row:
    seeds = len(result.group.counted)
    shown = partial(cell, seeds=seeds, counted=False)
    return {
        section.task: called(result.group, section),
        "seeds": str(seeds),
        "end": shown(result.end),
        "end, % of dense": shown(_percent(result.share)),
        "window": shown(result.window),
        "by size": shown(result.by_size),
        "window, % of dense": shown(window_share(result, section)),
        "lowest": shown(result.worst),
        "largest fall": shown(largest_fall(result, section)),
        "parameters": NOTHING if result.parameters is None else f"{result.parameters:,.0f}",
    }


def _percent(share: Estimate | None) -> Estimate | None:
    return share and Estimate(100 * share.value, 100 * share.low, 100 * share.high)


# The studies' tables


def agent(parts: Sequence[Section]) -> str:
    """Dense agents beside the published ones, at the last step that both have."""
    published_ones = published()
    rows = []
    for section in sorted(parts, key=lambda s: TASKS.index(s.task)):
        for result in came_to(section):
            step = max(run.env_step for run in result.group.counted)
            theirs = [r for r in published_ones if r["task"] == section.task and int(r["env_step"]) == step]
            said = [f"{float(r['return']):.0f} ± {float(r['return_std']):.0f}" for r in theirs]
            settings = result.group.settings
            rows.append(
                {
                    "task": section.task,
                    "sizes": str(settings.get("preset", "laptop")),
                    "explores for": f"{settings['agent.schedule_steps']:,}",
                    "steps": f"{step:,}",
                    "ours": cell(result.end, 0, len(result.group.counted)),
                    "published": said[0] if said else NOTHING,
                }
            )
    return markdown(rows)


def criteria(parts: Sequence[Section]) -> str:
    """Ends, windows (by time and by size) and dips, criterion by sparsity."""
    text = []
    for section in parts:
        for title, value in (
            ("return in the end", lambda r: r.end),
            ("mean return while units are removed", lambda r: r.window),
            ("the same by size, every halving of the parameters weighing alike", lambda r: r.by_size),
            ("lowest return right after a removal", lambda r: r.worst),
            ("largest fall of the return at a removal", lambda r, s=section: largest_fall(r, s)),
        ):
            rows = matrix(section, value)
            if value(came_to(section)[-1]) is not None or title.endswith("end"):
                keep = rows if title.endswith("end") else [r for r in rows if not r[""].startswith("dense")]
                text.append(f"{section.task}, {title}:\n\n{markdown(keep)}")
    return "\n\n".join(text) or markdown([])


def listed(parts: Sequence[Section]) -> str:
    """A table a task, a row a group."""
    return "\n\n".join(markdown(each_group(section)) for section in parts) or markdown([])


def autoencoder(parts: Sequence[Section]) -> str:
    """Errors, criterion by sparsity."""
    return "\n\n".join(
        f"Squared error per pixel in the end (thousandths):\n\n{markdown(matrix(section, _thousandths, 1))}"
        for section in parts
    ) or markdown([])


def _thousandths(result: GroupResult) -> Estimate | None:
    e = result.end
    return e and Estimate(1e3 * e.value, 1e3 * e.low, 1e3 * e.high)


def published() -> list[dict[str, str]]:
    """Returns of the public TD-MPC code over 5 seeds."""
    with PUBLISHED.open() as file:
        return list(csv.DictReader(file))


def allocation(parts: Sequence[Section]) -> str:
    """What each allocation came to, and what each group's units are worth to the loss and to the return."""
    return "\n\n".join([listed(parts), *sensitivity("allocation"), *damage()])


def harder(parts: Sequence[Section]) -> str:
    """What each course came to, what each part is worth, and how long the larger agent's plans take."""
    courses: dict[str, list[Row]] = {title: [] for title in COURSES}
    for section in parts:
        for result in came_to(section):
            courses[_course(result.group)].append(_row(result, section))
    text = [f"{title}:\n\n{markdown(rows)}" for title, rows in courses.items() if rows]
    return "\n\n".join([*(text or [markdown([])]), *sensitivity("harder"), *control("harder")])


COURSES = DENSE, LEARNING, AFTER, PAPER, BRIEFLY = (
    "Dense",
    "90% removed while it learns",
    "Removed after it has learned",
    "In the paper's sizes",
    f"90% removed while it learns, after exploring for {EARLY:,} of its steps (the preset of then)",
)


def _course(group: RunGroup) -> str:
    """Which of the tables of `harder` a group belongs to."""
    settings = group.settings
    if settings.get("preset") == "paper":
        return PAPER
    if group.dense:
        return DENSE
    if settings.get("init_from"):
        return AFTER
    return BRIEFLY if settings["agent.schedule_steps"] == EARLY else LEARNING


TABLES: dict[str, Callable[[Sequence[Section]], str]] = {
    "agent": agent,
    "criteria": criteria,
    "walker": listed,
    "removals": listed,
    "selection": listed,
    "harder": harder,
    "allocation": allocation,
    "autoencoder": autoencoder,
}
