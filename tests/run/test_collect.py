"""Collecting steps: counting them, repeating them, and how many updates they are worth."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from small_runs import CARTPOLE, PENDULUM, rows

from envs import make_env
from tdmpc_prune.cli import main, parse
from tdmpc_prune.collect import Collector
from tdmpc_prune.run_folder import RunFolder
from tdmpc_prune.training import Training


class Corridor(gymnasium.Env):
    """Walks on by each action; ends at the far end, or after `limit` steps; a reset draws the start."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit=5, end=np.inf, version=1):
        self.limit, self.end, self.version = limit, end, version
        self.taken, self.seeds = [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.place, self.time = self.np_random.uniform(-0.1, 0.1), 0
        return self._obs(), {}

    def step(self, action):
        self.taken.append(np.copy(action))
        self.place += self.version * float(action[0])
        self.time += 1
        terminated, truncated = self.place >= self.end, self.time >= self.limit
        return self._obs(), self.place, terminated, truncated, {"env_steps": 3}

    def _obs(self):
        return np.array([self.place, self.time], np.float32)


def act(value):
    return lambda obs, first: np.full((len(obs), 1), value)


def walk(collector, steps, value=0.5):
    return [collector.step(act(value)) for _ in range(steps)]


def assert_same_steps(steps, expected):
    for step, other in zip(steps, expected, strict=True):
        assert (step.env_steps, step.going_on) == (other.env_steps, other.going_on)
        for episode, wanted in zip(step.episodes, other.episodes, strict=True):
            assert episode.terminated == wanted.terminated
            for name in ("obs", "action", "reward"):
                assert torch.equal(getattr(episode, name), getattr(wanted, name))


def test_an_episode_holds_what_happened():
    collector = Collector([Corridor(limit=3)], seed=1)
    seen = []

    def choose(obs, first):
        seen.append((obs[0].copy(), first))
        return np.array([[0.25 * len(seen)]])

    results = [collector.step(choose) for _ in range(4)]
    assert [step.env_steps for step in results] == [3, 3, 3, 3]
    assert [step.going_on for step in results] == [[True], [True], [False], [True]]
    assert [len(step.episodes) for step in results] == [0, 0, 1, 0]
    [episode] = results[2].episodes
    assert len(episode) == 3
    assert not episode.terminated
    assert episode.obs.shape == (4, 2)
    np.testing.assert_array_equal(episode.obs[:3], [obs for obs, _ in seen[:3]])
    np.testing.assert_array_equal(episode.action.flatten(), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(episode.reward, episode.obs[1:, 0])
    assert [first for _, first in seen] == [True, False, False, True]
    assert collector.episode == 1


def test_a_true_end_is_no_time_limit():
    collector = Collector([Corridor(limit=9, end=1.0)], seed=1)
    [episode] = walk(collector, 2, value=0.9)[-1].episodes
    assert episode.terminated
    assert collector.between_episodes


def test_both_at_once_is_a_true_end():
    [episode] = walk(Collector([Corridor(limit=2, end=1.0)], seed=1), 2, value=0.9)[-1].episodes
    assert episode.terminated


def test_actions_are_clipped_before_anyone_sees_them():
    env = Corridor(limit=2)
    collector = Collector([env], seed=1)
    collector.step(act(7.0))
    [episode] = collector.step(act(-7.0)).episodes
    assert [float(a[0]) for a in env.taken] == [1.0, -1.0]
    assert env.taken[0].dtype == np.float32
    assert episode.action.flatten().tolist() == [1.0, -1.0]


def test_episodes_differ_and_depend_on_seed_and_number_alone():
    def starts(seed, value):
        env = Corridor(limit=2)
        collector = Collector([env], seed)
        walk(collector, 6, value)
        return env.seeds

    assert starts(1, 0.1) == starts(1, 0.9)
    assert len(set(starts(1, 0.1) + starts(2, 0.1))) == 6
    assert all(0 <= seed < 2**31 for seed in starts(1, 0.1))


@pytest.mark.parametrize("before", [0, 1, 4, 5, 7])
def test_a_restored_collector_goes_on_as_the_old_one(before):
    old, new = Collector([Corridor()], seed=1), Collector([Corridor()], seed=1)
    walk(old, before)
    new.load_state_dict(old.state_dict())
    assert (new.episode, new.between_episodes) == (old.episode, old.between_episodes)
    assert_same_steps(walk(new, 7), walk(old, 7))


@pytest.mark.parametrize("task", ["cartpole-swingup", "InvertedPendulum-v5", "quadruped-escape"])
def test_a_simulator_is_brought_back_by_its_actions(task):
    rng = np.random.default_rng(0)

    def choose(obs, first):
        return rng.uniform(-0.1, 0.1, (1, *env.action_space.shape))

    env, other = make_env(task, seed=1, action_repeat=1), make_env(task, seed=1, action_repeat=1)
    old, new = Collector([env], seed=3), Collector([other], seed=3)
    walk_until_episode_two = 0
    while old.episode == 0 and walk_until_episode_two < 4:
        old.step(choose)
        walk_until_episode_two += 1
    other.reset(seed=9)
    other.step(np.ones(other.action_space.shape, np.float32))  # it has been elsewhere
    new.load_state_dict(old.state_dict())
    for _ in range(3):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        expected, got = env.step(action), other.step(action)
        np.testing.assert_array_equal(got[0], expected[0])
        assert got[1:4] == expected[1:4]
    env.close()
    other.close()


def test_a_simulator_that_differs_is_noticed():
    old, new = Collector([Corridor()], seed=1), Collector([Corridor(version=1.000001)], seed=1)
    walk(old, 3)
    with pytest.raises(RuntimeError, match="does not repeat the stored episode bit by bit"):
        new.load_state_dict(old.state_dict())


def test_a_stored_state_shares_no_memory():
    collector = Collector([Corridor()], seed=1)
    walk(collector, 2)
    state = collector.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    walk(collector, 9)
    assert all(torch.equal(state[name], copies[name]) for name in state)


def training(arguments, folder, *more):
    config = parse(["train", *arguments, "--run-dir", str(folder), *more])
    return Training(config, RunFolder(folder), torch.device("cpu"))


def test_counters_on_cartpole(folder):
    run = training(CARTPOLE, folder, "--agent.random-steps", "60")
    for step in range(1, 27):
        assert run.collect() == 40
        assert (run.progress.agent_step, run.progress.env_step) == (step, 40 * step)
    assert run.collector.episode == 1
    assert len(run.replay) == 26
    run.close()


def test_counters_where_an_episode_ends_within_an_action(folder):
    """InvertedPendulum-v5 gives 1 for each base step that it stands, and ends with the first it does not."""
    run = training(PENDULUM, folder, "--action-repeat", "4")
    ended_early, ends = 0, []
    while len(ends) < 6:
        before, episode = run.progress.env_step, run.collector.episode
        made = run.collect()
        assert run.progress.env_step == before + made
        assert 1 <= made <= 4
        if run.collector.episode > episode:
            ends.append(run.progress.env_step)
            ended_early += made < 4
            length = ends[-1] - (ends[-2] if len(ends) > 1 else 0)
            assert run.progress.train_return in (length - 1, length)  # the last step's reward is 0
        else:
            assert made == 4
    assert ended_early
    assert run.progress.agent_step < run.progress.env_step < 4 * run.progress.agent_step
    run.close()


def test_updates_follow_the_agent_steps(undisturbed):
    """None in the random phase; then as many at once as agent steps; then one per step, after the episode."""
    for name, random_steps in (("cartpole", 30), ("pendulum", 15)):
        steps = updates = 0
        events = [e for e in undisturbed[name].events if e in ("collect", "update", "episode_row")]
        first = True
        for event, before in zip(events, ["", *events], strict=False):
            steps += event == "collect"
            updates += event == "update"
            if event == "update" and first:
                assert steps >= random_steps
                first = False
            if event == "update":
                assert before in ("collect", "update")
            if event == "episode_row":
                assert updates == (steps if steps >= random_steps else 0)
        assert updates == steps
        assert all(
            row["update"] == (row["agent_step"] if row["agent_step"] >= random_steps else 0)
            for row in rows(undisturbed[name].path)
        )


def test_no_update_within_an_episode(undisturbed):
    events = [e for e in undisturbed["cartpole"].events if e in ("collect", "update")]
    runs = "".join("c" if e == "collect" else "u" for e in events)
    assert runs == "c" * 50 + "u" * 50 + "c" * 25 + "u" * 25


def test_what_an_episode_row_says_of_the_losses(folder):
    """The mean over the updates since the last row, each counted once."""
    run = training(CARTPOLE, folder)
    said = []
    real = run._updated

    def updated(losses, *rest):
        said.append(float(losses["value_loss"]))
        real(losses, *rest)

    run._updated = updated
    for _ in range(2):
        for _ in range(25):
            run.collect()
        while run.pending_updates:
            run.update()
        row = run.episode_row()
    assert len(said) == 50
    assert row["train/value_loss"] == pytest.approx(np.mean(said), rel=1e-5)
    said.clear()
    for _ in range(25):
        run.collect()
    while run.pending_updates:
        run.update()
    assert len(said) == 25
    assert run.episode_row()["train/value_loss"] == pytest.approx(np.mean(said), rel=1e-5)
    run.close()


def test_the_random_phase_is_uniform_and_planning_follows_it(folder, monkeypatch):
    run = training(CARTPOLE, folder)
    planned = []
    real = run.agent.plan

    def plan(*arguments, **named):
        planned.append((run.progress.agent_step, run.planner.mean is None, named["explore"]))
        return real(*arguments, **named)

    run.agent.plan = plan
    for _ in range(52):
        run.collect()
    assert [step for step, _, _ in planned] == list(range(30, 52))
    assert [step for step, fresh, _ in planned if fresh] == [30, 50]  # no plan of another episode is used
    assert all(explore for _, _, explore in planned)
    actions = run.replay.storage["action"][:25].flatten()
    assert actions.min() < -0.5
    assert actions.max() > 0.5
    run.close()


def test_an_episode_longer_than_the_replay_ends_a_run_in_one_line(tmp_path, capsys):
    """No more can be known before: Gymnasium's episodes may be meant to end early."""
    words = [*PENDULUM, "--agent.replay.capacity", "8", "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"tdmpc-prune: .* takes \d+ rows, but replay.capacity is 8: raise it, and start anew", last
    )
