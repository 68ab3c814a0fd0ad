"""Importance against sums over explicit slices, scipy's distributions and recursions written out."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tdmpc_prune.pruning import slices
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.importance import (
    CRITERIA,
    GRADIENT_CRITERIA,
    WAITING,
    ImportanceConfig,
    ImportanceTracker,
)
from tdmpc_prune.pruning.posterior import Average, GammaPosterior

CPU = torch.device("cpu")
CONFIG = ImportanceConfig(warmup=3)


class TwoComponents:
    """An encoder and a critic with a LayerNorm, which reads the latent state beside two actions."""

    def __init__(self, hidden=6, latent=4, critic=5, seed=0):
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(3, hidden), nn.ELU(), nn.Linear(hidden, latent))
        self.critic = nn.Sequential(
            nn.Linear(latent + 2, critic), nn.LayerNorm(critic), nn.Tanh(), nn.Linear(critic, 1)
        )

    def components(self):
        return {"encoder": self.encoder, "critic": self.critic}

    def trace(self):
        return [self.critic(torch.cat([self.encoder(torch.zeros(2, 3)), torch.zeros(2, 2)], -1))]

    def mirrors(self):
        return []

    def optimizers(self):
        return []

    def parameters(self):
        return [*self.encoder.parameters(), *self.critic.parameters()]

    def set_gradients(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for i, p in enumerate(self.parameters()):
            p.grad = torch.randn(p.shape, generator=generator) * 10 ** (i % 3 - 1)

    def slices(self):
        """Parameter and index of every slice of every unit, written out by hand."""
        e0, e2, c0, norm, c3 = (
            self.encoder[0],
            self.encoder[2],
            self.critic[0],
            self.critic[1],
            self.critic[3],
        )
        every = slice(None)
        return {
            "encoder.0": [
                [(e0.weight, (u, every)), (e0.bias, u), (e2.weight, (every, u))]
                for u in range(e0.out_features)
            ],
            "critic.0": [
                [
                    (c0.weight, (u, every)),
                    (c0.bias, u),
                    (norm.weight, u),
                    (norm.bias, u),
                    (c3.weight, (every, u)),
                ]
                for u in range(c0.out_features)
            ],
            "latent": [
                [(e2.weight, (u, every)), (e2.bias, u), (c0.weight, (every, u))]
                for u in range(e2.out_features)
            ],
        }

    def by_hand(self):
        """Every unit's theta and gradient, flat, as float64."""
        return {
            name: [
                tuple(
                    np.concatenate([np.ravel(x.detach().numpy()[index]) for x, index in pairs]).astype(float)
                    for pairs in ([(p, i) for p, i in unit], [(p.grad, i) for p, i in unit])
                )
                for unit in units
            ]
            for name, units in self.slices().items()
        }


@pytest.fixture
def agent():
    return TwoComponents()


def tracker_of(agent, config=CONFIG, **keywords):
    return ImportanceTracker(find_groups(agent), config, **keywords)


def feed(agent, tracker, seeds, progress=lambda i: 0.1 * i):
    for i, seed in enumerate(seeds):
        agent.set_gradients(seed)
        tracker.observe(agent.parameters())
        tracker.advance(progress(i))


def assert_scores(scores, expected, rtol=1e-5):
    assert list(scores) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=rtol, err_msg=name)


INSTANT = {
    "gradient": lambda theta, g: np.abs(g).mean(),
    "fisher": lambda theta, g: (g**2).mean(),
    "fisher-saliency": lambda theta, g: (theta**2 * g**2).sum() / 2,
    "taylor": lambda theta, g: abs((theta * g).sum()),
    "magnitude": lambda theta, g: math.sqrt((theta**2).sum()),
}


# The sums over slices


@pytest.mark.parametrize("criterion", INSTANT)
@pytest.mark.parametrize("cached", [1, 8, 2**15])
def test_one_update_equals_loops_over_the_slices(agent, criterion, cached, monkeypatch):
    monkeypatch.setattr(slices, "CACHED", cached)
    tracker = tracker_of(agent)
    feed(agent, tracker, [1])
    expected = {
        name: [INSTANT[criterion](theta, g) for theta, g in units] for name, units in agent.by_hand().items()
    }
    assert_scores(tracker.scores(criterion), expected)


def test_a_parameter_observed_twice_counts_twice(agent):
    once, twice = tracker_of(agent), tracker_of(agent)
    feed(agent, once, [1])
    agent.set_gradients(1)
    twice.observe(agent.encoder.parameters())
    twice.observe(agent.parameters())
    twice.advance(0.0)
    expected = {name: score.clone() for name, score in once.scores("gradient").items()}
    expected["encoder.0"] *= 2
    encoder = [
        sum(np.abs(p.grad.detach().numpy()[i]).sum() for p, i in unit if p is not agent.critic[0].weight)
        for unit in agent.slices()["latent"]
    ]
    size = len(agent.by_hand()["latent"][0][0])
    expected["latent"] += torch.tensor(np.array(encoder) / size)
    assert_scores(twice.scores("gradient"), {name: score.numpy() for name, score in expected.items()})


@pytest.mark.parametrize("read_after", [{1}, {3, 4}, {WAITING - 1, WAITING, WAITING + 1}, set()])
def test_when_scores_are_read_does_not_change_them(agent, read_after):
    """Updates wait to be smoothed together; reading in between gives the same numbers, bit by bit."""
    count = WAITING + 5
    patient, curious = tracker_of(agent), tracker_of(agent)
    for i in range(count):
        for tracker in (patient, curious):
            feed(agent, tracker, [i], progress=lambda _, i=i: i / count)
        if i in read_after:
            curious.scores("bayesian")
            curious.load_state_dict(curious.state_dict())
    for name, value in patient.state_dict().items():
        assert torch.equal(value, curious.state_dict()[name]), name


def test_two_phases_equal_one(agent):
    one, two = tracker_of(agent), tracker_of(agent)
    feed(agent, one, [1])
    two.observe(agent.encoder.parameters())
    two.observe(agent.critic.parameters())
    two.advance(0.0)
    for criterion in (*GRADIENT_CRITERIA, "magnitude"):
        for name, score in one.scores(criterion).items():
            assert torch.equal(score, two.scores(criterion)[name])


def test_each_update_starts_anew_and_parameters_not_observed_add_nothing(agent):
    tracker = tracker_of(agent, ImportanceConfig(beta_start=0, beta_end=0))  # no memory
    feed(agent, tracker, [1])
    agent.set_gradients(2)
    for p in agent.critic.parameters():
        p.grad = None
    tracker.observe(agent.parameters())
    tracker.advance(0.0)
    for p in agent.critic.parameters():
        p.grad = torch.zeros_like(p)
    expected = {name: [INSTANT["fisher"](*unit) for unit in units] for name, units in agent.by_hand().items()}
    assert expected["critic.0"] == [0] * 5
    assert_scores(tracker.scores("fisher"), expected)


# Smoothing


def test_beta_rises_along_a_cosine():
    config = ImportanceConfig(beta_start=0.9, beta_end=0.999)
    assert [config.beta(p) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([0.9, 0.9, 0.9495, 0.999, 0.999])
    assert config.beta(0.25) == pytest.approx(0.999 - 0.099 * (1 + math.cos(math.pi / 4)) / 2)


def test_smoothing_is_a_weighted_mean_of_the_past_under_varying_beta(agent):
    tracker, history = tracker_of(agent), defaultdict(list)
    feed_progress = [0.0, 0.4, 0.8, 1.0]
    for seed, progress in enumerate(feed_progress):
        feed(agent, tracker, [seed], lambda _, p=progress: p)
        for name, units in agent.by_hand().items():
            history[name].append([INSTANT["taylor"](*unit) for unit in units])
    betas = [CONFIG.beta(p) for p in feed_progress]
    weights = np.array([(1 - b) * np.prod(betas[i + 1 :]) for i, b in enumerate(betas)])
    assert weights.sum() == pytest.approx(1 - np.prod(betas))
    assert_scores(
        tracker.scores("taylor"),
        {name: np.average(values, axis=0, weights=weights) for name, values in history.items()},
    )


def test_a_constant_is_its_own_average_from_the_first_update_on():
    average = Average((3,), CPU)
    assert average.value.tolist() == [0, 0, 0]
    for beta in (0.9, 0.5, 0.999):
        average.update(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), beta)
        np.testing.assert_allclose(average.value, [1, 2, 3], rtol=1e-12)


def test_ready_once_the_warm_up_is_over(agent):
    tracker = tracker_of(agent)
    ready = []
    for seed in range(4):
        feed(agent, tracker, [seed])
        ready.append(tracker.ready)
    assert ready == [False, False, True, True]


# The Bayesian criterion


def energies(seed=0, steps=60, units=8):
    random = np.random.default_rng(seed)
    return random.gamma(random.uniform(0.3, 5, units), random.uniform(0.1, 10, units), (steps, units))


def posterior_of(history, rho=0.99, fast=0.9, sizes=None, **keywords):
    posterior = GammaPosterior(sizes or [history.shape[1]], CPU, **keywords)
    for row in history:
        posterior.update(torch.from_numpy(row), rho, fast)
    return posterior


def mean_of(history, rho=0.99):
    return np.average(history, axis=0, weights=rho ** np.arange(len(history))[::-1])


class FixedPrior(GammaPosterior):
    a0_b0 = (1.0, 0.0)

    def prior(self):
        return torch.tensor(self.a0_b0, dtype=torch.float64)[:, None].expand(2, len(self.shape()))


def test_the_shape_is_mean_squared_over_variance_within_its_range():
    history = energies()
    mean = mean_of(history)
    variance = mean_of((history - mean) ** 2)
    np.testing.assert_allclose(posterior_of(history).shape(), mean**2 / variance, rtol=1e-9)
    extremes = np.stack([np.ones(100), np.zeros(100), np.eye(1, 100, 98)[0]], axis=1)
    np.testing.assert_allclose(posterior_of(extremes).shape(), [100, 0.1, 0.1])


def test_the_posterior_follows_its_recursion():
    history, k, a0, b0 = energies(steps=5), 2.0, 3.0, 0.7
    posterior = FixedPrior([8], CPU, shape_range=(k, k))
    posterior.a0_b0 = (a0, b0)
    a, b = np.full(8, a0), np.full(8, b0)
    for energy, rho in zip(history, (0.9, 0.5, 0.99, 0.999, 0.8), strict=True):
        posterior.update(torch.from_numpy(energy), rho, 0.9)
        a = rho * a + (1 - rho) * a0 + k
        b = rho * b + (1 - rho) * b0 + energy
        np.testing.assert_allclose(posterior.posterior()[1], a)
        np.testing.assert_allclose(posterior.posterior()[2], b)


def test_expectation_quantile_and_probability_are_the_inverse_gammas():
    posterior = posterior_of(energies())
    k, a, b = (x.numpy() for x in posterior.posterior())
    expected = stats.invgamma(a, scale=k * b)  # k / lambda with lambda ~ Gamma(a, rate b)
    np.testing.assert_allclose(posterior.expected(), expected.mean())
    np.testing.assert_allclose(posterior.upper(0.9), expected.ppf(0.9))
    np.testing.assert_allclose(posterior.upper(0.9), k / stats.gamma(a, scale=1 / b).ppf(0.1))
    for cut in (0.1, 3.0, 50.0):
        np.testing.assert_allclose(posterior.probability_below(cut), expected.cdf(cut), atol=1e-12)
    assert posterior.probability_below(0.0).tolist() == [0] * 8
    assert posterior.probability_below(math.inf).tolist() == [1] * 8


def test_the_prior_is_fitted_by_moments_within_each_group():
    history = energies()
    history[:, 5] = 0  # says nothing about the rates
    posterior = posterior_of(history, sizes=[3, 4, 1])
    rate = posterior.shape().numpy() / mean_of(history).clip(1e-9)
    prior = posterior.prior().numpy()
    for units, active in ((slice(0, 3), [0, 1, 2]), (slice(3, 7), [3, 4, 6])):
        a0 = np.clip(rate[active].mean() ** 2 / rate[active].var(), 1, 100)
        b0 = a0 / rate[active].mean()
        np.testing.assert_allclose(prior[:, units], np.full_like(prior[:, units], [[a0], [b0]]), rtol=1e-6)
    assert prior[:, 7].tolist() == [1, 0]  # one unit has no variance: the weak prior


def test_under_the_weak_prior_the_expected_energy_is_the_mean_whatever_the_shape():
    history = energies(units=4)
    posterior = posterior_of(history, sizes=[1, 1, 1, 1])
    np.testing.assert_allclose(posterior.expected(), mean_of(history))


def test_the_prior_follows_the_scale_of_the_gradients():
    late = energies(seed=1, steps=150) / 1e4
    posterior = posterior_of(np.concatenate([energies(), late]), rho=0.8)
    np.testing.assert_allclose(posterior.expected(), posterior_of(late, rho=0.8).expected(), rtol=1e-3)


def test_bursty_energies_leave_more_doubt_than_steady_ones_of_the_same_mean():
    steps = 400
    steady = 1.05 + 0.1 * (-1.0) ** np.arange(steps)
    bursty = np.where(np.arange(steps) % 10 == 4, 10.0, 0.0)
    posterior = posterior_of(np.stack([steady, bursty], axis=1), rho=1 - 1e-9)
    fisher = posterior.state_dict()["sum"]
    assert fisher[0] > fisher[1]
    upper = posterior.upper(0.9)
    assert upper[1] > 1.05 * upper[0]
    # The guard lets the steady one go at a cut above both means, the bursty one not.
    assert posterior.probability_below(1.1)[0] > 0.95
    assert posterior.probability_below(1.1)[1] < 0.8


def test_currently_active_ranks_above_formerly_active_of_the_same_cumulative_fisher():
    early = np.concatenate([np.full(200, 1.01), np.full(200, 0.01)])
    late = np.concatenate([np.full(200, 0.01), np.full(200, 1.0)])
    posterior = posterior_of(np.stack([early, late], axis=1), rho=1 - 1e-9)
    fisher, score = posterior.state_dict()["sum"], posterior.score(0.9)
    assert fisher[0] > fisher[1]
    assert score[1] > 5 * score[0]
    assert score[0] > 0.05  # ... which is still above what is only active now, 0.01


@pytest.mark.parametrize("prior", [(1.0, 0.0), (4.0, 2.0)])
def test_with_a_shared_fixed_shape_and_no_forgetting_it_ranks_as_the_cumulative_fisher(prior):
    history = energies(units=50)
    posterior = FixedPrior([50], CPU, shape_range=(0.7, 0.7))
    posterior.a0_b0 = prior
    for row in history:
        posterior.update(torch.from_numpy(row), 1.0, 0.9)
    fisher = np.argsort(history.sum(axis=0))
    assert np.array_equal(posterior.expected().argsort(), fisher)
    assert np.array_equal(posterior.upper(0.9).argsort(), fisher)
    assert np.ptp((posterior.upper(0.9) / posterior.expected()).numpy()) < 1e-12
    own = posterior_of(history, rho=1 - 1e-12)  # each unit's own shape: another order
    assert not np.array_equal(own.upper(0.9).argsort(), fisher)


@pytest.mark.parametrize("criterion", ["bayesian", "bayesian-saliency"])
def test_the_tracker_runs_the_posterior_on_energies_and_on_removal_costs(agent, criterion):
    tracker, history = tracker_of(agent), defaultdict(list)
    for seed in range(5):
        feed(agent, tracker, [seed], lambda _, s=seed: 0.2 * s)
        for name, units in agent.by_hand().items():
            history[name].append(
                [(g**2).mean() if criterion == "bayesian" else (theta * g).sum() ** 2 for theta, g in units]
            )
    for name, rows in history.items():
        posterior = GammaPosterior([len(rows[0])], CPU)
        for t, row in enumerate(rows):
            posterior.update(torch.tensor(row), CONFIG.beta(0.2 * t), CONFIG.beta_start)
        # One LayerNorm'ed unit's first-order cost cancels almost: float32 sums keep fewer digits of it.
        np.testing.assert_allclose(tracker.scores(criterion)[name], posterior.score(0.9), rtol=1e-3)
        if criterion == "bayesian":
            current = posterior.state_dict()["current.raw"].numpy() / (1 - 0.9**5)
            np.testing.assert_allclose(
                tracker.scores(criterion)[name], np.sqrt(current * posterior.upper(0.9).numpy()), rtol=1e-5
            )
            np.testing.assert_allclose(tracker.expected_energy(name), posterior.expected(), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["bayesian", "bayesian-saliency"])
def test_removable_is_monotone_in_the_cut_and_off_at_guard_zero(agent, criterion):
    tracker = tracker_of(agent)
    feed(agent, tracker, range(6))
    energy = tracker.expected_energy("encoder.0", criterion)
    assert torch.equal(energy, tracker.expected_energy("encoder.0")) == (criterion == "bayesian")
    cuts = [0.0, *(float(energy.median()) * x for x in (0.5, 1, 2, 4, 100)), math.inf]
    removable = torch.stack([tracker.removable("encoder.0", cut, 0.95, criterion) for cut in cuts])
    assert removable.dtype == torch.bool
    assert removable.shape == (7, 6)
    assert (removable[1:] >= removable[:-1]).all()
    assert not removable[0].any()
    assert removable[-1].all()
    assert 0 < removable.sum(1)[4] <= 6
    assert tracker_of(agent).removable("latent", 0.0, 0.0, criterion).tolist() == [True] * 4


# Scores


def test_random_is_redrawn_and_seeded(agent):
    one, two, other = tracker_of(agent, seed=3), tracker_of(agent, seed=3), tracker_of(agent, seed=4)
    first, second = one.scores("random")["latent"], one.scores("random")["latent"]
    assert torch.equal(first, two.scores("random")["latent"])
    assert not torch.equal(first, second)
    assert not torch.equal(first, other.scores("random")["latent"])
    assert ((first >= 0) & (first < 1)).all()


@pytest.mark.parametrize(
    ("normalisation", "losses", "pools"),
    [
        ("component", None, [["encoder.0"], ["critic.0"], ["latent"]]),
        ("loss", None, [["encoder.0", "critic.0", "latent"]]),
        ("loss", {"encoder": "model", "critic": "value"}, [["encoder.0", "latent"], ["critic.0"]]),
    ],
)
def test_scores_are_divided_by_the_mean_of_their_pool(agent, normalisation, losses, pools):
    tracker = tracker_of(agent, ImportanceConfig(normalisation=normalisation), losses=losses)
    feed(agent, tracker, [1])
    raw, normalised = tracker.scores("fisher"), tracker.normalised("fisher")
    for pool in pools:
        mean = np.concatenate([raw[name] for name in pool]).mean()
        for name in pool:
            np.testing.assert_allclose(normalised[name], raw[name] / mean)


def test_without_normalisation_scores_stay_raw_and_group_means_are_means(agent):
    tracker = tracker_of(agent, ImportanceConfig(normalisation="none"))
    feed(agent, tracker, [1])
    raw = tracker.scores("gradient")
    assert all(torch.equal(raw[name], score) for name, score in tracker.normalised("gradient").items())
    means = {name: float(score.mean()) for name, score in raw.items()}
    assert tracker.group_means("gradient") == means
    assert tracker.group_means_normalised("gradient") == means
    own = tracker_of(agent)
    feed(agent, own, [1])
    assert own.group_means_normalised("gradient") == pytest.approx(dict.fromkeys(means, 1.0))


def test_a_head_of_zeros_gives_finite_scores(agent):
    nn.init.zeros_(agent.critic[3].weight)
    tracker = tracker_of(agent)
    for criterion in CRITERIA:  # before the first update, too
        assert all(score.isfinite().all() for score in tracker.normalised(criterion).values()), criterion
    for step in range(5):
        for p in agent.parameters():
            p.grad = None
        z = agent.encoder(torch.randn(7, 3))
        agent.critic(torch.cat([z, torch.zeros(7, 2)], -1)).sum().backward()
        tracker.observe(agent.parameters())
        tracker.advance(step / 5)
    assert tracker.scores("fisher")["encoder.0"].tolist() == [0] * 6
    assert tracker.scores("fisher")["critic.0"].min() > 0
    for criterion in GRADIENT_CRITERIA:
        assert tracker.scores(criterion)["latent"].tolist() == [0] * 4
        assert tracker.normalised(criterion)["latent"].tolist() == [0] * 4
        assert all(score.isfinite().all() for score in tracker.normalised(criterion).values()), criterion
    assert tracker.removable("latent", 1e-9, 0.95).all()


def test_energy_that_died_long_ago_stays_finite():
    history = np.concatenate([energies(steps=30, units=3), np.zeros((12_000, 3))])
    history[:, 0] = 1.0
    posterior = posterior_of(history, rho=0.9)
    for values in (posterior.expected(), posterior.upper(0.9), posterior.score(0.9)):
        assert values.isfinite().all()


def test_unknown_criterion_and_bad_settings_are_refused(agent):
    with pytest.raises(ValueError, match=r"criterion is 'norm'; choose gradient, .*, random"):
        tracker_of(agent).scores("norm")
    with pytest.raises(ValueError, match="which loss trains 'critic'"):
        tracker_of(agent, losses={"encoder": "model"})
    for bad in (
        {"beta_start": -0.1},
        {"beta_start": 0.9, "beta_end": 0.8},
        {"beta_start": 0.9, "beta_end": 1.0},
        {"warmup": 0},
        {"normalisation": "layer"},
        {"credible": 1.0},
        {"guard": 1.0},
        {"guard_end": 1.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
            ImportanceConfig(**bad)


# Surgery and storing


def test_keep_carries_the_statistics_of_the_units_that_stay(agent):
    tracker = tracker_of(agent)
    feed(agent, tracker, range(5))
    before = {c: tracker.scores(c) for c in GRADIENT_CRITERIA}
    expected = {g.name: tracker.expected_energy(g.name) for g in tracker.groups}
    kept = {"encoder.0": torch.tensor([0, 2, 5]), "latent": torch.tensor([1, 3])}
    smaller = TwoComponents(hidden=3, latent=2)
    tracker.keep(kept, find_groups(smaller))

    every = {"critic.0": torch.arange(5)} | kept
    for criterion in ("gradient", "fisher", "fisher-saliency", "taylor"):
        for name, score in tracker.scores(criterion).items():
            assert torch.equal(score, before[criterion][name][every[name]])
    assert all(
        value.is_contiguous() for value in tracker.state_dict().values()
    )  # safetensors stores no other
    # The prior of a group is that of the units that are left in it.
    assert torch.equal(tracker.expected_energy("critic.0"), expected["critic.0"])
    assert not torch.equal(tracker.expected_energy("encoder.0"), expected["encoder.0"][kept["encoder.0"]])

    memoryless = tracker_of(agent, ImportanceConfig(beta_start=0, beta_end=0))
    memoryless.keep(kept, find_groups(smaller))
    feed(smaller, memoryless, [9])
    values = {name: [INSTANT["fisher"](*unit) for unit in units] for name, units in smaller.by_hand().items()}
    assert_scores(memoryless.scores("fisher"), values)


def test_keeping_units_equals_never_having_had_the_others():
    history, kept = energies(), torch.tensor([1, 4, 6])
    posterior = posterior_of(history, sizes=[5, 3])
    posterior.keep(kept, [2, 1])
    other = posterior_of(history[:, kept], sizes=[2, 1])
    assert torch.equal(posterior.score(0.9), other.score(0.9))


def test_keep_refuses_groups_that_do_not_fit(agent):
    tracker = tracker_of(agent)
    with pytest.raises(ValueError, match="'latent' has 4 units now, but 2 were kept"):
        tracker.keep({"latent": torch.tensor([0, 1])}, find_groups(agent))
    with pytest.raises(ValueError, match="group 'actor' is new"):
        tracker.keep({"actor": torch.tensor([0])}, find_groups(agent))


@pytest.mark.parametrize("updates", [2, 6])  # before and after the warm-up
def test_a_stored_state_continues_bitwise(agent, updates):
    tracker = tracker_of(agent)
    feed(agent, tracker, range(updates))
    tracker.scores("random")
    state = tracker.state_dict()
    feed(agent, tracker, range(10, 14))
    restored = tracker_of(agent, seed=99)
    restored.load_state_dict(state)  # what was stored is a copy: it has not gone on
    feed(agent, restored, range(10, 14))
    assert restored.ready
    for criterion in CRITERIA:
        one, two = tracker.normalised(criterion), restored.normalised(criterion)
        assert all(torch.equal(one[name], two[name]) for name in one), criterion
    final = restored.state_dict()
    assert all(torch.equal(value, final[key]) for key, value in tracker.state_dict().items())


def test_a_state_of_other_groups_is_refused(agent):
    with pytest.raises(ValueError, match="state is of 12 units, the groups have 15"):
        tracker_of(agent).load_state_dict(tracker_of(TwoComponents(hidden=3)).state_dict())
