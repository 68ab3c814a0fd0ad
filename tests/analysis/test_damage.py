"""Damage against surgery, with every loss written out on the smaller networks."""

import copy

import numpy as np
import pytest
import torch

from agents.replay import Batch
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig
from tdmpc_prune.analysis.damage import LossDamage, ReturnDamage, seeded
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units

OBS, ACTION, BATCH, HORIZON, NOISE = 4, 2, 7, 3, 11
# All widths differ, so that a mask in the wrong place does not fit.
WIDTHS = {
    "encoder": [OBS, 9, 6],
    "dynamics": [6 + ACTION, 10, 11, 6],
    "reward": [6 + ACTION, 12, 13, 1],
    "policy": [6, 14, 15, ACTION],
    "q1": [6 + ACTION, 16, 17, 1],
    "q2": [6 + ACTION, 18, 19, 1],
}
GROUPS = [
    *("encoder.0", "dynamics.0", "dynamics.2", "reward.0", "reward.2", "policy.0", "policy.2"),
    *("q1.0", "q1.3", "q2.0", "q2.3", "latent"),
]


@pytest.fixture
def batch() -> Batch:
    """Sequences of unequal weights, some of which end."""
    rng = np.random.default_rng(0)
    columns = {
        "obs": rng.normal(size=(HORIZON + 1, BATCH, OBS)),
        "action": rng.uniform(-1, 1, (HORIZON, BATCH, ACTION)),
        "reward": rng.normal(size=(HORIZON, BATCH)),
        "terminated": (rng.random((HORIZON, BATCH)) < 0.2).astype(float),
        "weight": rng.uniform(0.2, 1, BATCH),
    }
    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in columns.items()}
    return Batch(index=torch.arange(BATCH), **tensors)


@pytest.fixture
def agent() -> TDMPC:
    """Random weights everywhere, others in the target, and a policy whose noise is seen."""
    config = TDMPCConfig(
        batch_size=BATCH,
        horizon=HORIZON,
        policy_std=0.2,
        planner=PlannerConfig(iterations=2, num_samples=16, num_elites=4),
    )
    agent = TDMPC(config, OBS, ACTION, seed=3, widths=WIDTHS)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*agent.model.parameters(), *agent.target.parameters()]:
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return agent


def without(agent, name, units):
    """A copy of the agent, target and all, after surgery."""
    smaller = TDMPC(agent.config, OBS, ACTION, widths=agent.model.architecture())
    smaller.model.load_state_dict(agent.model.state_dict())
    smaller.target.load_state_dict(agent.target.state_dict())
    remove_units(smaller, find_groups(smaller), {name: units})
    return smaller


@torch.no_grad()
def model_loss(model, target_latents, dims, y, batch, config):
    """The model loss in loops over steps, as the gradient sees it."""
    z = model.encode(batch.obs[0])
    consistency = reward = value = torch.zeros(BATCH)
    for t in range(HORIZON):
        factor, action = config.rho**t, batch.action[t]
        errors = [q(torch.cat([z, action], -1)).squeeze(-1) - y[t] for q in model.q]
        value = value + factor * sum(e**2 for e in errors)
        (_, z), predicted = model.rollout(z, action.unsqueeze(0))
        reward = reward + factor * (predicted[0] - batch.reward[t]) ** 2
        consistency = consistency + factor * ((z - target_latents[t])[:, list(dims)] ** 2).mean(-1)
    total = config.consistency_coef * consistency + config.reward_coef * reward + config.value_coef * value
    return float((total * batch.weight).double().mean()) / HORIZON


@torch.no_grad()
def by_surgery(agent, batch, group, units):
    """The damage of removing units: surgery on a copy, goals of the whole agent, losses by hand."""
    smaller = without(agent, group.name, units)
    stay = [i for i in range(group.units) if i not in units.tolist()]
    dims = stay if group.coupling else list(range(6))
    config = agent.config
    with seeded(agent.generator, NOISE):
        y = agent.td_target(batch.obs[1:], batch.reward, batch.terminated)
    target_latents = agent.target.encode(batch.obs[1:])
    damage = 0.0
    if "policy" not in group.components or group.coupling:
        # The undisturbed loss, too, counts only the dimensions that stay.
        damage -= model_loss(agent.model, target_latents, dims, y, batch, config)
        damage += model_loss(smaller.model, target_latents[..., dims], range(len(dims)), y, batch, config)
    if "policy" in group.components:
        z = [agent.model.encode(batch.obs[0])]
        for t in range(HORIZON):
            z.append(agent.model.next(z[t], batch.action[t]))
        noise = torch.randn(HORIZON + 1, BATCH, ACTION, generator=torch.Generator().manual_seed(NOISE))
        rewards = {}
        for name, model, inputs in (("whole", agent.model, range(6)), ("less", smaller.model, dims)):
            total = 0.0
            for t in range(HORIZON + 1):
                action = model.act(z[t][:, list(inputs)], config.policy_std, noise[t])
                total -= config.rho**t * float(agent.model.value(z[t], action).mean())
            rewards[name] = total
        damage += rewards["less"] - rewards["whole"]
    return damage


@pytest.mark.parametrize("name", GROUPS)
def test_damage_is_that_of_surgery(agent, batch, name):
    """For every kind of group: with and without a LayerNorm, the policy's own loss, and the latent."""
    group = next(g for g in find_groups(agent) if g.name == name)
    damage = LossDamage(agent, batch, seed=NOISE)
    for units in (torch.tensor([0]), torch.tensor([group.units - 1]), torch.tensor([1, 3, 4])):
        wanted = by_surgery(agent, batch, group, units)
        assert abs(wanted) > 1e-4
        assert damage.of(group, units) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_every_group_is_tested(agent):
    assert [g.name for g in find_groups(agent)] == GROUPS


@pytest.mark.parametrize("name", [n for n in GROUPS if n not in ("q1.0", "q2.0")])
def test_unit_that_nobody_reads_does_no_damage(agent, batch, name):
    """Also in the latent, whose own error is large: it is not counted before either."""
    group = next(g for g in find_groups(agent) if g.name == name)
    with torch.no_grad():
        for member in group.members:
            if member.role == "in":
                member.module.weight[:, member.index[2]] = 0
    damage = LossDamage(agent, batch, seed=NOISE)
    assert damage.of(group, torch.tensor([2])) == pytest.approx(0, abs=1e-6)
    assert abs(damage.of(group, torch.tensor([1]))) > 1e-4


@pytest.mark.parametrize("name", ["q1.0", "q2.0"])
def test_removal_under_a_layer_norm_is_felt_by_the_others(agent, batch, name):
    """A unit that nobody reads still had its part in the mean and the variance of the norm."""
    group = next(g for g in find_groups(agent) if g.name == name)
    with torch.no_grad():
        agent.model.q[int(name[1]) - 1][3].weight[:, 2] = 0
    units = torch.tensor([2])
    found = LossDamage(agent, batch, seed=NOISE).of(group, units)
    assert abs(found) > 1e-4
    assert found == pytest.approx(by_surgery(agent, batch, group, units), rel=1e-4, abs=1e-6)


def test_damage_grows_with_planted_weights(agent, batch):
    """Identical units of a reward model that is right: the damage of one is its outgoing weight squared."""
    scales = torch.tensor([0.3, 1.1, 0.7, 0.05, 2.0, 0.9, 0.0, 1.6, 0.2, 0.5, 1.3, 0.8, 0.4])
    second, last = agent.model.reward[2], agent.model.reward[4]
    with torch.no_grad():
        second.weight.zero_()
        second.bias.fill_(1.0)  # every hidden unit is elu(1) = 1
        last.weight.copy_(scales[None])
        batch.reward.copy_(torch.full_like(batch.reward, float(scales.sum() + last.bias)))
    group = next(g for g in find_groups(agent) if g.name == "reward.2")
    damage = LossDamage(agent, batch, seed=NOISE)
    found = [damage.of(group, torch.tensor([u])) for u in range(13)]
    config = agent.config
    per_square = config.reward_coef * (1 + config.rho + config.rho**2) * float(batch.weight.mean()) / HORIZON
    assert found == pytest.approx((per_square * scales**2).tolist(), rel=1e-4, abs=1e-6)


def test_losses_are_those_of_the_update(agent, batch):
    """What the damage is a change of, against what an update reports: same random numbers, same losses."""
    twin = copy.deepcopy(agent.model.state_dict())
    losses, _ = agent.model_losses(batch)
    wanted = float(agent.weighted_loss(losses, batch).mean().detach())
    again = TDMPC(agent.config, OBS, ACTION, seed=3, widths=WIDTHS)
    again.model.load_state_dict(twin)
    again.target.load_state_dict(agent.target.state_dict())
    metrics, _ = again.update(batch)
    assert float(metrics["total_loss"]) == wanted


def test_agent_and_its_random_numbers_stay(agent, batch):
    weights = copy.deepcopy([agent.model.state_dict(), agent.target.state_dict()])
    generator = agent.generator.get_state()
    damage = LossDamage(agent, batch, seed=NOISE)
    for group in find_groups(agent):
        damage.of(group, torch.tensor([0]))
    for before, now in zip(weights, (agent.model, agent.target), strict=True):
        assert all(torch.equal(before[k], v) for k, v in now.state_dict().items())
    assert torch.equal(generator, agent.generator.get_state())
    hooks = [h for m in agent.model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(hooks)


def test_same_seed_same_damage(agent, batch):
    group = next(g for g in find_groups(agent) if g.name == "latent")
    first, again = (LossDamage(agent, batch, seed=NOISE).of(group, torch.tensor([1])) for _ in range(2))
    assert first == again
    assert LossDamage(agent, batch, seed=NOISE + 1).of(group, torch.tensor([1])) != first


def test_nobody_left(agent, batch):
    group = next(g for g in find_groups(agent) if g.name == "latent")
    with pytest.raises(ValueError, match="latent would lose all of its 6 units"):
        LossDamage(agent, batch, seed=0).of(group, torch.arange(6))


def test_return_damage_is_that_of_surgery():
    config = TDMPCConfig(latent_dim=6, encoder_dim=9, hidden_dim=12, horizon=2)
    agent = TDMPC(config, 5, 1, seed=1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for parameter in agent.model.parameters():  # new ones are too linear: any latent, same best action
            parameter.normal_()
    evaluator = Evaluator("cartpole-swingup", env_seed=0, episodes=2, seed=4, action_repeat=50)
    damage = ReturnDamage(agent, evaluator, agent_step=5000)
    group = next(g for g in find_groups(agent) if g.name == "encoder.0")
    units = torch.tensor([0, 2, 3, 5, 7])
    smaller = agent.copy_for_acting()
    remove_units(smaller, find_groups(smaller), {"encoder.0": units})
    whole, less = evaluator.run(agent, 5000).mean, evaluator.run(smaller, 5000).mean
    assert whole != less
    assert damage.undisturbed == whole
    assert damage.of(group, units) == whole - less
    assert agent.model.architecture()["encoder"] == [5, 9, 6]
    evaluator.close()
