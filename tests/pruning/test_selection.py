"""Which units are missed least, against numpy's least squares and by every order there is."""

from copy import deepcopy
from itertools import permutations

import numpy as np
import pytest
import torch
from test_groups import alone
from torch import nn

from tdmpc_prune.pruning.config import ImportanceConfig, Limits, PruneConfig
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.selection import RIDGE, covariances, least_missed


@pytest.fixture
def data() -> np.ndarray:
    """What six units say [400, 6]: they follow from four things, and a little from nothing."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(400, 4)) @ rng.normal(size=(4, 6)) + 0.3 * rng.normal(size=(400, 6))


def covariance_of(x) -> torch.Tensor:
    return torch.tensor(np.cov(x.T, bias=True))


def missed(x, scores, gone) -> float:
    """By numpy: scores of those that are gone, times the unexplained share of their variance."""
    centred = x - x.mean(0)
    kept = [i for i in range(x.shape[1]) if i not in gone]
    extra = np.sqrt(RIDGE * centred.var(0).mean() * len(x))
    total = 0.0
    for unit in gone:
        # The ridge is noise of every unit's own, the missed one's included.
        design = np.vstack([centred[:, kept], extra * np.eye(len(kept))])
        wanted = np.concatenate([centred[:, unit], np.zeros(len(kept))])
        _, [error], *_ = np.linalg.lstsq(design, wanted, rcond=None)
        total += scores[unit] * (error + extra**2) / ((centred[:, unit] ** 2).sum() + extra**2)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_each_unit_that_goes_adds_least(data, seed):
    scores = np.random.default_rng(seed).uniform(0.1, 1.0, 6)
    order = least_missed(torch.tensor(scores), covariance_of(data), 4).tolist()
    for n in range(4):
        before = order[:n]
        costs = {u: missed(data, scores, [*before, u]) for u in range(6) if u not in before}
        assert order[n] == min(costs, key=costs.__getitem__)


def test_where_none_follows_from_others_scores_decide():
    """However loud units are."""
    rng = np.random.default_rng(0)
    scores = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])
    covariance = torch.diag(torch.tensor(rng.uniform(0.1, 100.0, 5)))
    assert least_missed(scores, covariance, 5).tolist() == [1, 3, 0, 4, 2]


def test_of_twins_one_goes_first_and_the_other_one_is_then_worth_both():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 4))
    x[:, 3] = 2 * x[:, 1]  # units 1 and 3 say the same
    scores = torch.tensor([0.3, 1.0, 0.6, 0.9])
    order = least_missed(scores, covariance_of(x), 3).tolist()
    assert order[0] in (1, 3)  # by scores alone: 0 and 2
    assert order[1:] == [0, 2]


def test_two_at_once_are_near_the_best_pair(data):
    scores = np.ones(6)
    order = least_missed(torch.tensor(scores), covariance_of(data), 2).tolist()
    pairs = [missed(data, scores, list(pair)) for pair in permutations(range(6), 2)]
    assert missed(data, scores, order) <= 1.5 * min(pairs)
    assert missed(data, scores, order) < np.median(pairs)


def test_units_whose_outputs_never_change_go_first_and_nothing_is_nan():
    covariance = torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64))
    assert sorted(least_missed(torch.tensor([1.0, 0.0, 1.0, 0.0]), covariance, 2).tolist()) == [1, 3]
    silent = torch.zeros(3, 3, dtype=torch.float64)
    assert sorted(least_missed(torch.ones(3), silent, 3).tolist()) == [0, 1, 2]


def test_covariances_are_of_what_all_readers_read(tdmpc, batch):
    groups = {g.name: g for g in find_groups(tdmpc)}
    heard: dict[str, list[torch.Tensor]] = {name: [] for name in groups}
    hooks = [
        m.module.register_forward_pre_hook(
            lambda _, x, name=g.name, index=m.index: heard[name].append(
                x[0].reshape(-1, x[0].shape[-1])[:, index]
            )
        )
        for g in groups.values()
        for m in g.members
        if m.role == "in"
    ]
    tdmpc.run_on(batch)
    for hook in hooks:
        hook.remove()
    found = covariances(tdmpc, list(groups.values()), lambda: tdmpc.run_on(batch))
    assert found.keys() == groups.keys()
    for name, parts in heard.items():
        np.testing.assert_allclose(
            found[name], covariance_of(torch.cat(parts).double().numpy()), rtol=1e-3, atol=1e-6
        )
    assert not any(m.module._forward_pre_hooks for g in groups.values() for m in g.members)
    assert list(covariances(tdmpc, list(groups.values()), lambda: tdmpc.model.encode(batch.obs))) == [
        "encoder.0"
    ]


# The pruner


def twins() -> nn.Sequential:
    """Units 0 and 1 of a network say the same; 2 is of the least weight, and says what no other one does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[0].weight[1] = net[0].weight[0]
        net[0].bias.fill_(10.0)
        net[2].weight.fill_(1.0)
        net[2].weight[:, 2] = 0.5
    return net


def pruner_of(net, **changes) -> Pruner:
    importance = ImportanceConfig(warmup=1)
    config = PruneConfig(
        **{"criterion": "magnitude", "sparsity": 0.25, "start": 0.0, "events": 1} | changes,
        importance=importance,
    )
    pruner = Pruner(alone(net, inputs=4), config, config.schedule_over(100))
    pruner.tracker.updates = 1
    return pruner


@pytest.mark.parametrize(("ridge", "error"), [(1e-4, 1e-3), (0.1, 0.05)])
@pytest.mark.parametrize("selection", ["scores", "surgeon", "residual"])
def test_the_pruner_removes_what_others_stand_in_for(selection, ridge, error):
    net, x = twins(), torch.randn(300, 4)
    with torch.no_grad():
        said = net(x)
        pruner = pruner_of(net, selection=selection, ridge=ridge, limits=Limits(min_units=1))
        pruner.prune(100, lambda: net(x))
        left = (net(x) - said).square().mean().sqrt() / said.std()
    assert pruner.widths == {"net.0": 3}
    assert (left > 0.1) == (selection == "scores")
    assert (left < error) == (selection != "scores")


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_of_every_group_as_many_go_as_by_scores(tdmpc, batch, allocation):
    widths = {}
    for selection in ("scores", "surgeon"):
        agent = deepcopy(tdmpc)
        config = PruneConfig(
            criterion="magnitude",
            sparsity=0.4,
            start=0.0,
            events=1,
            allocation=allocation,
            selection=selection,
            importance=ImportanceConfig(warmup=1),
        )
        pruner = Pruner(agent, config, config.schedule_over(100))
        pruner.tracker.updates = 1
        event = pruner.prune(100, lambda agent=agent: agent.run_on(batch))
        widths[selection] = event.removed
        agent.update(batch)
    assert widths["surgeon"] == widths["scores"]
    assert sum(widths["surgeon"].values()) > 10


def test_without_anything_to_go_by_the_pruner_refuses():
    pruner = pruner_of(twins(), selection="surgeon")
    with pytest.raises(
        ValueError,
        match="compensation is 'linear': give prune what runs the agent on real data, or choose 'none'",
    ):
        pruner.prune(100)
    assert pruner.widths == {"net.0": 4}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"compensation": "none"}, "counts on compensation, but that is 'none'"),
        ({"allocation": "calibrated"}, "takes other units than allocation 'calibrated' measures"),
        ({"criterion": "bayesian"}, "has no regard for the guard of 'bayesian'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        PruneConfig(selection="surgeon", **settings)
    PruneConfig(selection="scores", **settings)


def test_bayesian_criteria_select_without_their_guard():
    PruneConfig(criterion="bayesian-saliency", selection="surgeon", importance=ImportanceConfig(guard=0.0))
