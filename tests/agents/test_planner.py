"""The planner on small models of its own, whose candidates are recorded, so that its maths can be redone."""

import numpy as np
import pytest
import torch

from agents.tdmpc.config import PlannerConfig
from agents.tdmpc.planner import Planner


class Toy:
    """z stays as it is; reward(z, a) of the latest z and action; no value at the end. Records all calls."""

    def __init__(self, reward, value=None, act=None, step=None):
        self.reward, self.step = reward, step or (lambda z, a: z)
        self.end_value = value or (lambda z, a: torch.zeros(z.shape[:-1]))
        self.policy = act
        self.calls, self.stds, self.action_dim = [], [], 1

    def next(self, z, action):
        self.calls.append((z.clone(), action.clone()))
        return self.step(z, action)

    def rollout(self, z, actions):
        latents, rewards = [z], []
        for action in actions:
            rewards.append(self.reward(latents[-1], action))
            latents.append(self.next(latents[-1], action))
        return latents, torch.stack(rewards)

    def act(self, z, std=0.0, noise=None):
        self.stds.append(std)
        return self.policy(z) if self.policy else z.new_zeros(*z.shape[:-1], self.action_dim)

    def value(self, z, action):
        return self.end_value(z, action)

    def candidates(self, horizon, iteration):
        """Action sequences [N, H, S, A] of one iteration, where no policy sequences are proposed."""
        calls = self.calls[iteration * horizon : (iteration + 1) * horizon]
        return torch.stack([action for _, action in calls], 1).numpy()


def planner_of(model, *, action_dim=1, discount=0.99, seed=0, policy_std=0.05, **settings):
    defaults = {"policy_fraction": 0.0, "iterations": 4, "num_samples": 128, "num_elites": 16}
    model.action_dim = action_dim
    return Planner(
        model,
        PlannerConfig(**(defaults | settings)),
        action_dim=action_dim,
        discount=discount,
        policy_std=policy_std,
        generators=[torch.Generator().manual_seed(seed)],
    )


def quadratic(z, action):
    """Best where the action is z."""
    return -((action - z) ** 2).sum(-1)


def returns(actions, goal, discount):
    """Values [N, S] of sequences [N, H, S, A] under `quadratic`, from latents [N, A]."""
    n, horizon, samples, _ = actions.shape
    values = np.zeros((n, samples))
    for i in range(n):
        for s in range(samples):
            for t in range(horizon):
                values[i, s] += discount**t * -((actions[i, t, s] - goal[i]) ** 2).sum()
    return values


def refit(actions, values, num_elites, temperature=0.5):
    """Elites [K, H, A], their weights [K], their mean and standard deviation [H, A], of one environment."""
    best = sorted(range(len(values)), key=lambda s: -values[s])[:num_elites]
    weight = np.exp(temperature * (values[best] - values.max()))
    weight /= weight.sum()
    elites = actions[:, best].transpose(1, 0, 2)
    mean = sum(w * e for w, e in zip(weight, elites, strict=True))
    std = np.sqrt(sum(w * (e - mean) ** 2 for w, e in zip(weight, elites, strict=True)))
    return elites, weight, mean, std


def test_finds_the_optimum_of_every_environment():
    goal = torch.tensor([[0.7, -0.3], [-0.9, 0.1], [0.0, 0.5], [-0.2, -0.6]])
    model = Toy(quadratic)
    planner = planner_of(model, action_dim=2, iterations=6, num_samples=512, num_elites=32)
    action = planner.plan(goal, horizon=3, min_std=0.05)
    assert action.shape == (4, 2)
    np.testing.assert_allclose(action, goal, atol=0.3)
    np.testing.assert_allclose(planner.mean, goal[:, None].expand(4, 3, 2), atol=0.12)


def test_finds_an_optimum_that_depends_on_the_future():
    """x' = x + a, cost 0.2 a^2 a step, 3 x^2 at the end, discount 0.5: least squares in closed form."""
    x, cost, end, discount = 1.0, 0.2, 3.0, 0.5
    # Gradient of cost a0^2 + d cost a1^2 + d^2 end (x + a0 + a1)^2.
    pull = discount**2 * end
    system = np.array([[cost + pull, pull], [pull, discount * cost + pull]])
    best = np.linalg.solve(system, [-pull * x, -pull * x])
    model = Toy(
        lambda z, a: -cost * (a**2).sum(-1),
        value=lambda z, a: -end * (z**2).sum(-1),
        step=lambda z, a: z + a,
    )
    planner = planner_of(
        model, discount=discount, iterations=10, num_samples=2000, num_elites=40, temperature=20.0
    )
    planner.plan(torch.tensor([[x]]), horizon=2, min_std=0.02)
    assert abs(best[0] - best[1]) > 0.25
    np.testing.assert_allclose(planner.mean[0, :, 0], best, atol=0.03)


def test_refit_of_one_iteration():
    """The mean is 0.1 of the old one and 0.9 of the elites', weighted by exp(0.5 (v - best))."""
    goal = torch.tensor([[0.5, 0.2], [-0.8, 0.0]])
    model = Toy(quadratic)
    planner = planner_of(model, action_dim=2, iterations=1, num_samples=40, num_elites=5, discount=0.9)
    planner.plan(goal, horizon=3, min_std=0.05)
    old = planner.mean.numpy().copy()
    model.calls.clear()
    action = planner.plan(goal, horizon=3, min_std=0.05).numpy()
    actions = model.candidates(3, 0)
    values = returns(actions, goal.numpy(), 0.9)
    for i in range(2):
        elites, _, mean, _ = refit(actions[i], values[i], 5)
        warm = np.concatenate([old[i, 1:], np.zeros((1, 2))])
        np.testing.assert_allclose(planner.mean[i], 0.1 * warm + 0.9 * mean, atol=1e-6)
        # The action is the first one of an elite sequence, not a mean.
        assert np.abs(elites[:, 0] - action[i]).max(1).min() == 0


def test_a_second_iteration_samples_around_the_refit():
    goal = torch.tensor([[0.3, -0.1]])
    model = Toy(lambda z, a: 40 * quadratic(z, a))
    planner = planner_of(model, action_dim=2, iterations=2, num_samples=20_000, num_elites=400)
    planner.plan(goal, horizon=1, min_std=0.01)
    first, second = model.candidates(1, 0)[0], model.candidates(1, 1)[0]
    values = 40 * -((first[0] - goal.numpy()) ** 2).sum(-1)
    _, _, mean, std = refit(first, values, 400)
    assert (std > 0.03).all()
    np.testing.assert_allclose(second[0].mean(0), 0.9 * mean[0], atol=0.005)
    np.testing.assert_allclose(second[0].std(0), std[0], rtol=0.03)


def test_elites_are_drawn_by_weight():
    """Over 6,000 environments, the best of two elites is used as often as its weight says."""
    model = Toy(lambda z, a: 3 * a.squeeze(-1))
    planner = planner_of(model, iterations=1, num_samples=6, num_elites=2)
    action = planner.plan(torch.zeros(6_000, 1), horizon=1, min_std=0.1).numpy()[:, 0]
    candidates = np.sort(model.candidates(1, 0)[:, 0, :, 0], axis=1)
    second, best = candidates[:, -2], candidates[:, -1]
    different = best > second
    expected = 1 / (1 + np.exp(0.5 * 3 * (second - best)))[different]
    chosen = (action == best)[different]
    assert ((action == best) | (action == second)).all()
    # Weights differ from 1/2 enough to be told apart.
    assert expected.mean() > 0.54
    assert chosen.mean() == pytest.approx(expected.mean(), abs=4 * 0.5 / np.sqrt(different.sum()))
    sure = expected > 0.75
    assert chosen[sure].mean() == pytest.approx(expected[sure].mean(), abs=0.06)


def test_every_plan_starts_from_the_largest_std():
    model = Toy(quadratic)
    planner = planner_of(model, iterations=2, num_samples=20_000)
    for _ in range(2):
        model.calls.clear()
        planner.plan(torch.zeros(1, 1), horizon=1, min_std=0.05)
        candidates = model.candidates(1, 0)
        assert np.abs(candidates).max() == 1
        # A normal number of standard deviation 2 lies beyond 1 with probability 0.6171.
        assert (np.abs(candidates) == 1).mean() == pytest.approx(0.6171, abs=0.015)


def test_std_has_a_floor():
    model = Toy(quadratic)
    planner = planner_of(model, iterations=3, num_samples=5_000, num_elites=1)  # one elite: no variance
    planner.plan(torch.zeros(1, 1), horizon=1, min_std=0.07)
    for iteration in (1, 2):
        assert model.candidates(1, iteration).std() == pytest.approx(0.07, rel=0.05)


def test_std_has_a_ceiling():
    model = Toy(lambda z, a: 100 * a.abs().squeeze(-1))  # the best are far apart, at both ends
    planner = planner_of(
        model, iterations=2, num_samples=10_000, num_elites=200, max_std=0.2, start_std=0.1, temperature=0.01
    )
    planner.plan(torch.zeros(1, 1), horizon=1, min_std=0.05)
    first, second = (model.candidates(1, i)[0, 0, :, 0] for i in (0, 1))
    far = np.sort(np.abs(first))[-200:]
    assert far.min() > 0.4
    assert first.std() == pytest.approx(0.2, rel=0.05)
    assert second.std() == pytest.approx(0.2, rel=0.05)


def warm_start_mean(planner, model, goal, horizon):
    """The old mean that a plan of one iteration began with, from its result."""
    model.calls.clear()
    planner.plan(goal, horizon=horizon, min_std=0.05)
    actions = model.candidates(horizon, 0)
    values = returns(actions, goal.numpy(), 0.9)
    momentum, count = planner.config.momentum, planner.config.num_elites
    elite_means = np.stack([refit(actions[i], values[i], count)[2] for i in range(len(goal))])
    return (planner.mean.numpy() - (1 - momentum) * elite_means) / momentum


def one_iteration():
    model = Toy(quadratic)
    return model, planner_of(model, iterations=1, num_samples=20, num_elites=4, discount=0.9, momentum=0.5)


@pytest.mark.parametrize(("old_horizon", "horizon"), [(3, 3), (2, 3), (1, 2), (2, 5), (1, 1), (4, 2)])
def test_warm_start_shifts_by_one_and_fills_with_zeros(old_horizon, horizon):
    model, planner = one_iteration()
    goal = torch.tensor([[0.6], [-0.4]])
    first = warm_start_mean(planner, model, goal, old_horizon)
    np.testing.assert_allclose(first, 0, atol=1e-5)
    old = planner.mean.numpy().copy()
    assert np.abs(old).min() > 1e-3
    expected = np.zeros((2, horizon, 1))
    for t in range(horizon):
        if t + 1 < old_horizon:
            expected[:, t] = old[:, t + 1]
    np.testing.assert_allclose(warm_start_mean(planner, model, goal, horizon), expected, atol=1e-5)


def test_reset_forgets():
    model, planner = one_iteration()
    goal = torch.tensor([[0.6], [-0.4]])
    planner.plan(goal, horizon=3, min_std=0.05)
    planner.reset()
    np.testing.assert_allclose(warm_start_mean(planner, model, goal, 3), 0, atol=1e-5)


def test_keep():
    model, planner = one_iteration()
    index = torch.tensor([True, False, True])
    planner.keep(index)  # nothing to keep yet
    goal = torch.tensor([[0.6], [-0.4], [0.1]])
    planner.plan(goal, horizon=3, min_std=0.05)
    old = planner.mean.numpy().copy()
    planner.keep(index)
    expected = np.concatenate([old[[0, 2], 1:], np.zeros((2, 1, 1))], axis=1)
    np.testing.assert_allclose(warm_start_mean(planner, model, goal[[0, 2]], 3), expected, atol=1e-5)


def test_estimate_value():
    rng = np.random.default_rng(0)
    n, horizon, samples = 2, 4, 3
    z, actions = rng.normal(size=(n, samples, 2)), rng.uniform(-1, 1, (n, horizon, samples, 1))
    model = Toy(
        lambda z, a: z[..., 0] * a[..., 0] + a[..., 0] ** 2,
        value=lambda z, a: 3 * z[..., 0] + 5 * a[..., 0],
        act=lambda z: torch.tanh(z[..., 1:] - 0.2),
        step=lambda z, a: torch.stack([z[..., 1] + a[..., 0], 0.5 * z[..., 0]], -1),
    )
    planner = planner_of(model, discount=0.8, policy_std=0.123)
    found = planner.estimate_value(torch.from_numpy(z), torch.from_numpy(actions), torch.zeros(n, samples, 1))
    for i in range(n):
        for s in range(samples):
            total, (p, q) = 0.0, z[i, s]
            for t in range(horizon):
                a = actions[i, t, s, 0]
                total += 0.8**t * (p * a + a**2)
                p, q = q + a, 0.5 * p
            total += 0.8**horizon * (3 * p + 5 * np.tanh(q - 0.2))
            assert found[i, s].item() == pytest.approx(total, rel=1e-9)
    assert model.stds == [0.123]


def test_policy_sequences_are_rolled_in_the_model():
    """5 of 25 candidates; the same ones in every iteration, with the policy's noise."""
    model = Toy(
        lambda z, a: a[..., 0],
        act=lambda z: 0.5 * z,
        step=lambda z, a: z - 0.2 * a - 0.1,
    )
    planner = planner_of(model, num_samples=20, policy_fraction=0.25, num_elites=3, iterations=2)
    starts = [0.8, -0.4]
    planner.plan(torch.tensor(starts)[:, None], horizon=3, min_std=0.05)
    assert set(model.stds) == {0.05}
    full = [action.numpy() for _, action in model.calls if action.shape[1] == 25]
    assert len(full) == 6
    for i, z in enumerate(starts):
        for t in range(3):
            a = 0.5 * z
            for iteration in range(2):
                np.testing.assert_allclose(full[3 * iteration + t][i, 20:], np.full((5, 1), a), atol=1e-6)
            z = z - 0.2 * a - 0.1


def test_policy_sequences_can_win():
    """The optimum is a corner of many dimensions, which sampling alone does not hit."""
    corner = torch.tensor([0.31, -0.77, 0.13, 0.52, -0.25, 0.9])
    model = Toy(
        lambda z, a: -1e4 * ((a - corner) ** 2).sum(-1), act=lambda z: corner.expand(*z.shape[:-1], 6)
    )
    planner = planner_of(model, action_dim=6, policy_fraction=0.05, num_samples=40, num_elites=4)
    action = planner.plan(torch.zeros(3, 1), horizon=2, min_std=0.05)
    np.testing.assert_array_equal(action, corner.expand(3, 6))


def test_every_environment_has_its_own_policy_sequences():
    model = Toy(lambda z, a: -1e4 * ((a - z) ** 2).sum(-1), act=lambda z: z)
    planner = planner_of(model, policy_fraction=0.1, num_samples=20, num_elites=2)
    goal = torch.tensor([[0.123], [-0.456], [0.789]])
    np.testing.assert_array_equal(planner.plan(goal, horizon=2, min_std=0.05), goal)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_do_not_poison(bad):
    model = Toy(lambda z, a: torch.where(a[..., 0] > 0.5, bad, quadratic(z, a)))
    planner = planner_of(model, num_samples=64)
    for _ in range(2):
        action = planner.plan(torch.tensor([[0.2], [-0.4]]), horizon=2, min_std=0.05, explore=True)
        assert action.isfinite().all()
        assert action.abs().max() <= 1
        assert planner.mean.isfinite().all()


@pytest.mark.parametrize(("offset", "wins"), [(-1.0, True), (1.0, False)])
def test_nan_is_worth_zero(offset, wins):
    """Better than any negative value, worse than any positive one."""
    model = Toy(lambda z, a: torch.where(a[..., 0] > 0.5, float("nan"), torch.full(a.shape[:-1], offset)))
    planner = planner_of(model, iterations=1, num_samples=200, num_elites=8)
    action = planner.plan(torch.zeros(50, 1), horizon=1, min_std=0.05)
    assert ((action > 0.5) == wins).all()


def test_same_seed_same_plan():
    goal = torch.tensor([[0.7, -0.3], [-0.9, 0.1]])

    def plans(seed):
        planner = planner_of(Toy(quadratic), action_dim=2, seed=seed, policy_fraction=0.05)
        return torch.stack([planner.plan(goal, horizon=2, min_std=0.1, explore=True) for _ in range(3)])

    torch.manual_seed(1)
    first = plans(7)
    torch.manual_seed(2)
    assert torch.equal(plans(7), first)
    assert not torch.equal(plans(8), first)


def explored(goal, min_std, *, explore, horizon=2):
    """Actions of 3,000 environments, and the elite (there is one) each came from."""
    model = Toy(lambda z, a: quadratic(z[..., :1], a))
    planner = planner_of(model, iterations=2, num_samples=10, num_elites=1)
    action = planner.plan(torch.full((3_000, 1), goal), horizon=horizon, min_std=min_std, explore=explore)
    candidates = model.candidates(horizon, 1)
    values = -((candidates - goal) ** 2)[..., 0]
    best = (values[:, 0] + 0.99 * values[:, 1]).argmax(1)
    return action.numpy()[:, 0], candidates[np.arange(3_000), 0, best, 0]


def test_exploration_adds_noise_of_the_final_std():
    action, elite = explored(0.0, 0.15, explore=True)
    inside = np.abs(elite) < 0.3
    noise = (action - elite)[inside]
    assert inside.sum() > 1_000
    assert abs(noise.mean()) < 0.015
    assert noise.std() == pytest.approx(0.15, rel=0.06)


def test_exploration_noise_follows_the_elites():
    """Around the elites' mean, drawing one adds their variance, and the noise adds it once more."""
    model = Toy(quadratic)
    planner = planner_of(
        model, iterations=1, num_samples=12, num_elites=6, max_std=0.2, start_std=0.01, policy_std=0.01
    )
    action = planner.plan(torch.zeros(4_000, 1), horizon=1, min_std=0.01, explore=True).numpy()
    candidates = model.candidates(1, 0)
    scores = []
    for i in range(4_000):
        _, _, mean, std = refit(candidates[i], -(candidates[i, 0, :, 0] ** 2), 6)
        scores.append((action[i, 0] - mean[0, 0]) / max(std[0, 0], 0.01))
    assert np.mean(np.square(scores)) == pytest.approx(2, rel=0.1)


def test_exploration_noise_is_of_the_first_step():
    """Step 0 decides all, and its std shrinks to the floor; step 1 decides nothing, its std stays wide."""
    model = Toy(lambda z, a: 1e3 * quadratic(z[..., :1], a) * z[..., 1], step=lambda z, a: 0 * z)
    planner = planner_of(model, iterations=4, num_samples=300, num_elites=10)
    z = torch.tensor([[0.0, 1.0]]).expand(400, 2)
    action = planner.plan(z, horizon=2, min_std=0.05, explore=True)
    assert action.std().item() < 0.1


def test_no_exploration_no_noise():
    action, elite = explored(0.0, 0.15, explore=False)
    np.testing.assert_array_equal(action, elite)


def test_explored_actions_stay_in_the_box():
    action, _ = explored(1.0, 0.5, explore=True)
    assert np.abs(action).max() == 1
    assert (action == 1).mean() > 0.3


def test_a_horizon_of_one_and_one_environment():
    planner = planner_of(Toy(quadratic), policy_fraction=0.05)
    action = planner.plan(torch.tensor([[0.4]]), horizon=1, min_std=0.05)
    assert action.shape == (1, 1)
    assert action.item() == pytest.approx(0.4, abs=0.3)
    assert planner.mean.shape == (1, 1, 1)


def with_generators(seeds):
    model = Toy(quadratic, act=lambda z: 0.1 * z)
    model.action_dim = 1
    config = PlannerConfig(iterations=2, num_samples=20, num_elites=4, policy_fraction=0.2)
    return Planner(
        model,
        config,
        action_dim=1,
        discount=0.9,
        policy_std=0.05,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    )


def test_with_generators_of_their_own_environments_do_not_see_each_other():
    goal = torch.tensor([[0.6], [-0.4], [0.1]])
    together = with_generators([1, 2, 3])
    actions = [together.plan(goal, horizon=3, min_std=0.05) for _ in range(2)]
    together.keep(torch.tensor([True, False, True]))
    later = together.plan(goal[[0, 2]], horizon=3, min_std=0.05)
    for i, place in ((0, 0), (2, 1)):
        alone = with_generators([i + 1])
        for action in actions:
            assert torch.equal(alone.plan(goal[[i]], horizon=3, min_std=0.05)[0], action[i])
        assert torch.equal(alone.plan(goal[[i]], horizon=3, min_std=0.05)[0], later[place])


def test_a_step_is_a_function_of_its_arguments():
    planner = planner_of(Toy(quadratic), policy_fraction=0.1, num_samples=20, num_elites=4)
    flat = torch.randn(2, planner.noise_size(3), generator=torch.Generator().manual_seed(1))
    arguments = torch.tensor([[0.3], [-0.2]]), torch.full((2, 3, 1), 0.1), planner.noise(flat, 3)
    first, second = (planner.step(*arguments, min_std=0.05) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert planner.mean is None


def test_every_random_number_is_used_once():
    planner = planner_of(
        Toy(quadratic), action_dim=2, iterations=3, num_samples=20, policy_fraction=0.1, num_elites=4
    )
    size = planner.noise_size(4)
    assert size == 3 * 4 * 20 * 2 + 4 * 2 * 2 + 3 * 22 * 2 + 2 + 1
    noise = planner.noise(torch.arange(2.0 * size).view(2, size), 4)
    assert noise.samples.shape == (2, 3, 4, 20, 2)
    assert noise.proposals.shape == (2, 4, 2, 2)
    assert noise.ends.shape == (2, 3, 22, 2)
    parts = (noise.samples, noise.proposals, noise.ends, noise.explore, noise.choice)
    for i in range(2):
        numbers = torch.cat([part[i].flatten() for part in parts])
        assert torch.equal(numbers.sort().values, torch.arange(i * size, (i + 1) * size).float())
