from itertools import pairwise

import numpy as np
import pytest
import torch
from by_hand import dynamics, encode, lowest_q, policy, q_value, random_agent, reward, weights_of
from torch import nn

from agents.layers import alike
from agents.networks import mlp, straight_through_clamp, widths
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PAPER
from agents.tdmpc.world_model import WorldModel, architecture

PAPER_WIDTHS = {
    "encoder": [5, 256, 50],
    "dynamics": [51, 512, 512, 50],
    "reward": [51, 512, 512, 1],
    "policy": [50, 512, 512, 1],
    "q1": [51, 512, 512, 1],
    "q2": [51, 512, 512, 1],
}
# Another width in every place, and another one in every Q.
ODD_WIDTHS = {
    "encoder": [4, 7, 3],
    "dynamics": [5, 9, 2, 3],
    "reward": [5, 1, 6, 1],
    "policy": [3, 8, 5, 2],
    "q1": [5, 4, 3, 1],
    "q2": [5, 11, 2, 1],
    "q3": [5, 2, 7, 1],
}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def paper():
    return TDMPC(PAPER, 5, 1, seed=3)


def test_layers_are_those_of_the_paper(paper):
    three = [nn.Linear, nn.ELU, nn.Linear, nn.ELU, nn.Linear]
    q = [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear, nn.ELU, nn.Linear]
    expected = {"encoder": three[:3], "dynamics": three, "reward": three, "policy": three, "q1": q, "q2": q}
    found = {name: [type(layer) for layer in net] for name, net in paper.components().items()}
    assert found == expected
    assert list(found) == list(expected)
    assert paper.model.architecture() == PAPER_WIDTHS
    assert architecture(PAPER, 5, 1) == PAPER_WIDTHS


def test_layer_constants(paper):
    for module in paper.model.modules():
        if isinstance(module, nn.ELU):
            assert module.alpha == 1
        if isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == (512,)
            assert module.eps == 1e-5
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert module.bias is not None


def test_parameter_count_is_that_of_the_paper(paper):
    def count(sizes):
        return sum(a * b + b for a, b in pairwise(sizes))

    expected = sum(count(sizes) for sizes in PAPER_WIDTHS.values()) + 2 * (512 + 512)
    assert expected == 1_490_024
    assert sum(p.numel() for p in paper.model.parameters()) == expected


def test_initial_weights(paper):
    zeroed = {"reward.4", "q.0.5", "q.1.5"}
    seen = set()
    for name, module in paper.model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight.detach().double().numpy()
        assert (module.bias == 0).all(), name
        if name in zeroed:
            seen.add(name)
            assert (weight == 0).all(), name
        else:
            rows, columns = weight.shape
            gram = weight @ weight.T if rows <= columns else weight.T @ weight
            np.testing.assert_allclose(gram, np.eye(min(rows, columns)), atol=1e-5, err_msg=name)
    assert seen == zeroed


def test_first_predictions(paper):
    z = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    action = torch.zeros(7, 1)
    (_, z_next), first_reward = paper.model.rollout(z, action.unsqueeze(0))
    assert (first_reward == 0).all()
    assert (paper.model.values(z, action) == 0).all()
    assert z_next.std() > 0.05
    assert paper.model.act(z).abs().max() > 0.01


def test_every_q_starts_with_weights_of_its_own(paper):
    first, second = (q[0].weight for q in paper.model.q)
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("num_q", [2, 3, 5])
def test_number_of_q(num_q):
    agent = random_agent(num_q=num_q)
    names = [f"q{i + 1}" for i in range(num_q)]
    assert list(agent.components()) == ["encoder", "dynamics", "reward", "policy", *names]
    w = weights_of(agent.model)
    rng = np.random.default_rng(0)
    z, action = rng.normal(size=(6, 3)), rng.uniform(-1, 1, (6, 2))
    values = agent.model.values(torch.from_numpy(z), torch.from_numpy(action)).detach()
    by_hand = [[q_value(w, i, z[n], action[n]) for n in range(6)] for i in range(num_q)]
    np.testing.assert_allclose(values, by_hand, rtol=1e-9)
    np.testing.assert_allclose(
        agent.model.value(torch.from_numpy(z), torch.from_numpy(action)).detach(),
        [lowest_q(w, num_q, z[n], action[n]) for n in range(6)],
        rtol=1e-9,
    )
    # Otherwise a minimum over two of them only could pass.
    assert {int(i) for i in values.argmin(0)} - {0, 1} or num_q == 2


def test_zeroed_heads_of_every_q():
    agent = TDMPC(random_agent(num_q=5).config, 4, 2, seed=1)
    for q in agent.model.q:
        assert (q[-1].weight == 0).all()
        assert (q[-1].bias == 0).all()
        assert (q[-3].weight != 0).any()


def test_forward_passes_over_any_leading_shape():
    agent = random_agent()
    w = weights_of(agent.model)
    rng = np.random.default_rng(1)
    obs, z, action = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3)), rng.uniform(-1, 1, (2, 5, 2))
    latent = agent.model.encode(torch.from_numpy(obs)).detach().numpy()
    (_, following), rewards = agent.model.rollout(torch.from_numpy(z), torch.from_numpy(action[None]))
    assert torch.equal(agent.model.next(torch.from_numpy(z), torch.from_numpy(action)), following)
    z_next, predicted = following.detach().numpy(), rewards[0].detach().numpy()
    acted = agent.model.act(torch.from_numpy(z)).detach().numpy()
    assert predicted.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            np.testing.assert_allclose(latent[i, j], encode(w, obs[i, j]), rtol=1e-9)
            np.testing.assert_allclose(z_next[i, j], dynamics(w, z[i, j], action[i, j]), rtol=1e-9)
            np.testing.assert_allclose(predicted[i, j], reward(w, z[i, j], action[i, j]), rtol=1e-9)
            np.testing.assert_allclose(acted[i, j], policy(w, z[i, j]), rtol=1e-9)


def test_rebuilt_at_odd_widths():
    model = WorldModel(ODD_WIDTHS)
    randomise(model, 0)
    assert model.architecture() == ODD_WIDTHS
    again = WorldModel(model.architecture())
    again.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    obs, action = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    z = model.encode(obs)
    assert torch.equal(again.encode(obs), z)
    assert torch.equal(again.act(z), model.act(z))
    assert torch.equal(again.values(z, action), model.values(z, action))
    (_, one), rewards = model.rollout(z, action.unsqueeze(0))
    (_, same), same_rewards = again.rollout(z, action.unsqueeze(0))
    assert torch.equal(one, same)
    assert torch.equal(rewards, same_rewards)


def test_qs_keep_their_order_beyond_nine():
    sizes = dict(ODD_WIDTHS) | {f"q{i}": [5, i, 2, 1] for i in range(1, 13)}
    model = WorldModel(dict(sorted(sizes.items())))
    assert [q[0].out_features for q in model.q] == list(range(1, 13))
    assert model.architecture() == sizes


def test_agent_of_other_widths():
    agent = TDMPC(random_agent().config, 4, 2, widths=ODD_WIDTHS)
    assert agent.model.architecture() == ODD_WIDTHS
    assert agent.target.architecture() == ODD_WIDTHS


def test_mlp_of_two_widths_is_one_layer():
    network = mlp([3, 2])
    assert [type(layer) for layer in network] == [nn.Linear]
    assert widths(network) == [3, 2]


def normal(count, seed):
    """Noise for `count` actions of two numbers."""
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestPolicyNoise:
    def act(self, mean, std, *, count=40_000, seed=0):
        """Actions of a policy whose output, before tanh, is the same everywhere."""
        agent = random_agent()
        with torch.no_grad():
            agent.model.policy[-1].weight.zero_()
            agent.model.policy[-1].bias.fill_(float(np.arctanh(mean)))
        z = torch.zeros(count, 3, dtype=torch.float64)
        return agent.model.act(z, std, normal(count, seed)).detach().numpy()

    def test_statistics(self):
        noise = self.act(0.2, 0.05) - 0.2
        assert abs(noise.mean()) < 0.001
        assert noise.std() == pytest.approx(0.05, rel=0.02)
        assert np.abs(noise).max() > 0.15
        # The two numbers of an action, and the actions of a batch, have noise of their own.
        assert abs(np.corrcoef(noise.T)[0, 1]) < 0.03
        assert len(np.unique(noise)) == noise.size

    def test_noise_is_clipped_at_three_tenths(self):
        noise = self.act(0.0, 0.3)
        assert np.abs(noise).max() == pytest.approx(0.3, abs=1e-12)
        # A normal number lies beyond one standard deviation with probability 0.3173.
        assert (np.abs(noise) > 0.3 - 1e-9).mean() == pytest.approx(0.3173, abs=0.01)

    def test_actions_stay_within_the_limit(self):
        actions = self.act(0.95, 0.2)
        assert actions.max() == pytest.approx(1 - 1e-6, abs=1e-12)
        assert actions.min() == pytest.approx(0.65, abs=1e-9)
        assert self.act(-0.95, 0.2).min() == pytest.approx(-(1 - 1e-6), abs=1e-12)

    def test_same_noise_same_action(self):
        assert np.array_equal(self.act(0.1, 0.1, count=5, seed=4), self.act(0.1, 0.1, count=5, seed=4))
        assert not np.array_equal(self.act(0.1, 0.1, count=5, seed=4), self.act(0.1, 0.1, count=5, seed=5))

    def test_gradient_passes_a_clamped_action(self):
        agent = random_agent()
        model = agent.model
        with torch.no_grad():
            model.policy[-1].weight.zero_()
            model.policy[-1].bias.fill_(2.0)
        z = torch.zeros(500, 3, dtype=torch.float64)
        action = model.act(z, 0.3, normal(500, seed=0))
        assert (action > 1 - 2e-6).any()
        action.sum().backward()
        # d tanh(b) / db for each of 500 rows, clamped or not.
        np.testing.assert_allclose(model.policy[-1].bias.grad, 500 * (1 - np.tanh(2.0) ** 2), rtol=1e-9)


def test_straight_through_clamp():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    clamped = straight_through_clamp(x, 0.6)
    np.testing.assert_allclose(clamped.detach(), [-0.6, -0.5, 0.0, 0.6, 0.6])
    (clamped * torch.arange(5)).sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("threads", [1, 2])
def test_rewards_of_large_plans_are_predicted_step_by_step(paper, threads):
    """With the same bits: environments must not feel how many they are."""
    calls = []
    forward = paper.model.reward.forward
    z, actions = torch.randn(3, 137, 50), torch.rand(4, 3, 137, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paper.model.reward, "forward", lambda x: calls.append(x.shape) or forward(x))
            nn.init.normal_(paper.model.reward[-1].weight)
            with torch.no_grad(), alike():
                latents, at_once = paper.model.rollout(z, actions)
            with torch.inference_mode(), alike():
                same, by_step = paper.model.rollout(z, actions)
                _, small = paper.model.rollout(z[:, :20], actions[:, :, :20])
        assert calls == [(4, 3, 137, 51), *[(3, 137, 51)] * 4, (4, 3, 20, 51)]
        assert torch.equal(by_step, at_once)
        assert all(map(torch.equal, same, latents))
        np.testing.assert_allclose(small, by_step[:, :, :20], atol=1e-5)
    finally:
        torch.set_num_threads(before)
        nn.init.zeros_(paper.model.reward[-1].weight)
