"""Gradients that are not finite: counted, never used, and the end of a run that has no others."""

import dataclasses
import itertools
from copy import deepcopy

import pytest
import torch
from small_runs import PENDULUM, assert_same_run, checkpoints, rows, state, train_small
from torch import nn

from agents.autoencoder import Autoencoder
from agents.autoencoder_config import AutoencoderConfig
from agents.gradients import NonFiniteGradients, finite_norm
from agents.replay import ReplayBuffer
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG
from tdmpc_prune import autoencoder_training
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.training import Training
from tests.faults.harness import CASES

BAD = [float("nan"), float("inf"), float("-inf")]


def new_agent() -> tuple[TDMPC, Pruner]:
    agent = TDMPC(dataclasses.replace(DEBUG, horizon=3, batch_size=8), 4, 1, seed=1)
    pruner = Pruner(agent, PruneConfig(sparsity=0.5), PruneConfig(sparsity=0.5).schedule_over(100))
    return agent, pruner


def new_batch(agent: TDMPC, **changes):
    from agents.replay import Episode

    replay = agent.make_replay(1)
    torch.manual_seed(1)
    replay.add(Episode(torch.randn(31, 4), torch.rand(30, 1) * 2 - 1, torch.rand(30), terminated=False))
    return dataclasses.replace(replay.sample(8), **changes)


def everything(agent, pruner) -> dict[str, torch.Tensor]:
    """All that an update may change, copied."""
    tensors = {f"online.{k}": v for k, v in agent.model.state_dict().items()}
    tensors |= {f"target.{k}": v for k, v in agent.target.state_dict().items()}
    for n, optimizer in enumerate(agent.optimizers()):
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{n}.{i}.{k}": v for k, v in moments.items()}
    return deepcopy(tensors | {f"pruner.{k}": v for k, v in pruner.state_dict().items()})


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("bad", BAD)
def test_norm(bad):
    layer = nn.Linear(2, 3)
    layer.weight.grad = torch.full((3, 2), 2.0)  # the bias has none
    norm = finite_norm(layer.parameters())
    assert norm == pytest.approx(24**0.5)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(layer.parameters(), 1e9))
    layer.weight.grad[2, 1] = bad
    with pytest.raises(NonFiniteGradients):
        finite_norm(layer.parameters())


@pytest.mark.parametrize("bad", BAD)
def test_an_update_with_bad_gradients_changes_nothing(bad):
    agent, pruner = new_agent()
    batch = new_batch(agent)
    agent.update(batch, pruner.observe)
    pruner.advance(0.1)
    before = everything(agent, pruner)
    weight = batch.weight.clone()
    weight[3] = bad
    with pytest.raises(NonFiniteGradients):
        agent.update(dataclasses.replace(batch, weight=weight), pruner.observe)
    pruner.discard()
    assert changed(before, everything(agent, pruner)) == set()
    assert agent.updates == 2  # it was one, and the next step is not owed it
    agent.update(batch, pruner.observe)
    pruner.advance(0.2)
    after = everything(agent, pruner)
    assert {key.split(".")[0] for key in changed(before, after)} == {"online", "target", "adam", "pruner"}
    assert all(value.isfinite().all() for value in after.values())


def test_bad_gradients_of_the_policy(monkeypatch):
    """The model has made its step by then, and that was a good one; the policy makes none, and no score moves."""
    agent, pruner = new_agent()
    batch = new_batch(agent)
    agent.update(batch, pruner.observe)
    pruner.advance(0.1)
    before = everything(agent, pruner)
    real = agent.policy_loss
    with monkeypatch.context() as patch:
        patch.setattr(agent, "policy_loss", lambda latents: real(latents) * float("nan"))
        with pytest.raises(NonFiniteGradients):
            agent.update(batch, pruner.observe)
    pruner.discard()
    touched = changed(before, everything(agent, pruner))
    assert touched
    assert {key.rpartition(".policy.")[0] for key in touched} == {""}
    assert not [key for key in touched if key.startswith(("target.", "pruner.", "adam.1."))]
    agent.update(batch, pruner.observe)
    pruner.advance(0.2)
    assert "pruner.updates" in changed(before, everything(agent, pruner))


def test_what_was_discarded_does_not_count_later():
    """Scores are those of a tracker that never saw it."""
    scores = []
    for disturbed in (False, True):
        agent, pruner = new_agent()
        batch = new_batch(agent)
        if disturbed:
            agent.copy_for_acting()
            parameters = list(agent.model.parameters())
            for p in parameters:
                p.grad = torch.ones_like(p)
            pruner.observe(parameters)
            pruner.discard()
        agent.update(batch, pruner.observe)
        pruner.advance(0.1)
        scores.append(pruner.state_dict())
    assert changed(*scores) == set()


def test_an_autoencoder_with_bad_gradients():
    agent = Autoencoder(AutoencoderConfig(hidden_dim=8, code_dim=3), 6, seed=1)
    images = torch.rand(4, 6)
    agent.update(images)
    before = deepcopy((agent.encoder.state_dict(), agent.optimizer.state_dict()["state"]))
    seen = []
    with pytest.raises(NonFiniteGradients):
        agent.update(images * float("nan"), seen.append)
    assert not seen
    assert agent.updates == 2
    weights, moments = before
    assert all(torch.equal(v, weights[k]) for k, v in agent.encoder.state_dict().items())
    now = agent.optimizer.state_dict()["state"]
    assert all(torch.equal(v, moments[i][k]) for i, m in now.items() for k, v in m.items())


# In a run


def spoil(patch, numbers) -> None:
    """These draws from the replay (1: the first) have weights that make the gradients not finite."""
    real, count = ReplayBuffer.sample, itertools.count(1)

    def sample(self, size):
        batch = real(self, size)
        if next(count) in numbers:
            return dataclasses.replace(batch, weight=batch.weight * float("nan"))
        return batch

    patch.setattr(ReplayBuffer, "sample", sample)


def test_a_run_goes_on_after_some(folder, monkeypatch, no_plot):
    with monkeypatch.context() as patch:
        spoil(patch, {3, 4, 5, 40})
        train_small(PENDULUM, folder, "--skip-limit", "4")
    lines = rows(folder)
    counts = [row.get("train/skipped_updates", 0) for row in lines if "train/return" in row]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert all(value == value for row in lines for value in row.values())  # no nan
    last = state(folder)
    assert last["progress"]["skipped_updates"] == 4
    assert last["progress"]["skipped_in_a_row"] == 0
    assert last["updates"] == last["progress"]["agent_step"]


def test_a_run_without_any_says_nothing_of_it(undisturbed):
    assert not [row for row in rows(undisturbed["pendulum"].path) if "train/skipped_updates" in row]


def test_priorities_stay(undisturbed, monkeypatch, folder, no_plot):
    updated = []
    real = ReplayBuffer.update_priorities

    def update(self, index, priority):
        updated.append(priority)
        real(self, index, priority)

    monkeypatch.setattr(ReplayBuffer, "update_priorities", update)
    spoil(monkeypatch, {3, 4})
    train_small(PENDULUM, folder)
    assert len(updated) == state(folder)["updates"] - 2
    assert all(priority.isfinite().all() for priority in updated)


def test_a_run_that_diverges_ends(folder, failed, monkeypatch, no_plot):
    spoil(monkeypatch, range(20, 10**6))
    line = failed([*PENDULUM, "--skip-limit", "7"])
    assert "it diverges, 7 updates in a row brought gradients that are not finite" in line
    assert "--agent.lr" in line
    assert "--skip-limit" in line
    last = state(folder)
    assert last["updates"] == 26
    assert last["progress"]["skipped_in_a_row"] == 7
    assert "diverges" in failed([*PENDULUM, "--skip-limit", "7"])  # the next one of them is one too many
    assert state(folder)["updates"] == 27


def test_the_default_is_twenty(folder, failed, monkeypatch):
    spoil(monkeypatch, range(1, 10**6))
    assert "20 updates in a row" in failed(PENDULUM)


def test_an_interruption_between_skipped_updates_changes_nothing(folder, tmp_path, monkeypatch, no_plot):
    """What is counted is stored."""
    with monkeypatch.context() as patch:
        spoil(patch, {3, 4, 5, 6})
        train_small(PENDULUM, tmp_path / "whole")
    real, count = Training.update, itertools.count(1)

    def update(self):
        if next(count) == 5:
            raise Interrupted("SIGTERM")
        real(self)

    with monkeypatch.context() as patch:
        spoil(patch, {3, 4, 5, 6})
        with patch.context() as stop:
            stop.setattr(Training, "update", update)
            with pytest.raises(Interrupted):
                train_small(PENDULUM, folder)
        train_small(PENDULUM, folder)
    assert_same_run(folder, tmp_path / "whole")
    assert len(checkpoints(folder)) == 2


def test_an_autoencoder_run_that_diverges_ends(failed, monkeypatch):
    real, count = autoencoder_training.Autoencoder.update, itertools.count(1)

    def update(self, batch, observe=None):
        return real(self, batch * float("nan") if next(count) > 30 else batch, observe)

    monkeypatch.setattr(autoencoder_training.Autoencoder, "update", update)
    line = failed([*CASES["autoencoder"], "--skip-limit", "5"])
    assert "autoencoder, step 35: it diverges, 5 updates in a row" in line
