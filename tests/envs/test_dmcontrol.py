import gymnasium
import numpy as np
import pytest
from dm_control import suite

from envs import make_env
from envs.dmcontrol import DMControlEnv, legacy_random_state


@pytest.mark.parametrize(
    ("name", "domain", "variant"),
    [
        ("cheetah-run", "cheetah", "run"),
        ("finger-turn-hard", "finger", "turn_hard"),  # a scalar in the observation
        (
            "manipulator-bring-ball",
            "manipulator",
            "bring_ball",
        ),  # a matrix, and names not in alphabetical order
        ("lqr-lqr-6-2", "lqr", "lqr_6_2"),  # the physics itself is drawn from the seed
    ],
)
def test_first_episode_is_dm_controls_own(name, domain, variant):
    reference = suite.load(domain, variant, task_kwargs={"random": np.random.RandomState(5)})
    reference.task.random.seed(5)
    time_step = reference.reset()
    env = make_env(name, seed=5, action_repeat=1)
    observation, _ = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        expected = np.concatenate([np.ravel(value) for value in time_step.observation.values()])
        np.testing.assert_array_equal(observation, expected.astype(np.float32))
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        time_step = reference.step(action)
        observation, reward, _, _, _ = env.step(action)
        assert reward == time_step.reward


def test_observation_sizes():
    # position 3 + velocity 2; head height is a number; arm_pos is 8 x 2.
    sizes = {"cartpole-swingup": 5, "humanoid-run": 67, "manipulator-bring-ball": 44, "dog-run": 223}
    assert {name: make_env(name).observation_space.shape[0] for name in sizes} == sizes


def test_swingup_is_cut_off_after_125_agent_steps():
    env = make_env("cartpole-swingup")
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:] for _ in range(125)]
    assert [(terminated, truncated) for terminated, truncated, _ in ends] == [(False, False)] * 124 + [
        (False, True)
    ]
    assert sum(info["env_steps"] for _, _, info in ends) == 1000
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(env.action_space.sample())


def test_the_last_action_is_repeated_as_often_as_time_allows():
    env = make_env("cartpole-swingup", action_repeat=3)
    env.reset(seed=0)
    truncated, counts = False, []
    while not truncated:
        _, _, _, truncated, info = env.step(env.action_space.sample())
        counts.append(info["env_steps"])
    assert counts == [3] * 333 + [1]


def test_an_endless_task_is_cut_off_after_1000_base_steps():
    env = make_env("lqr-lqr-2-1")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(250)]
    assert ends == [(False, False)] * 249 + [(False, True)]


def test_discount_zero_is_a_termination():
    env = make_env("lqr-lqr-2-1")
    env.reset(seed=0)
    with env.unwrapped.physics.reset_context():
        env.unwrapped.physics.data.qpos[:] = 0  # lqr ends at the origin
    _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (True, False)
    assert (reward, info["env_steps"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("cartpole-swingup", 0.08), ("walker-walk", 0.05), ("cheetah-run", 0.04), ("dog-run", 0.03)],
)
def test_control_timestep(name, seconds):
    # cartpole 0.01 s x 8, walker 0.025 s x 2, cheetah 0.01 s x 4, dog 0.015 s x 2
    assert make_env(name).get_wrapper_attr("control_timestep") == pytest.approx(seconds)


def test_physics_timestep():
    assert make_env("walker-walk").get_wrapper_attr("physics_timestep") == 0.0025


def test_actions_are_scaled_to_the_actuators():
    env = make_env("quadruped-walk")
    for action, hip_knee_ankle in ((1, [1, 1.1, 0.8]), (-1, [-1, -1, -0.8]), (0, [0, 0.05, 0])):
        env.reset(seed=0)
        env.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(env.unwrapped.physics.control(), hip_knee_ankle * 4, atol=1e-6)


def test_an_actuator_without_limits_takes_the_action_as_it_is():
    env = make_env("lqr-lqr-6-2")
    env.reset(seed=0)
    env.step(np.array([1, -0.5], np.float32))
    np.testing.assert_array_equal(env.unwrapped.physics.control(), [1, -0.5])


def test_construction_seed_shapes_the_physics_of_lqr():
    stiffness = [
        make_env("lqr-lqr-2-1", seed=s).unwrapped.physics.model.jnt_stiffness.copy() for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(stiffness[0], stiffness[1])
    assert not np.array_equal(stiffness[0], stiffness[2])


def test_an_episode_after_a_long_one():
    """Contacts, warm starts and terrain of a whole episode leave no trace."""
    env = make_env("quadruped-escape", seed=0)
    start = env.reset(seed=1)[0]
    action = np.ones(12, np.float32)
    followed = [env.step(action)[0] for _ in range(25)]
    env.reset(seed=2)
    for _ in range(100):
        env.step(env.action_space.sample())
    np.testing.assert_array_equal(env.reset(seed=1)[0], start)
    for expected in followed:
        np.testing.assert_array_equal(env.step(action)[0], expected)


DIGEST = """
import hashlib, numpy as np
from envs import make_env
env = make_env(NAME, seed=0)
actions = np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape)).astype(np.float32)
digest = hashlib.sha256(env.reset(seed=1)[0].tobytes())
for action in actions:
    observation, reward, *_ = env.step(action)
    digest.update(observation.tobytes() + np.float64(reward).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("name", ["humanoid-run", "quadruped-escape"])
def test_the_same_episode_in_another_process(name, python):
    code = DIGEST.replace("NAME", repr(name))
    assert python(code, PYTHONHASHSEED="1") == python(code, PYTHONHASHSEED="2")


def test_seeds_beyond_32_bits():
    assert legacy_random_state(7).randint(10**9) == np.random.RandomState(7).randint(10**9)
    numbers = {legacy_random_state(seed).randint(10**9) for seed in (1, 2**32, 2**32 + 1, 2**64 + 1)}
    assert len(numbers) == 4


def test_adapter_alone():
    env = DMControlEnv("reacher", "easy", seed=0)
    assert list(env.observation_space) == ["position", "to_target", "velocity"]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info == {}
    later = env.step(env.action_space.sample())[0]
    assert not any(np.shares_memory(observation[key], later[key]) for key in observation)
    assert (env.physics_timestep, env.control_timestep, env.max_episode_steps) == (0.02, 0.02, 1000)
    assert DMControlEnv("lqr", "lqr_2_1").max_episode_steps is None
    with pytest.raises(gymnasium.error.Error, match="render_mode='rgb_array'"):
        env.render()
    env.close()
    env.close()
