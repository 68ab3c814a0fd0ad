"""How long the controllers of a report think, and how long they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.errors import UserError

if TYPE_CHECKING:
    import torch

Source = Literal["measured", "logged", "none"]
PLANS, ROUNDS = 50, 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds from an observation to an action."""

    median: float
    """Of the plans timed: the middle one of the rounds' medians."""
    p99: float | None
    """99% of them take no longer, also in the slowest round; None where only medians were logged."""


@dataclass(frozen=True)
class Timings:
    """What was found about the runs of a report."""

    of: Mapping[Path, Timing]
    """By the run's folder, where it is known."""
    how: str
    """Where the numbers come from, in words."""
    lacking: Sequence[str] = ()
    """Runs that could not be timed, and why, one line each."""


def time_runs(runs: Sequence[ReportRun], source: Source, device: torch.device) -> Timings:
    """The time per control step of every control run, on PyTorch's threads as they are set.

    Args:
        runs: of any tasks; autoencoders control nothing and are left out.
        source: `measured`: now, with each run's newest checkpoint; `logged`: the run's own last evaluation,
            on whatever machine that was; `none`.
        device: where to measure.
    """
    control = [run for run in runs if run.task != AUTOENCODER]
    if source == "none":
        return Timings({}, "not asked for")
    if source == "logged":
        logged = {run.path: run.newest("eval/plan_ms") for run in control}
        how = "as the runs logged it in their last evaluation: the median of a few plans, on their machine"
        return Timings({path: Timing(ms, None) for path, ms in logged.items() if ms is not None}, how)
    return _measure(control, device)


def _measure(runs: Sequence[ReportRun], device: torch.device) -> Timings:
    """Times all controllers in turn, several times: what else the machine does meanwhile hits them alike."""
    import torch

    from tdmpc_prune.checkpoint import load_agent
    from tdmpc_prune.latency import Latency, plan_latency

    stored, lacking = {}, []
    for run in runs:
        try:
            stored[run.path] = load_agent(run.path, device)
        except UserError as error:  # a run that has just begun has no checkpoint: the rest can be shown
            lacking.append(f"{run.name} was not timed: {error}")
    rounds: dict[Path, list[Latency]] = {path: [] for path in stored}
    turns = [path for _ in range(ROUNDS) for path in stored]
    for path in tqdm(turns, desc="timing", unit="turn", disable=None):
        plans = PLANS // ROUNDS
        rounds[path].append(plan_latency(stored[path].agent, stored[path].agent_step, plans=plans))
    count = torch.get_num_threads()
    where = "the GPU" if device.type == "cuda" else f"{count} CPU thread{'s' if count > 1 else ''}"
    how = f"measured for this report: {PLANS} plans in {ROUNDS} rounds on {where} of one machine"
    of = {
        path: Timing(median(found.p50 for found in times), max(found.p99 for found in times))
        for path, times in rounds.items()
    }
    return Timings(of, how, lacking)


def control_periods(runs: Iterable[ReportRun]) -> dict[Path, float]:
    """Milliseconds between two actions of each control run, by its folder: what a controller has time for."""
    from envs import UnknownTaskError, make_env

    known: dict[tuple[str, int | None], float | None] = {}
    periods = {}
    for run in runs:
        if run.task == AUTOENCODER:
            continue
        key = run.task, run.settings.get("action_repeat")
        if key not in known:
            try:
                env = make_env(run.task, action_repeat=key[1])
            except UnknownTaskError:  # another version's: the rest can be shown
                known[key] = None
            else:
                known[key] = 1e3 * env.get_wrapper_attr("control_timestep")
                env.close()
        if (period := known[key]) is not None:
            periods[run.path] = period
    return periods
