"""`tdmpc-prune stability`: Lyapunov functions known by hand, planted controllers, and the boundary."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig
from envs import make_env
from envs.equilibria import EQUILIBRIA, equilibrium
from envs.state import Simulator
from tdmpc_prune import checkpoint
from tdmpc_prune.analysis.lyapunov import (
    Lyapunov,
    lqr_gain,
    lyapunov_function,
    safe_boundary,
    spectral_radius,
    violation_rate,
)
from tdmpc_prune.analysis.stability import Judge, Verdict, policy_gain, sample_starts, simulate, stability
from tdmpc_prune.analysis.statistics import Estimate
from tdmpc_prune.commands.stability import StabilityConfig, run
from tdmpc_prune.errors import UserError

PENDULUM = "InvertedPendulum-v5"  # its observation is its state
CONFIG = TDMPCConfig(
    latent_dim=8,
    encoder_dim=16,
    hidden_dim=16,
    horizon=2,
    random_steps=1,
    schedule_steps=2,
    planner=PlannerConfig(iterations=1, num_samples=8, num_elites=4),
)
SETTINGS = {
    "reference": None,
    "controller": "policy",
    "starts": 6,
    "steps": 40,
    "alpha": 0.001,
    "ball": 0.01,
    "delta": 0.05,
    "seed": 0,
    "device": torch.device("cpu"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Knowing(Simulator):
    """Lets the controller see the deviation from x* instead of an observation."""

    def __init__(self, task):
        super().__init__(make_env(task))
        self.origin = np.array(equilibrium(task).state)

    def observe(self, state):
        return self.difference(state, self.origin)

    def step(self, state, action):
        after = super().step(state, action)
        return dataclasses.replace(after, observation=self.observe(after.state))


def lqr(task, sim):
    """A, B and the LQR's K at a task's equilibrium."""
    around = equilibrium(task)
    a, b = sim.linearise(np.array(around.state))
    return a, b, lqr_gain(a, b, np.diag(np.array(around.half_widths) ** -2.0))


def judge_of(task, sim, *, starts=5, steps=25, alpha=1e-3):
    """A judge with the Lyapunov function of the LQR's loop; and its K."""
    a, b, gain = lqr(task, sim)
    lyapunov = lyapunov_function(a, b, gain, np.array(equilibrium(task).half_widths))
    where = sample_starts(lyapunov, starts, 0.01, seed=0)
    return Judge(sim, equilibrium(task), lyapunov, where, steps, alpha, ball=0.01, seed=0), gain


def linear(gain):
    return lambda deviations, keep: np.clip(deviations @ gain.T, -1, 1)


# The Lyapunov function


@pytest.mark.parametrize(("a", "b", "gain"), [(0.5, 0.0, 0.0), (1.2, 1.0, -0.4), (-0.9, 2.0, 0.1)])
def test_scalar_lyapunov_function(a, b, gain):
    closed, width = a + b * gain, 0.2
    found = lyapunov_function(*(np.array([[x]]) for x in (a, b, gain)), np.array([width]))
    p = width**-2 / (1 - closed**2)
    assert found.source == "closed loop"
    np.testing.assert_allclose(found.matrix, [[p]])
    assert found.decrease == pytest.approx(1 - closed**2)
    assert found.level == pytest.approx(p * width**2)  # the interval itself
    np.testing.assert_allclose(found(np.array([[0.1], [-2.0]])), [0.01 * p, 4 * p])


def test_lyapunov_function_of_two_coordinates():
    # By hand, for A = [[a, 1], [0, a]], Q = 1: the three equations of A' P A - P = -1.
    a = 0.5
    found = lyapunov_function(np.array([[a, 1.0], [0.0, a]]), np.zeros((2, 1)), np.zeros((1, 2)), np.ones(2))
    s = 1 - a**2
    p11 = 1 / s
    p12 = a * p11 / s
    p22 = (1 + p11 + 2 * a * p12) / s
    np.testing.assert_allclose(found.matrix, [[p11, p12], [p12, p22]], rtol=1e-10)
    assert found(np.array([2.0, -1.0])) == pytest.approx(4 * p11 - 4 * p12 + p22)


def test_units_do_not_matter():
    rng = np.random.default_rng(0)
    a, b, gain = 0.3 * rng.normal(size=(3, 3)), rng.normal(size=(3, 1)), np.zeros((1, 3))
    widths, unit = np.array([0.1, 1.0, 3.0]), np.array([1e3, 1.0, 180 / np.pi])
    scale, back = np.diag(unit), np.diag(1 / unit)
    found = lyapunov_function(a, b, gain, widths)
    other = lyapunov_function(scale @ a @ back, scale @ b, gain @ back, unit * widths)
    deviation = rng.normal(size=3)
    assert other(unit * deviation) == pytest.approx(float(found(deviation)))
    assert (other.level, other.decrease) == pytest.approx((found.level, found.decrease))


def test_the_linear_loop_falls_by_decrease_and_no_further():
    sim = Knowing("cartpole-balance")
    judge, gain = judge_of("cartpole-balance", sim)
    a, b = sim.linearise(sim.origin)
    before = np.random.default_rng(0).normal(size=(20_000, 4)) * judge.equilibrium.half_widths
    kept = judge.lyapunov(before @ (a + b @ gain).T) / judge.lyapunov(before)
    assert kept.max() <= 1 - judge.lyapunov.decrease + 1e-9
    assert 0 < judge.lyapunov.decrease < 1


def test_a_reference_that_is_not_stable_gives_way_to_an_lqr():
    a, b, widths = np.array([[1.5]]), np.array([[1.0]]), np.ones(1)
    found = lyapunov_function(a, b, np.zeros((1, 1)), widths)
    # The scalar Riccati equation p = 1 + a^2 p / (1 + p) by hand.
    p = (a[0, 0] ** 2 + np.sqrt(a[0, 0] ** 4 + 4)) / 2
    gain = -p * a[0, 0] / (1 + p)
    assert found.source == "LQR"
    np.testing.assert_allclose(lqr_gain(a, b, np.eye(1)), [[gain]])
    np.testing.assert_allclose(found.matrix, [[1 / (1 - (1.5 + gain) ** 2)]])
    assert lyapunov_function(a, b, np.array([[-1.0]]), widths).source == "closed loop"


def test_what_nothing_stabilises_is_an_error():
    with pytest.raises(ValueError, match=r"finite solution|singular|symplectic"):
        lyapunov_function(np.array([[1.5]]), np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1))


def test_spectral_radius():
    turn = 0.9 * np.array([[0.0, -1.0], [1.0, 0.0]])  # eigenvalues +-0.9i
    assert spectral_radius(turn) == pytest.approx(0.9)


def test_starts_fill_the_ellipsoid_outside_the_ball_and_lie_in_the_region():
    judge, _ = judge_of("cartpole-balance", Knowing("cartpole-balance"))
    lyapunov, widths = judge.lyapunov, np.array(judge.equilibrium.half_widths)
    starts = sample_starts(lyapunov, 4000, 0.01, seed=1)
    share = lyapunov(starts) / lyapunov.level
    assert share.min() >= 0.01
    assert share.max() <= 1 + 1e-9
    assert (np.abs(starts) <= widths).all()
    assert (np.abs(starts) / widths).max() > 0.9  # the ellipsoid touches the region's end
    assert (share**2).mean() == pytest.approx(0.5, abs=0.02)  # uniform in 4 dimensions: so is radius^4
    np.testing.assert_array_equal(sample_starts(lyapunov, 4000, 0.01, seed=1), starts)


# The policy's gain


def test_gain_of_a_policy_by_hand():
    sim = Simulator(make_env(PENDULUM))
    gain = np.array([[0.3, -2.0, 0.1, 0.05]])
    found = policy_gain(lambda obs: np.tanh(obs @ gain.T), sim, equilibrium(PENDULUM))
    np.testing.assert_allclose(found, gain, rtol=1e-3, atol=1e-5)


def test_gain_goes_through_the_observation():
    sim = Simulator(make_env("pendulum-swingup"))  # sees cos, sin and speed
    found = policy_gain(
        lambda obs: obs @ np.array([[5.0], [2.0], [0.5]]), sim, equilibrium("pendulum-swingup")
    )
    np.testing.assert_allclose(np.abs(found), [[2.0, 0.5]], rtol=1e-3)


def test_gain_of_an_agent_is_that_of_its_networks():
    sim = Simulator(make_env(PENDULUM))
    agent = TDMPC(CONFIG, 4, 1, seed=3)
    at_rest = torch.tensor(equilibrium(PENDULUM).state, dtype=torch.float32)
    exact = torch.autograd.functional.jacobian(lambda o: agent.model.act(agent.model.encode(o)), at_rest)
    found = policy_gain(agent.policy_action, sim, equilibrium(PENDULUM))
    np.testing.assert_allclose(found, exact.numpy(), rtol=0.01, atol=1e-3)


# Violations

SQUARE = Lyapunov(np.eye(1), "closed loop", decrease=0.5, level=1.0)


@pytest.mark.parametrize(
    ("path", "alpha", "rate"),
    [
        ([0.8, 0.4, 0.2], 0.1, 0.0),
        ([0.2, 0.4, 0.8], 0.1, 1.0),
        ([0.8, 0.4, 0.6, 0.3], 0.1, 1 / 3),
        ([0.4, -0.4, 0.4], 0.0, 0.0),  # V stays: no rise above -0 V
        ([0.4, -0.4, 0.4], 1e-6, 1.0),
        ([0.8, 0.8 * 0.96**0.5], 0.05, 1.0),  # falls by 4%
        ([0.8, 0.8 * 0.94**0.5], 0.05, 0.0),  # falls by 6%
        ([0.8, 0.05, 0.09, 0.08], 0.1, 0.0),  # 0.1 is the ball: what happens inside does not count
        ([0.8, 0.05, 0.2, 0.3], 0.1, 0.5),  # but once it is outside again
        ([0.8, 1.2], 0.1, 1.0),  # the step that leaves the region counts
        ([0.8, 1.2, 1.5, 0.9, 0.5], 0.1, 0.5),  # those from outside it do not
    ],
)
def test_violations_by_hand(path, alpha, rate):
    assert violation_rate(np.array(path)[:, None], SQUARE, np.ones(1), alpha, ball=0.01) == pytest.approx(
        rate
    )


def test_no_rate_without_a_step_that_counts():
    with pytest.raises(ValueError, match="no step"):
        violation_rate(np.array([[0.05], [0.04]]), SQUARE, np.ones(1), 0.1, ball=0.01)


@pytest.mark.parametrize("task", [name for name in EQUILIBRIA if "sparse" not in name])
def test_an_lqr_holds_every_region(task):
    judge, gain = judge_of(task, Knowing(task), steps=30)
    verdict = judge(linear(gain))
    assert verdict.violation.value <= 0.01, task
    assert verdict.left == 0
    assert verdict.distance < 0.2


@pytest.mark.parametrize("task", ["cartpole-balance", "pendulum-swingup", PENDULUM])
def test_a_controller_that_pushes_the_wrong_way_violates_and_leaves(task):
    judge, gain = judge_of(task, Knowing(task))
    verdict = judge(linear(-gain))
    assert verdict.violation.value > 0.8
    assert verdict.violation.low <= verdict.violation.value <= verdict.violation.high
    assert (verdict.left, verdict.distance > 1) == (1.0, True)


@pytest.mark.parametrize("task", ["cartpole-balance", "acrobot-swingup"])
def test_without_action_it_falls(task):
    judge, gain = judge_of(task, Knowing(task), steps=40)
    verdict = judge(linear(0 * gain))
    assert verdict.violation.value > 0.5
    assert verdict.left == 1


def test_starts_drop_out_where_they_leave_and_the_controller_hears_of_it():
    sim = Knowing("cartpole-balance")
    gain = lqr("cartpole-balance", sim)[2]
    masks, ticks = [], []

    def act(deviations, keep):
        masks.append(keep.tolist())
        assert len(deviations) == sum(keep)
        return np.clip(deviations @ gain.T, -1, 1)

    starts = np.array([[0.0, 0.05, 0.0, 0.0], [0.49, 0.0, 0.9, 0.0], [0.0, -0.05, 0.0, 0.0]])
    paths, left = simulate(sim, equilibrium("cartpole-balance"), act, starts, 4, lambda: ticks.append(1))
    assert left.tolist() == [False, True, False]
    assert masks == [[True] * 3, [True, False, True], [True] * 2, [True] * 2]  # the cart runs out of its box
    assert [len(path) for path in paths] == [5, 2, 5]
    assert len(ticks) == 4
    np.testing.assert_array_equal([path[0] for path in paths], starts)


def test_a_full_turn_away_is_at_the_equilibrium():
    sim, around = Knowing("cartpole-balance"), equilibrium("cartpole-balance")
    gain = lqr("cartpole-balance", sim)[2]
    start = np.array([[0.0, 0.1, 0.0, 0.0]])
    turned = dataclasses.replace(around, state=(0.0, 2 * np.pi, 0.0, 0.0))
    near, far = (simulate(sim, at, linear(gain), start, 5)[0][0] for at in (around, turned))
    np.testing.assert_allclose(near, far, atol=1e-9)


def test_a_step_to_nothing_is_a_violation():
    path = np.array([[0.5], [0.4], [np.nan]])
    assert violation_rate(path, SQUARE, np.ones(1), 0.1, ball=0.01) == 0.5


# The boundary


@pytest.mark.parametrize(
    ("rates", "boundary"),
    [
        ([(0, 0.10), (0.5, 0.12), (0.8, 0.14), (0.9, 0.40)], 0.8),
        ([(0.9, 0.40), (0, 0.10), (0.8, 0.14), (0.5, 0.12)], 0.8),  # in any order
        ([(0, 0.10), (0.5, 0.10), (0.9, 0.05)], 0.9),
        ([(0, 0.10), (0.3, 0.30), (0.5, 0.10)], 0.0),  # a lucky run beyond one that fails
        ([(0.5, 0.30), (0.8, 0.90)], None),
        ([(0.5, 0.30), (0.8, 0.10)], None),
        ([(0, 0.10), (0.5, 0.12), (0.5, 0.40)], 0.0),  # all runs of a sparsity have to hold
        ([(0, 0.10), (0.7993, 0.12), (0.8004, 0.40)], 0.0),  # which they hit about
        ([(0, 0.10), (0.5, 0.15)], 0.5),  # delta itself is within
        ([], None),
    ],
)
def test_safe_boundary(rates, boundary):
    excess = [(sparsity, round(rate - 0.1, 9)) for sparsity, rate in rates]
    assert safe_boundary(excess, delta=0.05) == boundary


# Stored runs


def store(folder: Path, agent: TDMPC, task: str = PENDULUM, action_repeat: int = 1) -> Path:
    """A run folder that holds an agent."""
    folder.mkdir(parents=True)
    checkpoint.save(
        folder / "checkpoints",
        networks={"online": agent.model, "target": agent.target},
        training={},
        state={
            "task": task,
            "seed": 0,
            "action_repeat": action_repeat,
            "agent": dataclasses.asdict(agent.config),
            "obs_dim": agent.obs_dim,
            "action_dim": agent.action_dim,
            "architecture": agent.model.architecture(),
            "progress": {"agent_step": 5, "env_step": 5},
            "pruner": None,
            "criterion": "none",
        },
    )
    return folder


def narrow(width: int, seed: int = 0) -> TDMPC:
    """An agent with hidden layers narrower than its settings say, as pruning leaves it."""
    full = TDMPC(CONFIG, 4, 1).model.architecture()
    widths = {name: [sizes[0], *(width for _ in sizes[1:-1]), sizes[-1]] for name, sizes in full.items()}
    return TDMPC(CONFIG, 4, 1, seed=seed, widths=widths)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Dense, with a policy that has learned to do as an LQR does; and narrower ones that know nothing."""
    folder = tmp_path_factory.mktemp("runs")
    agent, around = TDMPC(CONFIG, 4, 1), equilibrium(PENDULUM)
    gain = torch.tensor(lqr(PENDULUM, Simulator(make_env(PENDULUM)))[2], dtype=torch.float32)
    origin, widths = torch.tensor(around.state), torch.tensor(around.half_widths)
    parameters = [*agent.model.encoder.parameters(), *agent.model.policy.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 1500)
        deviation = widths * (2 * torch.rand(128, 4, generator=generator) - 1)
        action = agent.model.act(agent.model.encode(origin + deviation))
        loss = (action - (deviation @ gain.T).clamp(-1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [
        store(folder / "dense", agent),
        store(folder / "half", narrow(8, seed=1)),
        store(folder / "few", narrow(3, seed=2)),
    ]


def test_stored_runs_are_judged_by_the_dense_one(runs):
    found = stability(list(reversed(runs)), **SETTINGS)
    dense, half, few = found["runs"]
    assert [row["run"] for row in found["runs"]] == [str(path) for path in runs]  # in the order of sparsity
    assert [row["reference"] for row in found["runs"]] == [True, False, False]
    assert (found["task"], found["lyapunov"], found["reference"]) == (PENDULUM, "closed loop", str(runs[0]))
    assert dense["sparsity"] == 0 < half["sparsity"] < few["sparsity"] < 1
    assert few["parameters"] == checkpoint.load_agent(runs[2], torch.device("cpu")).parameters
    assert dense["violation_rate"] < 0.1
    assert dense["left"] == 0
    assert dense["spectral_radius"] < 1
    for row in (half, few):
        assert row["violation_rate"] > 0.5
        assert row["violation_low"] <= row["violation_rate"] <= row["violation_high"]
        assert row["left"] == 1
    assert found["boundary"] == 0
    assert found["warnings"] == []
    assert "no certificate" in found["note"]


def test_a_reference_that_is_not_among_the_runs_is_judged_too(runs):
    found = stability([runs[0], runs[0]], **SETTINGS)
    assert len(found["runs"]) == 1
    assert found["boundary"] == 0
    again = stability([runs[1]], **{**SETTINGS, "reference": runs[0]})
    assert [row["reference"] for row in again["runs"]] == [True, False]
    assert again["runs"][0] == found["runs"][0]  # same starts, same function, same seeds
    assert again["boundary"] is None  # the reference was not asked about


def test_a_reference_that_fails_is_warned_of(runs):
    found = stability(runs[1:], **SETTINGS)
    assert found["lyapunov"] == "LQR"
    assert found["runs"][0]["spectral_radius"] >= 1
    assert "the reference itself" in found["warnings"][0]
    assert found["runs"][0]["left"] > 0
    assert found["boundary"] is None  # "no worse than what falls" is not safe
    steep = stability(runs[:1], **{**SETTINGS, "alpha": 0.5})
    assert "not even the linear loop" in steep["warnings"][0]


def test_what_a_run_gets_with_the_planner_does_not_depend_on_the_others(runs):
    settings = {**SETTINGS, "controller": "planner", "starts": 3, "steps": 4}
    alone = stability(runs[:1], **settings)
    together = stability(runs[:2], **settings)
    assert together["runs"][0] == alone["runs"][0]
    assert stability(runs[:2], **settings) == together


def test_one_start_is_enough_for_the_planner(runs):
    assert stability(runs[:1], **{**SETTINGS, "controller": "planner", "starts": 1, "steps": 2})["runs"]


def test_runs_of_different_systems_are_refused(runs, tmp_path):
    slow = store(tmp_path / "slow", narrow(4), action_repeat=2)
    with pytest.raises(UserError, match=r"action repeat 2\), .*give runs of one task"):
        stability([runs[0], slow], **SETTINGS)
    other = store(tmp_path / "other", TDMPC(CONFIG, 5, 1), task="cartpole-balance")
    with pytest.raises(UserError, match="give runs of one task"):
        stability([runs[0], other], **SETTINGS)


def test_a_task_without_equilibrium_is_refused(tmp_path):
    cheetah = store(tmp_path / "cheetah", TDMPC(CONFIG, 17, 6), task="cheetah-run", action_repeat=4)
    with pytest.raises(
        UserError, match=r"cheetah-run has no equilibrium.*cartpole-balance.*InvertedPendulum-v5"
    ):
        stability([cheetah], **SETTINGS)


def test_actions_that_come_too_seldom_are_refused(tmp_path):
    seldom = store(tmp_path / "seldom", narrow(4), action_repeat=500)
    with pytest.raises(UserError, match="action repeat of 500 has no stable loop"):
        stability([seldom], **SETTINGS)


def test_a_policy_that_diverged_is_refused(tmp_path):
    agent = narrow(4)
    for weight in agent.model.policy.parameters():  # finite, but what they add up to is not
        weight.data.fill_(3e38)
    weight.data.zero_()
    agent.model.policy[-1].weight.data[:, ::2] = -3e38
    with pytest.raises(UserError, match="diverged gives no finite actions"):
        stability([store(tmp_path / "diverged", agent)], **SETTINGS)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        stability([tmp_path], **SETTINGS)


# The command


def config(*runs, **more):
    more = {"controller": "policy", "starts": 4, "steps": 6, "device": "cpu", "threads": 1} | more
    return StabilityConfig(runs=runs, **more)


def test_command_prints_one_json_object(runs, capsys):
    assert run(config(*runs, json=True)) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert len(found["runs"]) == 3
    assert "no certificate" in found["note"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_command_shows_a_table_and_draws(runs, capsys, tmp_path, suffix):
    picture = tmp_path / f"stability{suffix}"
    assert run(config(*runs, plot=picture)) == 0
    out = capsys.readouterr().out
    assert "no certificate" in out
    assert "violation rate" in out
    assert all(str(path) in out for path in runs)
    head = picture.read_bytes()[:8]
    assert head.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


@pytest.mark.parametrize(("left", "safe"), [(0.0, True), (0.05, True), (0.5, False)])
def test_who_leaves_the_region_is_not_safe(runs, monkeypatch, left, safe):
    """Not even where V seldom rises on the way out."""
    verdicts = iter([Verdict(Estimate(0.3, 0.3, 0.3), 0.0, 0.1), Verdict(Estimate(0.1, 0.1, 0.1), left, 1.5)])
    monkeypatch.setattr(Judge, "__call__", lambda *_: next(verdicts))
    found = stability(runs[:2], **SETTINGS)
    assert (found["boundary"] == found["runs"][1]["sparsity"]) is safe


def test_command_says_when_there_is_no_boundary(runs, capsys):
    assert run(config(runs[1], reference=runs[0], steps=15)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("boundary"))
    assert line.split() == ["boundary", "none"]


def test_picture_into_a_file_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        run(config(tmp_path / "no run", plot=tmp_path / "file" / "x.png"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runs": ()}, "at least one run folder"),
        ({"starts": 0}, "starts is 0; choose at least 1"),
        ({"steps": 0}, "steps is 0; choose at least 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"ball": 0.0}, "ball is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": -1}, "threads is -1"),
        ({"plot": Path("x.pdf")}, "must end in .png or .svg"),
    ],
)
def test_bad_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message) as refusal:
        StabilityConfig(**{"runs": (Path("run"),), **wrong})
    assert "\n" not in str(refusal.value)
