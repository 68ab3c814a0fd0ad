"""Several environments at once: rounds, what each environment is given, and stopping in the middle."""

import itertools
import json

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import CARTPOLE, PENDULUM, TRAINING, assert_same_run, checkpoints, observe, rows
from small_runs import train_small as run_small
from test_collect import Corridor, act, assert_same_steps, training, walk

from envs import SimulatorError
from tdmpc_prune.cli import parse
from tdmpc_prune.collect import Collector
from tdmpc_prune.errors import Interrupted, Stopped, UserError
from tdmpc_prune.run_folder import RunFolder
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.training import Training

CARTPOLES = [
    *(*CARTPOLE, "--envs", "4", "--agent.replay.capacity", "200"),
    *("--steps", "6000", "--eval-every", "6000", "--eval-episodes", "1"),
]
"""A round of 4 episodes of 25 agent steps, and one of 2: no more are needed."""
PENDULUMS = [*PENDULUM, "--envs", "4", "--steps", "160", "--eval-every", "160"]
"""Rounds of 4 episodes, where `always_four` says so: 160 steps might be one episode."""


def corridors():
    """With steps of 0.6 from within 0.1 of 0: episodes of 2, 3 and 5 steps, the last one cut off."""
    return [Corridor(limit=9, end=1.0), Corridor(limit=9, end=1.6), Corridor(limit=5)]


@pytest.fixture
def always_four(monkeypatch):
    monkeypatch.setattr(Training, "_next_round", 4)


# Rounds


def test_those_that_end_early_wait_for_the_others():
    collector, seen = Collector(corridors(), seed=1), []

    def choose(obs, first):
        seen.append((obs[:, 1].tolist(), first))  # the times of the environments that are asked for
        return act(0.6)(obs, first)

    steps = [collector.step(choose, 3) for _ in range(6)]
    assert [step.going_on for step in steps[:5]] == [
        [True] * 3,
        [False, True, True],
        [False, True],
        [True],
        [False],
    ]
    assert [step.env_steps for step in steps] == [9, 9, 6, 3, 3, 9]
    assert seen == [
        ([0] * 3, True),
        ([1] * 3, False),
        ([2] * 2, False),
        ([3], False),
        ([4], False),
        ([0] * 3, True),
    ]
    assert [len(step.episodes) for step in steps] == [0, 0, 0, 0, 3, 0]
    episodes = steps[4].episodes
    assert [len(episode) for episode in episodes] == [2, 3, 5]
    assert [episode.terminated for episode in episodes] == [True, True, False]
    assert collector.episode == 3
    assert collector.running == 3


def test_an_episode_is_the_same_whatever_runs_beside_it():
    def choose(obs, first):
        return 0.2 * np.cos(30 * obs[:, :1]) + 0.1

    together = Collector([Corridor(end=0.4) for _ in range(3)], seed=4)
    alone = Collector([Corridor(end=0.4)], seed=4)
    wanted = []
    while alone.episode < 6:
        wanted += alone.step(choose).episodes
    found = []
    for size in (3, 2, 1):
        while not (episodes := together.step(choose, size).episodes):
            pass
        assert len(episodes) == size
        found += episodes
    assert len({len(episode) for episode in wanted}) > 1
    for episode, expected in zip(found, wanted, strict=True):
        assert torch.equal(episode.obs, expected.obs)
        assert torch.equal(episode.action, expected.action)
        assert episode.terminated == expected.terminated


@pytest.mark.parametrize("before", range(7))
def test_a_restored_round_goes_on_as_the_old_one(before):
    old, new = Collector(corridors(), seed=1), Collector(corridors(), seed=1)

    def on(collector, steps):
        return [collector.step(act(0.6), 3) for _ in range(steps)]

    on(old, before)
    new.load_state_dict(old.state_dict())
    assert (new.episode, new.running) == (old.episode, old.running)
    assert_same_steps(on(new, 7), on(old, 7))


def test_one_episode_is_stored_as_ever():
    collector = Collector([Corridor()], seed=1)
    walk(collector, 2)
    assert {name: list(tensor.shape) for name, tensor in collector.state_dict().items()} == {
        "episode": [],
        "actions": [2, 1],
        "rewards": [2],
        "observations": [3, 2],
    }


LENGTHS = {
    "none at all": [0, 6],
    "negative": [-1, 7],
    "too few": [3, 2],
    "of more environments": [1, 1, 2, 2],
    "other numbers of observations": [6],
    "beyond an end": [1, 1, 4],
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_round_that_is_none(case):
    collector = Collector(corridors(), seed=1)
    for _ in range(2):
        collector.step(act(0.6), 3)
    state = collector.state_dict()
    if case == "beyond an end":  # the second corridor's own three, and a fourth
        state |= {
            "actions": torch.full((9, 1), 0.6),
            "rewards": torch.zeros(9),
            "observations": torch.zeros(12, 2),
        }
        state["lengths"] = torch.tensor([2, 4, 3])
    else:
        state["lengths"] = torch.tensor(LENGTHS[case])
    with pytest.raises(ValueError, match="the stored episode"):
        Collector(corridors(), seed=1).load_state_dict(state)


def test_a_round_that_is_over_is_none_to_go_on_with():
    collector = Collector([Corridor(limit=4)], seed=1)
    walk(collector, 2)
    with pytest.raises(ValueError, match="are over"):
        Collector([Corridor(limit=2)], seed=1).load_state_dict(collector.state_dict())


# What each environment is given


class Seen(gymnasium.Wrapper):
    """Notes what it showed before its last step, and the action that it then got."""

    def reset(self, **named):
        self.shown, info = self.env.reset(**named)
        return self.shown, info

    def step(self, action):
        self.before, self.action = self.shown, action
        self.shown, *rest = self.env.step(action)
        return self.shown, *rest


def test_each_is_planned_for_from_what_it_showed_and_its_own_last_plan(folder, always_four):
    """Against one planner's step for one environment at a time, with its row of the same random numbers."""
    run = training(PENDULUMS, folder, "--agent.schedule-steps", "30")
    run.collector.envs = envs = [Seen(env) for env in run.collector.envs]
    config, planner = run.agent.config, run.planner
    means, sizes = {}, []
    while run.collector.episode < 12:
        for env in envs:
            env.action = None
        if run.between_episodes:
            means = {}
        drawn, agent_step = run.agent.generator.get_state(), run.progress.agent_step
        run.collect()
        moved = [i for i, env in enumerate(envs) if env.action is not None]
        if agent_step < config.random_steps:
            continue
        horizon, min_std = config.horizon_at(agent_step), config.std_at(agent_step)
        generator = torch.Generator()
        generator.set_state(drawn)
        flat = torch.randn((len(moved), planner.noise_size(horizon)), generator=generator)
        for row, i in enumerate(moved):
            start = torch.zeros(1, horizon, 1)
            if i in means:
                ahead = means[i][:, 1 : horizon + 1]
                start[:, : ahead.shape[1]] = ahead
            action, means[i] = planner.step(
                run.agent.model.encode(torch.tensor(envs[i].before[None])).detach(),
                start,
                planner.noise(flat[row : row + 1], horizon),
                min_std=min_std,
                explore=True,
            )
            np.testing.assert_allclose(envs[i].action, action[0].detach(), atol=1e-5)
        sizes.append(len(moved))
    assert {1, 4} < set(sizes)  # some have ended before others
    run.close()


def test_a_batch_is_random_if_the_random_phase_is_not_over_at_its_start(folder):
    run = training(CARTPOLES, folder)
    planned = []
    real = run.agent.plan

    def plan(obs, *rest, **named):
        planned.append((run.progress.agent_step, len(obs)))
        return real(obs, *rest, **named)

    run.agent.plan = plan
    for _ in range(10):
        assert run.collect() == 160
    assert planned == [(32, 4), (36, 4)]  # of 30 random steps
    actions = torch.tensor(np.array([recording.actions for recording in run.collector.round]))
    assert len(actions[:, :8].unique()) == 32  # to each its own
    run.close()


# Runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each kind that nobody interrupted, and what it did; a number: environments left after a step."""
    runs = {}
    for name, arguments in (("cartpoles", CARTPOLES), ("pendulums", PENDULUMS)):
        path = tmp_path_factory.mktemp("whole") / name
        with pytest.MonkeyPatch.context() as patch:
            events = observe(patch)
            collect = Training.collect

            def noted(self, collect=collect, events=events):
                made = collect(self)
                events.append(self.collector.running)
                return made

            patch.setattr(Training, "collect", noted)
            patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
            if name == "pendulums":
                patch.setattr(Training, "_next_round", 4)
            run_small(arguments, path)
        runs[name] = path, events
    return runs


def test_as_many_updates_as_agent_steps_at_the_end_of_every_round(whole):
    path, events = whole["cartpoles"]
    short = {"collect": "c", "update": "u", "episode_row": "r", "evaluate": "e"}
    assert (
        "".join(short.get(e, "") for e in events)
        == "e" + "c" * 25 + "u" * 100 + "r" + "c" * 25 + "u" * 50 + "re"
    )
    episodes = [row for row in rows(path) if "train/return" in row]
    counted = [[row[name] for name in ("env_step", "agent_step", "update", "episode")] for row in episodes]
    assert counted == [[4000, 100, 100, 4], [6000, 150, 150, 6]]


def test_a_round_brings_all_its_episodes_and_their_mean_return(whole):
    path, _ = whole["cartpoles"]
    replay = load_file(checkpoints(path)[-1] / TRAINING)
    starts = replay["replay.obs"].reshape(6, 26, -1)[:, 0]
    assert len(starts.unique(dim=0)) == 6
    returns = replay["replay.reward"].reshape(6, 26).sum(1)
    said = [row["train/return"] for row in rows(path) if "train/return" in row]
    assert said == pytest.approx([float(returns[:4].mean()), float(returns[4:].mean())], rel=1e-5)


def test_the_reference_rounds_are_worth_stopping(whole):
    _, events = whole["pendulums"]
    left = [event for event in events if isinstance(event, int)]
    assert {1, 2, 3} & set(left)
    assert left.count(0) >= 3
    ends = [events[: i + 1].count("update") for i, event in enumerate(events) if event == 0]
    assert ends[0] == 0
    assert ends[-1] > 20


@pytest.mark.parametrize(
    ("steps", "made", "episodes"),
    [(5000, 0, 4), (4000, 0, 4), (3001, 0, 4), (3000, 0, 3), (5000, 4000, 1), (5001, 4000, 2)],
)
def test_a_round_has_no_more_episodes_than_can_be_needed(steps, made, episodes, folder):
    """Of 1,000 environment steps each: the run ends where one environment would have ended it."""
    run = training(CARTPOLES, folder, "--steps", str(steps))
    run.progress.env_step = made
    run.collect()
    assert run.collector.running == episodes
    run.close()


def stop_at(patch, number):
    count = itertools.count(1)

    def check(self):
        if next(count) == number:
            raise Interrupted("SIGTERM")

    patch.setattr(StopSignals, "check", check)


def moments(events):
    """Numbers of checks (1-based) by what has happened right before."""
    number, last, found = 0, None, {}
    for event in events:
        if event == "check":
            number += 1
            found.setdefault(last, []).append(number)
        else:
            last = event
    return found


@pytest.mark.parametrize(
    ("name", "before", "which", "stored"),
    [
        ("cartpoles", 4, 10, 4),  # planned
        ("cartpoles", 2, 7, 2),  # in the last round, which has two
        ("pendulums", 4, 0, 4),  # in the random phase
        ("pendulums", 3, -1, 4),
        ("pendulums", 1, -1, 4),
        ("pendulums", "update", 2, 0),
    ],
)
def test_stopped_in_a_round(name, before, which, stored, whole, folder, monkeypatch, no_plot):
    """After a step that left so many environments at work, or after an update."""
    path, events = whole[name]
    if name == "pendulums":
        monkeypatch.setattr(Training, "_next_round", 4)
    arguments = {"cartpoles": CARTPOLES, "pendulums": PENDULUMS}[name]
    with monkeypatch.context() as patch:
        stop_at(patch, moments(events)[before][which])
        with pytest.raises(Interrupted):
            run_small(arguments, folder)
    assert len(load_file(checkpoints(folder)[-1] / TRAINING).get("collector.lengths", [])) == stored
    run_small(arguments, folder)
    assert_same_run(folder, path)


def test_a_simulator_that_fails_leaves_all_as_it_was(whole, folder, monkeypatch, no_plot, always_four):
    """The third of four, when the first two have made their step already."""
    with monkeypatch.context() as patch:
        build = Training._build

        def fails_late(self, state):
            build(self, state)
            env, count = self.collector.envs[2], itertools.count(1)
            real = env.step

            def step(action):
                if next(count) == 12:
                    raise SimulatorError("it fell over")
                return real(action)

            env.step = step

        patch.setattr(Training, "_build", fails_late)
        with pytest.raises(Stopped, match="it fell over"):
            run_small(PENDULUMS, folder)
    lengths = load_file(checkpoints(folder)[-1] / TRAINING)["collector.lengths"].tolist()
    assert lengths[2] == max(lengths)
    run_small(PENDULUMS, folder)
    assert_same_run(folder, whole["pendulums"][0])


def test_a_folder_of_a_version_without_the_setting(tmp_path):
    one, four = (parse(["train", *CARTPOLE, "--agent.replay.capacity", "200", f"envs={n}"]) for n in (1, 4))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.create(one)
    written = json.loads(folder.config.read_text())
    assert written["config"].pop("envs") == 1
    folder.config.write_text(json.dumps(written))
    folder.check(one)
    with pytest.raises(UserError, match=r"envs \(stored 1, now 4\)"):
        folder.check(four)
