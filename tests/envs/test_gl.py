import numpy as np
import pytest

from envs import make_env
from envs.gl import is_headless, without_gl

SIZE = (48, 64)


@pytest.mark.parametrize("name", ["cartpole-swingup", "dog-fetch", "quadruped-escape", "Ant-v5"])
def test_frames(name, gl):
    env = make_env(name, render_mode="rgb_array", render_size=SIZE)
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((*SIZE, 3), np.uint8)
    assert first.std() > 5  # something is in the picture
    kept = first.copy()
    for _ in range(10):
        env.step(np.ones(env.action_space.shape, np.float32))
    assert not np.array_equal(env.render(), first)
    np.testing.assert_array_equal(first, kept)
    env.close()
    env.close()


@pytest.mark.parametrize("name", ["cartpole-swingup", "Hopper-v5"])
def test_frames_larger_than_the_models_buffer(name, gl):
    env = make_env(name, render_mode="rgb_array", render_size=(600, 900))
    env.reset(seed=0)
    assert env.render().shape == (600, 900, 3)
    env.close()


@pytest.mark.parametrize("name", ["quadruped-escape", "cheetah-run", "Hopper-v5"])
def test_drawing_changes_nothing_in_the_simulation(name, gl):
    blind, seen = make_env(name), make_env(name, render_mode="rgb_array", render_size=SIZE)
    for seed in (1, 2):
        np.testing.assert_array_equal(seen.reset(seed=seed)[0], blind.reset(seed=seed)[0])
        for _ in range(4):
            action = blind.action_space.sample()
            seen.render()
            expected, got = blind.step(action), seen.step(action)
            np.testing.assert_array_equal(got[0], expected[0])
            assert got[1] == expected[1]
    seen.close()


TRAIN_THEN_DRAW = """
import os
from envs import make_env
for name in ("cartpole-swingup", "quadruped-escape", "Hopper-v5"):
    env = make_env(name)
    env.reset()
    env.step(env.action_space.sample())
print(os.environ.get("MUJOCO_GL"))
for name in ("cartpole-swingup", "quadruped-escape", "Hopper-v5"):
    env = make_env(name, render_mode="rgb_array", render_size=(48, 64))
    env.reset()
    print(env.render().shape)
    env.close()
"""


def test_draw_after_training_without_opengl(gl, python):
    lines = python(TRAIN_THEN_DRAW, MUJOCO_GL=None).splitlines()
    assert lines == ["None", *["(48, 64, 3)"] * 3]


@pytest.mark.skipif(not is_headless(), reason="with a display, glfw is right")
def test_draw_after_somebody_else_imported_the_simulators(gl, python):
    code = "import dm_control.suite, mujoco" + TRAIN_THEN_DRAW  # they pick glfw, display or not
    assert python(code, MUJOCO_GL=None).splitlines()[-3:] == ["(48, 64, 3)"] * 3


NO_OPENGL = """
import sys
class NoOpenGL:  # as on a machine without the libraries: PyOpenGL fails while it is imported
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "OpenGL":
            raise ImportError("Unable to load EGL library")
sys.meta_path.insert(0, NoOpenGL())
import envs
for name in ("cartpole-swingup", "quadruped-escape", "Hopper-v5"):
    env = envs.make_env(name)
    env.reset()
    env.step(env.action_space.sample())
for name in ("cartpole-swingup", "Hopper-v5"):
    try:
        envs.make_env(name, render_mode="rgb_array")
    except envs.SimulatorError as error:
        print(error)
print("OpenGL" in sys.modules)
"""


@pytest.mark.skipif(not is_headless(), reason="a display needs no EGL")
@pytest.mark.parametrize("variable", [None, "egl"])
def test_no_opengl_library(python, variable):
    *errors, imported = python(NO_OPENGL, MUJOCO_GL=variable).splitlines()
    assert len(errors) == 2  # one line each
    for error in errors:
        assert error.startswith("cannot render with MUJOCO_GL=egl (Unable to load EGL library)")
        assert "apt-get install libegl1" in error
    assert imported == "False"


@pytest.mark.skipif(not is_headless(), reason="there is a display")
def test_glfw_without_a_display(python):
    code = """
import envs
for _ in range(2):
    try:
        envs.make_env("cartpole-swingup", render_mode="rgb_array")
    except envs.SimulatorError as error:
        print(error)
"""
    lines = python(code, MUJOCO_GL="glfw").splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("cannot render with MUJOCO_GL=glfw (there is no display)")


@pytest.mark.parametrize("value", [None, "egl"])
def test_without_gl_restores_the_variable(monkeypatch, value):
    import os

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if value:
        monkeypatch.setenv("MUJOCO_GL", value)
    with without_gl():
        assert os.environ["MUJOCO_GL"] == "disable"
    assert os.environ.get("MUJOCO_GL") == value
