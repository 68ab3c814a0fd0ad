"""The wrappers that Gymnasium lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from envs.compat import SimulatorError

Env = gymnasium.Env[Any, np.ndarray]
Wrapper = gymnasium.Wrapper[Any, np.ndarray, Any, np.ndarray]


class ActionRepeat(Wrapper, RecordConstructorArgs):
    """Takes each action `action_repeat` times and sums the rewards; stops early where the episode ends.

    `info` is that of the last base step, with `info["env_steps"]`, the number of base steps really made.
    """

    def __init__(self, env: Env, action_repeat: int) -> None:
        """Raises ValueError if `action_repeat` is below 1."""
        if action_repeat < 1:
            raise ValueError(f"action_repeat must be at least 1, got {action_repeat}")
        RecordConstructorArgs.__init__(self, action_repeat=action_repeat)
        super().__init__(env)
        self.action_repeat = action_repeat
        if "render_fps" in env.metadata:
            # One frame for each action: a video at this rate plays in real time.
            self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / action_repeat}

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total, env_steps = 0.0, 0
        for _ in range(self.action_repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            env_steps += 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, "env_steps": env_steps}


class Checked(Wrapper, RecordConstructorArgs):
    """Says in one line what a simulator does that none should.

    Raises:
        SimulatorError: from `reset`, `step` and `render`: it raised something, or a number is not finite in float32,
            or a picture is none.
    """

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._steps = 0  # since the last reset, the agent's

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        with in_one_line("the simulator failed at a reset with"):
            observation, info = self.env.reset(seed=seed, options=options)
        _check_finite("an observation", observation, "at a reset")
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self._steps += 1
        place = f"in agent step {self._steps} of an episode"
        with in_one_line(f"the simulator failed {place} with"):
            observation, reward, terminated, truncated, info = self.env.step(action)
        _check_finite("an observation", observation, place)
        _check_finite("a reward", reward, place)
        return observation, reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        """A picture, uint8 [H, W, 3]."""
        with in_one_line("it cannot be drawn:"):
            picture = np.asarray(self.env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise SimulatorError(
                f"it cannot be drawn: render gave {picture.dtype} {list(picture.shape)}; uint8 [H, W, 3] is a picture"
            )
        return picture


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Says of an exception in one line, `what` first, what it was; raises SimulatorError."""
    try:
        yield
    except (
        SimulatorError,
        gymnasium.error.ResetNeeded,
        MemoryError,
    ):  # ours, a caller's mistake, and no fault of its own
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise SimulatorError(f"{what} {words[:200]}") from error


def _check_finite(name: str, numbers: Any, place: str) -> None:
    with np.errstate(over="ignore"):  # what is learned from is float32
        finite = np.isfinite(np.asarray(numbers, np.float32)).all()
    if not finite:
        raise SimulatorError(f"the simulator gave {name} that is not finite {place}")


class SeedFirstReset(Wrapper, RecordConstructorArgs):
    """Gives the first `reset()` a seed if the caller gave none; later resets go on from there."""

    def __init__(self, env: Env, seed: int) -> None:
        RecordConstructorArgs.__init__(self, seed=seed)
        super().__init__(env)
        self._seed: int | None = seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        seed = self._seed if seed is None else seed
        self._seed = None
        return self.env.reset(seed=seed, options=options)


class TaskInfo(Wrapper, RecordConstructorArgs):
    """Carries what a caller may ask of a task, for `env.get_wrapper_attr(name)`.

    Attributes:
        task: canonical task name.
        physics_timestep: MuJoCo's own timestep, s; of an environment of one's own its step.
        control_timestep: time between two actions of the agent, s: the deadline of a planner.
        max_episode_steps: length of an episode in base environment steps, before any action repeat.
    """

    def __init__(
        self,
        env: Env,
        *,
        task: str,
        physics_timestep: float,
        control_timestep: float,
        max_episode_steps: int,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            task=task,
            physics_timestep=physics_timestep,
            control_timestep=control_timestep,
            max_episode_steps=max_episode_steps,
        )
        super().__init__(env)
        self.task = task
        self.physics_timestep = physics_timestep
        self.control_timestep = control_timestep
        self.max_episode_steps = max_episode_steps
