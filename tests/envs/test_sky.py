"""What is never drawn has no sky, and lacks nothing else."""

import numpy as np
import pytest
from dm_control import suite

from envs import make_env
from envs.dmcontrol import DMControlEnv, legacy_random_state

SKY = 6 * 800 * 800 * 3
"""Bytes of the suite's: a cube's six sides, RGB."""


@pytest.mark.parametrize(
    ("domain", "task"), [("cartpole", "swingup"), ("quadruped", "walk"), ("lqr", "lqr_2_1")]
)
def test_all_but_the_sky_is_the_suites(domain, task):
    whole = suite.load(domain, task, task_kwargs={"random": legacy_random_state(3)}).physics.model.ptr
    small = DMControlEnv(domain, task, seed=3).physics.model.ptr
    assert whole.ntexdata - small.ntexdata == SKY - 6 * 3
    names = [n for n in dir(whole) if n[0] != "_" and isinstance(getattr(whole, n), np.ndarray | int | bytes)]
    differ = {name for name in names if not np.array_equal(getattr(whole, name), getattr(small, name))}
    assert len(names) > 400
    assert differ <= {"ntexdata", "nbuffer", *("tex_data", "tex_adr", "tex_width", "tex_height")}


def test_the_suites_own_assets_stay():
    before = dict(suite.common.ASSETS)
    make_env("cartpole-swingup")
    assert before == suite.common.ASSETS
    with pytest.raises(ValueError, match="no_such_task"):
        DMControlEnv("cartpole", "no_such_task")
    assert before == suite.common.ASSETS


def test_what_is_drawn_has_a_sky(gl):
    env = DMControlEnv("cartpole", "swingup", render_mode="rgb_array")
    assert env.physics.model.ptr.ntexdata > SKY
    env.close()
