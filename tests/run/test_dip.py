from tdmpc_prune.analysis.dip import dip

ROWS = [
    {"env_step": 0, "eval/return": 100.0},
    {"env_step": 10, "prune/event": 1, "prune/return_before": 900.0, "prune/return_after": 850.0},
    {"env_step": 15, "eval/return": 700.0},
    {"env_step": 20, "prune/event": 2, "prune/return_before": 860.0, "prune/return_after": 400.0},
    {"env_step": 20, "eval/return": 500.0},
    {"env_step": 25, "eval/return": 800.0},
    {"env_step": 30, "eval/return": 870.0},
]


def test_the_dip_by_hand():
    assert dip(ROWS) == {
        "lowest_return": 400.0,
        "largest_drop": 460.0,
        "window_return": 600.0,  # (700 + 500) / 2: between the first and the last removal
        "recovery_steps": 10,  # 95% of 870, the run's own best, is 826.5: at step 30
    }


def test_recovery_to_a_dense_run():
    assert dip(ROWS, reference=840.0)["recovery_steps"] == 5  # 95% are 798
    assert dip(ROWS, reference=1000.0)["recovery_steps"] is None
    assert dip(ROWS, reference=400.0)["recovery_steps"] == 0  # right after the last removal


def test_without_removals_and_without_measurements():
    assert dip(ROWS[:1]) == {}
    bare = [{k: v for k, v in row.items() if "return_" not in k} for row in ROWS]
    assert dip(bare)["lowest_return"] is None
    assert dip(bare)["largest_drop"] is None
    assert dip(bare)["recovery_steps"] == 10
