"""OpenGL on demand: simulators are imported without it, and it is switched on when frames are asked for.

MuJoCo and dm_control choose an OpenGL library while they are imported, and fail there if it is missing.
Training draws nothing, so it must need none; and a process that trained may still make a video afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from envs.compat import SimulatorError

_VARIABLE = "MUJOCO_GL"
_NEED_NO_DISPLAY = ("egl", "osmesa")


@contextlib.contextmanager
def without_gl() -> Iterator[None]:
    """Inside it, importing mujoco or dm_control looks for no OpenGL library."""
    chosen = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "disable"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = chosen


def is_headless() -> bool:
    """Whether this is a Linux machine without a display."""
    return sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def enable_gl() -> None:
    """Makes rendering work in this process, also when the simulators were imported without OpenGL before.

    Sets `MUJOCO_GL=egl` on a headless Linux machine unless the variable is set already.

    Raises:
        SimulatorError: no OpenGL context can be made; says what to install.
    """
    if is_headless():
        os.environ.setdefault(_VARIABLE, "egl")
    with without_gl():
        mujoco = importlib.import_module("mujoco")
    backend = os.environ.get(_VARIABLE, "")
    try:
        if is_headless() and backend not in _NEED_NO_DISPLAY:
            # glfw only warns, and MuJoCo then aborts the process at the second try.
            raise RuntimeError("there is no display")
        # Both chose a backend when they were imported, by us or by somebody else; now they choose again.
        gl_context = importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
        _draw_nothing(mujoco, gl_context)
        if "dm_control._render" in sys.modules:
            importlib.reload(sys.modules["dm_control._render"])
    except Exception as error:  # PyOpenGL, glfw and MuJoCo each have their own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SimulatorError(
            f"cannot render with {_VARIABLE}={backend or 'unset'} ({reason}): run `apt-get install libegl1"
            f" libgl1 libegl-mesa0 libgl1-mesa-dri` and set {_VARIABLE}=egl, or go without video"
        ) from error


def _draw_nothing(mujoco: Any, gl_context: Any) -> None:
    """Opens and closes a context: a library that loads may still have no driver."""
    context = gl_context.GLContext(16, 16)
    try:
        context.make_current()
        mujoco.MjrContext(
            mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100
        ).free()
    finally:
        context.free()
