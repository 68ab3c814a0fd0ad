"""The numbers of a report, against analysis.statistics, analysis.dip and by hand."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from test_report_runs import only_section, write_run

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG
from envs import make_env
from tdmpc_prune import checkpoint
from tdmpc_prune.analysis.dip import dip
from tdmpc_prune.analysis.report.numbers import (
    heat_map,
    importance,
    learning_curve,
    pareto_front,
    removals,
    stands_for,
    trajectory,
)
from tdmpc_prune.analysis.report.results import results
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.report.timing import Timing, Timings, control_periods, time_runs
from tdmpc_prune.analysis.report.words import HELD, findings, interval, number, remarks, share
from tdmpc_prune.analysis.statistics import Estimate, bootstrap, ratio

CPU = torch.device("cpu")
NO_TIMES = Timings({}, "")
ENDS = [700.0, 800.0, 830.0, 900.0, 500.0]


@pytest.fixture
def section(tmp_path):
    """Five seeds pruned, two dense."""
    for seed, end in enumerate(ENDS, start=1):
        write_run(tmp_path / f"pruned-{seed}", (100.0 + seed, 600.0, end), seed=seed)
    for seed, end in ((1, 840.0), (2, 860.0)):
        write_run(tmp_path / f"dense-{seed}", (100.0, 800.0, end), seed=seed, criterion="none")
    return only_section(tmp_path)


def test_the_end_and_its_interval(section):
    dense, pruned = results(section, NO_TIMES)
    assert pruned.end == bootstrap([ENDS])
    assert pruned.end.value == pytest.approx(np.mean([700, 800, 830]))
    assert pruned.end.low < pruned.end.value < pruned.end.high
    assert dense.end == bootstrap([[840.0, 860.0]])
    assert pruned.share == ratio(ENDS, [840.0, 860.0])  # other seeds: both drawn apart
    assert pruned.share.value == pytest.approx(pruned.end.value / 850)
    assert dense.share is None
    assert (pruned.parameters, pruned.sparsity, pruned.macs) == (200, 0.8, 180)


def test_the_share_is_of_the_dense_runs_of_the_same_seeds(tmp_path):
    """Dense runs of other seeds count only where some seed has none."""
    for seed, end in ((1, 800.0), (2, 400.0)):
        write_run(tmp_path / f"dense-{seed}", (0.0, 0.0, end), seed=seed, criterion="none")
    write_run(tmp_path / "pruned", (0.0, 0.0, 400.0), seed=1)
    dense, pruned = results(only_section(tmp_path), NO_TIMES)
    assert dense.share is None
    assert pruned.share == Estimate(0.5, 0.5, 0.5)
    write_run(tmp_path / "second", (0.0, 0.0, 300.0), seed=2)
    # 400 of 800 and 300 of 400, seed by seed: drawn apart, 300 of 800 would be as likely.
    assert results(only_section(tmp_path), NO_TIMES)[1].share == Estimate(350 / 600, 0.5, 0.75)
    write_run(tmp_path / "other", (0.0, 0.0, 500.0), seed=3)
    assert results(only_section(tmp_path), NO_TIMES)[1].share.value == pytest.approx(400 / 600)


def test_what_happened_at_other_steps_is_not_averaged(tmp_path):
    """Where episodes end early removals fall together: the second of one run is the first of another."""
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", (100.0, 500.0, 800.0), seed=seed)
    [group] = only_section(tmp_path).groups
    assert [(r.env_step, r.before.low < r.before.high) for r in removals(group)] == [
        (800, False),
        (1800, False),
    ]
    assert len(learning_curve(group)) == 3
    rows = (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    kept = [row for row in rows if row.get("prune/event") != 1]
    (tmp_path / "2" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    [group] = only_section(tmp_path).groups
    assert [r.env_step for r in removals(group)] == [800, 1800]  # the first run's, and not 1,300
    shifted = [row | {"env_step": row["env_step"] + 100} for row in rows]
    (tmp_path / "2" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shifted))
    [group] = only_section(tmp_path).groups
    assert [r.env_step for r in removals(group)] == [850, 1850]  # an episode's end apart: the same removals
    assert [point.x for point in learning_curve(group)] == [50, 1050, 2050]


def rewrite(folder, change):
    """Another metrics.jsonl: of every row what `change` makes of it, without those it makes nothing of."""
    file = folder / "metrics.jsonl"
    rows = [change(json.loads(row)) for row in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def test_who_stands_for_a_group(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", (100.0, 500.0, 800.0), seed=seed)
    [group] = only_section(tmp_path).groups
    assert (stands_for(group, "removals"), stands_for(group, "trajectory")) == (None, None)
    rewrite(tmp_path / "2", lambda row: row if row.get("prune/event") != 1 else None)
    [group] = only_section(tmp_path).groups
    assert stands_for(group, "removals") == "1"
    assert len(trajectory(group)) == 3
    assert stands_for(group, "trajectory") is None
    rewrite(tmp_path / "2", lambda row: row if row["env_step"] != 1000 else None)
    [group] = only_section(tmp_path).groups
    assert stands_for(group, "trajectory") == "1"


def test_curves_of_runs_evaluated_at_other_steps_are_read_off(tmp_path):
    write_run(tmp_path / "1", (0.0, 100.0, 200.0, 300.0), seed=1)
    write_run(tmp_path / "2", (0.0, 200.0, 400.0), seed=2, steps=3000)
    rewrite(tmp_path / "2", lambda row: row | {"env_step": 3 * row["env_step"] // 2})  # at 0, 1,500 and 3,000
    [group] = only_section(tmp_path).groups
    curve = learning_curve(group)
    assert [point.x for point in curve] == [0, 1000, 2000, 3000]
    second = [0, 200 * 2 / 3, 200 + 200 / 3, 400]
    assert [p.y.value for p in curve] == pytest.approx(np.mean([[0, 100, 200, 300], second], axis=0))


def test_a_run_counts_in_a_curve_as_far_as_it_has_come(tmp_path):
    write_run(tmp_path / "1", (0.0, 100.0, 200.0, 300.0, 400.0), seed=1)
    write_run(tmp_path / "2", (0.0, 200.0, 400.0), seed=2, steps=4000, finished=False)
    rewrite(tmp_path / "2", lambda row: row | {"env_step": row["env_step"] * 3 // 4})  # at 0, 750 and 1,500
    [group] = only_section(tmp_path).groups
    values = [point.y.value for point in learning_curve(group)]
    assert values == pytest.approx([0, (100 + 200 + 200 / 3) / 2, 200, 300, 400])


def test_an_end_right_after_an_evaluation_keeps_seeds_together(tmp_path):
    """The last evaluation that is due waits for the end of an episode, and the run is over a little later."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f"{seed}", (0.0, 100.0, 200.0, 100.0 * seed), seed=seed)
    rewrite(
        tmp_path / "3", lambda row: row | {"env_step": 2900 if row["env_step"] == 2000 else row["env_step"]}
    )
    [group] = only_section(tmp_path).groups
    *_, last = learning_curve(group)
    assert last.y == bootstrap([[100.0, 200.0, 300.0]])


def test_an_evaluation_at_the_step_of_a_removal_was_before_it(tmp_path):
    """But for that of a removal in the end, which is of what is left."""
    write_run(tmp_path / "1", (100.0, 500.0, 800.0))
    moved = {800: {"env_step": 1000}, 1000: {"prune/sparsity": 0.0}, 1800: {"env_step": 2000}}
    rewrite(tmp_path / "1", lambda row: row | moved.get(row["env_step"], {}))
    [group] = only_section(tmp_path).groups
    assert [(point.x, point.y.value) for point in trajectory(group)] == [(0, 500), (0.8, 800)]


def test_the_sizes_of_a_dense_run_are_those_that_pruned_ones_begin_with(section):
    dense = results(section, NO_TIMES)[0]
    assert (dense.parameters, dense.sparsity, dense.macs) == (1000, 0, 900)


def test_an_unfinished_dense_run_of_other_sizes_has_none(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", criterion="none", agent={"latent_dim": 16}, finished=False)
    dense = results(only_section(tmp_path), NO_TIMES)[0]
    assert (dense.parameters, dense.macs) == (None, None)


def test_the_dip_is_that_of_analysis_dip(section):
    pruned = results(section, NO_TIMES)[1]
    runs = pruned.group.runs
    alone = [dip(run.rows, 850.0) for run in runs]
    assert pruned.worst == bootstrap([[found["lowest_return"] for found in alone]])
    assert pruned.window == bootstrap([[found["window_return"] for found in alone]])
    steps = [found["recovery_steps"] for found in alone]
    assert steps == [None, None, 200, 200, None]  # 95% of 850 are 807.5
    assert (pruned.recovery.value, pruned.recovered, pruned.removed) == (200, 2, 5)


def test_only_finished_runs_count_in_the_end(tmp_path):
    write_run(tmp_path / "a", (100.0, 500.0, 700.0), seed=1)
    write_run(tmp_path / "b", (100.0, 300.0), seed=2, steps=2000, finished=False)
    (result,) = results(only_section(tmp_path), NO_TIMES)
    assert result.end.value == 700
    assert result.to_json() | {"seeds": [1, 2], "finished": 1} == result.to_json()
    curve = learning_curve(result.group)
    assert [point.y.value for point in curve] == [100, 400, 700]


def test_while_none_is_finished_what_was_reached_counts(tmp_path):
    write_run(tmp_path / "a", (100.0, 300.0), steps=2000, finished=False)
    (result,) = results(only_section(tmp_path), NO_TIMES)
    assert result.end.value == 300
    section = only_section(tmp_path)
    assert remarks(section, [result])[0].endswith("counts as its end.")
    assert (
        "has come to 300 so far with 60% of the parameters." in findings(section, [result], NO_TIMES, {})[1]
    )


def test_a_run_without_an_evaluation(tmp_path):
    path = write_run(tmp_path / "a", finished=False)
    (path / "metrics.jsonl").write_text("")
    (result,) = results(only_section(tmp_path), NO_TIMES)
    assert (result.end, result.parameters, result.sparsity) == (None, None, 0.0)


def test_curves(section):
    group = section.groups[1]
    curve = learning_curve(group)
    assert [point.x for point in curve] == [0, 1000, 2000]
    assert [point.y for point in curve] == [
        bootstrap([[101.0, 102.0, 103.0, 104.0, 105.0]]),
        bootstrap([[600.0] * 5]),
        bootstrap([ENDS]),
    ]
    path = trajectory(group)
    assert [point.x for point in path] == pytest.approx([0, 0.4, 0.8])
    assert [point.y for point in path] == [point.y for point in curve]
    assert trajectory(section.groups[0]) == []
    first, second = removals(group)
    assert (first.env_step, second.env_step) == (800, 1800)
    assert first.before.value == 103
    assert first.after.value == 300
    assert second.after == bootstrap([[end / 2 for end in ENDS]])


def test_an_evaluation_long_before_the_first_removal_is_no_part_of_the_trajectory(tmp_path):
    path = write_run(tmp_path / "a")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"env_step": row["env_step"] + 1000} for row in rows]
    rows.insert(0, {"env_step": 0, "eval/return": 5.0, "prune/sparsity": 0.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    group = only_section(tmp_path).groups[0]
    assert [point.y.value for point in trajectory(group)] == [100, 500, 800]
    assert len(learning_curve(group)) == 4


def _score(path, rows):
    scored = [{"env_step": step, **{f"importance/{k}": v for k, v in row.items()}} for step, row in rows]
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in scored)


def test_importance_is_relative_and_a_mean_over_runs(tmp_path):
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2)
    nothing = {"fisher/x": 0.0, "fisher/y": 0.0}  # not warm yet
    _score(
        a, [(1, nothing), (2, {"fisher/x": 1.0, "fisher/y": 3.0}), (3, {"fisher/x": 2.0, "fisher/y": 2.0})]
    )
    _score(
        b, [(1, nothing), (2, {"fisher/x": 30.0, "fisher/y": 10.0}), (3, {"fisher/x": 9.0, "fisher/y": 1.0})]
    )
    group = only_section(tmp_path).groups[0]
    found = importance(group, "fisher")
    assert (found.names, found.steps, found.source) == (["x", "y"], [2, 3], "mean over 2 runs")
    np.testing.assert_allclose(found.values, [[1.0, 1.4], [1.0, 0.6]])
    assert importance(group, "gradient") is None


def test_runs_that_log_at_other_steps_are_not_averaged(tmp_path):
    a, b = write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2)
    _score(a, [(step, {"fisher/x": 1.0, "fisher/y": 3.0}) for step in (1, 2, 3)])
    _score(b, [(step, {"fisher/x": 3.0, "fisher/y": 1.0}) for step in (3, 4, 5, 6)])
    found = importance(only_section(tmp_path).groups[0], "fisher")
    assert (found.steps, found.source) == ([3, 4, 5, 6], "run b")
    np.testing.assert_allclose(found.values, [[1.5] * 4, [0.5] * 4])


def test_widths_over_time(tmp_path):
    write_run(tmp_path / "a")
    found = heat_map(only_section(tmp_path).groups[0], "prune/width/")
    assert found.names == ["encoder.0", "latent"]
    assert found.steps == [0, 800, 1000, 1800, 2000]
    np.testing.assert_array_equal(found.values, [[16, 10, 10, 3, 3], [8, 5, 5, 2, 2]])


def test_pareto_front():
    points = [(100, 800), (10, 700), (10, 650), (50, 700), (5, 100), (200, 800), (70, 750)]
    assert pareto_front(points) == [4, 1, 6, 0]
    assert pareto_front([(1, 1), (1, 1)]) == [0, 1]  # neither beats the other
    assert pareto_front([]) == []


def test_an_error_is_the_better_the_lower(tmp_path):
    write_run(tmp_path / "a", (0.3, 0.1, 0.04), task="autoencoder", seed=1)
    write_run(tmp_path / "b", (0.3, 0.1, 0.02), task="autoencoder", criterion="none", seed=1)
    write_run(tmp_path / "c", (0.3, 0.1, 0.08), task="autoencoder", sparsity=0.9, seed=1)
    section = only_section(tmp_path)
    found = results(section, NO_TIMES)
    assert [result.end.value for result in found] == [0.02, 0.04, 0.08]
    assert found[1].share.value == pytest.approx(2)
    assert found[1].worst.value == pytest.approx(0.2)  # right after the first removal
    # From step 800: 0.2 to 0.1 in 200 steps, 0.1 for 800, and 0.08 to 0.04 in the 200 until the end.
    assert found[1].window.value == pytest.approx((200 * 0.15 + 800 * 0.1 + 200 * 0.06) / 1200)
    assert found[1].recovery is None
    said = findings(section, found, NO_TIMES, {})
    assert said[2].startswith("The best pruned group, taylor uniform 80%, ends at 0.04, 2 times the unpruned")
    assert said[3] == "The highest error right after a removal: 0.2 (taylor uniform 80%)."


def test_no_share_of_a_negative_return(tmp_path):
    write_run(tmp_path / "a", (-9.0, -8.0, -10.0), task="Reacher-v5")
    write_run(tmp_path / "b", (-9.0, -8.0, -5.0), task="Reacher-v5", criterion="none")
    assert [result.share for result in results(only_section(tmp_path), NO_TIMES)] == [None, None]


# Milliseconds


def test_logged_times(tmp_path):
    write_run(tmp_path / "a", seed=1, plan_ms=4.0)
    write_run(tmp_path / "b", seed=2, plan_ms=6.0)
    write_run(tmp_path / "c", (0.3, 0.2, 0.1), task="autoencoder")
    runs = read_runs([tmp_path])
    timings = time_runs(runs, "logged", CPU)
    assert {path.name: time for path, time in timings.of.items()} == {
        "a": Timing(4.0, None),
        "b": Timing(6.0, None),
    }
    assert "logged" in timings.how
    assert time_runs(runs, "none", CPU).of == {}


def test_measured_times_are_those_of_the_newest_checkpoint(tmp_path):
    agent = TDMPC(DEBUG, obs_dim=5, action_dim=1)
    state = {
        "task": "cartpole-swingup",
        "seed": 1,
        "action_repeat": 8,
        "obs_dim": 5,
        "action_dim": 1,
        "architecture": agent.model.architecture(),
        "agent": asdict(DEBUG),
        "pruner": None,
        "progress": {"agent_step": 100, "env_step": 800},
    }
    stored = write_run(tmp_path / "stored", seed=1)
    networks = {"online": agent.model, "target": agent.target}
    checkpoint.save(stored / "checkpoints", networks=networks, training={}, state=state)
    write_run(tmp_path / "bare", seed=2)
    timings = time_runs(read_runs([tmp_path]), "measured", CPU)
    assert list(timings.of) == [stored]
    assert 0 < timings.of[stored].median <= timings.of[stored].p99 < 10_000
    assert timings.lacking == [
        f"bare was not timed: {tmp_path / 'bare'} is no run folder with a checkpoint: "
        "give the folder that `train` wrote"
    ]
    (result,) = results(only_section(tmp_path), timings)
    assert (result.ms, result.p99) == (timings.of[stored].median, timings.of[stored].p99)


def test_the_deadline_is_the_control_period(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", action_repeat=2)
    write_run(tmp_path / "c", (0.3, 0.2, 0.1), task="autoencoder")
    write_run(tmp_path / "d", task="of another version")
    periods = control_periods(read_runs([tmp_path]))
    env = make_env("cartpole-swingup")
    assert {path.name: ms for path, ms in periods.items()} == {
        "a": pytest.approx(1e3 * env.get_wrapper_attr("control_timestep")),
        "b": pytest.approx(20),
    }
    env.close()


# Words


def test_findings(section):
    found = results(section, Timings({run.path: Timing(5.0 - run.dense, 7.0) for run in section.runs}, ""))
    assert findings(section, found, Timings({}, ""), {run.path: 80.0 for run in section.runs}) == [
        "7 runs of cartpole-swingup in 2 groups, seeds 1 to 5.",
        "Unpruned (dense), the return ends at 850 [840, 860] with 1,000 parameters.",
        f"The pruned group, taylor uniform 80%, ends at {interval(found[1].end)}, 91.4% of the unpruned return, "
        "with 20% of the parameters.",
        "The lowest return right after a removal: 250 (taylor uniform 80%).",  # of seed 5; 300 is the mean
        "A control step takes 4 ms (dense) to 5 ms (taylor uniform 80%); the control period is 80 ms.",
    ]


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        (800.0, "The most pruned group that keeps 95% of the unpruned return is taylor uniform 80%: "),
        (700.0, "The most pruned group that keeps 95% of the unpruned return is taylor uniform 90%: "),
        (2000.0, "No pruned group keeps 95% of the unpruned return."),
    ],
)
def test_the_most_pruned_group_that_keeps_the_return(tmp_path, dense, said):
    write_run(tmp_path / "dense", (0.0, 0.0, dense), criterion="none")
    for sparsity, end in ((0.5, 810.0), (0.8, 790.0), (0.9, 700.0)):
        write_run(tmp_path / str(sparsity), (0.0, 0.0, end), sparsity=sparsity)
    section = only_section(tmp_path)
    assert any(line.startswith(said) for line in findings(section, results(section, NO_TIMES), NO_TIMES, {}))


def test_remarks(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=1)
    write_run(tmp_path / "c", seed=2, finished=False)
    write_run(tmp_path / "d", criterion="none")
    section = only_section(tmp_path)
    assert remarks(section, results(section, NO_TIMES)) == [
        "taylor uniform 80%: unfinished: c. What such a run has reached so far does not count as an end.",
        "taylor uniform 80%: more than one run with seed 1; each counts as one more seed.",
        "One seed, and so no interval: dense.",
        "Intervals of few seeds hold what many would tell less often than 95 times in 100: of 2 seeds half the time "
        "(it is their range).",
    ]


def test_unfinished_runs_are_no_second_ends_of_a_seed(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=1, finished=False)
    section = only_section(tmp_path)
    assert not any("each counts" in said for said in remarks(section, results(section, NO_TIMES)))


@pytest.mark.parametrize("seeds", HELD)
def test_how_often_intervals_of_few_seeds_hold(seeds):
    generator = np.random.default_rng(0)
    found = [bootstrap([generator.normal(size=seeds)]) for _ in range(300)]
    times = np.mean([one.low <= 0 <= one.high for one in found])
    said = {"half the time": 0.5, "three times in four": 0.75, "nine times in ten": 0.9}
    assert times == pytest.approx(said[HELD[seeds].split(" (")[0]], abs=0.07)


def test_numbers_as_people_read_them():
    assert [number(value) for value in (None, 12345.6, 99.94, 3.21, 0.005126, 0)] == [
        *("\N{EN DASH}", "12,346", "99.9", "3.21", "0.00513", "0"),
    ]
    assert [share(value) for value in (None, 0.9, 0.97512)] == ["\N{EN DASH}", "90%", "97.5%"]
    assert interval(Estimate(857.2, 850, 866)) == "857 [850, 866]"
    assert interval(Estimate(857.2, 857.2, 857.2), 1) == "857"


def test_what_did_not_finish_hides_nothing_of_what_did(tmp_path):
    """A mean over the steps that all runs have would end where the interrupted one does."""
    write_run(tmp_path / "a", seed=1)
    alone = heat_map(only_section(tmp_path).groups[0], "prune/width/")
    write_run(tmp_path / "b", (100.0, 500.0), seed=2, finished=False, steps=2000)
    found = heat_map(only_section(tmp_path).groups[0], "prune/width/")
    assert found.steps == alone.steps
    np.testing.assert_array_equal(found.values, alone.values)


def test_what_calibrating_took_is_told(tmp_path):
    for seed, measured in ((1, (37, 1)), (2, (37, 37))):
        folder = write_run(
            tmp_path / str(seed), seed=seed, prune__allocation="calibrated", prune__calibration_episodes=3
        )
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "prune/event" in row:
                row["prune/calibration_measurements"] = measured[int(row["prune/event"]) - 1]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = only_section(tmp_path)
    said = "taylor calibrated 80%: 114, 222 episodes more went into calibration, run by run."
    assert said in remarks(section, results(section, NO_TIMES))


def test_a_dense_run_of_another_length_is_told_of(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", (100.0, 500.0, 800.0, 900.0), seed=1, criterion="none")
    section = only_section(tmp_path)
    said = "taylor uniform 80%: trained for 2,000 steps, the unpruned runs it is compared with for 3,000."
    assert said in remarks(section, results(section, NO_TIMES))
