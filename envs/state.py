"""The simulator behind an environment of `make_env`, as a function of its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.gl import without_gl
from envs.perturb import model_and_data

with without_gl():
    import mujoco

Floats = NDArray[np.float64]

_EPSILON = 1e-6  # of the finite differences: MuJoCo's own choice


@dataclass(frozen=True)
class Transition:
    """What one action of the agent leads to."""

    state: Floats
    """The state after it [D]."""
    observation: np.ndarray
    """What the agent sees of it, float32 [O]."""
    ended: bool
    """The task itself has ended there, so that the action was cut short."""


class Simulator:
    """Reads and writes the state of an environment, steps from any state, and linearises.

    A state x is MuJoCo's qpos and qvel one after the other [D]. Nothing else is carried from step to step,
    so it suits only simulators without ball joints and activations: none of `EQUILIBRIA` has any.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Takes an environment of `make_env` over; its episodes and their ends play no part any more."""
        self.env = env
        env.reset()
        self._dm_control = hasattr(env.unwrapped, "physics")
        found = model_and_data(env)
        assert found is not None, env
        self.model, self.data = found
        sizes = self.model.nq - self.model.nv, self.model.na
        assert sizes == (0, 0), sizes
        hinge = self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
        self._angles = np.flatnonzero(hinge & ~self.model.jnt_limited.astype(bool))
        self.physics_steps = round(
            env.get_wrapper_attr("control_timestep") / env.get_wrapper_attr("physics_timestep")
        )

    @property
    def state(self) -> Floats:
        """The state now [D]."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    def observe(self, state: Floats) -> np.ndarray:
        """What the agent sees of a state [D]: float32 [O]."""
        self._write(state)
        base: Any = self.env.unwrapped
        if self._dm_control:
            found = base._env.task.get_observation(base.physics)
            observation = {name: np.array(value, np.float32) for name, value in found.items()}
        else:
            observation = base._get_obs()
        return self._as_seen(self.env, observation)

    def step(self, state: Floats, action: np.ndarray) -> Transition:
        """Takes an action [A] in [-1, 1] for one control period from a state [D], through all wrappers."""
        self.env.reset()  # so that no time limit comes in between
        self._write(state)
        observation, _, ended, _, _ = self.env.step(np.asarray(action, np.float32))
        return Transition(self.state, observation, bool(ended))

    def difference(self, state: Floats, origin: Floats) -> Floats:
        """state - origin [..., D], the angles of hinges without limits in [-pi, pi)."""
        difference = np.asarray(state - origin)
        angles = difference[..., self._angles]
        difference[..., self._angles] = (angles + np.pi) % (2 * np.pi) - np.pi
        return difference

    def linearise(self, state: Floats) -> tuple[Floats, Floats]:
        """A [D, D] and B [D, A] of one control period at a state [D] and zero action.

        The action is held: after n physics steps with a and b each, A = a^n and B = (1 + a + ... + a^(n-1)) b.
        B is for actions in [-1, 1], as the agent gives them.
        """
        a, b = self._linearise_physics_step(state)
        total_a, total_b = np.eye(len(a)), np.zeros_like(b)
        for _ in range(self.physics_steps):
            total_a, total_b = a @ total_a, a @ total_b + b
        return total_a, total_b * self._control_scale()[1]

    def _control_scale(self) -> tuple[Floats, Floats]:
        """Middle and half of the range [A] that actions in [-1, 1] are scaled to."""
        low, high = self.model.actuator_ctrlrange.T
        return (low + high) / 2, (high - low) / 2

    def _linearise_physics_step(self, state: Floats) -> tuple[Floats, Floats]:
        """The derivatives of one physics step by the state [D, D] and by MuJoCo's controls [D, A]."""
        model, data = self.model, mujoco.MjData(self.model)
        size, controls = len(state), model.nu
        data.qpos[:], data.qvel[:] = np.split(state, 2)
        data.ctrl[:] = self._control_scale()[0]
        a, b = np.zeros((size, size)), np.zeros((size, controls))
        if model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4:
            mujoco.mjd_transitionFD(model, data, _EPSILON, True, a, b, None, None)
            return a, b
        # MuJoCo has no derivatives of this integrator: the same central differences by hand.
        origin = np.concatenate([state, data.ctrl])

        def after(nudge: Floats) -> Floats:
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:], data.ctrl[:] = np.split(origin + nudge, [size // 2, size])
            mujoco.mj_step(model, data)
            return np.concatenate([data.qpos, data.qvel])

        nudges = _EPSILON * np.eye(size + controls)
        columns = np.stack([(after(n) - after(-n)) / (2 * _EPSILON) for n in nudges], axis=1)
        return columns[:, :size], columns[:, size:]

    def _write(self, state: Floats) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = np.split(state, 2)
        mujoco.mj_forward(self.model, self.data)

    def _as_seen(self, env: gymnasium.Env[Any, Any], observation: Any) -> np.ndarray:
        """An observation of the base environment after all wrappers."""
        if not isinstance(env, gymnasium.Wrapper):
            return observation
        observation = self._as_seen(env.env, observation)
        return env.observation(observation) if isinstance(env, gymnasium.ObservationWrapper) else observation
