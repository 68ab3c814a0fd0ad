"""Equal commands make equal runs, and a run that was stopped, or killed, goes on as if it had not been."""

import itertools
import json
import shutil
from pkgutil import resolve_name

import numpy as np
import pytest
from safetensors.torch import load_file
from small_runs import (
    ARGUMENTS,
    CARTPOLE,
    PENDULUM,
    TRAINING,
    assert_same_run,
    checkpoints,
    rows,
    steady_rows,
)
from small_runs import train_small as run_small

from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.errors import Interrupted

TASKS = ["cartpole", "pendulum", "pruned"]


@pytest.mark.parametrize("task", TASKS)
def test_two_runs_of_the_same_command_are_equal(task, undisturbed, folder, no_plot):
    run_small(ARGUMENTS[task], folder)
    assert_same_run(folder, undisturbed[task].path)


def test_another_seed_is_another_run(undisturbed, folder, no_plot):
    run_small(PENDULUM, folder, "--seed", "2")
    assert steady_rows(folder) != steady_rows(undisturbed["pendulum"].path)


def test_the_reference_runs_are_worth_comparing(undisturbed):
    """They must learn, fill the ring, save moments, and terminate where that is said of them."""
    for observed in undisturbed.values():
        tensors = load_file(checkpoints(observed.path)[-1] / TRAINING)
        assert tensors["replay.priority"].std() > 0
        assert int(tensors["replay.cursor"]) < len(tensors["replay.priority"])  # began again at the front
        moments = [value for key, value in tensors.items() if key.endswith("exp_avg")]
        assert len(moments) > 20  # those of two optimisers
        assert all(value.abs().sum() > 0 for value in moments)
    terminated = {
        name: load_file(checkpoints(observed.path)[-1] / TRAINING)["replay.terminated"].sum()
        for name, observed in undisturbed.items()
    }
    assert terminated["cartpole"] == 0
    assert terminated["pendulum"] > 0
    assert undisturbed["pruned"].events.count("remove") == 3
    assert rows(undisturbed["pruned"].path)[-1]["prune/sparsity"] > 0.7


def check_number(events: list[str], before: str | None, after: str | None, which: int = 0) -> int:
    """The number (1-based) of the check between two kinds of steps; the `which`-th of them."""
    found, number = [], 0
    for i, event in enumerate(events):
        if event != "check":
            continue
        number += 1
        previous = next((e for e in reversed(events[:i]) if e != "check"), None)
        following = next((e for e in events[i + 1 :] if e != "check"), None)
        if (previous, following) == (before, after):
            found.append(number)
    assert found, f"no check between {before} and {after}"
    return found[which]


def check_after_step(events: list[str], agent_steps: int) -> int:
    """The number of the first check after so many agent steps."""
    collected = [i for i, event in enumerate(events) if event == "collect"]
    return events[: collected[agent_steps - 1]].count("check") + 1


MOMENTS = {
    "before anything": (None, "evaluate"),
    "first evaluation": ("evaluate", "evaluated", 4),
    "after the first evaluation": ("evaluated", "collect"),
    "random action to random action": ("collect", "collect", 1),
    "planned action to planned action": ("collect", "collect", -1),
    "episode over, updates pending": ("collect", "update"),
    "among the first updates": ("update", "update", 2),
    "among the last updates": ("update", "update", -1),
    "updated, episode not logged": ("update", "episode_row"),
    "logged, not evaluated": ("episode_row", "evaluate"),
    "second evaluation, first step": ("evaluate", "evaluated", "second"),
    "last evaluation, last step": ("evaluate", "evaluated", -1),
    "evaluated, not saved": ("evaluated", "save"),
    "just saved": ("save", "collect"),
    "all done": ("evaluated", "save", -1),
}


CARTPOLE_MOMENTS = [
    "first evaluation",
    "planned action to planned action",
    "among the first updates",
    "evaluated, not saved",
]


@pytest.mark.parametrize(
    ("task", "moment"),
    [*[("pendulum", moment) for moment in MOMENTS], *[("cartpole", moment) for moment in CARTPOLE_MOMENTS]],
)
def test_stopped_once(task, moment, undisturbed, folder, interrupt, no_plot):
    events = undisturbed[task].events
    before, after, *which = MOMENTS[moment]
    if which == ["second"]:
        second = [i for i, event in enumerate(events) if event == "evaluate"][1]
        number = events[:second].count("check") + 1
    else:
        number = check_number(events, before, after, *which)
    interrupt(number)
    with pytest.raises(Interrupted):
        run_small(ARGUMENTS[task], folder)
    assert len(rows(folder)) <= len(rows(undisturbed[task].path))
    interrupt(0)
    run_small(ARGUMENTS[task], folder)
    assert_same_run(folder, undisturbed[task].path)


@pytest.mark.parametrize("later", [-1, 0, 2, 4, 6])
@pytest.mark.parametrize("removal", [0, 2])
def test_stopped_around_a_removal(removal, later, undisturbed, folder, interrupt, no_plot):
    """Checks before, during (its two evaluations) and after units are removed."""
    events = undisturbed["pruned"].events
    begin = [i for i, event in enumerate(events) if event == "remove"][removal]
    interrupt(events[:begin].count("check") + 1 + later)
    with pytest.raises(Interrupted):
        run_small(ARGUMENTS["pruned"], folder)
    interrupt(0)
    run_small(ARGUMENTS["pruned"], folder)
    assert_same_run(folder, undisturbed["pruned"].path)


@pytest.mark.parametrize("agent_step", [29, 30])
def test_stopped_where_the_random_phase_ends_within_an_episode(
    agent_step, undisturbed, folder, interrupt, no_plot
):
    interrupt(check_after_step(undisturbed["cartpole"].events, agent_step))
    with pytest.raises(Interrupted):
        run_small(CARTPOLE, folder)
    stored = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    assert stored["progress"]["agent_step"] == agent_step
    assert stored["updates"] == 0  # none before the episode is over in which the random phase ends
    interrupt(0)
    run_small(CARTPOLE, folder)
    assert_same_run(folder, undisturbed["cartpole"].path)


@pytest.mark.parametrize(("task", "seed"), [("cartpole", 0), ("pendulum", 1), ("pruned", 2), ("pruned", 3)])
def test_stopped_again_and_again(task, seed, undisturbed, folder, interrupt, no_plot):
    rng = np.random.default_rng(seed)
    for sitting in itertools.count():  # an evaluation, which starts anew, takes less than 28 checks
        interrupt(int(rng.integers(28, 60)))
        try:
            run_small(ARGUMENTS[task], folder)
            break
        except Interrupted:
            assert sitting < 30, "no progress"
    assert sitting >= 3
    assert_same_run(folder, undisturbed[task].path)


def test_stopped_twice_at_the_same_moment(undisturbed, folder, interrupt, no_plot):
    interrupt(check_number(undisturbed["pendulum"].events, "collect", "collect", 3))
    with pytest.raises(Interrupted):
        run_small(PENDULUM, folder)
    for _ in range(2):
        interrupt(1)
        with pytest.raises(Interrupted):
            run_small(PENDULUM, folder)
    interrupt(0)
    run_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)
    assert len(checkpoints(folder)) == 2  # the newest and the one before it


def test_how_often_it_saves_changes_nothing(undisturbed, folder, interrupt, no_plot):
    interrupt(check_number(undisturbed["pendulum"].events, "collect", "collect", 5))
    with pytest.raises(Interrupted):
        run_small(PENDULUM, folder, "--checkpoint-every", "10")
    interrupt(0)
    run_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


class Killed(BaseException):
    """The process ends here."""


def killed(monkeypatch, target: str, call: int) -> None:
    """The `call`-th call (1-based) of `target` does not happen: the process is killed there."""
    place, _, name = target.rpartition(".")
    owner = resolve_name(place)
    real, count = getattr(owner, name), itertools.count(1)

    def dies(*arguments, **named):
        if next(count) == call:
            raise Killed(target)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, dies)


KILLS = {
    "before the folder has settings": ("tdmpc_prune.run_folder.write_json", 1),
    "before the first evaluation": ("tdmpc_prune.training.Training.evaluate", 1),
    "in the first episode": ("tdmpc_prune.training.Training.collect", 7),
    "before the first checkpoint": ("tdmpc_prune.training.Training.save", 1),
    "in the first checkpoint, without tensors": ("tdmpc_prune.checkpoint._save_tensors", 1),
    "in the first checkpoint, with half of them": ("tdmpc_prune.checkpoint._save_tensors", 2),
    "in the first checkpoint, without its JSON": ("tdmpc_prune.checkpoint.write_json", 1),
    "in the first checkpoint, not renamed": ("tdmpc_prune.checkpoint._sync", 1),
    "in the second checkpoint, with half of it": ("tdmpc_prune.checkpoint._save_tensors", 4),
    "after the second checkpoint, before the oldest goes": ("tdmpc_prune.checkpoint._sync", 4),
    "in an episode after a checkpoint": ("tdmpc_prune.training.Training.collect", 60),
    "before the last evaluation": ("tdmpc_prune.training.Training.evaluate", 3),
    "before the summary": ("tdmpc_prune.train.write_json", 1),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_once(moment, undisturbed, folder, monkeypatch, no_plot):
    with monkeypatch.context() as patch:
        killed(patch, *KILLS[moment])
        with pytest.raises(Killed):
            run_small(PENDULUM, folder)
    summary = run_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)
    assert summary["return"] == rows(folder)[-1]["eval/return"]
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
    }


def test_killed_before_the_picture_is_drawn(folder, monkeypatch):
    with monkeypatch.context() as patch:
        killed(patch, "tdmpc_prune.train.plot_run", 1)
        with pytest.raises(Killed):
            run_small(PENDULUM, folder)
    run_small(PENDULUM, folder)
    assert (folder / "plots" / "learning_curve.png").is_file()


def test_killed_in_the_middle_of_writing_the_settings(undisturbed, folder, no_plot):
    """All that such a kill leaves is half of config.json under its temporary name."""
    folder.mkdir()
    (folder / "config.json.partial").write_text('{\n  "config": {\n    "ta')
    run_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_leftovers_are_ignored_and_lines_after_the_checkpoint_cut(undisturbed, folder, interrupt, no_plot):
    interrupt(check_number(undisturbed["pendulum"].events, "collect", "collect", -1))
    with pytest.raises(Interrupted):
        run_small(PENDULUM, folder)
    interrupt(0)
    saved = checkpoints(folder)[-1]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"env_step": 99_999, "eval/return": 1.0}) + "\n" + '{"env_step": 100, "agent_')
    shutil.copytree(saved, folder / "checkpoints" / "partial")  # killed before it was renamed
    (folder / "checkpoints" / "partial" / "state.json").write_text('{"schema": 1, "ta')
    without_json = folder / "checkpoints" / "000099"
    shutil.copytree(saved, without_json)
    (without_json / "state.json").unlink()
    (without_json / "state.json.partial").write_text("{")
    (folder / "config.json.partial").write_text("{")
    (folder / "summary.json.partial").write_text("{")
    run_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_killed_before_the_first_checkpoint_starts_over(undisturbed, folder, monkeypatch, no_plot):
    with monkeypatch.context() as patch:
        killed(patch, "tdmpc_prune.training.Training.collect", 20)
        with pytest.raises(Killed):
            run_small(CARTPOLE, folder)
    assert len(rows(folder)) == 1
    assert not checkpoints(folder)
    run_small(CARTPOLE, folder)
    assert_same_run(folder, undisturbed["cartpole"].path)


def test_more_steps_continue_a_finished_run(folder, tmp_path, no_plot):
    """As if all had been asked for at once, where nothing is pruned: that is planned over all steps."""
    arguments = [*CARTPOLE, "--prune.criterion", "none"]
    short = run_small(arguments, folder, "--steps", "2000")
    assert short["env_step"] == 2000
    longer = run_small(arguments, folder)
    assert longer["env_step"] == 3000
    run_small(arguments, tmp_path / "at once")
    assert_same_run(folder, tmp_path / "at once")
    assert json.loads((folder / "summary.json").read_text()) == longer
    about = json.loads((folder / "config.json").read_text())
    assert about["config"]["steps"] == 3000
    (former,) = about["before"]
    assert (former["steps"], former["commit"]) == (2000, about["commit"])
    assert read_runs([folder])[0].settings["steps"] == 3000


@pytest.mark.parametrize("task", TASKS)
def test_loaded_and_saved_again_a_checkpoint_is_the_same(task, undisturbed, folder, interrupt, no_plot):
    shutil.copytree(undisturbed[task].path, folder)
    (folder / "summary.json").unlink()
    interrupt(1)
    with pytest.raises(Interrupted):
        run_small(ARGUMENTS[task], folder)
    assert checkpoints(folder)[-1].name > checkpoints(undisturbed[task].path)[-1].name
    assert_same_run(folder, undisturbed[task].path)
