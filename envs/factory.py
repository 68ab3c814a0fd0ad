"""Puts one environment together: the simulator and its wrappers. Imports Gymnasium."""

from __future__ import annotations

import warnings

import numpy as np
from gymnasium import spaces, wrappers

from envs.dmcontrol import DMControlEnv
from envs.mujoco import make_mujoco
from envs.registered import make_registered, step_seconds, time_limit
from envs.tasks import Task
from envs.wrappers import ActionRepeat, Checked, Env, SeedFirstReset, TaskInfo

_ENDLESS_EPISODE = 1000  # base steps granted where dm_control sets no limit (lqr), as in its other tasks


def build(
    task: Task, seed: int, *, action_repeat: int, render_mode: str | None, render_size: tuple[int, int]
) -> Env:
    """The environment that `envs.make_env` describes."""
    env: Env
    if task.suite == "dmcontrol":
        base = DMControlEnv(
            task.domain, task.variant, seed=seed, render_mode=render_mode, render_size=render_size
        )
        physics_timestep, base_timestep = base.physics_timestep, base.control_timestep
        max_episode_steps = base.max_episode_steps or _ENDLESS_EPISODE
        env = base
        if base.max_episode_steps is None:
            env = wrappers.TimeLimit(env, max_episode_steps)
    elif task.suite == "registered":
        env = make_registered(task.domain, render_mode=render_mode)
        physics_timestep = base_timestep = step_seconds(task.domain, env)
        max_episode_steps = time_limit(task.domain, env)
    else:
        env = make_mujoco(task.domain, render_mode=render_mode, render_size=render_size)
        physics_timestep = float(env.get_wrapper_attr("model").opt.timestep)
        base_timestep = float(env.get_wrapper_attr("dt"))
        max_episode_steps = time_limit(task.domain, env)

    env = ActionRepeat(env, action_repeat)
    env = wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    if isinstance(env.observation_space, spaces.Dict) or len(env.observation_space.shape or ()) != 1:
        env = wrappers.FlattenObservation(env)
    if env.observation_space.dtype != np.float32:
        with warnings.catch_warnings():  # of the lower precision, which is meant
            warnings.simplefilter("ignore")
            env = wrappers.DtypeObservation(env, np.float32)
    env = SeedFirstReset(Checked(env), seed)
    env = TaskInfo(
        env,
        task=task.name,
        physics_timestep=physics_timestep,
        control_timestep=base_timestep * action_repeat,
        max_episode_steps=max_episode_steps,
    )
    env.action_space.seed(seed)
    return env
