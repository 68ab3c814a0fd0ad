"""TD-MPC's forward passes and losses in plain numpy and loops: what the tests compare the agent with."""

import math

import numpy as np
import torch

from agents.replay import Batch
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, ReplayConfig, TDMPCConfig

OBS, ACTION, BATCH, HORIZON = 4, 2, 3, 3
QUIET = 1e-12  # a policy noise too small to be seen at the tolerances used
STILL = 1e-30  # a learning rate that changes no number, so that gradients can be read after `update`


def tiny_config(**settings):
    defaults = {
        "latent_dim": 3,
        "encoder_dim": 6,
        "hidden_dim": 5,
        "batch_size": BATCH,
        "horizon": HORIZON,
        "policy_std": QUIET,
        "lr": STILL,
        "planner": PlannerConfig(iterations=2, num_samples=16, num_elites=4),
        "replay": ReplayConfig(capacity=200),
    }
    return TDMPCConfig(**(defaults | settings))


def random_agent(seed=0, scale=0.6, **settings):
    """An agent in float64 with random weights everywhere; the target's differ from the online ones."""
    agent = TDMPC(tiny_config(**settings), OBS, ACTION, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    for model in (agent.model, agent.target):
        model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return agent


def random_batch(seed=0, horizon=HORIZON, reward_scale=1.0):
    """Unequal weights, and terminations in some places."""
    rng = np.random.default_rng(seed)
    terminated = np.zeros((horizon, BATCH))
    terminated[1:, 1] = 1
    terminated[-1, 2] = 1
    columns = {
        "obs": rng.normal(size=(horizon + 1, BATCH, OBS)),
        "action": rng.uniform(-1, 1, (horizon, BATCH, ACTION)),
        "reward": reward_scale * rng.normal(size=(horizon, BATCH)),
        "terminated": terminated,
        "weight": np.array([1.0, 0.25, 0.6]),
    }
    return Batch(index=torch.arange(BATCH), **{k: torch.from_numpy(v) for k, v in columns.items()})


def weights_of(model):
    """Parameters by name, as numpy arrays of their own."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def _elu(x):
    return np.array([v if v > 0 else math.exp(v) - 1 for v in x])


def _linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _three_layers(w, name, x):
    return _linear(w, f"{name}.4", _elu(_linear(w, f"{name}.2", _elu(_linear(w, f"{name}.0", x)))))


def encode(w, obs):
    return _linear(w, "encoder.2", _elu(_linear(w, "encoder.0", obs)))


def dynamics(w, z, action):
    return _three_layers(w, "dynamics", np.concatenate([z, action]))


def reward(w, z, action):
    return _three_layers(w, "reward", np.concatenate([z, action]))[0]


def policy(w, z):
    return np.tanh(_three_layers(w, "policy", z))


def q_value(w, i, z, action):
    x = _linear(w, f"q.{i}.0", np.concatenate([z, action]))
    x = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    x = np.tanh(x * w[f"q.{i}.1.weight"] + w[f"q.{i}.1.bias"])
    return _linear(w, f"q.{i}.5", _elu(_linear(w, f"q.{i}.3", x)))[0]


def lowest_q(w, num_q, z, action):
    return min(q_value(w, i, z, action) for i in range(num_q))


def goals(online, target, batch, config):
    """Where the losses pull to: target latents and y, [t][b]."""
    latents, y = [], []
    for t in range(config.horizon):
        latents.append([encode(target, o) for o in batch.obs[t + 1].numpy()])
        row = []
        for b in range(BATCH):
            z = encode(online, batch.obs[t + 1, b].numpy())
            value = lowest_q(target, config.num_q, z, policy(online, z))
            over = bool(batch.terminated[t, b])
            row.append(float(batch.reward[t, b]) + (0.0 if over else config.discount * value))
        y.append(row)
    return latents, y


def losses(online, batch, config, goal):
    """Consistency, reward, value, priority per sequence, each [B], and the latents [B][H+1]."""
    sums = {name: np.zeros(BATCH) for name in ("consistency", "reward", "value", "priority")}
    rollouts = []
    target_latents, y = goal
    for b in range(BATCH):
        z = encode(online, batch.obs[0, b].numpy())
        rollouts.append([z])
        for t in range(config.horizon):
            factor = config.rho**t
            action = batch.action[t, b].numpy()
            for i in range(config.num_q):
                error = q_value(online, i, z, action) - y[t][b]
                sums["value"][b] += factor * error**2
                sums["priority"][b] += factor * abs(error)
            sums["reward"][b] += factor * (reward(online, z, action) - float(batch.reward[t, b])) ** 2
            z = dynamics(online, z, action)
            rollouts[b].append(z)
            squares = [(z[j] - target_latents[t][b][j]) ** 2 for j in range(config.latent_dim)]
            sums["consistency"][b] += factor * sum(squares) / config.latent_dim
    return sums, rollouts


def total_loss(sums, batch, config):
    """The weighted mean over sequences of the clamped terms."""
    total = 0.0
    for b in range(BATCH):
        terms = (
            config.consistency_coef * min(sums["consistency"][b], 1e4)
            + config.reward_coef * min(sums["reward"][b], 1e4)
            + config.value_coef * min(sums["value"][b], 1e4)
        )
        total += float(batch.weight[b]) * terms / BATCH
    return total


def policy_loss(policy_weights, q_weights, rollouts, config):
    """-sum_t rho^t mean_b min_i Q_i(z, pi(z)) over all H + 1 latents."""
    loss = 0.0
    for t in range(config.horizon + 1):
        for b in range(BATCH):
            z = rollouts[b][t]
            value = lowest_q(q_weights, config.num_q, z, policy(policy_weights, z))
            loss -= config.rho**t * value / BATCH
    return loss


def slope(function, weights, direction, step=1e-5):
    """Derivative of a function of weights along a direction, by central differences."""
    ahead = {k: v + step * direction[k] if k in direction else v for k, v in weights.items()}
    behind = {k: v - step * direction[k] if k in direction else v for k, v in weights.items()}
    return (function(ahead) - function(behind)) / (2 * step)
