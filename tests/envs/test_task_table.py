import pytest

from envs import TASKS, UnknownTaskError, resolve_task, task_names


def test_table_is_what_dm_control_offers():
    from dm_control import suite

    table = {(task.domain, task.variant) for task in TASKS.values() if task.suite == "dmcontrol"}
    assert table == set(suite.ALL_TASKS)
    assert len(table) == 51


def test_table_is_what_gymnasium_offers():
    import gymnasium

    offered = {
        spec.id
        for spec in gymnasium.registry.values()
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco") and spec.version == 5
    }
    table = {task.domain for task in TASKS.values() if task.suite == "gymnasium"}
    assert table == offered
    assert len(table) == 11


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("cartpole-swingup", "cartpole-swingup"),
        ("cartpole-swingup_sparse", "cartpole-swingup-sparse"),
        ("cup-catch", "cup-catch"),
        ("ball_in_cup-catch", "cup-catch"),
        ("ball-in-cup-catch", "cup-catch"),
        ("pointmass-easy", "pointmass-easy"),
        ("point_mass-easy", "pointmass-easy"),
        ("finger_turn_hard", "finger-turn-hard"),
        ("humanoid_CMU-run", "humanoid-CMU-run"),
        ("humanoid-cmu-run", "humanoid-CMU-run"),
        ("lqr-lqr_2_1", "lqr-lqr-2-1"),
        ("ant-v5", "Ant-v5"),
    ],
)
def test_spellings(spelling, canonical):
    assert resolve_task(spelling) == canonical


def test_names_resolve_to_themselves():
    assert [resolve_task(name) for name in task_names()] == list(TASKS) == task_names()
    for task in TASKS.values():
        if task.variant:
            assert resolve_task(f"{task.domain}-{task.variant}") == task.name


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("cartpole-swing-up", "cartpole-swingup"),
        ("walker-wlak", "walker-walk"),
        ("HalfCheetah-v4", "HalfCheetah-v5"),
        ("ball_in_a_cup-catch", "cup-catch"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, nearest):
    with pytest.raises(UnknownTaskError) as caught:
        resolve_task(wrong)
    message = str(caught.value)
    assert message.startswith(f"unknown task '{wrong}': did you mean {nearest}")
    assert message.endswith("All 62 are listed by `python -m envs`; TDMPC_PRUNE_ENVS=MODULE adds your own.")
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


def test_unknown_name_far_from_all():
    with pytest.raises(UnknownTaskError, match=r"^unknown task 'zzz': All 62 are listed"):
        resolve_task("zzz")


def test_action_repeats():
    repeats = {task.name: task.action_repeat for task in TASKS.values()}
    assert repeats["cartpole-balance"] == repeats["cartpole-three-poles"] == 8
    for name in ("walker-run", "finger-spin", "dog-fetch", "humanoid-run", "humanoid-CMU-run"):
        assert repeats[name] == 2
    for name in ("cheetah-run", "cup-catch", "quadruped-escape", "lqr-lqr-6-2", "manipulator-bring-ball"):
        assert repeats[name] == 4
    assert repeats["Ant-v5"] == repeats["Reacher-v5"] == 1


def test_listing_command(python):
    assert python("import runpy; runpy.run_module('envs', run_name='__main__')").split() == task_names()
