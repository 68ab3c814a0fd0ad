"""Moments to measure, made by hand."""

from pathlib import Path
from types import SimpleNamespace

import torch

from agents.replay import Episode
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, ReplayConfig, TDMPCConfig
from tdmpc_prune.analysis.validity import Moment
from tdmpc_prune.pruning.groups import find_groups

HIDDEN = 60


class Planted:
    """A tracker whose scores are made up, group by group."""

    def __init__(self, scores):
        self._scores = scores

    def scores(self, criterion):
        return self._scores[criterion]


def small_agent(seed=0):
    config = TDMPCConfig(
        latent_dim=5,
        encoder_dim=6,
        hidden_dim=HIDDEN,
        batch_size=9,
        horizon=3,
        planner=PlannerConfig(iterations=1, num_samples=8, num_elites=4),
        replay=ReplayConfig(capacity=100),
    )
    agent = TDMPC(config, 4, 2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*agent.model.parameters(), *agent.target.parameters()]:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


def filled_replay(agent, reward=None):
    """30 random steps, whose reward may be given."""
    generator = torch.Generator().manual_seed(1)
    replay = agent.make_replay(seed=2)
    rewards = torch.randn(30, generator=generator) if reward is None else torch.full((30,), reward)
    actions = 2 * torch.rand(30, 2, generator=generator) - 1
    replay.add(Episode(torch.randn(31, 4, generator=generator), actions, rewards, terminated=False))
    return replay


def moment_of(agent, replay, tracker=None):
    stored = SimpleNamespace(
        agent=agent, task="cartpole-swingup", seed=0, action_repeat=50, agent_step=0, env_step=7
    )
    return Moment(Path("000001"), stored, find_groups(agent), replay, tracker)
