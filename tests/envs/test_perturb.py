"""Perturbations: as named, as large as asked for, and nothing else."""

import numpy as np
import pytest

from envs import SimulatorError, make_env
from envs.perturb import broke_down, model_and_data, perturb
from envs.perturbations import KINDS, STANDARD, Perturbation, PerturbationError, parse_perturbations

TASKS = ["cartpole-swingup", "InvertedPendulum-v5"]


def rollout(env, actions, seed=3):
    """Observations [T + 1, O] and rewards [T] of an episode's beginning."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        observations.append(obs)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


ACTIONS = np.random.default_rng(1).uniform(-0.3, 0.3, (6, 1)).astype(np.float32)


def test_parse():
    assert parse_perturbations("mass=1.5, delay=2") == (Perturbation("mass", 1.5), Perturbation("delay", 2))
    assert [str(p) for p in parse_perturbations("noise=0.05")] == ["noise=0.05"]
    assert parse_perturbations("standard") == STANDARD
    assert {p.name for p in STANDARD} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mas=1.5", "did you mean mass"),
        ("wind=3", "choose noise, delay, mass, damping, gravity"),
        ("mass", "write NAME=AMOUNT"),
        ("mass=heavy", "write NAME=AMOUNT"),
        ("mass=nan", "write NAME=AMOUNT"),
        ("mass=inf", "0.01 to 100"),
        ("mass=-1", "0.01 to 100"),
        ("mass=0", "0.01 to 100"),
        ("gravity=1e9", "0 to 100"),
        ("delay=1e9", "0 to 1000"),
        ("delay=inf", "0 to 1000"),
        ("noise=1e300", "0 to 1e6"),
        ("delay=1.5", "a whole number"),
        ("", "write NAME=AMOUNT"),
        ("mass=1,,", "write NAME=AMOUNT"),
    ],
)
def test_refused(text, said):
    with pytest.raises(PerturbationError, match=said) as error:
        parse_perturbations(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", KINDS)
def test_the_neutral_amount_changes_nothing(task, name):
    neutral = {"noise": 0.0, "delay": 0}.get(name, 1.0)
    plain = rollout(make_env(task, seed=1), ACTIONS)
    same = rollout(perturb(make_env(task, seed=1), Perturbation(name, neutral)), ACTIONS)
    for a, b in zip(plain, same, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_noise_is_gaussian_and_the_simulator_does_not_see_it(task):
    clean, rewards = rollout(make_env(task, seed=1), ACTIONS)
    env = perturb(make_env(task, seed=1), Perturbation("noise", 0.1))
    first, noisy_rewards = rollout(env, ACTIONS)
    np.testing.assert_array_equal(rewards, noisy_rewards)
    np.testing.assert_array_equal(rollout(env, ACTIONS)[0], first)  # the seed decides the noise, too
    noise = np.concatenate([rollout(env, ACTIONS, seed)[0] - rollout(make_env(task), ACTIONS, seed)[0]
                            for seed in range(40)])  # fmt: skip
    assert noise.std() == pytest.approx(0.1, rel=0.06)
    assert abs(noise.mean()) < 0.01
    assert first.dtype == clean.dtype


@pytest.mark.parametrize("task", TASKS)
def test_a_delayed_action_comes_later(task):
    env = perturb(make_env(task, seed=1), Perturbation("delay", 2))
    late, _ = rollout(env, ACTIONS)
    shifted = np.concatenate([np.zeros((2, 1), np.float32), ACTIONS[:-2]])
    np.testing.assert_array_equal(late, rollout(make_env(task, seed=1), shifted)[0])
    np.testing.assert_array_equal(rollout(env, ACTIONS)[0], late)  # nothing waits for the next episode


def test_mass_halves_what_a_force_does():
    """No gravity and no damping: the cart and its pole gain half the speed under twice the mass."""
    light, heavy = (make_env("cartpole-balance", seed=1, action_repeat=1) for _ in range(2))
    for env, mass in ((light, 1.0), (heavy, 2.0)):
        perturb(env, Perturbation("gravity", 0))
        perturb(env, Perturbation("damping", 0))
        perturb(env, Perturbation("mass", mass))
    speeds = []
    for env in (light, heavy):
        env.reset(seed=1)
        _, data = model_and_data(env)
        data.qpos[:], data.qvel[:] = 0, 0
        env.step(np.ones(1, np.float32))
        speeds.append(data.qvel[0])
    assert speeds[0] > 0.01
    assert speeds[0] / speeds[1] == pytest.approx(2, rel=1e-3)


def test_damping_slows_an_angle_down():
    """A pendulum without gravity: its speed falls by exp(-damping / inertia t)."""
    rates = []
    for factor in (1.0, 3.0):
        env = perturb(make_env("pendulum-swingup", seed=1, action_repeat=1), Perturbation("damping", factor))
        perturb(env, Perturbation("gravity", 0))
        env.reset(seed=1)
        _, data = model_and_data(env)
        data.qvel[:] = 1
        env.step(np.zeros(1, np.float32))  # dm_control's first step still has the forces of before
        before = data.qvel[0]
        env.step(np.zeros(1, np.float32))
        rates.append(np.log(before / data.qvel[0]))
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.01)


def test_gravity_scales_what_falls():
    fallen = []
    for factor in (1.0, 0.5):
        env = perturb(make_env("Hopper-v5", seed=1), Perturbation("gravity", factor))
        env.reset(seed=1)
        model, data = model_and_data(env)
        data.qpos[1], data.qvel[:] = 3, 0  # high above the ground
        env.step(np.zeros(3, np.float32))
        fallen.append(data.qvel[1])
        assert model.opt.gravity[2] == pytest.approx(-9.81 * factor)
    assert fallen[0] / fallen[1] == pytest.approx(2, rel=0.02)


def test_a_perturbed_model_stays_so_over_episodes():
    env = perturb(make_env("walker-walk", seed=1), Perturbation("mass", 1.5))
    mass = model_and_data(env)[0].body_mass.copy()
    env.reset(seed=1)
    env.reset(seed=2)
    np.testing.assert_array_equal(model_and_data(env)[0].body_mass, mass)
    assert mass.sum() == pytest.approx(
        1.5 * model_and_data(make_env("walker-walk", seed=1))[0].body_mass.sum()
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_simulation_that_broke_down_is_known(task):
    env = make_env(task, seed=1)
    env.reset(seed=1)
    env.step(ACTIONS[0])
    assert not broke_down(env)
    model_and_data(env)[1].qvel[0] = np.nan
    if task == "cartpole-swingup":
        with pytest.raises(SimulatorError, match="broke down") as error:
            env.step(ACTIONS[1])
        assert "\n" not in str(error.value)
    else:
        env.step(ACTIONS[1])
        assert broke_down(env)
