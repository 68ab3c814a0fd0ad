"""Pruning in loops of one's own: what would go wrong silently is refused."""

import pytest
import torch
from test_groups import Foreign, alone
from torch import nn

from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.pruner import Pruner


def one_net():
    return nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 2))


def own_loop(pruner, parameters, updates=20):
    """Updates with gradients of 1; `parameters` gives what is observed."""
    for update in range(1, updates + 1):
        for p in pruner.agent.nets["net"].parameters():
            p.grad = torch.ones_like(p)
        pruner.observe(parameters())
        pruner.advance(update / updates)
        if pruner.due(update):
            pruner.prune(update)


def pruner_of(net, **settings):
    importance = ImportanceConfig(warmup=2)
    config = PruneConfig(sparsity=0.5, events=3, compensation="none", importance=importance, **settings)
    return Pruner(alone(net), config, config.schedule_over(20))


def test_parameters_of_before_a_removal_are_found_out():
    net = one_net()
    former = list(net.parameters())
    pruner = pruner_of(net)
    with pytest.raises(ValueError, match=r"no gradient .* was observed in \d updates: .* asked for anew"):
        own_loop(pruner, lambda: former)
    assert pruner.events == 1
    net = one_net()
    own_loop(pruner := pruner_of(net), net.parameters)
    assert pruner.events == 3


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_who_needs_no_gradients_may_observe_none(criterion):
    pruner = pruner_of(one_net(), criterion=criterion)
    own_loop(pruner, list)
    assert pruner.events == 3
    with pytest.raises(ValueError, match="no gradient"):
        own_loop(pruner_of(one_net()), list)


def test_a_pruner_that_goes_on_may_prune_before_it_has_observed_anything():
    net = one_net()
    own_loop(pruner := pruner_of(net), net.parameters, updates=5)
    later = pruner_of(net)
    later.load(pruner.record(), pruner.state_dict())
    assert later.due(20)
    later.prune(20)
    assert later.events == 3


def test_the_last_removal_is_made_where_the_schedule_ends_with_the_loop():
    net = one_net()
    own_loop(pruner := pruner_of(net, end=1.0), net.parameters)
    assert pruner.events == 3
    assert pruner.sparsity == pytest.approx(0.5, abs=0.07)


def test_nothing_is_due_of_a_dense_run():
    net = one_net()
    own_loop(pruner := pruner_of(net, criterion="none", allocation="calibrated"), net.parameters)
    assert pruner.events == 0
    assert not pruner.calibration_due(20)


def test_layers_cannot_take_over_without_data():
    config = PruneConfig(criterion="magnitude", events=1, importance=ImportanceConfig(warmup=1))
    pruner = Pruner(alone(one_net()), config, config.schedule_over(20))
    with pytest.raises(
        ValueError, match="compensation is 'linear': give prune what runs the agent on real data"
    ):
        pruner.prune(16)
    assert pruner.events == 0


def test_optimisers_that_would_lose_their_parameters_are_refused():
    actor, critic = one_net(), one_net()

    def pruner(optimizers):
        agent = Foreign(
            lambda: [actor(torch.zeros(1, 3)), critic(torch.zeros(1, 3))], actor=actor, critic=critic
        )
        agent.optimizers = optimizers
        config = PruneConfig()
        return Pruner(agent, config, config.schedule_over(20))

    of_actor, of_critic = (torch.optim.Adam(net.parameters()) for net in (actor, critic))
    with pytest.raises(ValueError, match=r"critic.0.weight is in none of optimizers\(\)"):
        pruner(lambda: [of_actor])
    with pytest.raises(ValueError, match=r"optimizers\(\) makes new ones at every call"):
        pruner(lambda: [of_actor, torch.optim.Adam(critic.parameters())])
    pruner(lambda: [of_actor, of_critic])
    critic.requires_grad_(False)
    pruner(lambda: [of_actor])
