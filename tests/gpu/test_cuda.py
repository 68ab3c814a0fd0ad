"""What a GPU does by graphs, against the same asked for one launch at a time: `make gpu`, on a machine with one."""

import dataclasses
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from agents.cuda_graphs import tf32
from agents.layers import module_by_module
from agents.replay import Episode, ReplayBuffer
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG, LAPTOP, PAPER
from agents.tdmpc.updates import Updates
from tdmpc_prune.config import TDMPCTrainConfig, WandbConfig
from tdmpc_prune.pruning.compensation import stand_ins
from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.selection import covariances
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.run_folder import RunFolder
from tdmpc_prune.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def new(config=LAPTOP, device="cuda", **importance) -> tuple[TDMPC, ReplayBuffer, Pruner, Updates]:
    agent = TDMPC(config, 5, 2, seed=1, device=device)
    replay = agent.make_replay(2, capacity=2_000)
    draw = np.random.default_rng(3)
    for _ in range(8):
        obs, action = draw.normal(size=(101, 5)), draw.uniform(-1, 1, size=(100, 2))
        tensors = [torch.tensor(x, dtype=torch.float32) for x in (obs, action, draw.uniform(size=100))]
        replay.add(Episode(*tensors, terminated=False))
    prune = PruneConfig(
        sparsity=0.5, compensation="none", importance=ImportanceConfig(warmup=2, **importance)
    )
    pruner = Pruner(agent, prune, prune.schedule_over(100))
    return agent, replay, pruner, Updates(agent, replay, pruner)


def learned(agent, replay, pruner) -> dict[str, torch.Tensor]:
    tensors = {f"online.{k}": v for k, v in agent.model.state_dict().items()}
    tensors |= {f"target.{k}": v for k, v in agent.target.state_dict().items()}
    for n, optimizer in enumerate(agent.optimizers()):
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{n}.{i}.{k}": v for k, v in moments.items()}
    tensors |= {f"replay.{k}": v for k, v in replay.state_dict().items()}
    tensors |= {f"pruner.{k}": v for k, v in pruner.state_dict().items()}
    return {k: v.detach().double().cpu().clone() for k, v in tensors.items()}


def alike(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if "rng" in name or "generator" in name:
            continue
        scale = max(float(other[name].abs().max()), 1e-6)
        assert float((value - other[name]).abs().max()) <= tolerance * scale, name


def make(updates, pruner, count):
    losses = []
    for i in range(count):
        update = updates()
        pruner.advance(i / 100, update.observation)
        losses.append({k: float(v) for k, v in update.losses.items()})
    return losses


def test_updates_by_graph_are_the_same():
    results = []
    for simple in (True, False):
        agent, replay, pruner, updates = new()
        if simple:
            with module_by_module():
                losses = make(updates, pruner, 12)
        else:
            losses = make(updates, pruner, 12)
            assert updates._captured._recorded is not None
        results.append((losses, learned(agent, replay, pruner)))
    (simple_losses, simple), (losses, graph) = results
    assert losses[0] == pytest.approx(simple_losses[0], rel=1e-5)
    assert losses[-1] == pytest.approx(simple_losses[-1], rel=1e-3)
    alike(graph, simple, 1e-3)
    assert len({tuple(row.values()) for row in losses}) == 12  # other sequences and noise each time


def test_updates_are_those_of_the_cpu():
    """Random numbers differ from device to device: the same batch, and a policy without noise."""
    config = dataclasses.replace(LAPTOP, policy_std=1e-9)
    agents = {device: new(config, device)[0] for device in ("cpu", "cuda")}
    replay = new(config, "cpu")[1]
    for _ in range(5):
        batch = replay.sample(64)
        moved = type(batch)(**{k: v.cuda() for k, v in vars(batch).items()})
        losses, priority = agents["cpu"].update(batch)
        on_gpu, gpu_priority = agents["cuda"].update(moved)
        for name in losses:
            assert float(on_gpu[name]) == pytest.approx(float(losses[name]), rel=1e-3, abs=1e-6), name
        np.testing.assert_allclose(gpu_priority.cpu(), priority, rtol=1e-3, atol=1e-5)


def test_after_a_removal_the_graph_is_captured_anew():
    results = []
    for simple in (True, False):
        agent, replay, pruner, updates = new()
        if simple:
            with module_by_module():
                make(updates, pruner, 6)
                pruner.prune(60)
                make(updates, pruner, 6)
        else:
            make(updates, pruner, 6)
            first = updates._captured._recorded
            pruner.prune(60)
            make(updates, pruner, 6)
            assert updates._captured._recorded is not None
            assert updates._captured._recorded is not first
        assert pruner.sparsity > 0.05
        results.append(learned(agent, replay, pruner))
    alike(*results, 3e-3)


def test_bad_gradients_change_nothing():
    agent, replay, pruner, updates = new()
    make(updates, pruner, 5)
    assert updates.skipped() == (0, 0, 0)
    before = learned(agent, replay, pruner)
    obs = replay.storage["obs"].clone()
    replay.storage["obs"].fill_(torch.nan)
    losses = make(updates, pruner, 3)
    assert [row["skipped"] for row in losses] == [1, 1, 1]
    assert all(np.isfinite(list(row.values())).all() for row in losses)
    assert updates.skipped() == (3, 3, 3)
    assert updates.skipped() == (0, 3, 3)
    replay.storage["obs"].copy_(obs)
    after = learned(agent, replay, pruner)
    alike(
        {k: v for k, v in after.items() if "pruner" not in k},
        {k: v for k, v in before.items() if "pruner" not in k},
    )
    assert all(v.isfinite().all() for v in after.values())
    assert make(updates, pruner, 1)[0]["skipped"] == 0
    assert updates.skipped() == (0, 0, 3)
    assert updates.skipped() == (0, 0, 0)


def test_a_removal_of_nothing_leaves_the_graph_where_it_is():
    results = []
    for removes in (False, True):
        agent, replay, pruner, updates = new()
        make(updates, pruner, 5)
        recorded = updates._captured._recorded
        if removes:
            pruner.tracker.keep({}, pruner.groups)
            torch.cuda.empty_cache()
            torch.full((10**6,), torch.nan, device="cuda")
        make(updates, pruner, 3)
        assert updates._captured._recorded is recorded
        results.append(learned(agent, replay, pruner))
    alike(*results, 1e-3)


def test_updates_do_not_wait():
    _, _, pruner, updates = new()
    for i in range(5):
        pruner.advance(i / 100, updates().observation)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(40):
            pruner.advance(i / 100, updates().observation)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def float32(monkeypatch):
    """Plans without TF32: one digit decides which sequence is an elite, and so the action."""
    monkeypatch.setattr("agents.tdmpc.plan_graphs.tf32", nullcontext)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("explore", [True, False])
def test_plans_by_graph_are_the_same(explore):
    agent, *_ = new()
    draw = np.random.default_rng(0)
    observations = draw.normal(size=(7, 3, 5)).astype(np.float32)
    actions = []
    for simple in (True, False):
        planner = agent.make_planner([torch.Generator("cuda").manual_seed(i) for i in range(3)])
        steps = []
        for t, obs in enumerate(observations):
            step = 10**6 if t < 5 else 1_500  # another horizon, and another lowest deviation
            if simple:
                with module_by_module():
                    steps.append(agent.plan(obs, planner, step, explore=explore))
            else:
                steps.append(agent.plan(obs, planner, step, explore=explore))
        actions.append(np.stack(steps))
    np.testing.assert_allclose(actions[1], actions[0], atol=2e-3)


@pytest.mark.parametrize("config", [LAPTOP, PAPER])
def test_values_of_sequences_in_tf32(config):
    """Off by less than a hundredth of what sequences differ by; the same ones are chosen, but for a few."""
    agent, replay, pruner, updates = new(config)
    make(updates, pruner, 40)  # a new model says 0 of all
    planner, count = agent.make_planner(), config.planner.num_samples
    draw = torch.Generator("cuda").manual_seed(0)
    obs = replay.storage["obs"][:8].clone()
    z = agent.model.encode(obs).detach().unsqueeze(1).expand(-1, count, -1)
    actions = torch.rand(8, 5, count, 2, generator=draw, device="cuda") * 2 - 1
    noise = torch.randn(8, count, 2, generator=draw, device="cuda")
    with torch.no_grad():
        exact = planner.estimate_value(z, actions, noise)
        with tf32():
            value = planner.estimate_value(z, actions, noise)
        again = planner.estimate_value(z, actions, noise)
    assert torch.equal(again, exact)
    assert not torch.equal(value, exact)  # it is at work
    off = (value - exact).pow(2).mean(1).sqrt() / exact.std(1)
    assert off.max() < 0.01
    top = [set(x.topk(config.planner.num_elites).indices.tolist()) for x in (value[0], exact[0])]
    assert len(top[0] & top[1]) >= 0.9 * config.planner.num_elites


@pytest.mark.usefixtures("float32")
def test_a_plan_follows_learning_and_removals():
    agent, _, pruner, updates = new()
    obs = np.ones((1, 5), np.float32)

    def both():
        found = []
        for simple in (True, False):
            planner = agent.make_planner([torch.Generator("cuda").manual_seed(0)])
            if simple:
                with module_by_module():
                    found.append(agent.plan(obs, planner, 10**6))
            else:
                found.append(agent.plan(obs, planner, 10**6))
        np.testing.assert_allclose(*found, atol=2e-3)
        return found[0]

    for _ in range(5):
        first = both()
    make(updates, pruner, 30)
    assert not np.allclose(both(), first)
    pruner.prune(80)
    for _ in range(5):
        both()


def test_units_vary_and_layers_take_over_as_on_a_cpu():
    left, seen = {}, {}
    for device in ("cpu", "cuda"):
        agent, replay, _, _ = new(device=device)
        agent.model.load_state_dict(TDMPC(LAPTOP, 5, 2, seed=1).model.state_dict())
        batch = replay.sample(256)
        draw = np.random.default_rng(0)  # the same numbers on both
        rows = {name: draw.uniform(-1, 1, getattr(batch, name).shape) for name in ("obs", "action")}
        tensors = {n: torch.tensor(v, dtype=torch.float32, device=device) for n, v in rows.items()}
        batch = dataclasses.replace(batch, **tensors)
        groups = find_groups(agent)
        seen[device] = covariances(agent, groups, partial(agent.run_on, batch))
        removal = {g.name: torch.arange(0, g.units, 3) for g in groups}
        remove_units(
            agent, groups, removal, stand_ins(agent, groups, removal, partial(agent.run_on, batch), 0.1)
        )
        left[device] = {name: p.detach().cpu() for name, p in agent.model.named_parameters()}
    for name, value in seen["cpu"].items():
        torch.testing.assert_close(seen["cuda"][name], value, rtol=1e-2, atol=1e-3, msg=name)
    for name, value in left["cpu"].items():
        torch.testing.assert_close(left["cuda"][name], value, rtol=1e-2, atol=1e-3, msg=name)


def small(tmp_path, name, **changes) -> TDMPCTrainConfig:
    settings = {
        "task": "InvertedPendulum-v5",
        "preset": "debug",
        "agent": DEBUG,
        "steps": 1_500,
        "eval_every": 500,
        "eval_episodes": 2,
        "device": "cuda",
        "run_dir": tmp_path / name,
        "wandb": WandbConfig(mode="disabled"),
        "prune": PruneConfig(sparsity=0.5, importance=ImportanceConfig(warmup=20)),
    }
    return TDMPCTrainConfig(**(settings | changes))


def test_a_whole_run_and_a_resumed_one(tmp_path, monkeypatch):
    """With deterministic algorithms, a run that was stopped ends as one that was not, bit by bit."""
    from tdmpc_prune.errors import Interrupted
    from tdmpc_prune.signals import StopSignals

    summary = train(small(tmp_path, "whole", deterministic=True))
    assert summary["sparsity"] == pytest.approx(0.5, abs=0.05)
    check, calls = StopSignals.check, []

    def stop_once(self):
        calls.append(1)
        if len(calls) == 900:
            raise Interrupted("stopped")
        check(self)

    monkeypatch.setattr(StopSignals, "check", stop_once)
    with pytest.raises(Interrupted):
        train(small(tmp_path, "parts", deterministic=True))
    again = train(small(tmp_path, "parts", deterministic=True))
    for key in ("return", "sparsity", "env_step", "update", "parameters"):
        assert again[key] == summary[key], key
    whole, parts = (RunFolder(tmp_path / name).checkpoints for name in ("whole", "parts"))
    from safetensors.torch import load_file

    models = [load_file(sorted(folder.glob("0*"))[-1] / "model.safetensors") for folder in (whole, parts)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
