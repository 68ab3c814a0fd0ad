def test_import_is_light(python):
    code = """
import sys, envs
envs.resolve_task("ball_in_cup-catch")
heavy = ("dm_control", "mujoco", "gymnasium", "torch", "numpy", "OpenGL", "glfw")
print([name for name in heavy if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_envs_knows_nothing_of_the_other_wings(python):
    code = """
import sys, envs
envs.make_env("cartpole-swingup")
envs.register_all()
print([name for name in ("torch", "agents", "tdmpc_prune") if name in sys.modules])
"""
    assert python(code).strip() == "[]"
