"""Numbers and findings as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tdmpc_prune.analysis.dip import RECOVERED
from tdmpc_prune.analysis.report.groups import RunGroup, Section, percent
from tdmpc_prune.analysis.report.results import GroupResult
from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.analysis.report.timing import Timings
from tdmpc_prune.analysis.statistics import Estimate

UNKNOWN = "\N{EN DASH}"
HELD = {
    2: "half the time (it is their range)",
    3: "three times in four (their range)",
    4: "nine times in ten",
    5: "nine times in ten",
}
"""How often the 95% bootstrap interval of so many normal values holds their mean."""


def number(value: float | None) -> str:
    """A number without digits that mean nothing: 12,345, 857, 3.21, 0.00513."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share in percent, to a tenth."""
    return UNKNOWN if value is None else percent(round(value, 3))


def compared(of_dense: Estimate, section: Section) -> str:
    """A share of the dense return in percent, a multiple of the dense error in words."""
    return f"{share(of_dense.value)} of" if section.sign > 0 else f"{number(of_dense.value)} times"


def interval(found: Estimate | None, seeds: int = 2) -> str:
    """A value and its interval: 857 [849, 866]; of one seed there is none."""
    if found is None:
        return UNKNOWN
    return number(found.value) + (f" [{number(found.low)}, {number(found.high)}]" if seeds > 1 else "")


def shares(found: Estimate | None, seeds: int = 2) -> str:
    """A share in percent and its interval: 98.4% [97.2, 99.1]; of one seed there is none."""
    if found is None:
        return UNKNOWN
    reach = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if seeds > 1 else ""
    return share(found.value) + reach


def multiples(found: Estimate | None, seeds: int = 2) -> str:
    """A multiple and its interval: 1.46\N{MULTIPLICATION SIGN} [1.4, 1.51]; of one seed there is none."""
    if found is None:
        return UNKNOWN
    reach = f" [{number(found.low)}, {number(found.high)}]" if seeds > 1 else ""
    return number(found.value) + "\N{MULTIPLICATION SIGN}" + reach


def plural(count: int, word: str) -> str:
    """3 runs, 1 run."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def status(run: ReportRun) -> str:
    """Whether a run is finished, and if not how far it is, and what its sweep says of it."""
    if run.finished:
        return "finished"
    far = f"{run.env_step:,} of {int(run.settings['steps']):,} steps"
    return f"unfinished ({far}{'; ' * bool(run.fate)}{run.fate})"


def findings(
    section: Section, results: Sequence[GroupResult], timings: Timings, periods: Mapping[Path, float]
) -> list[str]:
    """What a task's runs showed, a sentence each: what was compared first, the headline numbers after it."""
    return [
        _compared(section),
        *_dense(section, results),
        *_best(section, results),
        *_most_pruned(section, results),
        *_deepest(section, results),
        *_time(section, results, timings, periods),
    ]


def remarks(section: Section, results: Sequence[GroupResult]) -> list[str]:
    """What a reader must know to read a task's numbers right."""
    said = []
    for group in section.groups:
        if unfinished := [run.name for run in group.runs if not run.finished]:
            counts = "counts as its end" if len(unfinished) == len(group.runs) else "does not count as an end"
            said.append(
                f"{group.label}: unfinished: {', '.join(unfinished)}. What such a run has reached so far {counts}."
            )
        if twice := [seed for seed, count in Counter(run.seed for run in group.counted).items() if count > 1]:
            seeds = ", ".join(map(str, twice))
            said.append(f"{group.label}: more than one run with seed {seeds}; each counts as one more seed.")
    for group in section.groups:
        dense = section.reference(group)
        steps = [g.settings.get("steps") for g in (group, dense) if g]
        if not group.dense and len(set(steps)) > 1 and not group.settings.get("init_from"):
            own, other = (f"{step:,}" if isinstance(step, int) else "?" for step in steps)
            said.append(
                f"{group.label}: trained for {own} steps, the unpruned runs it is compared with for {other}."
            )
    for group in section.groups:
        said += _calibrations(group)
    if few := [r.group.label for r in results if len(r.group.counted) == 1]:
        said.append(f"One seed, and so no interval: {'; '.join(few)}.")
    if sizes := sorted({len(r.group.counted) for r in results} & HELD.keys()):
        held = "; ".join(f"of {size} seeds {HELD[size]}" for size in sizes)
        said.append(
            f"Intervals of few seeds hold what many would tell less often than 95 times in 100: {held}."
        )
    return said


def _calibrations(group: RunGroup) -> Iterator[str]:
    """What it took to find out what the return can spare, beside training; an autoencoder has no episodes."""
    each = group.settings.get("prune.calibration_episodes")
    measured = [
        sum(row.get("prune/calibration_measurements", 0) for row in run.removals) for run in group.runs
    ]
    if isinstance(each, int) and group.runs[0].outcome == "return" and any(measured):
        episodes = ", ".join(f"{int(count) * each:,}" for count in measured)
        yield f"{group.label}: {episodes} episodes more went into calibration, run by run."


def _compared(section: Section) -> str:
    runs = section.runs
    seeds = sorted({run.seed for run in runs})
    groups = plural(len(section.groups), "group")
    return f"{plural(len(runs), 'run')} of {section.task} in {groups}, seed{'s' * (len(seeds) > 1)} {_list(seeds)}."


def _dense(section: Section, results: Sequence[GroupResult]) -> Iterator[str]:
    for result in results:
        if result.group.dense and result.end:
            size = f" with {number(result.parameters)} parameters" if result.parameters else ""
            yield f"Unpruned ({result.group.label}), the {section.outcome} {_ends_at(result)}{size}."


def _pruned(results: Sequence[GroupResult]) -> list[GroupResult]:
    """Pruned groups with an end; what unfinished ones have reached only while there is no other."""
    reached = [result for result in results if not result.group.dense and result.end]
    return [result for result in reached if _ended(result)] or reached


def _ended(result: GroupResult) -> bool:
    return any(run.finished for run in result.group.runs)


def _best(section: Section, results: Sequence[GroupResult]) -> Iterator[str]:
    if pruned := _pruned(results):
        best = max(pruned, key=lambda r: section.sign * r.end.value if r.end else 0)
        of_dense = f", {compared(best.share, section)} the unpruned {section.outcome}," if best.share else ""
        group = "The best pruned group" if len(pruned) > 1 else "The pruned group"
        left = share(1 - best.sparsity)
        yield f"{group}, {best.group.label}, {_ends_at(best)}{of_dense} with {left} of the parameters."


def _most_pruned(section: Section, results: Sequence[GroupResult]) -> Iterator[str]:
    """Only where there are several sparsities and a dense run to compare with."""
    pruned = [result for result in _pruned(results) if result.share is not None]
    if section.sign < 0 or len({result.group.target for result in pruned}) < 2:
        return
    keeping = [result for result in pruned if result.share and result.share.value >= RECOVERED]
    if not keeping:
        yield f"No pruned group keeps {percent(RECOVERED)} of the unpruned return."
        return
    most = max(keeping, key=lambda r: (r.group.target, r.share.value if r.share else 0))
    yield (
        f"The most pruned group that keeps {percent(RECOVERED)} of the unpruned return is {most.group.label}: "
        f"{share(most.sparsity)} of the parameters are gone."
    )


def _deepest(section: Section, results: Sequence[GroupResult]) -> Iterator[str]:
    if hit := [(result, result.deepest) for result in results if result.deepest is not None]:
        result, value = min(hit, key=lambda pair: section.sign * pair[1])
        kind = "lowest return" if section.sign > 0 else "highest error"
        yield f"The {kind} right after a removal: {number(value)} ({result.group.label})."


def _time(
    section: Section, results: Sequence[GroupResult], timings: Timings, periods: Mapping[Path, float]
) -> Iterator[str]:
    times = [(result.ms, result.group.label) for result in results if result.ms is not None]
    allowed = [periods[run.path] for run in section.runs if run.path in periods]
    if not times or not allowed:
        return
    fastest, slowest = min(times), max(times)
    took = f"{number(fastest[0])} ms"
    if number(fastest[0]) != number(slowest[0]):
        took += f" ({fastest[1]}) to {number(slowest[0])} ms ({slowest[1]})"
    yield f"A control step takes {took}; the control period is {number(min(allowed))} ms."


def _ends_at(result: GroupResult) -> str:
    at = interval(result.end, len(result.group.counted))
    return f"ends at {at}" if _ended(result) else f"has come to {at} so far"


def _list(seeds: Sequence[int]) -> str:
    """1, 2, 3, or 1 to 10 where there are many in a row."""
    if len(seeds) > 4 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def seeds_of(group: RunGroup) -> str:
    """The seeds of a group, and how many of its runs are finished if not all are."""
    done = sum(run.finished for run in group.runs)
    said = _list([run.seed for run in group.runs])
    return said if done == len(group.runs) else f"{said} ({done} of {len(group.runs)} finished)"
