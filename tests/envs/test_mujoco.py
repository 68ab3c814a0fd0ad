import gymnasium
import numpy as np
import pytest

from envs import make_env


def test_inverted_pendulum_terminates():
    env = make_env("InvertedPendulum-v5")
    env.reset(seed=0)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(np.ones(1, np.float32))
        steps += info["env_steps"]
        assert reward == (0.0 if terminated else 1.0)
    assert (terminated, truncated) == (True, False)
    assert 1 < steps < 100


def test_reacher_is_cut_off_after_50_steps():
    env = make_env("Reacher-v5", action_repeat=4)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:] for _ in range(13)]
    assert [end[:2] for end in ends] == [(False, False)] * 12 + [(False, True)]
    assert [end[2]["env_steps"] for end in ends] == [4] * 12 + [2]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("InvertedPendulum-v5", 0.04), ("HalfCheetah-v5", 0.05), ("Hopper-v5", 0.008), ("Humanoid-v5", 0.015)],
)
def test_control_timestep(name, seconds):
    # 0.02 s x 2, 0.01 s x 5, 0.002 s x 4, 0.003 s x 5: timestep x frame skip
    assert make_env(name).get_wrapper_attr("control_timestep") == pytest.approx(seconds)
    assert make_env(name, action_repeat=3).get_wrapper_attr("control_timestep") == pytest.approx(3 * seconds)


def test_it_is_gymnasiums_environment_with_scaled_actions():
    reference = gymnasium.make("InvertedPendulum-v5")  # actions in [-3, 3]
    env = make_env("InvertedPendulum-v5", seed=9)
    np.testing.assert_array_equal(env.reset()[0], reference.reset(seed=9)[0].astype(np.float32))
    for action in np.array([[0.1], [-0.05], [0.02]], np.float32):
        expected = reference.step(3 * action)
        observation, reward, *_ = env.step(action)
        np.testing.assert_allclose(observation, expected[0], rtol=1e-5, atol=1e-7)
        assert reward == expected[1]
