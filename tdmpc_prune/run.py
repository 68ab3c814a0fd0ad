"""What every run in training consists of, whatever learns in it: what is due, removals, rows, storing."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tdmpc_prune import checkpoint
from tdmpc_prune.checked import check_shape
from tdmpc_prune.config import TrainConfig
from tdmpc_prune.errors import Stopped, UserError
from tdmpc_prune.faults import measuring
from tdmpc_prune.logger import Logger
from tdmpc_prune.pruning.compensation import StandIns
from tdmpc_prune.pruning.groups import Prunable
from tdmpc_prune.pruning.pruner import Event, Pruner
from tdmpc_prune.reading import read_rows
from tdmpc_prune.run_folder import RunFolder

Check = Callable[[], None]
"""Called now and then while something takes long; it may raise to give up."""
Row = dict[str, float | int]

MOST_OWED = 100_000
"""Updates that a run may owe when it is saved, if it has no more steps than that."""
SCORED_ROWS = 2_000
"""Rows with scores that a run writes at most: they take 10 kB each, and short episodes end by the ten thousand."""


class Agent(Prunable, Protocol):
    """What learns: it can be pruned, and counts its updates."""

    updates: int


@dataclass
class Progress:
    """Counters of a run; -1: never yet."""

    env_step: int = 0
    agent_step: int = 0
    evaluated_at: int = -1
    """Environment step of the last evaluation."""
    saved_at: int = 0
    """Environment step of the last checkpoint."""
    kept_at: int = 0
    """Environment step of the last checkpoint that is kept for good."""
    scored_at: int = -1
    """Environment step of the last row of metrics that had scores."""
    recovery_updates: int = 0
    """Updates that removals have asked for, made or not."""
    skipped_updates: int = 0
    """Updates that were skipped, since their gradients were not finite."""
    skipped_in_a_row: int = 0
    """How many of them were the last ones."""
    elapsed: float = 0.0
    """Seconds spent so far, in all sittings."""


class Run(ABC):
    """A run between its steps. Whatever is not in `save` does not outlive a step.

    The loop in `train` asks what is due and calls it; every method does one small step, so that a run can
    be stopped, saved and resumed between any two of them, with bitwise the same results on the CPU.

    An episode is what is learned from between two rows of metrics: a run's own kind says how long it is.
    """

    outcome: ClassVar[str]
    """What removals are judged by, as in the metrics `prune/<outcome>_before` and `_after`."""

    memory: ClassVar[str]
    """Settings by which a run takes more memory."""

    config: TrainConfig
    agent: Agent
    progress: Progress

    def __init__(self, config: TrainConfig, folder: RunFolder, device: torch.device) -> None:
        """Builds a new run, or the one that the folder's newest checkpoint holds.

        Raises:
            SparsityError: pruning cannot come to the sparsity asked for.
            UserError: a checkpoint cannot be read, or is none that this run can start from.
        """
        self.config, self.folder, self.device = config, folder, device
        newest = checkpoint.latest(folder.checkpoints)
        self.resumed = newest is not None
        source = newest or (config.init_from and checkpoint.find(config.init_from))
        state: dict[str, Any] | None = None
        if source:
            with checkpoint.readable(source):
                state = checkpoint.read_state(source)
        self._build(state)
        self.pruner: Pruner | None = None
        if config.prune.enabled:
            losses = self._losses_of_components()
            self.pruner = Pruner(self.agent, config.prune, config.schedule, losses=losses, seed=config.seed)
        self.losses: dict[str, Tensor] = {}
        self.event_row: Row = {}
        self.metrics_bytes = 0
        self._since = time.perf_counter()
        if source and state:
            self._load(source, state)
        if self.pruner and not self.resumed:
            self.pruner.check_target()

    # What a kind of run is made of

    @abstractmethod
    def _build(self, state: Mapping[str, Any] | None) -> None:
        """Builds the agent and all parts around it, with the widths of a stored `state` if there is one.

        Raises:
            UserError: the state is another run's, and this one cannot start from it.
        """

    @abstractmethod
    def _losses_of_components(self) -> dict[str, str]:
        """The loss that trains each component."""

    @abstractmethod
    def _networks(self) -> Mapping[str, nn.Module]:
        """All networks that are stored, by name."""

    # What is due

    @property
    def pending_updates(self) -> int:
        """Updates that are owed before the next step: one for every step, and what removals ask for."""
        return self.progress.agent_step + self.progress.recovery_updates - self.agent.updates

    @property
    @abstractmethod
    def episode_unlogged(self) -> bool:
        """Whether an episode ended whose row of metrics was not written."""

    @property
    def between_episodes(self) -> bool:
        """Whether this is a moment for evaluations, removals and regular checkpoints."""
        return True

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.progress.env_step >= self.config.steps and self.between_episodes

    @property
    def removal_due(self) -> bool:
        """Between episodes: whether units are to be removed now."""
        due = self.pruner is not None and self.pruner.due(self.progress.env_step)
        return due and self.between_episodes

    @property
    def removals_missing(self) -> int:
        """Removals of the schedule that were not made yet."""
        return len(self.pruner.schedule.event_steps()) - self.pruner.events if self.pruner else 0

    @property
    def removal_unlogged(self) -> bool:
        """Whether units were removed and the effect is not measured yet."""
        return bool(self.event_row)

    @property
    def evaluation_due(self) -> bool:
        """Between episodes: whether an evaluation step was passed since the last one, or the run ends."""
        if self.finished and self.removal_due:  # the last evaluation is of what is left in the end
            return False
        last = self.progress.evaluated_at
        ends = self.finished and self.progress.env_step > last
        return (last < 0 or ends or self._passed(self.config.eval_every, last)) and self.between_episodes

    @property
    def checkpoint_due(self) -> bool:
        """Between episodes: whether a checkpoint step was passed since the last one."""
        regular = self._passed(self.config.checkpoint_every, self.progress.saved_at)
        return self.between_episodes and (regular or self._keep_due)

    @property
    def _keep_due(self) -> bool:
        """Whether the next checkpoint, if it is saved between episodes, is one to keep for good."""
        every = self.config.keep_every
        return every > 0 and self.between_episodes and self._passed(every, self.progress.kept_at)

    def _passed(self, every: int, last: int) -> bool:
        """Whether a multiple of `every` steps was passed since step `last`."""
        return self.progress.env_step // every > last // every

    # Steps

    @abstractmethod
    def collect(self) -> int:
        """Makes one step that brings something to learn from; returns its environment steps."""

    @abstractmethod
    def update(self) -> None:
        """Makes one update of the agent."""

    def _updated(self, losses: Mapping[str, Tensor], observation: Tensor | None = None) -> None:
        """Ends an update: the pruner's clock goes on, the losses are added up for the next row.

        Where a GPU has left it out, losses and observation are 0, and `skipped` among the losses is 1.
        """
        skipped = losses.get("skipped", torch.zeros(()))
        if not skipped.is_cuda:
            self.progress.skipped_in_a_row = 0
        if self.pruner:
            self.pruner.advance(self.progress.env_step / self.config.steps, observation)
        made = {name: value for name, value in losses.items() if name != "skipped"} | {"count": 1 - skipped}
        for name, value in made.items():
            self.losses[name] = self.losses.get(name, torch.zeros_like(value)) + value

    def _skipped(self) -> None:
        """Ends an update that came to nothing, since its gradients were not finite.

        Raises:
            Stopped: so did those before it, as many as the settings allow.
        """
        if self.pruner:
            self.pruner.discard()
        self.progress.skipped_updates += 1
        self.progress.skipped_in_a_row += 1
        self._check_divergence(self.progress.skipped_in_a_row)

    def _check_divergence(self, in_a_row: int) -> None:
        """Raises Stopped if so many updates in a row came to nothing as the settings allow."""
        limit = self.config.skip_limit
        if in_a_row >= limit:
            raise Stopped(
                f"{self.place}: it diverges, {limit} updates in a row brought gradients that are not finite: "
                "begin another run (--run-dir) with a lower --agent.lr or --agent.grad-clip, or give this one "
                "longer with a higher --skip-limit"
            )

    @property
    def place(self) -> str:
        """Where the run is, for messages."""
        return f"{self.config.task}, step {self.progress.env_step:,}"

    def _measuring(self) -> AbstractContextManager[None]:
        return measuring(self.place, self.memory)

    def evaluate(self, check: Check) -> Row:
        """Evaluates the agent; returns the metrics. `check` may raise to give up, then nothing has changed."""
        with self._measuring():
            row = self._evaluate(check)
        self.progress.evaluated_at = self.progress.env_step
        return self._counters() | row | (self.pruner.metrics() if self.pruner else {}) | self._time()

    @abstractmethod
    def _evaluate(self, check: Check) -> Row:
        """Metrics of an evaluation; keeps in `progress` what the summary needs."""

    @abstractmethod
    def show_evaluation(self, log: Logger) -> None:
        """Shows the last evaluation on the terminal."""

    def remove(self, check: Check) -> Event:
        """Removes the units that are due; all or nothing, so `check` may raise to give up before.

        The outcome right before, and where it is due a calibration, are measured first.
        """
        assert self.pruner is not None
        before = self._measure_outcome(check)
        calibrated = 0
        step = self.progress.env_step
        start = time.perf_counter()
        if self.pruner.calibration_due(step):
            with self._measuring():
                calibrated = self.pruner.calibrate(step, partial(self._value_without, check))
            start = time.perf_counter()
        event = self.pruner.prune(step, self._run_on_data)
        if any(event.removed.values()):
            self.progress.recovery_updates += self.config.prune.recovery
        self.event_row = {
            "prune/event": event.number,
            "prune/scheduled": event.scheduled,
            "prune/removed_units": sum(event.removed.values()),
            "prune/postponed_units": event.postponed,
            "prune/against_guard": event.against_guard,
            f"prune/{self.outcome}_before": before,
            "prune/calibration_measurements": calibrated,
            "time/event_ms": 1e3 * (time.perf_counter() - start),
        }
        return event

    def removal_row(self, check: Check) -> Row:
        """Metrics of the removal, with the outcome right after it: after its recovery, if there is any."""
        assert self.pruner is not None
        after = {f"prune/{self.outcome}_after": self._measure_outcome(check)}
        row = self._counters() | self.event_row | after | self.pruner.metrics()
        self.event_row = {}
        return {k: v for k, v in row.items() if v == v} | self._time()  # nothing was measured: nan

    def _measure_outcome(self, check: Check) -> float:
        """The outcome now, or nan where the settings ask for none around removals."""
        if not self.config.prune.eval_episodes:
            return float("nan")
        with self._measuring():
            return self._outcome(check)

    @abstractmethod
    def _outcome(self, check: Check) -> float:
        """The outcome as it is measured right before and after removals."""

    def _value_without(self, check: Check, removal: Mapping[str, Tensor]) -> float:
        assert self.pruner is not None
        return self._return_without(removal, self.pruner.stand_ins(removal, self._run_on_data), check)

    @abstractmethod
    def _return_without(self, removal: Mapping[str, Tensor], stand_ins: StandIns, check: Check) -> float:
        """What a copy of the agent that has lost these units is worth: the more the better, 0 if nothing."""

    @abstractmethod
    def _run_on_data(self) -> None:
        """Runs every component on what it learns from; random numbers of the run stay where they are."""

    # Rows of metrics

    def episode_row(self) -> Row:
        """Metrics of the last episode and the mean losses of its updates, which start anew."""
        count = float(self.losses.pop("count", torch.ones(()))) or 1.0
        means = {f"train/{name}": float(total) / count for name, total in self.losses.items()}
        self.losses = {}
        if self.progress.skipped_updates:
            means["train/skipped_updates"] = self.progress.skipped_updates
        row = self._counters() | self._episode_metrics() | means | self._time()
        return row | self._scores() | self.pruner.metrics() if self.pruner else row

    def _scores(self) -> Row:
        """Scores of the groups; nothing where a row had them a moment ago."""
        step, last = self.progress.env_step, self.progress.scored_at
        if not self.pruner or (last >= 0 and (step - last) * SCORED_ROWS < self.config.steps):
            return {}
        scores = self.pruner.importance_metrics()
        if scores:
            self.progress.scored_at = step
        return scores

    @abstractmethod
    def _episode_metrics(self) -> Row:
        """Metrics of the last episode itself, which counts as logged from now on."""

    def summary(self) -> dict[str, Any]:
        """What a finished run came to."""
        networks = self.agent.components().values()
        return {
            "task": self.config.task,
            "seed": self.config.seed,
            **self._counters(),
            **self._results(),
            "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "sparsity": self.pruner.sparsity if self.pruner else 0.0,
            "minutes": round(self.elapsed() / 60, 2),
            "run": str(self.folder.path),
        }

    @abstractmethod
    def _results(self) -> Row:
        """What the last evaluation found, for the summary."""

    def _counters(self) -> Row:
        return {
            "env_step": self.progress.env_step,
            "agent_step": self.progress.agent_step,
            "update": self.agent.updates,
        }

    def _time(self) -> Row:
        return {"time/elapsed_s": round(self.elapsed(), 3)}

    def elapsed(self) -> float:
        """Seconds spent on this run, in all sittings."""
        now = time.perf_counter()
        self.progress.elapsed += now - self._since
        self._since = now
        return self.progress.elapsed

    # Storing

    def save(self, metrics_bytes: int) -> Path:
        """Writes a checkpoint of everything; `metrics_bytes`: how much of metrics.jsonl belongs to it."""
        self.elapsed()
        keep = self._keep_due
        self.progress.saved_at = self.progress.env_step
        if keep:
            self.progress.kept_at = self.progress.env_step
        tensors = {
            **checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.agent)),
            **checkpoint.prefixed("losses", self.losses),
            **self._tensors(),
        }
        if self.pruner:
            tensors |= checkpoint.prefixed("pruner", self.pruner.state_dict())
        state: dict[str, Any] = {
            "task": self.config.task,
            "seed": self.config.seed,
            "progress": asdict(self.progress),
            "updates": self.agent.updates,
            "criterion": self.config.prune.criterion,
            "pruner": self.pruner and self.pruner.record(),
            "event_row": self.event_row,
            "metrics_bytes": metrics_bytes,
            **self._record(),
        }
        return checkpoint.save(
            self.folder.checkpoints, networks=self._networks(), training=tensors, state=state, keep=keep
        )

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All other tensors that resuming needs, random states among them."""

    @abstractmethod
    def _record(self) -> dict[str, Any]:
        """JSON values that rebuild the agent: at least `agent`, its settings, and `architecture`."""

    def _load(self, path: Path, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint of this run, or begins with what another one has learned."""
        with checkpoint.readable(path):
            checkpoint.load_networks(path, self._networks())
            tensors = checkpoint.load_training(path)
            checkpoint.load_optimizers(self.agent, checkpoint.select("optimizer", tensors))
            self.agent.updates = state["updates"]
            self._load_learned(tensors)
            progress = TypeAdapter(type(self.progress)).validate_python(state["progress"])
            self._check_owed(progress)
            if not self.resumed:
                # Its schedules go on, this run's own counters begin.
                self.progress.agent_step = progress.agent_step
                self._begin_after(tensors)
                return
            self.progress = progress
            self.losses = checkpoint.select("losses", tensors)
            for name, total in self.losses.items():
                check_shape(f"losses.{name}", total)
                if total.isnan():  # infinite they may be: what is learned from is clamped
                    raise ValueError(f"tensor losses.{name} is no number")
            if self.pruner:
                self.pruner.load(state["pruner"], checkpoint.select("pruner", tensors))
            self.event_row = state["event_row"]
            self.metrics_bytes = state["metrics_bytes"]
            self._load_own(tensors)
        metrics = self.folder.metrics
        if not metrics.is_file() or metrics.stat().st_size < self.metrics_bytes:
            raise UserError(f"{metrics} lacks lines that belong to {path}: choose another --run-dir")
        with checkpoint.readable(metrics):  # the summary reads them, hours from now
            read_rows(metrics, self.metrics_bytes)

    def _check_owed(self, progress: Progress) -> None:
        """Refuses counters by which updates would be made without end: a stranger may have written them."""
        recovery = progress.recovery_updates if self.resumed else 0
        owed = progress.agent_step + recovery - self.agent.updates
        # A random phase at most, or a round of episodes, or what removals ask for.
        if not 0 <= owed <= max(MOST_OWED, self.config.steps):
            raise ValueError(f"it says that {owed:,} updates are to be made at once")

    @abstractmethod
    def _load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what a run that starts from this checkpoint needs as well as one that resumes it."""

    @abstractmethod
    def _begin_after(self, tensors: Mapping[str, Tensor]) -> None:
        """Begins a run of its own with what `_load_learned` has taken over."""

    @abstractmethod
    def _load_own(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what only a resumed run needs."""

    @abstractmethod
    def close(self) -> None:
        """Frees what must be freed."""


def seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for the parts of a run."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]
