"""The losses, against loops in numpy. The policy's noise is made too small to be seen (`QUIET`)."""

import numpy as np
import pytest
import torch
from by_hand import (
    BATCH,
    HORIZON,
    encode,
    goals,
    losses,
    lowest_q,
    policy,
    policy_loss,
    random_agent,
    random_batch,
    slope,
    total_loss,
    weights_of,
)

# rho^t is kept in float32.
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def by_hand(agent, batch):
    online, target = weights_of(agent.model), weights_of(agent.target)
    return losses(online, batch, agent.config, goals(online, target, batch, agent.config))


def spy_on_noise(monkeypatch, model):
    """Records the standard deviations that `model.act` is called with."""
    stds, act = [], model.act

    def spy(z, std=0.0, generator=None):
        stds.append(std)
        return act(z, std, generator)

    monkeypatch.setattr(model, "act", spy)
    return stds


@pytest.mark.parametrize("settings", [{}, {"num_q": 3, "rho": 0.8, "discount": 0.7}, {"horizon": 1}])
def test_losses_per_sequence(settings):
    agent = random_agent(**settings)
    batch = random_batch(horizon=agent.config.horizon)
    found, latents = agent.model_losses(batch)
    expected, rollouts = by_hand(agent, batch)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name).detach(), values, **CLOSE, err_msg=name)
    assert not latents.requires_grad
    np.testing.assert_allclose(latents, np.swapaxes(rollouts, 0, 1), **CLOSE)


@pytest.mark.parametrize("num_q", [2, 3])
def test_td_target(num_q):
    agent = random_agent(seed=2, num_q=num_q, discount=0.9)
    online, target = weights_of(agent.model), weights_of(agent.target)
    rng = np.random.default_rng(0)
    obs, rewards = rng.normal(size=(HORIZON, BATCH, 4)), rng.normal(size=(HORIZON, BATCH))
    over = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=float)
    y = agent.td_target(*map(torch.from_numpy, (obs, rewards, over)))
    assert not y.requires_grad
    for t in range(HORIZON):
        for b in range(BATCH):
            z = encode(online, obs[t, b])
            value = lowest_q(target, num_q, z, policy(online, z))
            expected = rewards[t, b] if over[t, b] else rewards[t, b] + 0.9 * value
            assert abs(value) > 1e-3
            assert y[t, b].item() == pytest.approx(expected, rel=1e-9)


def test_a_time_limit_does_not_stop_the_bootstrap():
    agent = random_agent()
    obs, rewards = torch.ones(1, 1, 4, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    over = agent.td_target(obs, rewards, torch.ones_like(rewards)).item()
    cut_off = agent.td_target(obs, rewards, torch.zeros_like(rewards)).item()
    w, target = weights_of(agent.model), weights_of(agent.target)
    z = encode(w, np.ones(4))
    assert over == 0
    assert cut_off == pytest.approx(0.99 * lowest_q(target, 2, z, policy(w, z)), rel=1e-9)


def test_noise_of_targets_and_policy_loss(monkeypatch):
    agent = random_agent(policy_std=0.07)
    stds = spy_on_noise(monkeypatch, agent.model)
    _, latents = agent.model_losses(random_batch())
    assert stds == [0.07]
    agent.policy_loss(latents)
    assert stds == [0.07, 0.07]


def test_noise_differs_between_updates():
    agent = random_agent(policy_std=0.3)
    batch = random_batch()
    first, second = agent.model_losses(batch)[0], agent.model_losses(batch)[0]
    assert (first.value - second.value).abs().max() > 1e-4
    np.testing.assert_allclose(first.consistency.detach(), second.consistency.detach())


@pytest.mark.parametrize("settings", [{}, {"consistency_coef": 0.3, "reward_coef": 1.7, "value_coef": 0.9}])
def test_total_weighs_every_sequence(settings):
    agent = random_agent(**settings)
    batch = random_batch()
    expected, _ = by_hand(agent, batch)
    metrics, priority = agent.update(batch)
    np.testing.assert_allclose(priority, expected["priority"], **CLOSE)
    assert metrics["total_loss"].item() == pytest.approx(total_loss(expected, batch, agent.config), rel=1e-6)
    for name in ("consistency", "reward", "value"):
        assert metrics[f"{name}_loss"].item() == pytest.approx(expected[name].mean(), rel=1e-6)
    assert not any(v.requires_grad for v in metrics.values())
    assert not priority.requires_grad


def test_weight_of_zero_silences_a_sequence():
    """A mean of losses times a mean of weights would not."""
    agent = random_agent()
    batch = random_batch()
    batch.weight[:] = torch.tensor([0.0, 1.0, 0.0])
    batch.reward[:, 0] = 30.0
    expected, _ = by_hand(agent, batch)
    alone = 2 * expected["consistency"][1] + 0.5 * expected["reward"][1] + 0.1 * expected["value"][1]
    assert agent.update(batch)[0]["total_loss"].item() == pytest.approx(alone / BATCH, rel=1e-6)


def test_terms_and_priorities_are_clamped_apart():
    agent = random_agent()
    batch = random_batch()
    batch.reward[:, 0] = 2e4  # all of it beyond the limit
    batch.reward[0, 1] = 110.0  # reward loss beyond it
    batch.obs[2, 2] *= 1e5  # consistency loss beyond it
    expected, _ = by_hand(agent, batch)
    beyond = {name: [bool(v > 1e4) for v in values] for name, values in expected.items()}
    assert beyond["reward"] == [True, True, False]
    assert beyond["consistency"] == [False, False, True]
    assert beyond["priority"][0]
    assert not beyond["priority"][1]
    metrics, priority = agent.update(batch)
    assert metrics["total_loss"].item() == pytest.approx(total_loss(expected, batch, agent.config), rel=1e-6)
    np.testing.assert_allclose(priority, np.minimum(expected["priority"], 1e4), rtol=1e-6)
    assert metrics["reward_loss"].item() == pytest.approx(expected["reward"].mean(), rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"num_q": 3, "rho": 0.8}])
def test_policy_loss(settings):
    agent = random_agent(seed=1, **settings)
    batch = random_batch()
    w = weights_of(agent.model)
    _, rollouts = by_hand(agent, batch)
    latents = torch.from_numpy(np.swapaxes(rollouts, 0, 1).copy())
    assert latents.shape[0] == HORIZON + 1
    found = agent.policy_loss(latents).item()
    assert found == pytest.approx(policy_loss(w, w, rollouts, agent.config), rel=1e-6)


def test_gradient_of_the_model_loss():
    """Along a random direction of every component, against differences of the loss in numpy."""
    agent = random_agent(grad_clip=1e9)
    batch = random_batch()
    online, target = weights_of(agent.model), weights_of(agent.target)
    goal = goals(online, target, batch, agent.config)
    agent.update(batch)

    def function(w):
        return total_loss(losses(w, batch, agent.config, goal)[0], batch, agent.config)

    rng = np.random.default_rng(0)
    for component in ("encoder", "dynamics", "reward", "q.0", "q.1"):
        direction = {n: rng.normal(size=w.shape) for n, w in online.items() if n.startswith(component + ".")}
        gradient = {n: p.grad.numpy() for n, p in agent.model.named_parameters() if n in direction}
        found = sum((gradient[n] * direction[n]).sum() for n in direction)
        expected = slope(function, online, direction) / HORIZON
        assert abs(expected) > 1e-4
        assert found == pytest.approx(expected, rel=1e-5), component


def test_gradient_of_the_policy_loss():
    agent = random_agent(grad_clip=1e9)
    batch = random_batch()
    online = weights_of(agent.model)
    _, rollouts = by_hand(agent, batch)
    agent.update(batch)
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = {n: rng.normal(size=w.shape) for n, w in online.items() if n.startswith("policy.")}
        found = sum(
            (p.grad.numpy() * direction[n]).sum() for n, p in agent.model.named_parameters() if n in direction
        )
        expected = slope(lambda w: policy_loss(w, online, rollouts, agent.config), online, direction)
        assert abs(expected) > 1e-4
        assert found == pytest.approx(expected, rel=1e-5)


def test_each_loss_reaches_its_own_parameters_alone():
    agent = random_agent()
    found, _ = agent.model_losses(random_batch())
    (found.consistency + found.reward + found.value).sum().backward()
    assert all(p.grad is None for p in agent.model.policy.parameters())
    assert all(p.grad is None for p in agent.target.parameters())
    assert all(p.grad.abs().sum() > 0 for p in agent.model_parameters())


def test_update_leaves_no_policy_gradient_in_the_model():
    """The model's gradients after `update` are those of the model loss alone, as computed here apart."""
    agent = random_agent(grad_clip=1e9, tau=1e-30)
    batch = random_batch()
    found, _ = agent.model_losses(batch)
    total = 2 * found.consistency + 0.5 * found.reward + 0.1 * found.value
    expected = torch.autograd.grad((total * batch.weight).sum() / (BATCH * HORIZON), agent.model_parameters())
    for _ in range(2):  # a second update must not add to the first one's
        agent.update(batch)
        for parameter, gradient in zip(agent.model_parameters(), expected, strict=True):
            np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-6, atol=1e-10)
    assert all(p.requires_grad for p in agent.model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in agent.target.parameters())


def norm(gradients):
    return float(np.sqrt(sum((g**2).sum() for g in gradients)))


def test_model_gradient_is_clipped_at_ten():
    free, clipped = (random_agent(grad_clip=c) for c in (1e9, 10.0))
    batch = random_batch(reward_scale=60.0)
    whole = float(free.update(batch)[0]["grad_norm"])
    metric = float(clipped.update(batch)[0]["grad_norm"])
    gradients = [[p.grad.numpy() for p in agent.model_parameters()] for agent in (free, clipped)]
    assert whole == pytest.approx(norm(gradients[0]), rel=1e-6)
    assert metric == pytest.approx(whole, rel=1e-6)
    assert whole > 11
    assert norm(gradients[1]) == pytest.approx(10, rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(other, one * 10 / whole, rtol=1e-5, atol=1e-12)


def test_policy_gradient_is_clipped_apart_at_ten():
    agents = [random_agent(grad_clip=c) for c in (1e9, 10.0)]
    for agent in agents:
        with torch.no_grad():
            for q in agent.model.q:
                q[-1].weight.mul_(3e3)
        agent.update(random_batch())
    gradients = [[p.grad.numpy() for p in agent.model.policy.parameters()] for agent in agents]
    assert norm(gradients[0]) > 11
    assert norm(gradients[1]) == pytest.approx(10, rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(other, one * 10 / norm(gradients[0]), rtol=1e-5, atol=1e-12)


def test_small_gradients_are_left_alone():
    agent = random_agent(scale=0.2, grad_clip=10.0)
    metrics, _ = agent.update(random_batch())
    assert 0 < metrics["grad_norm"] < 10
    gradients = [p.grad.numpy() for p in agent.model_parameters()]
    assert norm(gradients) == pytest.approx(float(metrics["grad_norm"]), rel=1e-6)
