"""A TD-MPC run in training: an environment, a replay buffer, a planner, and the agent that learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.gradients import NonFiniteGradients
from agents.replay import Episode
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.updates import Updates
from agents.tdmpc.world_model import architecture
from envs import SimulatorError, find_task, make_env
from tdmpc_prune import checkpoint
from tdmpc_prune.analysis.dip import dip
from tdmpc_prune.checked import check_shape
from tdmpc_prune.collect import Collector
from tdmpc_prune.config import TDMPCTrainConfig
from tdmpc_prune.errors import Failure, Stopped, UserError
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.faults import simulator_line
from tdmpc_prune.latency import plan_latency
from tdmpc_prune.logger import Logger, read_metrics
from tdmpc_prune.origin import check_origin
from tdmpc_prune.pruning.compensation import BATCHES, StandIns
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.pruner import Event
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.run import Check, Progress, Row, Run, seeds

EVALUATION_SEED = 1_000_000
TIMED_PLANS = 5


@dataclass
class TrainingProgress(Progress):
    """Counters of a TD-MPC run."""

    logged_episodes: int = 0
    """Training episodes whose row of metrics was written."""
    train_return: float = 0.0
    """Return of the last training episode; the mean of those that ended with it, where there are several."""
    calibration_episodes: int = 0
    """Episodes spent on calibrating the allocation."""
    eval_return: float = 0.0
    """Mean return of the last evaluation."""
    eval_std: float = 0.0
    """Standard deviation of it over episodes."""


class Training(Run):
    """A run that learns a control task, an episode of it at a time, or a round of several side by side."""

    outcome = "return"
    memory = "--eval-episodes, --agent.batch-size or --agent.replay.capacity"
    config: TDMPCTrainConfig
    agent: TDMPC
    progress: TrainingProgress

    def _build(self, state: Mapping[str, Any] | None) -> None:
        config = self.config
        agent_seed, replay_seed, collect_seed = seeds(config.seed, 3)
        envs = [
            make_env(config.task, seed=config.seed, action_repeat=config.action_repeat)
            for _ in range(config.envs)
        ]
        env = envs[0]
        obs_dim, action_dim = spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
        self.longest: int = env.get_wrapper_attr("max_episode_steps")
        check_lengths(config, self.longest)
        if state and not self.resumed:
            check_origin(config, state, architecture(config.agent, obs_dim, action_dim))
        self.progress = TrainingProgress()
        self.agent = TDMPC(
            config.agent,
            obs_dim,
            action_dim,
            seed=agent_seed,
            device=self.device,
            widths=state["architecture"] if state else None,
        )
        self.replay = self.agent.make_replay(replay_seed)
        self.planner = self.agent.make_planner()
        self.collector = Collector(envs, collect_seed)
        self.evaluator = Evaluator(
            config.task,
            env_seed=config.seed,
            episodes=config.eval_episodes,
            seed=EVALUATION_SEED,
            action_repeat=config.action_repeat,
        )

    def _losses_of_components(self) -> dict[str, str]:
        return {name: "policy" if name == "policy" else "model" for name in self.agent.components()}

    def _networks(self) -> Mapping[str, nn.Module]:
        return {"online": self.agent.model, "target": self.agent.target}

    # What is due

    @property
    def pending_updates(self) -> int:
        """Updates that are owed, once the random phase is over: after each round, and after removals."""
        random_phase = self.progress.agent_step < self.config.agent.random_steps
        if random_phase or not self.between_episodes or not self.replay.ready:
            return 0
        return super().pending_updates

    @property
    def episode_unlogged(self) -> bool:
        """Whether episodes ended whose row of metrics was not written: one row for those that ended together."""
        return self.collector.episode > self.progress.logged_episodes

    @property
    def between_episodes(self) -> bool:
        """Whether no episode is under way."""
        return self.collector.between_episodes

    # Steps

    def collect(self) -> int:
        """Makes one agent step in every environment at work; returns the environment steps of all.

        Raises:
            Stopped: a simulator fails; all is as it was before.
            Failure: an episode does not fit into the replay.
        """
        drawn, mean = self.agent.generator.get_state(), self.planner.mean
        try:
            step = self.collector.step(self._choose, self._next_round)
        except SimulatorError as error:
            self.agent.generator.set_state(drawn)
            self.planner.mean = mean
            raise Stopped(simulator_line(self.place, error)) from error
        self.progress.env_step += step.env_steps
        self.progress.agent_step += len(step.going_on)
        if self.between_episodes:
            for episode in step.episodes:
                self._store(episode)
            self.progress.train_return = float(np.mean([float(e.reward.sum()) for e in step.episodes]))
        elif not all(step.going_on):
            self.planner.keep(torch.tensor(step.going_on, device=self.agent.device))
        return step.env_steps

    def _store(self, episode: Episode) -> None:
        try:
            self.replay.add(episode)
        except ValueError as error:  # longer than the replay: see check_lengths
            raise Failure(f"{self.place}: {error}, and start anew") from error

    @property
    def _next_round(self) -> int:
        """Episodes of the next round: never more than the steps that are left can need."""
        left = self.config.steps - self.progress.env_step
        return min(len(self.collector.envs), max(-(-left // self.longest), 1))

    def update(self) -> None:
        """Makes one update of the agent."""
        try:
            update = self._updates()
        except NonFiniteGradients:
            self._skipped()
            return
        self._updated(update.losses, update.observation)
        if self.device.type == "cuda" and not self.pending_updates:
            self._check_divergence(self._ask_device())

    @cached_property
    def _updates(self) -> Updates:
        return Updates(self.agent, self.replay, self.pruner, in_a_row=self.progress.skipped_in_a_row)

    def _ask_device(self) -> int:
        """Counts the updates that a GPU has left out; returns how many in a row at most. Waits for the device."""
        count, self.progress.skipped_in_a_row, most = self._updates.skipped()
        self.progress.skipped_updates += count
        return most

    def remove(self, check: Check) -> Event:
        """Removes the units that are due; counts the episodes that went into calibrating."""
        event = super().remove(check)
        measurements = int(self.event_row["prune/calibration_measurements"])
        self.progress.calibration_episodes += measurements * self.config.prune.calibration_episodes
        self.planner.reset()
        return event

    def _evaluate(self, check: Check) -> Row:
        evaluation = self.evaluator.run(self.agent, self.progress.agent_step, check=check)
        self.progress.eval_return, self.progress.eval_std = evaluation.mean, evaluation.std
        return {
            "eval/return": evaluation.mean,
            "eval/return_std": evaluation.std,
            "eval/plan_ms": plan_latency(self.agent, self.progress.agent_step, plans=TIMED_PLANS).p50,
        }

    def show_evaluation(self, log: Logger) -> None:
        """Shows the last evaluation's return."""
        log.evaluation(self.progress.env_step, self.progress.eval_return, self.progress.eval_std)

    def _outcome(self, check: Check) -> float:
        return self._return(self.agent, self.config.prune.eval_episodes, check)

    def _return_without(self, removal: Mapping[str, Tensor], stand_ins: StandIns, check: Check) -> float:
        copy = self.agent.copy_for_acting()
        if removal:
            remove_units(copy, find_groups(copy), removal, stand_ins)
        # By other episodes than those that judge it, at evaluations and around removals.
        prune, skip = self.config.prune, max(self.evaluator.episodes, self.config.prune.eval_episodes)
        return self._return(copy, prune.calibration_episodes, check, skip=skip)

    def _run_on_data(self) -> None:
        own = torch.Generator(self.device).manual_seed(self.progress.env_step)
        for _ in range(BATCHES):
            self.agent.run_on(self.replay.sample(self.config.agent.batch_size, own))

    def _return(self, agent: TDMPC, episodes: int, check: Check, skip: int = 0) -> float:
        agent_step = self.progress.agent_step
        return self.evaluator.run(agent, agent_step, episodes=episodes, skip=skip, check=check).mean

    # Rows of metrics

    def _episode_metrics(self) -> Row:
        self.progress.logged_episodes = self.collector.episode
        return {"train/return": self.progress.train_return}

    def summary(self) -> dict[str, Any]:
        """What a finished run came to."""
        dips = {f"dip_{name}": value for name, value in dip(read_metrics(self.folder.metrics)).items()}
        named = {"task": self.config.task, "preset": self.config.preset}
        spent = {"calibration_episodes": self.progress.calibration_episodes}
        calibrated = self.config.prune.enabled and self.config.prune.allocation == "calibrated"
        return named | super().summary() | dips | (spent if calibrated else {})

    def _results(self) -> Row:
        return {"return": self.progress.eval_return, "return_std": self.progress.eval_std}

    def _counters(self) -> Row:
        return super()._counters() | {"episode": self.collector.episode}

    # Storing

    def _tensors(self) -> dict[str, Tensor]:
        if self.device.type == "cuda":
            self._ask_device()
        tensors = {
            "rng.agent": self.agent.generator.get_state(),
            "rng.replay": self.replay.generator.get_state(),
            **checkpoint.prefixed("replay", self.replay.state_dict()),
            **checkpoint.prefixed("collector", self.collector.state_dict()),
        }
        if self.planner.mean is not None:
            tensors["planner_mean"] = self.planner.mean
        return tensors

    def _record(self) -> dict[str, Any]:
        return {
            "action_repeat": self.config.env_steps_per_action,
            "obs_dim": self.agent.obs_dim,
            "action_dim": self.agent.action_dim,
            "architecture": self.agent.model.architecture(),
            "agent": asdict(self.agent.config),
        }

    def _load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        self.replay.load_state_dict(checkpoint.select("replay", tensors))
        checkpoint.load_generator(self.agent.generator, tensors["rng.agent"])
        checkpoint.load_generator(self.replay.generator, tensors["rng.replay"])

    def _begin_after(self, tensors: Mapping[str, Tensor]) -> None:
        # The stream of episodes goes on.
        self.collector.episode = self.progress.logged_episodes = int(tensors["collector.episode"])

    def _load_own(self, tensors: Mapping[str, Tensor]) -> None:
        self.collector.load_state_dict(checkpoint.select("collector", tensors))
        if (mean := tensors.get("planner_mean")) is not None:
            planned = None if self.between_episodes else self.collector.running
            check_shape("planner_mean", mean, planned, None, self.agent.action_dim)
        self.planner.mean = None if mean is None else mean.to(self.agent.device)

    def close(self) -> None:
        """Frees the simulators."""
        self.collector.close()
        self.evaluator.close()

    def _choose(self, obs: np.ndarray, first: bool) -> np.ndarray:
        """Random actions in the random phase, planned ones with exploration noise after it."""
        if first:
            self.planner.reset()
        if self.progress.agent_step < self.config.agent.random_steps:
            return np.stack([self.agent.random_action() for _ in obs])
        return self.agent.plan(obs, self.planner, self.progress.agent_step, explore=True)


def check_lengths(config: TDMPCTrainConfig, max_episode_steps: int) -> None:
    """Refuses sequences that no episode holds, and a replay that holds no episode."""
    longest = -(-max_episode_steps // config.env_steps_per_action)
    agent = config.agent
    if agent.horizon >= longest:
        raise UserError(
            f"agent.horizon is {agent.horizon}, but an episode of {config.task} has {longest} agent steps "
            "at most: lower it"
        )
    # Gymnasium's tasks may be meant to end early; DMControl's go on to the end.
    certain, rows = find_task(config.task).suite == "dmcontrol", config.envs * (longest + agent.horizon)
    if certain and agent.replay.capacity < rows:
        raise UserError(
            f"agent.replay.capacity is {agent.replay.capacity}, but {config.task} brings {rows} rows at once: "
            "raise it"
        )
