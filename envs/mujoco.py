"""Gymnasium's own MuJoCo environments, v5."""

from __future__ import annotations

from typing import Any

import gymnasium

from envs.gl import enable_gl, without_gl
from envs.wrappers import Env


def make_mujoco(
    env_id: str, *, render_mode: str | None = None, render_size: tuple[int, int] = (480, 640)
) -> Env:
    """A v5 environment with its own time limit and frame skip.

    Args:
        env_id: e.g. `"Ant-v5"`.
        render_mode: `"rgb_array"` or None.
        render_size: height and width of a frame, pixels.

    Raises:
        SimulatorError: `render_mode` is set, but no OpenGL context can be made.
    """
    kwargs: dict[str, Any] = {}
    if render_mode is not None:
        enable_gl()
        kwargs = {"render_mode": render_mode, "height": render_size[0], "width": render_size[1]}
    with without_gl():
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
