"""What holds for every task. One environment object per task serves all tests, in whichever order."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import TASKS, make_env, task_names

STEPS = 8


def simulator_state(env):
    """MuJoCo's whole integration state, warm start included."""
    base = env.unwrapped
    model, data = (
        (base.physics.model.ptr, base.physics.data.ptr)
        if hasattr(base, "physics")
        else (base.model, base.data)
    )
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


def episode(env, seed, steps=STEPS):
    """Observations, rewards, numbers of base steps and the simulator's states of an episode's start."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    observations, rewards, env_steps = [env.reset(seed=seed)[0]], [], []
    states = [simulator_state(env)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        env_steps.append(info["env_steps"])
        states.append(simulator_state(env))
        if terminated or truncated:
            break
    return np.stack(observations), np.array(rewards), np.array(env_steps), np.stack(states)


@pytest.fixture(scope="module", params=task_names())
def env(request):
    environment = make_env(request.param, seed=0)
    yield environment
    environment.close()


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It recommends the unwrapped environment, which is not what agents meet.
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        # MuJoCo's states have no bounds.
        warnings.filterwarnings("ignore", message=".*Box observation space (min|max)imum value is -?infinity")
        # The close and render checks make anew from a spec; see test_registration.py.
        check_env(env, skip_render_check=True, skip_close_check=True)


def test_spaces(env):
    observations, _, _, _ = episode(env, 3)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert env.action_space.dtype == np.float32
    np.testing.assert_array_equal(env.action_space.low, -1)
    np.testing.assert_array_equal(env.action_space.high, 1)
    assert env.observation_space.shape == observations[0].shape
    assert observations[0].ndim == 1
    assert observations.dtype == env.observation_space.dtype == np.float32
    assert all(observation in env.observation_space for observation in observations)
    assert np.isfinite(observations).all()


def test_same_seed_same_episode_whatever_came_before(env):
    first = episode(env, 1)
    episode(env, 2)
    env.reset()  # moves the random state on
    env.step(env.action_space.sample())
    again = episode(env, 1)
    fresh_env = make_env(env.get_wrapper_attr("task"), seed=0)
    fresh = episode(fresh_env, 1)
    fresh_env.close()
    for reference, used, new in zip(first, again, fresh, strict=True):
        np.testing.assert_array_equal(used, reference)
        np.testing.assert_array_equal(new, reference)


def test_other_seed_other_episode(env):
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])
    # Gymnasium's seeds may be longer than the 32 bits of dm_control's.
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2**32 + 1)[0])


def test_rewards(env):
    _, rewards, env_steps, _ = episode(env, 4)
    task = TASKS[env.get_wrapper_attr("task")]
    assert np.isfinite(rewards).all()
    if task.domain == "lqr":
        assert (rewards <= env_steps).all()  # 1 less a quadratic cost, each base step
    elif task.suite == "dmcontrol":
        assert (rewards >= 0).all(), rewards.min()
        assert (rewards <= env_steps).all(), rewards.max()


def test_no_shared_memory(env):
    observation, _ = env.reset(seed=5)
    seen = [(observation, observation.copy())]
    for _ in range(3):
        observation = env.step(env.action_space.sample())[0]
        assert not any(np.shares_memory(observation, old) for old, _ in seen)
        seen.append((observation, observation.copy()))
    env.reset(seed=6)
    for observation, copy in seen:
        np.testing.assert_array_equal(observation, copy)


def test_times(env):
    task = TASKS[env.get_wrapper_attr("task")]
    repeat = env.get_wrapper_attr("action_repeat")
    assert repeat == task.action_repeat
    base_timestep = env.get_wrapper_attr("control_timestep") / repeat
    physics_timestep = env.get_wrapper_attr("physics_timestep")
    data = env.unwrapped.physics.data if task.suite == "dmcontrol" else env.unwrapped.data
    env.reset(seed=0)
    start = data.time
    env_steps = env.step(env.action_space.sample())[4]["env_steps"]
    assert data.time - start == pytest.approx(base_timestep * env_steps)  # by the simulator's own clock
    assert base_timestep / physics_timestep == pytest.approx(round(base_timestep / physics_timestep))
    steps = env.get_wrapper_attr("max_episode_steps")
    assert steps == {"Reacher-v5": 50, "Pusher-v5": 100}.get(task.name, 1000)
