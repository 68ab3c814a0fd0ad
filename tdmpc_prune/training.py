"""Everything that a run in training consists of: its parts, its counters, and how they are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.tdmpc.agent import TDMPC
from envs import make_env
from tdmpc_prune import checkpoint
from tdmpc_prune.collect import Collector
from tdmpc_prune.config import TrainConfig
from tdmpc_prune.evaluate import Evaluation, Evaluator
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.pruner import Event, Pruner
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.run_folder import RunFolder

EVALUATION_SEED = 1_000_000


@dataclass
class Progress:
    """Counters of a run; -1: never yet."""

    env_step: int = 0
    agent_step: int = 0
    evaluated_at: int = -1
    """Environment step of the last evaluation."""
    saved_at: int = 0
    """Environment step of the last checkpoint."""
    logged_episodes: int = 0
    """Training episodes whose row of metrics was written."""
    train_return: float = 0.0
    """Return of the last training episode."""
    calibration_episodes: int = 0
    """Episodes spent on calibrating the allocation."""
    eval_return: float = 0.0
    """Mean return of the last evaluation."""
    eval_std: float = 0.0
    """Standard deviation of it over episodes."""
    elapsed: float = 0.0
    """Seconds spent so far, in all sittings."""


class Training:
    """A run between its steps. Whatever is not in `save` does not outlive a step.

    The loop in `train` asks what is due and calls it; every method does one small step, so that a run can
    be stopped, saved and resumed between any two of them, with bitwise the same results on the CPU.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, device: torch.device) -> None:
        """Builds a new run, or the one that the folder's newest checkpoint holds.

        Raises:
            SparsityError: pruning cannot come to the sparsity asked for.
        """
        self.config, self.folder = config, folder
        newest = checkpoint.latest(folder.checkpoints)
        self.resumed = newest is not None
        source = newest or (config.init_from and checkpoint.find(config.init_from))
        agent_seed, replay_seed, collect_seed = _seeds(config.seed, 3)
        env = make_env(config.task, seed=config.seed, action_repeat=config.action_repeat)
        self.agent = TDMPC(
            config.agent,
            spaces.flatdim(env.observation_space),
            spaces.flatdim(env.action_space),
            seed=agent_seed,
            device=device,
            widths=checkpoint.read_state(source)["architecture"] if source else None,
        )
        self.replay = self.agent.make_replay(replay_seed)
        self.planner = self.agent.make_planner()
        self.collector = Collector(env, collect_seed)
        self.evaluator = Evaluator(
            config.task,
            env_seed=config.seed,
            episodes=config.eval_episodes,
            seed=EVALUATION_SEED,
            action_repeat=config.action_repeat,
        )
        self.pruner: Pruner | None = None
        if config.prune.enabled:
            losses = {name: "policy" if name == "policy" else "model" for name in self.agent.components()}
            schedule = config.prune.schedule_over(config.steps)
            self.pruner = Pruner(self.agent, config.prune, schedule, losses=losses, seed=config.seed)
        self.progress = Progress()
        self.losses: dict[str, Tensor] = {}
        self.event_row: dict[str, float | int] = {}
        self.metrics_bytes = 0
        self._since = time.perf_counter()
        if source:
            self._load(source)
        if self.pruner and not self.resumed:
            self.pruner.check_target()

    # What is due

    @property
    def pending_updates(self) -> int:
        """Updates that are owed: one per agent step once the random phase is over, after each episode."""
        random_phase = self.progress.agent_step < self.config.agent.random_steps
        if random_phase or not self.collector.between_episodes or not self.replay.ready:
            return 0
        return self.progress.agent_step - self.agent.updates

    @property
    def episode_unlogged(self) -> bool:
        """Whether an episode ended whose row of metrics was not written."""
        return self.collector.episode > self.progress.logged_episodes

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.progress.env_step >= self.config.steps and self.collector.between_episodes

    @property
    def removal_due(self) -> bool:
        """Between episodes: whether units are to be removed now."""
        due = self.pruner is not None and self.pruner.due(self.progress.env_step)
        return due and self.collector.between_episodes

    @property
    def removal_unlogged(self) -> bool:
        """Whether units were removed and the effect is not measured yet."""
        return bool(self.event_row)

    @property
    def evaluation_due(self) -> bool:
        """Between episodes: whether an evaluation step was passed since the last one, or the run ends."""
        now, last, every = self.progress.env_step, self.progress.evaluated_at, self.config.eval_every
        passed = last < 0 or now // every > last // every or (self.finished and now > last)
        return passed and self.collector.between_episodes

    @property
    def checkpoint_due(self) -> bool:
        """Between episodes: whether a checkpoint step was passed since the last one."""
        now, last, every = self.progress.env_step, self.progress.saved_at, self.config.checkpoint_every
        return self.collector.between_episodes and now // every > last // every

    # Steps

    def collect(self) -> int:
        """Makes one agent step; returns its environment steps."""
        env_steps, episode = self.collector.step(self._choose)
        self.progress.env_step += env_steps
        self.progress.agent_step += 1
        if episode is not None:
            self.replay.add(episode)
            self.progress.train_return = float(episode.reward.sum())
        return env_steps

    def update(self) -> None:
        """Makes one update of the agent."""
        batch = self.replay.sample(self.config.agent.batch_size)
        losses, priority = self.agent.update(batch, self.pruner.observe if self.pruner else None)
        if self.pruner:
            self.pruner.advance(self.progress.env_step / self.config.steps)
        self.replay.update_priorities(batch.index, priority)
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, torch.zeros_like(value)) + value
        self.losses["count"] = self.losses.get("count", torch.zeros(())) + 1

    def evaluate(self, check: Callable[[], None]) -> Evaluation:
        """Evaluates the agent on its fixed episodes; `check` may raise to give up."""
        evaluation = self.evaluator.run(self.agent, self.progress.agent_step, check=check)
        self.progress.evaluated_at = self.progress.env_step
        self.progress.eval_return, self.progress.eval_std = evaluation.mean, evaluation.std
        return evaluation

    def remove(self, check: Callable[[], None]) -> Event:
        """Removes the units that are due; all or nothing, so `check` may raise to give up before.

        The return right before, and where it is due a calibration, are measured first.
        """
        assert self.pruner is not None
        before = self._return(self.config.prune.eval_episodes, check)
        calibrated = 0
        step = self.progress.env_step
        if self.pruner.calibration_due(step):
            calibrated = self.pruner.calibrate(step, lambda removal: self._return_without(removal, check))
            self.progress.calibration_episodes += calibrated * self.config.prune.calibration_episodes
        self.planner.reset()
        start = time.perf_counter()
        event = self.pruner.prune(step)
        self.event_row = {
            "prune/event": event.number,
            "prune/scheduled": event.scheduled,
            "prune/removed_units": sum(event.removed.values()),
            "prune/postponed_units": event.postponed,
            "prune/against_guard": event.against_guard,
            "prune/return_before": before,
            "prune/calibration_measurements": calibrated,
            "time/event_ms": 1e3 * (time.perf_counter() - start),
        }
        return event

    def removal_row(self, check: Callable[[], None]) -> dict[str, float | int]:
        """Metrics of the removal, with the return right after it."""
        assert self.pruner is not None
        after = self._return(self.config.prune.eval_episodes, check)
        row = self._counters() | self.event_row | {"prune/return_after": after} | self.pruner.metrics()
        self.event_row = {}
        return {k: v for k, v in row.items() if v == v} | self._time()  # no return was measured: nan

    def _return(self, episodes: int, check: Callable[[], None]) -> float:
        if not episodes:
            return float("nan")
        return self.evaluator.run(self.agent, self.progress.agent_step, episodes=episodes, check=check).mean

    def _return_without(self, removal: Mapping[str, Tensor], check: Callable[[], None]) -> float:
        """Return of a copy of the agent that has lost these units."""
        copy = self.agent.copy_for_acting()
        if removal:
            remove_units(copy, find_groups(copy), removal)
        episodes = self.config.prune.calibration_episodes
        return self.evaluator.run(copy, self.progress.agent_step, episodes=episodes, check=check).mean

    # Rows of metrics

    def episode_row(self) -> dict[str, float | int]:
        """Metrics of the last episode and the mean losses of its updates, which start anew."""
        count = float(self.losses.pop("count", torch.ones(())))
        means = {f"train/{name}": float(total) / count for name, total in self.losses.items()}
        self.losses = {}
        self.progress.logged_episodes = self.collector.episode
        row = self._counters() | {"train/return": self.progress.train_return} | means | self._time()
        return row | self.pruner.importance_metrics() | self.pruner.metrics() if self.pruner else row

    def evaluation_row(self, evaluation: Evaluation) -> dict[str, float | int]:
        """Metrics of an evaluation."""
        return (
            self._counters()
            | {
                "eval/return": evaluation.mean,
                "eval/return_std": evaluation.std,
                "eval/plan_ms": evaluation.plan_ms,
            }
            | (self.pruner.metrics() if self.pruner else {})
            | self._time()
        )

    def summary(self) -> dict[str, Any]:
        """What a finished run came to."""
        return {
            "task": self.config.task,
            "preset": self.config.preset,
            "seed": self.config.seed,
            **self._counters(),
            "return": self.progress.eval_return,
            "return_std": self.progress.eval_std,
            "parameters": sum(p.numel() for p in self.agent.model.parameters()),
            "sparsity": self.pruner.sparsity if self.pruner else 0.0,
            "minutes": round(self.elapsed() / 60, 2),
            "run": str(self.folder.path),
        }

    def _counters(self) -> dict[str, float | int]:
        return {
            "env_step": self.progress.env_step,
            "agent_step": self.progress.agent_step,
            "update": self.agent.updates,
            "episode": self.collector.episode,
        }

    def _time(self) -> dict[str, float | int]:
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
        self.progress.saved_at = self.progress.env_step
        tensors = {
            "rng.agent": self.agent.generator.get_state(),
            "rng.replay": self.replay.generator.get_state(),
            **checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.agent)),
            **checkpoint.prefixed("replay", self.replay.state_dict()),
            **checkpoint.prefixed("collector", self.collector.state_dict()),
            **checkpoint.prefixed("losses", self.losses),
        }
        if self.pruner:
            tensors |= checkpoint.prefixed("pruner", self.pruner.state_dict())
        if self.planner.mean is not None:
            tensors["planner_mean"] = self.planner.mean
        state: dict[str, Any] = {
            "task": self.config.task,
            "seed": self.config.seed,
            "action_repeat": self.config.env_steps_per_action,
            "progress": asdict(self.progress),
            "updates": self.agent.updates,
            "pruner": self.pruner and self.pruner.record(),
            "event_row": self.event_row,
            "metrics_bytes": metrics_bytes,
        }
        return checkpoint.save(self.folder.checkpoints, self.agent, training=tensors, state=state)

    def _load(self, path: Path) -> None:
        """Goes on from a checkpoint of this run, or begins with what another one has learned."""
        state = checkpoint.read_state(path)
        checkpoint.load_networks(path, self.agent)
        tensors = checkpoint.load_training(path)
        checkpoint.load_optimizers(self.agent, checkpoint.select("optimizer", tensors))
        self.replay.load_state_dict(checkpoint.select("replay", tensors))
        self.agent.generator.set_state(tensors["rng.agent"])
        self.replay.generator.set_state(tensors["rng.replay"])
        self.agent.updates = state["updates"]
        progress = Progress(**state["progress"])
        if not self.resumed:
            # Its schedules and its stream of episodes go on, this run's own counters begin.
            self.progress.agent_step = progress.agent_step
            self.collector.episode = self.progress.logged_episodes = int(tensors["collector.episode"])
            return
        self.progress = progress
        self.collector.load_state_dict(checkpoint.select("collector", tensors))
        self.losses = checkpoint.select("losses", tensors)
        mean = tensors.get("planner_mean")
        self.planner.mean = None if mean is None else mean.to(self.agent.device)
        if self.pruner:
            self.pruner.load(state["pruner"], checkpoint.select("pruner", tensors))
        self.event_row = state["event_row"]
        self.metrics_bytes = state["metrics_bytes"]

    def close(self) -> None:
        """Frees the simulators."""
        self.collector.env.close()
        self.evaluator.close()

    def _choose(self, obs: np.ndarray, first: bool) -> np.ndarray:
        """A random action in the random phase, a planned one with exploration noise after it."""
        if first:
            self.planner.reset()
        if self.progress.agent_step < self.config.agent.random_steps:
            return self.agent.random_action()
        return self.agent.plan(obs[None], self.planner, self.progress.agent_step, explore=True)[0]


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for the parts of a run."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]
