"""Controllers side by side, on agents so small that everything can be counted by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig
from envs.perturbations import STANDARD, Perturbation
from tdmpc_prune import checkpoint
from tdmpc_prune.analysis import comparison
from tdmpc_prune.analysis.comparison import Protocol, compare
from tdmpc_prune.checkpoint import StoredAgent
from tdmpc_prune.errors import UserError
from tdmpc_prune.latency import Latency, measure, threads
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units

CPU = torch.device("cpu")
CONFIG = TDMPCConfig(
    latent_dim=4,
    encoder_dim=6,
    hidden_dim=8,
    horizon=2,
    schedule_steps=0,
    planner=PlannerConfig(iterations=2, num_samples=16, num_elites=4, policy_fraction=0.25),
)


def stored(task="InvertedPendulum-v5", obs_dim=4, *, pruned=False, repeat=1, seed=1, world=1):
    agent = TDMPC(CONFIG, obs_dim, 1, seed=seed)
    if pruned:
        remove_units(agent, find_groups(agent), {"latent": torch.tensor([1]), "q1.3": torch.tensor([0, 7])})
    return StoredAgent(agent, task, world, repeat, 100, 100, "taylor" if pruned else "none")


@pytest.fixture
def runs(monkeypatch):
    """Runs by path, without their files."""
    known = {}
    monkeypatch.setattr(checkpoint, "load_agent", lambda path, device: known[path])
    torch.set_num_threads(1)
    return known


def test_one_run(runs):
    runs["a"] = stored()
    (found,) = compare(["a"], Protocol(episodes=4, plans=3), CPU)
    result = found.result
    assert (result["run"], result["task"], result["criterion"]) == ("a", "InvertedPendulum-v5", "none")
    assert len(result["returns"]) == len(result["policy_returns"]) == len(result["lengths"]) == 4
    assert result["return"] == pytest.approx(np.mean(result["returns"]))
    assert result["return_low"] <= result["return"] <= result["return_high"]
    assert result["returns"] == [n - 1 for n in result["lengths"]]  # a reward of 1 a step but the last
    assert result["sparsity"] == 0
    assert result["control_ms"] == pytest.approx(40)
    assert list(result["latency_ms"]) == ["1"]
    assert result["meets_deadline"] is (result["latency_ms"]["1"]["p99"] <= 40)
    assert "versus" not in result
    assert found.frames == []


def test_work_counted_by_hand(runs):
    runs["a"], runs["b"] = stored(), stored(pruned=True)
    dense, pruned = (found.result for found in compare(["a", "b"], Protocol(episodes=1, plans=0), CPU))
    encoder = 4 * 6 + 6 * 4
    tower = (4 + 1) * 8 + 8 * 8
    dynamics, reward, policy, q = tower + 8 * 4, tower + 8, 4 * 8 + 8 * 8 + 8, tower + 8
    assert dense["macs"] == encoder + dynamics + reward + policy + 2 * q
    # 16 samples and 4 proposals; 2 iterations of 2 steps; proposals take one step of the dynamics.
    assert dense["plan_macs"] == (
        encoder + 4 * (2 * policy + dynamics) + 2 * 20 * (2 * (dynamics + reward) + policy + 2 * q)
    )
    agent = runs["b"].agent
    assert pruned["parameters"] == sum(p.numel() for p in agent.model.parameters())
    assert pruned["sparsity"] == pytest.approx(1 - pruned["parameters"] / dense["parameters"])
    assert pruned["plan_macs"] < dense["plan_macs"]


def test_all_runs_see_the_same_episodes(runs):
    runs["a"], runs["b"] = stored(), stored()
    protocol = Protocol(episodes=3, seed=5, plans=0)
    first, twin = (found.result for found in compare(["a", "b"], protocol, CPU))
    assert first["returns"] == twin["returns"]
    assert first["policy_returns"] == twin["policy_returns"]


def test_systems_drawn_from_two_seeds_are_not_compared(runs):
    runs["a"], runs["b"] = (stored("lqr-lqr-2-1", 4, world=seed) for seed in (1, 2))
    with pytest.raises(
        UserError, match=r"b is of seed 2, a of seed 1: lqr-lqr-2-1 draws .* give runs of one seed"
    ):
        compare(["a", "b"], Protocol(), CPU)


def test_against_the_reference(runs, monkeypatch):
    returns = {"dense": [100.0, 200, 300, 400], "thin": [90.0, 195, 290, 405]}
    runs |= {name: stored(seed=i) for i, name in enumerate(returns)}

    def evaluate(path, one, protocol, bar):
        result = {"run": path, "returns": returns[path], "return": float(np.mean(returns[path]))}
        return comparison.Evaluated(one, result, [])

    monkeypatch.setattr(comparison, "_evaluate", evaluate)
    dense, thin = compare(["thin", "dense"], Protocol(), CPU, reference="dense")
    assert (dense.result["run"], thin.result["run"]) == ("dense", "thin")  # the reference first, and once
    assert "versus" not in dense.result
    versus = thin.result["versus"]
    assert versus["difference"] == pytest.approx(-5)
    # Of paired differences, far narrower than what the returns themselves scatter by.
    low, high = stats.t.interval(0.95, 3, loc=-5, scale=stats.sem([-10, -5, -10, 5]))
    assert (versus["difference_low"], versus["difference_high"]) == pytest.approx((low, high))
    assert versus["share"] == pytest.approx(245 / 250)


def test_perturbations_one_at_a_time(runs):
    """Gravity as it is changes nothing, three times as much makes the pendulum fall sooner."""
    runs["a"] = stored()
    protocol = Protocol(
        episodes=3,
        plans=0,
        controllers=("policy",),
        perturbations=(Perturbation("gravity", 1), Perturbation("gravity", 3), Perturbation("delay", 1)),
    )
    (found,) = compare(["a"], protocol, CPU)
    perturbed = found.result["perturbed"]
    assert list(perturbed) == ["gravity=1", "gravity=3", "delay=1"]
    assert perturbed["gravity=1"]["returns"] == found.result["returns"]
    assert perturbed["gravity=3"]["return"] < found.result["return"]
    assert "policy_returns" not in found.result


def test_of_the_standard_perturbations_those_that_the_world_knows(runs, capsys):
    """Gymnasium's pendulum is not simulated by MuJoCo."""
    runs["a"] = stored("Pendulum-v1", 3)
    (found,) = compare(["a"], Protocol(episodes=1, plans=0, perturbations=STANDARD), CPU)
    assert list(found.result["perturbed"]) == ["noise=0.01", "noise=0.05", "delay=1", "delay=2"]
    assert "MuJoCo does not simulate Pendulum-v1: its masses" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^mass=2: MuJoCo does not simulate Pendulum-v1"):
        compare(["a"], Protocol(perturbations=(Perturbation("mass", 2),)), CPU)


def test_runs_of_several_tasks(runs):
    runs["a"], runs["b"] = stored(), stored("cartpole-swingup", 5, repeat=8)
    with pytest.raises(UserError, match="give runs of one task"):
        compare(["a", "b"], Protocol(), CPU)
    runs["b"] = stored(repeat=2)
    with pytest.raises(UserError, match="action repeat 2"):
        compare(["a", "b"], Protocol(), CPU)


def test_the_deadline_is_met_by_the_99th_percentile_of_one_thread(runs, monkeypatch):
    runs["a"] = stored()
    for slow, meets in ((39.9, True), (40.1, False)):
        found = Latency(1.0, 2.0, slow)
        monkeypatch.setattr(comparison, "_timed", lambda *_, found=found: found)
        (one,) = compare(["a"], Protocol(episodes=1), CPU)
        assert one.result["latency_ms"] == {"1": {"p50": 1.0, "p95": 2.0, "p99": slow, "steps": 100}}
        assert one.result["meets_deadline"] is meets


def test_percentiles(monkeypatch):
    """Steps that take 1, 2, ..., 100 ms, after two that warm up."""
    clock = iter(np.cumsum([0, 999, 0, 999, *(x for ms in range(1, 101) for x in (0, ms / 1e3))]))
    monkeypatch.setattr("tdmpc_prune.latency.time.perf_counter", lambda: next(clock))
    seen = []
    found = measure(lambda obs: seen.append(obs.shape) or obs, 3, 100)
    assert (found.p50, found.p95, found.p99) == pytest.approx((50.5, 95.05, 99.01))
    assert set(seen) == {(1, 3)}


def test_threads_for_a_while():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("reference", "share"), [(0.0, None), (-3.0, None), (2.0, 0.5)])
def test_share_of_the_reference(reference, share):
    """Of a return that is none, there is no share."""
    found = comparison._versus(
        {"return": 1.0, "returns": [1.0]}, {"run": "x", "return": reference, "returns": [reference]}
    )
    assert found["share"] == share
