import math

import numpy as np
import pytest

from envs import UnknownTaskError, make_env
from envs.equilibria import EQUILIBRIA, NoEquilibriumError, equilibrium
from envs.state import Simulator

LINEARISED = ["cartpole-balance", "pendulum-swingup", "pointmass-easy", "InvertedPendulum-v5"]
"""Both libraries, with derivatives of MuJoCo (pendulum, point mass) and without, one with controls beyond 1."""


def simulator(task, **kwargs):
    return Simulator(make_env(task, **kwargs))


@pytest.mark.parametrize("task", EQUILIBRIA)
def test_zero_action_holds_every_equilibrium(task):
    sim, state = simulator(task), np.array(equilibrium(task).state)
    after = sim.step(state, np.zeros(sim.model.nu))
    np.testing.assert_allclose(after.state, state, rtol=0, atol=1e-6)
    assert not after.ended


@pytest.mark.parametrize("task", EQUILIBRIA)
def test_every_region_has_a_width_for_every_coordinate_and_the_task_goes_on_at_its_corners(task):
    found, sim = equilibrium(task), simulator(task)
    assert len(found.state) == len(found.half_widths) == len(sim.state)
    assert min(found.half_widths) > 0
    for sign in (-1, 1):
        # A tenth within: the step itself moves the state.
        corner = np.array(found.state) + sign * 0.9 * np.array(found.half_widths)
        assert not simulator(task, action_repeat=1).step(corner, np.zeros(sim.model.nu)).ended


def test_inverted_pendulum_leans_by_its_models_millimetre():
    sim = simulator("InvertedPendulum-v5")
    fallen = sim.step(np.zeros(4), np.zeros(1)).state  # where one would expect it
    assert abs(fallen[3]) > 1e-3
    assert equilibrium("InvertedPendulum-v5").state[1] == pytest.approx(-math.atan(1 / 600))


@pytest.mark.parametrize("task", ["cartpole-swingup", "acrobot-swingup", "InvertedPendulum-v5"])
def test_observation_of_a_state_is_what_reset_and_step_give(task):
    env = make_env(task, seed=3)
    sim = Simulator(env)
    seen, _ = env.reset(seed=5)
    np.testing.assert_allclose(sim.observe(sim.state), seen, rtol=1e-6, atol=1e-7)
    assert sim.observe(sim.state).dtype == seen.dtype == np.float32
    env.reset(seed=5)
    seen = env.step(np.full(1, 0.5, np.float32))[0]
    np.testing.assert_allclose(sim.observe(sim.state), seen, rtol=1e-6, atol=1e-7)


def test_double_pendulum_too_but_for_its_late_constraint_force():
    env = make_env("InvertedDoublePendulum-v5")
    sim = Simulator(env)
    seen, _ = env.reset(seed=5)
    np.testing.assert_array_equal(sim.observe(sim.state), seen)


def test_a_step_from_a_state_is_the_environments_own():
    env = make_env("cartpole-swingup")
    own, sim = Simulator(env), simulator("cartpole-swingup")
    env.reset(seed=1)
    state = own.state
    for value in (0.3, -1.0, 0.7):
        action = np.full(1, value, np.float32)
        seen = env.step(action)[0]
        after = sim.step(state, action)
        np.testing.assert_allclose(after.observation, seen, rtol=1e-5, atol=1e-6)
        state = after.state


def test_a_step_depends_on_nothing_but_state_and_action():
    sim, state = simulator("cartpole-swingup"), np.array([0.1, 0.2, -0.3, 0.4])
    first = sim.step(state, np.ones(1)).state
    for _ in range(200):  # more than an episode has
        sim.step(np.array([1.0, 2.0, 3.0, 4.0]), -np.ones(1))
    np.testing.assert_array_equal(sim.step(state, np.ones(1)).state, first)


def test_a_step_says_when_the_task_ended():
    sim = simulator("InvertedPendulum-v5")
    assert sim.step(np.array([0, 0.19, 0, 1.0]), np.zeros(1)).ended
    assert not sim.step(np.array([0, 0.1, 0, 0.0]), np.zeros(1)).ended


@pytest.mark.parametrize("task", LINEARISED)
@pytest.mark.parametrize("repeat", [None, 3])
def test_linear_model_is_that_of_real_control_periods(task, repeat):
    sim = simulator(task, action_repeat=repeat)
    state = np.array(equilibrium(task).state)
    rest = np.zeros(sim.model.nu)

    def after(nudge=0.0, action=rest):
        return sim.step(state + nudge, action).state

    a, b = sim.linearise(state)
    nudges, actions = 1e-5 * np.eye(len(state)), 1e-3 * np.eye(sim.model.nu)
    real_a = np.stack([(after(n) - after(-n)) / 2e-5 for n in nudges], axis=1)
    real_b = np.stack([(after(action=u) - after(action=-u)) / 2e-3 for u in actions], axis=1)
    np.testing.assert_allclose(a, real_a, rtol=0, atol=1e-5 * abs(real_a).max())
    np.testing.assert_allclose(b, real_b, rtol=0, atol=1e-5 * abs(real_b).max())


def test_linear_model_of_free_motion_by_hand():
    # A point mass without its damping: x' = x + T v, and its actuators' gear / mass as acceleration.
    sim = simulator("pointmass-easy", action_repeat=1)
    sim.model.dof_damping[:] = 0
    a, b = sim.linearise(np.zeros(4))
    step = sim.model.opt.timestep
    assert sim.physics_steps == 1
    np.testing.assert_allclose(a, np.eye(4) + step * np.eye(4, k=2), atol=1e-8)
    np.testing.assert_allclose(b[:2], step * b[2:], atol=1e-8)  # semi-implicit Euler


def test_angles_of_free_hinges_are_counted_around():
    cartpole, pendulum = simulator("cartpole-swingup"), simulator("InvertedPendulum-v5")
    turned = np.array([[0.1, 2 * np.pi + 0.2, 7.0, -7.0], [0.0, -4 * np.pi - 0.2, 0.0, 0.0]])
    wanted = np.array([[0.1, 0.2, 7.0, -7.0], [0.0, -0.2, 0.0, 0.0]])
    np.testing.assert_allclose(cartpole.difference(turned, np.zeros(4)), wanted, atol=1e-12)
    np.testing.assert_array_equal(pendulum.difference(turned, np.zeros(4)), turned)  # its hinge has limits
    assert turned[0, 1] > 6  # what was given stays as it was


def test_a_full_turn_looks_the_same():
    sim = simulator("acrobot-swingup")
    turn = np.array([0, 2 * np.pi, 0, 0])
    np.testing.assert_allclose(sim.observe(turn), sim.observe(np.zeros(4)), atol=1e-6)


def test_a_task_without_equilibrium_is_refused_with_those_that_have_one():
    with pytest.raises(NoEquilibriumError) as refusal:
        equilibrium("cheetah-run")
    message = str(refusal.value)
    assert message.startswith("cheetah-run has no equilibrium")
    assert "\n" not in message
    assert all(name in message for name in EQUILIBRIA)


def test_other_spellings_and_unknown_names():
    assert equilibrium("point_mass-easy") == EQUILIBRIA["pointmass-easy"]
    with pytest.raises(UnknownTaskError):
        equilibrium("cartpole-fly")
