"""Replay of tagged episodes: an observation says which episode it is from, and which step."""

import pytest
import torch

from agents.replay import Episode, ReplayBuffer

FLOOR = 1e-6


def buffer(*, capacity=60, horizon=3, alpha=0.6, beta=0.4, seed=0, obs_dim=2, action_dim=2, device="cpu"):
    return ReplayBuffer(
        obs_dim=obs_dim,
        action_dim=action_dim,
        capacity=capacity,
        horizon=horizon,
        alpha=alpha,
        beta=beta,
        generator=torch.Generator(device).manual_seed(seed),
    )


def tagged(number, length, terminated=False):
    """Observation t is (number, t), action t is (number, t) / 1000, reward t is 100 number + t + 1."""
    steps = torch.arange(length + 1.0)
    obs = torch.stack([torch.full_like(steps, number), steps], 1)
    return Episode(obs, obs[:-1] / 1000, 100 * number + steps[:-1] + 1, terminated)


def starts_of(batch):
    """Where the sequences begin: [(episode, step)]."""
    return [(int(a), int(b)) for a, b in batch.obs[0].tolist()]


def check_sequences(batch, horizon, episodes):
    """Every sequence is contiguous in one episode, or in the absorbing tail of a terminated one."""
    columns = (batch.obs, batch.action, batch.reward, batch.terminated)
    obs, action, reward, terminated = (column.tolist() for column in columns)
    # One sequence per row drawn: all that a row gives is the same each time.
    for b in {row: b for b, row in enumerate(batch.index.tolist())}.values():
        number, first = (int(x) for x in obs[0][b])
        length, ends = episodes[number]
        assert first < length
        assert ends or first + horizon < length
        for t in range(horizon + 1):
            assert obs[t][b] == [number, min(first + t, length)]
        for t in range(horizon):
            step = first + t
            if step < length:
                assert action[t][b] == pytest.approx([number / 1000, step / 1000])
                assert reward[t][b] == 100 * number + step + 1
                assert terminated[t][b] == (1 if ends and step == length - 1 else 0)
            else:
                assert ends
                assert (reward[t][b], terminated[t][b]) == (0, 1)
                assert all(-1 <= x <= 1 for x in action[t][b])
