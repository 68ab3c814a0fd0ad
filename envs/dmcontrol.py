"""dm_control's suite as a Gymnasium environment, one base step at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.compat import SimulatorError
from envs.gl import enable_gl, without_gl

_UNLIMITED = 1e10  # mjMAXVAL: what dm_control's action spec says of an actuator without limits
_SKY = "./common/skybox.xml"  # among the assets of the suite's models
_SMALL_SKY = b"""<mujoco><asset>
    <texture name="skybox" type="skybox" builtin="flat" width="1" height="1"/>
</asset></mujoco>"""
_CAMERA = {"quadruped": "y", "dog": "y-axis"}  # side views; there, camera 0 may look away from the body

Observation = dict[str, np.ndarray]


def legacy_random_state(seed: int) -> np.random.RandomState:
    """The random state that dm_control would make of `seed`, and one for seeds beyond its 32 bits too."""
    return np.random.RandomState(_legacy_seed(seed))


def _legacy_seed(seed: int) -> int | list[int]:
    if seed < 2**32:
        return seed
    words = []
    while seed:
        seed, word = divmod(seed, 2**32)
        words.append(word)
    return words


@contextmanager
def _small_sky(assets: dict[str, bytes]) -> Iterator[None]:
    """Inside it, models get a sky of six pixels: the suite's own takes 11 MB, and most of the time to make one."""
    own = dict(assets)
    assets[_SKY] = _SMALL_SKY
    try:
        yield
    finally:
        assets.update(own)


class DMControlEnv(gymnasium.Env[Observation, np.ndarray]):
    """One task of `dm_control.suite`.

    Observations: dm_control's dict in its own order, float32 copies. Actions: a float32 Box with the
    actuators' limits; an actuator without limits (lqr) gets [-1, 1]. `terminated` means that the task ended
    with discount 0, `truncated` that time ran out.

    An episode is a function of (task, construction seed, reset seed, actions) alone: `reset(seed=s)` reseeds
    the task's only random state, and MuJoCo's reset clears the data, warm start included. Tasks that edit
    the model at reset (targets, terrain, gains) draw every edited number anew.

    Args:
        domain, task: dm_control's names, e.g. `("ball_in_cup", "catch")`.
        seed: seeds the construction (lqr draws its spring stiffness then).
        render_mode: `"rgb_array"` or None.
        render_size: height and width of a frame, pixels.

    Raises:
        SimulatorError: `render_mode` is set, but no OpenGL context can be made.
    """

    def __init__(
        self,
        domain: str,
        task: str,
        *,
        seed: int = 0,
        render_mode: str | None = None,
        render_size: tuple[int, int] = (480, 640),
    ) -> None:
        with without_gl():
            from dm_control import suite
            from dm_control.rl.control import PhysicsError
        self._physics_error = PhysicsError
        if render_mode is not None:
            enable_gl()
        with nullcontext() if render_mode is not None else _small_sky(suite.common.ASSETS):
            self._env = suite.load(domain, task, task_kwargs={"random": legacy_random_state(seed)})
        self._physics = self._env.physics
        self.render_mode = render_mode
        self._render_size = render_size
        self._camera_id: str | int = _CAMERA.get(domain, 0)
        if render_mode is None:
            # quadruped-escape opens an OpenGL context at every reset, to upload its terrain.
            self._physics._make_rendering_contexts = lambda: None
        else:
            frame = self._physics.model.vis.global_
            frame.offheight = max(frame.offheight, render_size[0])
            frame.offwidth = max(frame.offwidth, render_size[1])

        action_spec = self._env.action_spec()
        # Scaled to its nominal limits, an agent's 1 would be a force of 1e10.
        unlimited = np.maximum(np.abs(action_spec.minimum), np.abs(action_spec.maximum)) >= _UNLIMITED
        self.action_space = spaces.Box(
            np.where(unlimited, -1.0, action_spec.minimum).astype(np.float32),
            np.where(unlimited, 1.0, action_spec.maximum).astype(np.float32),
            dtype=np.float32,
        )
        # OrderedDict: spaces.Dict sorts the keys of a plain dict.
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            OrderedDict(
                (name, spaces.Box(-np.inf, np.inf, spec.shape, np.float32))
                for name, spec in self._env.observation_spec().items()
            )
        )
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / self._env.control_timestep()}
        self._episode_over = True

    @property
    def physics(self) -> Any:
        """dm_control's physics, to look at."""
        return self._physics

    @property
    def physics_timestep(self) -> float:
        """MuJoCo's timestep, s."""
        return float(self._physics.timestep())

    @property
    def control_timestep(self) -> float:
        """Time between two base steps, s."""
        return float(self._env.control_timestep())

    @property
    def max_episode_steps(self) -> int | None:
        """Base steps until dm_control ends the episode; None if it never does."""
        limit = self._env._step_limit
        return None if np.isinf(limit) else int(np.ceil(limit))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(_legacy_seed(seed))
        self._episode_over = False
        return self._observation(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._episode_over:
            # dm_control would silently start a new episode here.
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        try:
            time_step = self._env.step(action)
        except self._physics_error as error:
            raise SimulatorError(
                f"the simulation broke down: {' '.join(str(error).split())[:200]}"
            ) from error
        terminated = truncated = False
        if time_step.last():
            self._episode_over = True
            terminated = bool(time_step.discount == 0.0)
            truncated = not terminated
        return self._observation(time_step), float(time_step.reward), terminated, truncated, {}

    def render(self) -> np.ndarray:
        """The current frame, uint8 [H, W, 3]."""
        if self.render_mode is None:
            raise gymnasium.error.Error("make the environment with render_mode='rgb_array' to render")
        height, width = self._render_size
        return np.ascontiguousarray(self._physics.render(height, width, camera_id=self._camera_id))

    def close(self) -> None:
        """Frees the rendering context; may be called again."""
        if self._physics._contexts:
            self._physics._free_rendering_contexts()

    @staticmethod
    def _observation(time_step: Any) -> Observation:
        # Copies: some entries are views of MuJoCo's memory, which the next step overwrites.
        return {name: np.array(value, np.float32) for name, value in time_step.observation.items()}
