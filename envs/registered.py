"""Environments of one's own: what is registered with Gymnasium, by an installed plugin or a module that is named.

A task is only ever an id. Which modules are imported is up to who runs the command, so that a stranger's checkpoint
imports nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence

from envs.compat import SimulatorError
from envs.gl import enable_gl, without_gl
from envs.tasks import VARIABLE
from envs.wrappers import Env, in_one_line

STEPS = 3
"""Steps after which two episodes of the same seed are to be alike."""

_seen_to_repeat: dict[str, EnvSpec] = {}


def is_registered(env_id: str) -> bool:
    """Whether Gymnasium knows this id, and it is none of the tasks that `envs.tasks` lists in another spelling.

    Raises:
        SimulatorError: a module of `TDMPC_PRUNE_ENVS` cannot be imported.
    """
    _import_modules()
    spec = gymnasium.registry.get(env_id)
    return spec is not None and not _made_by(spec).startswith(("envs.registration", "gymnasium.envs.mujoco"))


def _made_by(spec: EnvSpec) -> str:
    """The module of its maker."""
    maker = spec.entry_point
    return maker if isinstance(maker, str) else getattr(maker, "__module__", "")


def with_version(name: str) -> str | None:
    """The newest version of an environment of one's own, e.g. `MyRobot-v2` of `MyRobot`.

    Raises:
        SimulatorError: a module of `TDMPC_PRUNE_ENVS` cannot be imported.
    """
    _import_modules()
    versions = [
        (spec.version, env_id)
        for env_id, spec in gymnasium.registry.items()
        if env_id == f"{name}-v{spec.version}" and not _made_by(spec).startswith("gymnasium.")
    ]
    return max(versions)[1] if versions else None


def make_registered(env_id: str, *, render_mode: str | None = None) -> Env:
    """A registered environment, once it is known to suit, with actions in float32.

    Args:
        env_id: e.g. `"MyRobot-v0"`.
        render_mode: `"rgb_array"` or None.

    Raises:
        SimulatorError: it cannot be made, or does not suit: observations are boxes (or dictionaries of them), actions
            a bounded box [A], and it repeats itself by its seed.
    """
    kwargs: dict[str, Any] = {}
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
        with contextlib.suppress(SimulatorError):  # it may draw without OpenGL
            enable_gl()
    with in_one_line(f"{env_id} cannot be made:"), without_gl():
        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    try:
        if render_mode not in (None, *env.metadata.get("render_modes", ())):
            raise SimulatorError(f"{env_id} cannot be drawn: its metadata['render_modes'] lack {render_mode}")
        _check_spaces(env_id, env)
        _check_repeats(env_id, env)
    except SimulatorError:
        env.close()
        raise
    return _with_float32_actions(env)


def time_limit(env_id: str, env: Env) -> int:
    """Steps of an episode, at most.

    Raises:
        SimulatorError: it is registered without a limit.
    """
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if limit is None:
        raise SimulatorError(f"{env_id} has no time limit: register it with max_episode_steps")
    return limit


def step_seconds(env_id: str, env: Env) -> float:
    """Seconds between two steps: `dt` of the environment, else by `render_fps` of its metadata.

    Raises:
        SimulatorError: it says nothing of that.
    """
    fps = env.metadata.get("render_fps")
    seconds = getattr(env.unwrapped, "dt", 1 / fps if fps else None)
    if not isinstance(seconds, int | float | np.number) or not 0 < seconds < math.inf:
        raise SimulatorError(
            f"{env_id} does not say how long a step takes: give the environment an attribute dt, in seconds"
        )
    return float(seconds)


def _import_modules() -> None:
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        if name in sys.modules:
            continue
        if name.endswith(".py"):
            raise SimulatorError(
                f"{VARIABLE}={name} is a file: give the name of a module, {Path(name).stem}, and have its folder in "
                "PYTHONPATH, or stand in it"
            )
        if (here := os.getcwd()) not in sys.path:  # last: it hides nothing
            sys.path.append(here)
        with in_one_line(f"{VARIABLE}={name}: the module cannot be imported:"):
            importlib.import_module(name)


def _check_spaces(env_id: str, env: Env) -> None:
    observation, action = env.observation_space, env.action_space
    parts = list(observation.values()) if isinstance(observation, spaces.Dict) else [observation]
    if not all(isinstance(part, spaces.Box) for part in parts):
        raise SimulatorError(f"{env_id} has observations {observation}: only boxes of numbers can be read")
    if not (
        isinstance(action, spaces.Box)
        and action.is_bounded()
        and len(action.shape) == 1
        and np.issubdtype(action.dtype, np.floating)
    ):
        raise SimulatorError(
            f"{env_id} has actions {action}: only a bounded box of floats, with a shape (n,), can be acted on"
        )
    if not spaces.flatdim(observation) or not spaces.flatdim(action):
        raise SimulatorError(f"{env_id} has no observations or no actions: give each at least one number")
    if (action.low >= action.high).any():
        raise SimulatorError(f"{env_id} has actions {action}: let low be below high for each")


def _with_float32_actions(env: Env) -> Env:
    own = env.action_space
    assert isinstance(own, spaces.Box)
    if own.dtype == np.float32:
        return env
    low, high = own.low.astype(np.float32), own.high.astype(np.float32)

    def as_own(action: np.ndarray) -> np.ndarray:
        return np.clip(action, own.low, own.high, dtype=own.dtype)  # float32 of 0.1 is more than 0.1

    return wrappers.TransformAction(env, as_own, spaces.Box(low, high, dtype=np.float32))


def _check_repeats(env_id: str, env: Env) -> None:
    """Refuses an environment that begins two episodes of one seed otherwise; looks at each once in a process."""
    spec = gymnasium.registry[env_id]
    if _seen_to_repeat.get(env_id) is spec:
        return
    with in_one_line(f"{env_id} does not run:"):
        repeats = _repeats(env)
    if not repeats:
        raise SimulatorError(
            f"{env_id} does not repeat itself after reset(seed=0), so that no run could be resumed: begin its "
            "reset with super().reset(seed=seed), and draw from self.np_random alone"
        )
    _seen_to_repeat[env_id] = spec


def _repeats(env: Env) -> bool:
    assert isinstance(env.action_space, spaces.Box)
    middle = ((env.action_space.low + env.action_space.high) / 2).astype(env.action_space.dtype)
    episodes = []
    for _ in range(2):
        seen: list[Any] = [env.reset(seed=0)[0]]
        _check_numbers(env, seen[0])
        for _ in range(STEPS):
            observation, reward, terminated, truncated, _ = env.step(middle)
            _check_numbers(env, observation)
            if np.asarray(reward).ndim or not np.isfinite(float(reward)):
                raise ValueError(f"a reward is {reward}, and no number")
            seen += [observation, reward]
            if terminated or truncated:
                break
        episodes.append(seen)
    first, second = episodes
    return data_equivalence(first, second, exact=True)


def _check_numbers(env: Env, observation: Any) -> None:
    space = env.observation_space
    numbers = np.asarray(spaces.flatten(space, observation))
    if len(numbers) != spaces.flatdim(space):
        raise ValueError(f"an observation has {len(numbers)} numbers, its space {space}")
    if not np.isfinite(numbers).all():  # NaN would not even equal itself
        raise ValueError("an observation is not finite")
