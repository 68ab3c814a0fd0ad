import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import TASKS, UnknownTaskError, make_env, register_all
from envs.registration import env_id


@pytest.fixture(autouse=True)
def registered():
    register_all()


def test_every_task_is_registered_once():
    register_all()
    ids = [name for name in gymnasium.registry if name.startswith("tdmpc_prune/")]
    assert sorted(ids) == sorted(env_id(name) for name in TASKS)
    assert len(ids) == 62


def test_ids():
    assert env_id("ball_in_cup-catch") == "tdmpc_prune/cup-catch-v0"
    assert env_id("Ant-v5") == "tdmpc_prune/Ant-v5"
    assert str(gymnasium.spec("Ant-v5").entry_point).startswith("gymnasium.")  # Gymnasium's own stays
    with pytest.raises(UnknownTaskError):
        env_id("no-such-task")


@pytest.mark.parametrize("name", ["cartpole-swingup", "finger-turn-hard", "lqr-lqr-2-1", "Pusher-v5"])
def test_the_same_environment_as_make_env(name):
    ours, theirs = make_env(name, seed=3), gymnasium.make(env_id(name), seed=3)
    again = gymnasium.make(theirs.spec)  # a spec is enough to make it anew
    assert ours.observation_space == theirs.observation_space == again.observation_space
    assert ours.action_space == theirs.action_space == again.action_space
    for key in ("task", "action_repeat", "control_timestep", "physics_timestep", "max_episode_steps"):
        expected = ours.get_wrapper_attr(key)
        assert theirs.get_wrapper_attr(key) == again.get_wrapper_attr(key) == expected
    observations = [env.reset()[0] for env in (ours, theirs, again)]
    np.testing.assert_array_equal(observations[1], observations[0])
    np.testing.assert_array_equal(observations[2], observations[0])
    for _ in range(5):
        action = ours.action_space.sample()
        results = [env.step(action) for env in (ours, theirs, again)]
        for result in results[1:]:
            np.testing.assert_array_equal(result[0], results[0][0])
            assert result[1:4] == results[0][1:4]
            assert result[4]["env_steps"] == results[0][4]["env_steps"]


def test_arguments_pass_through():
    env = gymnasium.make("tdmpc_prune/walker-walk-v0", action_repeat=5)
    assert env.get_wrapper_attr("control_timestep") == pytest.approx(0.125)


def test_importing_the_module_registers(python):
    code = """
import gymnasium
env = gymnasium.make("envs.registration:tdmpc_prune/cartpole-swingup-v0")
print(env.get_wrapper_attr("task"))
"""
    assert python(code).split()[-1] == "cartpole-swingup"


@pytest.mark.parametrize("name", ["reacher-easy", "lqr-lqr-6-2"])
def test_gymnasium_accepts_it_with_rendering(name, gl):
    check_env(gymnasium.make(env_id(name), render_mode="rgb_array"))
