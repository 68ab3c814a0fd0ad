"""Optimisers, target network and repeatability of the agent's updates."""

import numpy as np
import pytest
import torch
from by_hand import random_agent, random_batch, tiny_config, weights_of

from agents.replay import Episode
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG, LAPTOP, PAPER


def test_optimisers_partition_the_online_parameters():
    agent = random_agent(num_q=3)
    model, policy = (
        [id(p) for group in optimizer.param_groups for p in group["params"]]
        for optimizer in agent.optimizers()
    )
    online = {id(p): name for name, p in agent.model.named_parameters()}
    assert sorted(model + policy) == sorted(online)
    assert {online[i].split(".")[0] for i in policy} == {"policy"}
    assert {online[i].split(".")[0] for i in model} == {"encoder", "dynamics", "reward", "q"}


def test_optimisers_are_adam_as_published():
    for optimizer in TDMPC(PAPER, 5, 1).optimizers():
        assert type(optimizer) is torch.optim.Adam
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]) == (
            1e-3,
            (0.9, 0.999),
            1e-8,
            0,
            False,
        )


def test_settings_as_published():
    learning = ("batch_size", "horizon", "rho", "discount", "lr", "grad_clip", "tau", "target_every", "num_q")
    for preset, batch_size in ((PAPER, 512), (LAPTOP, 256)):
        assert [getattr(preset, name) for name in learning] == [
            batch_size, 5, 0.5, 0.99, 1e-3, 10.0, 0.01, 2, 2,
        ]  # fmt: skip
        assert (preset.consistency_coef, preset.reward_coef, preset.value_coef) == (2.0, 0.5, 0.1)
        assert (preset.replay.alpha, preset.replay.beta, preset.policy_std) == (0.6, 0.4, 0.05)
        planner = preset.planner
        assert (planner.temperature, planner.momentum, planner.max_std) == (0.5, 0.1, 2.0)
    assert (PAPER.latent_dim, PAPER.encoder_dim, PAPER.hidden_dim) == (50, 256, 512)
    assert (PAPER.random_steps, PAPER.schedule_steps) == (5_000, 25_000)
    planner = PAPER.planner
    sizes = (planner.iterations, planner.num_samples, planner.num_policy_samples, planner.num_elites)
    assert sizes == (6, 512, 25, 64)
    assert (LAPTOP.latent_dim, LAPTOP.encoder_dim, LAPTOP.hidden_dim) == (32, 128, 128)
    assert (LAPTOP.random_steps, LAPTOP.schedule_steps) == (1_000, None)
    planner = LAPTOP.planner
    assert (planner.iterations, planner.num_samples, planner.num_elites) == (4, 128, 16)


def test_first_step_of_adam():
    """Adam's first step is lr * g / (|g| + eps): of `lr` where the gradient is not tiny."""
    agent = random_agent(lr=1e-3)
    before = weights_of(agent.model)
    agent.update(random_batch())
    moved = 0
    for name, parameter in agent.model.named_parameters():
        gradient = parameter.grad.numpy()
        expected = before[name] - 1e-3 * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(parameter.detach(), expected, atol=1e-9, err_msg=name)
        moved += np.abs(parameter.detach().numpy() - before[name] > 5e-4).sum()
    assert moved > 50


def test_policy_learns_from_the_updated_q():
    """The order of the public code: the model's step comes before the policy's."""
    agent, twin = (random_agent(lr=0.05, grad_clip=1e9) for _ in range(2))
    batch = random_batch()
    _, latents = twin.model_losses(batch)
    metrics, _ = agent.update(batch)
    with torch.no_grad():
        stale = float(twin.policy_loss(latents))
        for q, updated in zip(twin.model.q, agent.model.q, strict=True):
            q.load_state_dict(updated.state_dict())
        fresh = float(twin.policy_loss(latents))
    assert abs(fresh - stale) > 1e-3
    assert float(metrics["policy_loss"]) == pytest.approx(fresh, rel=1e-9)


def test_target_starts_as_a_frozen_copy():
    agent = TDMPC(tiny_config(), 4, 2)
    online, target = dict(agent.model.named_parameters()), dict(agent.target.named_parameters())
    assert list(online) == list(target)
    for name, parameter in target.items():
        assert torch.equal(parameter, online[name])
        assert parameter.data_ptr() != online[name].data_ptr()
        assert not parameter.requires_grad
        assert online[name].requires_grad


@pytest.mark.parametrize(("every", "moving"), [(2, {0, 2, 4}), (3, {0, 3}), (1, {0, 1, 2, 3, 4})])
def test_target_follows(every, moving):
    agent = random_agent(lr=1e-2, target_every=every)
    for update in range(5):
        before = weights_of(agent.target)
        agent.update(random_batch(seed=update))
        online, target = weights_of(agent.model), weights_of(agent.target)
        for name in target:
            step = 0.01 * (online[name] - before[name]) if update in moving else 0.0
            np.testing.assert_allclose(target[name], before[name] + step, rtol=0, atol=1e-12)
        assert agent.updates == update + 1
    assert not any(p.requires_grad for p in agent.target.parameters())


def test_step_of_the_target_by_hand():
    agent = random_agent(tau=0.25)
    with torch.no_grad():
        for online, target in zip(agent.model.parameters(), agent.target.parameters(), strict=True):
            online.fill_(8.0)
            target.fill_(4.0)
    agent.update_target()
    assert all((p == 5.0).all() for p in agent.target.parameters())
    assert all((p == 8.0).all() for p in agent.model.parameters())


@pytest.mark.parametrize(
    ("preset", "step", "horizon", "std"),
    [
        (PAPER, 0, 1, 0.5),
        (PAPER, 5_000, 1, 0.41),
        (PAPER, 6_249, 1, 0.387518),
        (PAPER, 6_250, 2, 0.3875),
        (PAPER, 12_499, 2, 0.275018),
        (PAPER, 12_500, 3, 0.275),
        (PAPER, 20_000, 4, 0.14),
        (PAPER, 24_999, 4, 0.050018),
        (PAPER, 25_000, 5, 0.05),
        (PAPER, 1_000_000, 5, 0.05),
        (LAPTOP, 0, 1, 0.5),
        (LAPTOP, 749, 1, 0.38765),
        (LAPTOP, 750, 2, 0.3875),
        (LAPTOP, 1_500, 3, 0.275),
        (LAPTOP, 2_250, 4, 0.1625),
        (LAPTOP, 2_999, 4, 0.05015),
        (LAPTOP, 3_000, 5, 0.05),
        (LAPTOP, 9_999, 5, 0.05),
    ],
)
def test_schedules(preset, step, horizon, std):
    assert preset.horizon_at(step) == horizon
    assert preset.std_at(step) == pytest.approx(std, rel=1e-9)


def test_no_schedule():
    config = tiny_config(schedule_steps=0, policy_std=0.05)
    assert (config.horizon_at(0), config.std_at(0)) == (3, 0.05)


def test_mirrors_are_the_target_networks():
    agent = random_agent(num_q=3)
    (mirror,) = agent.mirrors()
    assert list(mirror) == ["encoder", "dynamics", "reward", "policy", "q1", "q2", "q3"]
    held = [p.data_ptr() for component in mirror.values() for p in component.parameters()]
    assert held == [p.data_ptr() for p in agent.target.parameters()]
    for name, component in agent.components().items():
        shapes = [p.shape for p in component.parameters()]
        assert shapes == [p.shape for p in mirror[name].parameters()]


def test_trace_depends_on_every_parameter():
    agent = TDMPC(tiny_config(num_q=3), 4, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sum(output.sum() for output in agent.trace()).backward()
    zero_input = {"encoder.0.weight"}  # the observation is zero
    for name, parameter in agent.model.named_parameters():
        assert (parameter.grad != 0).any() == (name not in zero_input), name


def test_observers_see_each_gradient_whole():
    """The model's before clipping, then the policy's; the update itself is as without an observer."""
    free, watched, alone = (random_agent(grad_clip=c, lr=1e-2) for c in (1e9, 1e-3, 1e-3))
    batch, seen = random_batch(), []
    free.update(batch)
    watched.update(batch, observe=lambda ps: seen.append([(id(p), p.grad.clone()) for p in ps]))
    alone.update(batch)
    assert len(seen) == 2
    owners = (watched.model_parameters(), watched.model.policy.parameters())
    for calls, parameters in zip(seen, owners, strict=True):
        assert [i for i, _ in calls] == [id(p) for p in parameters]
    for (_, gradient), parameter in zip(seen[0], free.model_parameters(), strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-9)
    whole = np.sqrt(sum(float(g.square().sum()) for _, g in seen[1]))
    assert whole > 0.01  # ten times what clipping leaves
    for one, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_for_acting():
    agent = TDMPC(tiny_config(lr=1e-2), 4, 2)
    copy = agent.copy_for_acting()
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    actions, state = agent.policy_action(obs), agent.generator.get_state()
    np.testing.assert_array_equal(copy.policy_action(obs), actions)
    copy.random_action()
    with torch.no_grad():
        for parameter in copy.model.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(agent.policy_action(obs), actions)
    assert torch.equal(agent.generator.get_state(), state)


class RecordingPlanner:
    def plan(self, z, *, horizon, min_std, explore):
        self.seen = (z, horizon, min_std, explore)
        return torch.full((len(z), 2), 0.5)


def test_plan_uses_the_schedules_and_the_encoder():
    agent = TDMPC(DEBUG, 4, 2)
    planner = RecordingPlanner()
    planner.model = agent.model
    obs = np.random.default_rng(0).normal(size=(3, 4))
    action = agent.plan(obs, planner, 50, explore=True)
    z, horizon, min_std, explore = planner.seen
    np.testing.assert_array_equal(action, np.full((3, 2), 0.5))
    assert (horizon, explore) == (3, True)
    assert min_std == pytest.approx(0.275)
    np.testing.assert_allclose(z, agent.model.encode(torch.tensor(obs, dtype=torch.float32)).detach())
    agent.plan(obs, planner, 0)
    assert planner.seen[1:] == (1, 0.5, False)


def test_policy_action_is_without_noise():
    agent = TDMPC(tiny_config(policy_std=0.3), 4, 2)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    z = agent.model.encode(torch.from_numpy(obs))
    expected = torch.tanh(agent.model.policy(z)).detach()
    for _ in range(2):
        np.testing.assert_array_equal(agent.policy_action(obs), expected)


def test_random_actions_are_uniform():
    agent = TDMPC(tiny_config(), 4, 2, seed=1)
    actions = np.array([agent.random_action() for _ in range(4000)])
    assert actions.shape == (4000, 2)
    assert actions.dtype == np.float32
    # Uniform on [-1, 1]: standard deviation 3^-1/2.
    assert np.abs(actions.mean(0)).max() < 0.04
    np.testing.assert_allclose(actions.std(0), 3**-0.5, rtol=0.03)
    assert 0.99 < np.abs(actions).max() <= 1


def thirty_updates(global_seed, seed=5):
    torch.manual_seed(global_seed)
    agent = TDMPC(tiny_config(lr=1e-3, policy_std=0.05, batch_size=8), 4, 2, seed=seed)
    replay = agent.make_replay(seed + 1)
    rng = np.random.default_rng(0)
    for terminated in (False, True, False):
        obs = torch.from_numpy(rng.normal(size=(13, 4))).float()
        action = torch.from_numpy(rng.uniform(-1, 1, (12, 2))).float()
        replay.add(Episode(obs, action, obs[1:, 0].clone(), terminated))
    metrics = []
    for _ in range(30):
        batch = replay.sample(8)
        losses, priority = agent.update(batch)
        replay.update_priorities(batch.index, priority)
        metrics.append(torch.stack([losses[name] for name in sorted(losses)]))
    planner = agent.make_planner()
    action = agent.plan(np.ones((2, 4), np.float32), planner, 10, explore=True)
    parameters = [p.detach() for m in (agent.model, agent.target) for p in m.parameters()]
    return [*parameters, *metrics, torch.from_numpy(action)]


def test_two_runs_are_equal_bit_by_bit():
    first, second = thirty_updates(1), thirty_updates(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, thirty_updates(1, seed=6), strict=True))


def test_a_new_agent_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    TDMPC(tiny_config(), 4, 2, seed=9)
    assert torch.equal(torch.get_rng_state(), state)
