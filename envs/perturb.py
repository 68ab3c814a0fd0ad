"""What the world does that training did not show: noise, delay, other masses, damping and gravity."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from envs.dmcontrol import DMControlEnv
from envs.gl import without_gl
from envs.perturbations import Perturbation, PerturbationError
from envs.wrappers import Env, Wrapper

with without_gl():
    import mujoco

NOISE = 1
"""Sets the stream of observation noise apart from the simulator's of the same seed."""


def perturb(env: Env, perturbation: Perturbation) -> Env:
    """The environment of `make_env` under a perturbation; its physics are changed in place, for good.

    Raises:
        PerturbationError: it is one of physics that MuJoCo does not simulate.
    """
    if perturbation.name == "noise":
        return ObservationNoise(env, perturbation.amount)
    if perturbation.name == "delay":
        return ActionDelay(env, int(perturbation.amount))
    found = model_and_data(env)
    if found is None:
        task = env.get_wrapper_attr("task")
        raise PerturbationError(f"{perturbation}: MuJoCo does not simulate {task}: choose noise or delay")
    model, data = found
    _SCALE[perturbation.name](model, perturbation.amount)
    mujoco.mj_setConst(model, data)  # what follows from masses: inverse weights, for one
    return env


def model_and_data(env: gymnasium.Env[Any, Any]) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """MuJoCo's model and data behind an environment of `make_env`; None if there are none."""
    base: Any = env.unwrapped
    if isinstance(base, DMControlEnv):
        return base.physics.model.ptr, base.physics.data.ptr
    found = getattr(base, "model", None), getattr(base, "data", None)
    return found if isinstance(found[0], mujoco.MjModel) and isinstance(found[1], mujoco.MjData) else None


def broke_down(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether MuJoCo found numbers that are none, and started again behind everybody's back."""
    kinds = (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
    if (found := model_and_data(env)) is None:
        return False
    _, data = found
    return any(data.warning[kind].number > 0 for kind in kinds)


def _scale_mass(model: mujoco.MjModel, factor: float) -> None:
    model.body_mass[:] *= factor
    model.body_inertia[:] *= factor


def _scale_damping(model: mujoco.MjModel, factor: float) -> None:
    model.dof_damping[:] *= factor


def _scale_gravity(model: mujoco.MjModel, factor: float) -> None:
    model.opt.gravity[:] *= factor


_SCALE: dict[str, Callable[[mujoco.MjModel, float], None]] = {
    "mass": _scale_mass,
    "damping": _scale_damping,
    "gravity": _scale_gravity,
}
PHYSICS = tuple(_SCALE)
"""Kinds that change MuJoCo's model: other simulators do not know them."""


class ObservationNoise(Wrapper, RecordConstructorArgs):
    """Adds Gaussian noise to what the agent sees; an episode's noise depends on its seed alone."""

    def __init__(self, env: Env, std: float) -> None:
        RecordConstructorArgs.__init__(self, std=std)
        super().__init__(env)
        self.std = std
        self._rng = np.random.default_rng(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng((seed, NOISE))  # not the numbers that the episode begins with
        obs, info = self.env.reset(seed=seed, options=options)
        return self._noisy(obs), info

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._noisy(obs), reward, terminated, truncated, info

    def _noisy(self, obs: np.ndarray) -> np.ndarray:
        return (obs + self.std * self._rng.standard_normal(obs.shape)).astype(obs.dtype)


class ActionDelay(Wrapper, RecordConstructorArgs):
    """Every action takes effect `steps` agent steps later; before the first one, zero does."""

    def __init__(self, env: Env, steps: int) -> None:
        RecordConstructorArgs.__init__(self, steps=steps)
        super().__init__(env)
        self.steps = steps
        self._waiting: deque[np.ndarray] = deque()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        shape = self.env.action_space.shape
        assert shape is not None
        self._waiting = deque(np.zeros(shape, np.float32) for _ in range(self.steps))
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._waiting.append(np.array(action))
        return self.env.step(self._waiting.popleft())
