import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs import make_env
from envs.wrappers import ActionRepeat, SeedFirstReset, TaskInfo


class Countdown(gymnasium.Env):
    """Base step n pays n; ends at `length`, by termination or truncation."""

    def __init__(self, length=100, terminates=True):
        self.observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.metadata = {"render_modes": [], "render_fps": 60}
        self.length, self.terminates = length, terminates
        self.actions, self.seeds = [], []
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        self.actions.append(float(action[0]))
        over = self.count >= self.length
        observation = np.full(1, self.count, np.float32)
        return (
            observation,
            self.count,
            over and self.terminates,
            over and not self.terminates,
            {"n": self.count},
        )


ACTION = np.array([0.5], np.float32)


def test_action_repeat_sums_rewards():
    base = Countdown()
    env = ActionRepeat(base, 4)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(ACTION)
    assert (observation[0], reward, terminated, truncated) == (4, 1 + 2 + 3 + 4, False, False)
    assert info == {"n": 4, "env_steps": 4}
    assert env.step(ACTION)[1] == 5 + 6 + 7 + 8
    assert base.actions == [0.5] * 8


@pytest.mark.parametrize("terminates", [True, False])
def test_action_repeat_stops_where_the_episode_ends(terminates):
    base = Countdown(length=6, terminates=terminates)
    env = ActionRepeat(base, 4)
    env.reset()
    env.step(ACTION)
    observation, reward, terminated, truncated, info = env.step(ACTION)
    assert (observation[0], reward, info["env_steps"]) == (6, 5 + 6, 2)
    assert (terminated, truncated) == (terminates, not terminates)
    assert len(base.actions) == 6


def test_action_repeat_of_one_changes_nothing():
    env = ActionRepeat(Countdown(), 1)
    env.reset()
    assert [env.step(ACTION)[1] for _ in range(3)] == [1, 2, 3]
    assert env.step(ACTION)[4]["env_steps"] == 1


def test_a_video_plays_in_real_time():
    assert ActionRepeat(Countdown(), 4).metadata["render_fps"] == 15
    assert make_env("cartpole-swingup").metadata["render_fps"] == pytest.approx(1 / 0.08)


@pytest.mark.parametrize("repeat", [0, -1])
def test_action_repeat_below_one_is_refused(repeat):
    with pytest.raises(ValueError, match=f"at least 1, got {repeat}"):
        ActionRepeat(Countdown(), repeat)
    with pytest.raises(ValueError, match=f"at least 1, got {repeat}"):
        make_env("cartpole-swingup", action_repeat=repeat)


def test_seed_of_the_first_reset():
    base = Countdown()
    env = SeedFirstReset(base, 3)
    env.reset()
    env.reset()
    env.reset(seed=8)
    assert base.seeds == [3, None, 8]
    base = Countdown()
    env = SeedFirstReset(base, 3)
    env.reset(seed=0)
    env.reset()
    assert base.seeds == [0, None]


def test_task_info():
    env = TaskInfo(
        Countdown(), task="countdown", physics_timestep=0.01, control_timestep=0.04, max_episode_steps=100
    )
    assert env.get_wrapper_attr("task") == "countdown"
    assert env.get_wrapper_attr("physics_timestep") == 0.01
    assert env.get_wrapper_attr("control_timestep") == 0.04
    assert env.get_wrapper_attr("max_episode_steps") == 100


@pytest.mark.parametrize("name", ["cartpole-swingup", "Hopper-v5"])
def test_seed_of_make_env(name):
    first = make_env(name, seed=4)
    np.testing.assert_array_equal(first.reset()[0], make_env(name, seed=0).reset(seed=4)[0])
    assert not np.array_equal(first.reset()[0], make_env(name, seed=4).reset()[0])  # it goes on
    samples = [make_env(name, seed=seed).action_space.sample() for seed in (4, 4, 5)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


def test_bad_arguments_of_make_env():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        make_env("cartpole-swingup", seed=-1)
    with pytest.raises(ValueError, match="'rgb_array' or None, got 'human'"):
        make_env("cartpole-swingup", render_mode="human")
    with pytest.raises(ValueError, match="did you mean cartpole-swingup"):
        make_env("cartpole-swingupp")
