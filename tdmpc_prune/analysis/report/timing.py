"""How long the controllers of a report think, and how long they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from tdmpc_prune.analysis.report.runs import ReportRun
from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.errors import UserError

if TYPE_CHECKING:
    import torch

Source = Literal["measured", "logged", "none"]
PLANS = 50


@dataclass(frozen=True)
class Timing:
    """Milliseconds from an observation to an action."""

    median: float
    """Of the plans timed."""
    p99: float | None
    """99% of them take no longer; None where only medians were logged."""


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
    import torch

    from tdmpc_prune.checkpoint import load_agent
    from tdmpc_prune.latency import plan_latency

    found: dict[Path, Timing] = {}
    lacking = []
    for run in tqdm(runs, desc="timing", unit="run", disable=None):
        try:
            stored = load_agent(run.path, device)
        except UserError as error:  # a run that has just begun has no checkpoint: the rest can be shown
            lacking.append(f"{run.name} was not timed: {error}")
            continue
        latency = plan_latency(stored.agent, stored.agent_step, plans=PLANS)
        found[run.path] = Timing(latency.p50, latency.p99)
    count = torch.get_num_threads()
    where = "the GPU" if device.type == "cuda" else f"{count} CPU thread{'s' if count > 1 else ''}"
    return Timings(found, f"measured for this report: {PLANS} plans on {where} of one machine", lacking)


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
