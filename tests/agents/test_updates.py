"""Updates from a replay, against their steps made one by one."""

import dataclasses

import pytest
import torch

from agents.gradients import NonFiniteGradients, adam, gradient_norm, step
from agents.replay import Episode
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG
from agents.tdmpc.updates import Updates
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.pruner import Pruner


def new():
    agent = TDMPC(dataclasses.replace(DEBUG, batch_size=8), 4, 1, seed=1)
    replay = agent.make_replay(2, capacity=100)
    generator = torch.Generator().manual_seed(3)
    replay.add(
        Episode(*(torch.randn(n, generator=generator) for n in ((41, 4), (40, 1), 40)), terminated=False)
    )
    prune = PruneConfig(sparsity=0.5)
    return agent, replay, Pruner(agent, prune, prune.schedule_over(100))


def test_an_update_is_its_steps():
    agent, replay, pruner = new()
    updates = Updates(agent, replay, pruner)
    other, other_replay, other_pruner = new()
    for i in range(6):
        update = updates()
        pruner.advance(i / 6, update.observation)
        batch = other_replay.sample(8)
        losses, priority = other.update(batch, other_pruner.observe)
        other_replay.update_priorities(batch.index, priority)
        other_pruner.advance(i / 6)
        assert {k: float(v) for k, v in update.losses.items()} == {k: float(v) for k, v in losses.items()}
    assert agent.updates == other.updates == 6
    for one, same in ((agent.model, other.model), (agent.target, other.target)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name]), name
    for one, same in ((replay, other_replay), (pruner, other_pruner)):
        states = one.state_dict(), same.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert updates.skipped() == (0, 0, 0)
    assert Updates(agent, replay, in_a_row=3).skipped() == (0, 3, 3)


def test_bad_gradients_are_raised_on_a_cpu():
    agent, replay, _ = new()
    before = replay.state_dict()["priority"]
    with torch.no_grad():
        agent.model.encoder[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteGradients):
        Updates(agent, replay)()
    assert torch.equal(replay.state_dict()["priority"], before)
    assert agent.updates == 1


@pytest.mark.parametrize("unless", [True, False])
def test_priorities_unless(unless):
    _, replay, _ = new()
    before = replay.state_dict()["priority"]
    index = torch.tensor([3, 7])
    replay.update_priorities(index, torch.tensor([0.25, 4.0]), unless=torch.tensor(unless))
    after = replay.state_dict()["priority"]
    expected = before.clone()
    if not unless:
        expected[index] = torch.tensor([0.25, 4.0]) + 1e-6
    assert torch.equal(after, expected)
    assert unless or set(replay.sample(2_000).index.tolist()) >= {7}


def test_a_step_is_clipped_and_says_that_it_was_made():
    layer = torch.nn.Linear(2, 1, bias=False)
    optimizer = adam(layer.parameters(), 0.1)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    norm = gradient_norm(layer.parameters())
    assert norm == 5
    assert step(optimizer, [layer.weight], norm, 1.0) == 0
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
