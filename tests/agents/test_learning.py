"""The agent learns: control of a point, and values where an episode ends and where it is cut off."""

import numpy as np
import pytest
import torch

from agents.replay import Episode
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, ReplayConfig, TDMPCConfig

STEPS = 20
STARTS = np.array([-1.0, -0.6, 0.5, 0.9])


def run_points(starts, choose):
    """Points x' = x + 0.1 a, which earn 1 - x'^2: obs [N, T+1, 1], actions [N, T, 1], rewards [N, T]."""
    x = np.array(starts, dtype=np.float32)
    seen, actions, rewards = [x], [], []
    for t in range(STEPS):
        action = choose(x[:, None], t)[:, 0]
        x = (x + 0.1 * action).astype(np.float32)
        seen.append(x)
        actions.append(action)
        rewards.append(1 - x**2)
    return np.stack(seen, 1)[:, :, None], np.stack(actions, 1)[:, :, None], np.stack(rewards, 1)


def best_return(start):
    """At full speed towards zero, and there it stays."""
    return sum(1 - max(abs(start) - 0.1 * (t + 1), 0) ** 2 for t in range(STEPS))


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    config = TDMPCConfig(
        latent_dim=8,
        encoder_dim=32,
        hidden_dim=32,
        batch_size=64,
        horizon=3,
        lr=3e-3,
        random_steps=5 * STEPS,
        schedule_steps=10 * STEPS,
        planner=PlannerConfig(iterations=3, num_samples=64, num_elites=8),
        replay=ReplayConfig(capacity=2_000),
    )
    agent = TDMPC(config, 1, 1, seed=0)
    replay = agent.make_replay(1)
    planner = agent.make_planner()
    rng = np.random.default_rng(0)
    agent_step = 0
    while agent_step < 20 * STEPS:
        planner.reset()
        begin = agent_step

        def choose(obs, t, begin=begin):
            if begin < config.random_steps:
                return agent.random_action()[None]
            return agent.plan(obs, planner, begin + t, explore=True)

        obs, action, reward = (torch.from_numpy(x[0]) for x in run_points(rng.uniform(-1, 1, 1), choose))
        replay.add(Episode(obs, action, reward, terminated=False))
        agent_step += STEPS
        if agent_step < config.random_steps:
            continue
        for _ in range(config.random_steps if agent_step == config.random_steps else STEPS):
            batch = replay.sample(config.batch_size)
            _, priority = agent.update(batch)
            replay.update_priorities(batch.index, priority)
    return agent


def share_of_the_best(rewards):
    """0: what random actions earn, 1: what the best ones do."""
    rng = np.random.default_rng(1)
    _, _, by_chance = run_points(
        np.repeat(STARTS, 200), lambda x, t: rng.uniform(-1, 1, x.shape).astype(np.float32)
    )
    random_return = by_chance.sum(1).mean()
    best = np.mean([best_return(start) for start in STARTS])
    assert best - random_return > 6
    assert (rewards.sum(1) <= [best_return(start) + 1e-3 for start in STARTS]).all()
    return (rewards.sum(1).mean() - random_return) / (best - random_return)


def test_planning_learns_to_control(trained):
    planner = trained.make_planner([torch.Generator().manual_seed(2)])
    _, actions, rewards = run_points(STARTS, lambda obs, t: trained.plan(obs, planner, 10**6))
    assert np.abs(actions).max() <= 1
    assert share_of_the_best(rewards) > 0.85


def test_the_policy_learns_to_control(trained):
    _, _, rewards = run_points(STARTS, lambda obs, t: trained.policy_action(obs))
    assert share_of_the_best(rewards) > 0.85


def learned_values(obs, *, terminated, updates=400):
    """Trains on 20 episodes of random actions that all see `obs` [T+1, O] and earn 1 a step."""
    steps = len(obs) - 1
    config = TDMPCConfig(
        latent_dim=4,
        encoder_dim=32,
        hidden_dim=32,
        batch_size=64,
        horizon=2,
        discount=0.8,
        lr=3e-3,
        tau=0.1,
        target_every=1,
        replay=ReplayConfig(capacity=1_000),
    )
    agent = TDMPC(config, obs.shape[1], 1, seed=0)
    replay = agent.make_replay(1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        action = 2 * torch.rand(steps, 1, generator=generator) - 1
        replay.add(Episode(obs, action, torch.ones(steps), terminated))
    for _ in range(updates):
        batch = replay.sample(config.batch_size)
        _, priority = agent.update(batch)
        replay.update_priorities(batch.index, priority)
    with torch.no_grad():
        z = agent.model.encode(obs)
        return agent.model.value(z, agent.model.act(z)).numpy()


def test_nothing_is_worth_anything_after_a_true_end():
    """With 3, 2, 1 and 0 rewards of 1 to come, discounted by 0.8; the absorbing state is worth nothing."""
    values = learned_values(torch.eye(4), terminated=True)
    np.testing.assert_allclose(values, [1 + 0.8 + 0.64, 1 + 0.8, 1, 0], atol=0.15)


def test_a_time_limit_is_looked_beyond():
    """1 for ever, discounted by 0.8, is worth 5, however short the episodes are."""
    values = learned_values(torch.ones(5, 2), terminated=False)
    np.testing.assert_allclose(values, 5, atol=0.25)
