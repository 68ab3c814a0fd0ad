"""A simulator, a memory and a clock that do what they should not."""

import itertools
import re
import time

import numpy as np
import pytest
import torch
from small_runs import CARTPOLE, PENDULUM, assert_same_run, checkpoints, rows, state, train_small

import envs
from agents.tdmpc.agent import TDMPC
from envs import SimulatorError
from envs.wrappers import ActionRepeat
from tdmpc_prune.cli import main
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.training import Training
from tests.faults.harness import PRUNED

CASES = {"cartpole": CARTPOLE, "pendulum": PENDULUM}


def nan_observation(obs, reward):
    return {k: np.full_like(v, np.nan) for k, v in obs.items()} if isinstance(
        obs, dict
    ) else obs * np.nan, reward


def infinite_reward(obs, reward):
    return obs, float("inf")


def error(obs, reward):
    raise ValueError("the pole\nhas broken")


FAULTS = {
    "an observation that is not finite": nan_observation,
    "a reward that is not finite": infinite_reward,
    "with ValueError: the pole has broken": error,
}


def fails_at(monkeypatch, number: int, fault) -> None:
    """From the n-th step of any simulator on, they fail."""
    real, count = ActionRepeat.step, itertools.count(1)

    def step(self, action):
        obs, reward, *rest = real(self, action)
        if next(count) >= number:
            obs, reward = fault(obs, reward)
        return obs, reward, *rest

    monkeypatch.setattr(ActionRepeat, "step", step)


@pytest.mark.parametrize(
    ("case", "fault"), [*(("pendulum", fault) for fault in FAULTS), ("cartpole", next(iter(FAULTS)))]
)
def test_a_simulator_that_fails(case, fault, undisturbed, folder, failed, monkeypatch, no_plot):
    """Wherever it does: the step before is saved, and if it was the machine's mood, nothing is lost."""
    with monkeypatch.context() as patch:
        fails_at(patch, 110 if case == "cartpole" else 75, FAULTS[fault])
        line = failed(CASES[case])
        at = state(folder)["progress"]["env_step"]
        assert f"{envs.resolve_task(CASES[case][0])}, step {at:,}" in line
        assert re.search(r" in agent step \d+ of an episode", line)
        assert fault in line
        assert "the same command goes on from there" in line
        assert "--seed" in line
        assert at > 0
        fails_at(patch, 1, FAULTS[fault])
        again = failed(CASES[case])  # at the same step of the run, and an evaluation begins anew
        assert re.sub(r"agent step \d+", "", again) == re.sub(r"agent step \d+", "", line)
    assert all(np.isfinite(list(row.values())).all() for row in rows(folder))
    train_small(CASES[case], folder)
    assert_same_run(folder, undisturbed[case].path)


def test_a_simulator_that_fails_again_and_again(undisturbed, folder, monkeypatch, no_plot):
    """In evaluations, in the first step of an episode, in the middle: each time the run goes on as if it had not."""
    rng, words = np.random.default_rng(4), ["train", *PENDULUM, "--run-dir", str(folder)]
    for sitting in itertools.count():  # an evaluation, which begins anew, takes about 8 steps
        with monkeypatch.context() as patch:
            fails_at(patch, int(rng.integers(14, 26)), error)
            if main(words) == 0:
                break
        assert sitting < 30, "no progress"
    assert sitting >= 3
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_a_reset_that_fails(failed, folder, monkeypatch):
    def reset(self, **_):
        raise RuntimeError("no licence")

    monkeypatch.setattr(ActionRepeat, "reset", reset, raising=False)
    said = "cartpole-swingup, step 0, while evaluating: the simulator failed at a reset with RuntimeError: no licence; "
    assert said in failed(CARTPOLE)


def test_mistakes_of_ours_stay_visible():
    """A step after the end is no simulator's fault."""
    import gymnasium

    env = envs.make_env("cartpole-swingup", seed=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))
    env.reset(seed=1)
    with pytest.raises(SimulatorError, match="failed in agent step 1 of an episode with"):
        env.step(np.zeros(7, np.float32))


# Memory

WORDS = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
SHORTAGES = {
    "Python's": MemoryError(),
    "PyTorch's": RuntimeError(WORDS),
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}
PENDULUM_PRUNED = [*PENDULUM, *PRUNED]


@pytest.mark.parametrize(
    ("number", "shortage"), [(1, "Python's"), (2, "PyTorch's"), (3, "PyTorch's"), (5, "a GPU's")]
)
def test_out_of_memory_in_an_evaluation(number, shortage, folder, tmp_path, failed, monkeypatch, no_plot):
    """The first one, a later one, before a removal and after it: what was learned is saved."""
    real, count = Evaluator.run, itertools.count(1)

    def run(self, *arguments, **named):
        if next(count) == number:
            raise SHORTAGES[shortage]
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", run)
        line = failed(PENDULUM_PRUNED)
    assert "out of memory while evaluating" in line
    assert "the same command goes on from there" in line
    assert "--eval-episodes" in line
    assert f"step {state(folder)['progress']['env_step']:,}:" in line
    train_small(PENDULUM_PRUNED, folder)
    train_small(PENDULUM_PRUNED, tmp_path / "whole")
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_replay_that_no_memory_holds(shortage, folder, failed, monkeypatch):
    def make_replay(self, seed):
        raise SHORTAGES[shortage]

    monkeypatch.setattr(TDMPC, "make_replay", make_replay)
    line = failed(PENDULUM)
    assert "out of memory" in line
    assert "--agent.replay.capacity" in line
    assert not folder.exists()


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_out_of_memory_in_an_update(shortage, undisturbed, folder, failed, monkeypatch, no_plot):
    """Who knows what it had changed by then: the last checkpoint counts."""
    real, count = torch.optim.Adam.step, itertools.count(1)

    def step(self, *arguments):
        if next(count) == 90:
            raise SHORTAGES[shortage]
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        line = failed([*PENDULUM, "--checkpoint-every", "10"])
    assert "out of memory" in line
    assert "the last checkpoint" in line
    assert "--agent.batch-size" in line
    last = state(folder)
    assert last["updates"] < 45
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_another_error_keeps_its_traceback(folder, monkeypatch):
    def update(self):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Training, "update", update)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["train", *PENDULUM, "--run-dir", str(folder)])
    assert not checkpoints(folder)


# The clock


def test_a_clock_that_jumps(undisturbed, folder, monkeypatch, no_plot):
    """Days forth and back between any two looks at it."""
    real, count = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + (next(count) % 3 - 1) * 1e6)
    summary = train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)
    elapsed = [row["time/elapsed_s"] for row in rows(folder)]
    assert elapsed == sorted(elapsed)
    assert 0 < elapsed[0] <= elapsed[-1] < 3600
    assert 0 <= summary["minutes"] < 60
