"""Simulators behind Gymnasium: DMControl, MuJoCo v5 and your own, with flat observations and actions in [-1, 1].

Importing this package imports neither Gymnasium nor a simulator; `make_env` does.

    env = make_env("cartpole-swingup", seed=1)
    observation, info = env.reset(seed=7)
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from envs.compat import SimulatorError, check_simulators
from envs.tasks import TASKS, Task, UnknownTaskError, find_task, resolve_task, task_names

if TYPE_CHECKING:
    import gymnasium
    import numpy as np

__all__ = [
    "TASKS",
    "SimulatorError",
    "Task",
    "UnknownTaskError",
    "check_simulators",
    "find_task",
    "make_env",
    "register_all",
    "resolve_task",
    "task_names",
]


def make_env(
    task: str,
    seed: int = 0,
    *,
    action_repeat: int | None = None,
    render_mode: str | None = None,
    render_size: tuple[int, int] = (480, 640),
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Makes the environment of a task.

    Observations are float32 [n]: dm_control's observation dict in its own order, each entry raveled, a
    scalar as one number; Gymnasium's as they are. Actions are float32 [m] in [-1, 1], scaled to the
    actuators' limits. An action is repeated, and the rewards of the base steps summed, until the episode
    ends; `info["env_steps"]` says how many base steps were made. `terminated` means that the task itself
    ended, `truncated` that time ran out.

    `reset(seed=s)` makes the episode a deterministic function of (task, seed, s), whatever happened before
    on the object; a first `reset()` without a seed takes `seed`, and later ones go on from there.

    `env.get_wrapper_attr(name)` knows `task`, `action_repeat`, `physics_timestep` (s), `control_timestep`
    (s, between two actions of the agent) and `max_episode_steps` (base steps).

    Args:
        task: a name of `task_names()`, or dm_control's own spelling of it, or the id of an environment of one's own
            (see `envs.registered`).
        seed: non-negative; seeds the construction (lqr draws its springs then), the first reset, and
            `action_space.sample()`.
        action_repeat: base steps for each action; None takes the task's own: DMControl 8 (cartpole),
            2 (walker, finger, dog, humanoid, humanoid_CMU) or 4; Gymnasium 1.
        render_mode: `"rgb_array"` makes `render()` return uint8 [H, W, 3]; None needs no OpenGL.
        render_size: height and width of a frame, pixels; an environment of one's own draws as it likes.

    Raises:
        UnknownTaskError: no task has this name.
        ValueError: `action_repeat` is below 1, `seed` below 0, or `render_mode` is another one.
        SimulatorError: a simulator is missing or broken, rendering is asked for and impossible, or an environment of
            one's own does not suit.
    """
    entry = find_task(task)
    repeat = entry.action_repeat if action_repeat is None else operator.index(action_repeat)
    if repeat < 1:
        raise ValueError(f"action_repeat must be at least 1, got {repeat}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
    check_simulators()
    from envs.factory import build

    return build(entry, seed, action_repeat=repeat, render_mode=render_mode, render_size=render_size)


def register_all() -> None:
    """Registers every task with Gymnasium, e.g. as `tdmpc_prune/cartpole-swingup-v0`; may be called again."""
    from envs import registration

    registration.register_all()
