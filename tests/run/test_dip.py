import pytest

from tdmpc_prune.analysis.dip import course, dip, mean_between, mean_by_size, window

ROWS = [
    {"env_step": 0, "eval/return": 100.0},
    {"env_step": 10, "prune/event": 1, "prune/return_before": 900.0, "prune/return_after": 850.0},
    {"env_step": 15, "eval/return": 700.0},
    # A run evaluates before it removes.
    {"env_step": 20, "eval/return": 845.0},
    {"env_step": 20, "prune/event": 2, "prune/return_before": 860.0, "prune/return_after": 400.0},
    {"env_step": 25, "eval/return": 800.0},
    {"env_step": 30, "eval/return": 870.0},
]


def test_the_dip_by_hand():
    assert dip(ROWS) == {
        "lowest_return": 400.0,
        "largest_drop": 460.0,
        # Steps 10 to 30: 5 * (850 + 700 + 700 + 860 + 400 + 800 + 800 + 870) / 2 over 20.
        "window_return": 747.5,
        "window_return_by_size": None,  # it is not said
        "recovery_steps": 10,  # 95% of 870, the run's own best, is 826.5: at step 30
    }


def test_what_happens_between_two_evaluations_counts():
    """Evaluations at the steps of removals, and nowhere else: they never see what a removal did."""
    rows = []
    for event, step in enumerate((10, 20, 30), start=1):
        rows.append({"env_step": step, "eval/return": 800.0})
        measured = {"prune/return_before": 800.0, "prune/return_after": 0.0}
        rows.append({"env_step": step, "prune/event": event} | measured)
    rows.append({"env_step": 50, "eval/return": 800.0})
    # 0 to 800 twice: 400 on average. After the last one, 0 to 400 in the ten steps that count of twenty.
    assert dip(rows)["window_return"] == pytest.approx((400 + 400 + 200) / 3)


def test_the_course_of_a_return():
    assert course(ROWS) == [
        (0, 100.0),
        (10, 900.0),
        (10, 850.0),
        (15, 700.0),
        (20, 860.0),
        (20, 400.0),
        (25, 800.0),
        (30, 870.0),
    ]


@pytest.mark.parametrize(
    ("steps", "end", "until"),
    [((10, 20), 100, 30), ((10, 14, 20), 100, 25), ((10, 20), 25, 25), ((10,), 40, 40)],
)
def test_the_window_gives_the_last_removal_as_long_as_the_others(steps, end, until):
    rows = [{"env_step": step, "prune/event": i} for i, step in enumerate(steps)] + [{"env_step": end}]
    assert window(rows) == (10, until)


def test_sizes_weigh_alike_however_long_they_lasted():
    left = {10: 0.5, 20: 0.125}
    rows = [
        row | ({"prune/sparsity": 1 - left[row["env_step"]]} if "prune/event" in row else {}) for row in ROWS
    ]
    # One halving for 777.5, 850 to 700 and 700 to 860; two for 717.5, 400 to 800 and 800 to 870.
    assert mean_by_size(rows) == pytest.approx((777.5 + 2 * 717.5) / 3)
    assert dip(rows)["window_return_by_size"] == mean_by_size(rows)
    left[20] = 0.25  # a halving each, and ten steps each: as by time
    even = [
        row | ({"prune/sparsity": 1 - left[row["env_step"]]} if "prune/event" in row else {}) for row in ROWS
    ]
    assert mean_by_size(even) == pytest.approx(747.5)
    late = [row for row in even if row["env_step"] <= 20]  # nothing was seen after the last removal
    assert mean_by_size(late) == pytest.approx(777.5)


def test_the_mean_over_a_part():
    line = [(0, 0.0), (10, 100.0)]
    assert mean_between(line, 0, 10) == 50
    assert mean_between(line, 5, 10) == 75
    assert mean_between(line, 4, 6) == 50
    jump = [(0, 10.0), (5, 10.0), (5, 30.0), (10, 30.0)]
    assert mean_between(jump, 5, 10) == 30
    assert mean_between(jump, 0, 5) == 10
    assert mean_between(jump, 0, 10) == 20


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (5, 11), (5, 5)])
def test_no_mean_where_nothing_was_measured(first, last):
    assert mean_between([(0, 1.0), (10, 1.0)], first, last) is None
    assert mean_between([], first, last) is None


def test_recovery_to_a_dense_run():
    assert dip(ROWS, reference=840.0)["recovery_steps"] == 5  # 95% are 798
    assert dip(ROWS, reference=1000.0)["recovery_steps"] is None
    assert dip(ROWS, reference=400.0)["recovery_steps"] == 0  # right after the last removal


def test_recovery_to_a_negative_return():
    rows = [
        {"env_step": 10, "prune/event": 1, "prune/return_before": -5.0, "prune/return_after": -9.0},
        {"env_step": 20, "eval/return": -5.3},
        {"env_step": 30, "eval/return": -5.2},
    ]
    assert dip(rows, reference=-5.0)["recovery_steps"] == 20  # 5% below -5 is -5.25


@pytest.mark.parametrize(("order", "steps"), [("removal, evaluation", 0), ("evaluation, removal", None)])
def test_an_evaluation_at_the_last_step(order, steps):
    """It is of what is left where the removal came before it."""
    last = [{"env_step": 20, "prune/event": 1}, {"env_step": 20, "eval/return": 100.0}]
    rows = [{"env_step": 10, "eval/return": 50.0}, *(last if order.startswith("removal") else last[::-1])]
    assert dip(rows)["recovery_steps"] == steps


def test_without_removals_and_without_measurements():
    assert dip(ROWS[:1]) == {}
    bare = [{k: v for k, v in row.items() if "return_" not in k} for row in ROWS]
    assert dip(bare)["lowest_return"] is None
    assert dip(bare)["largest_drop"] is None
    assert dip(bare)["window_return"] is None  # evaluations alone do not see a dip
    assert dip(bare)["recovery_steps"] == 10
