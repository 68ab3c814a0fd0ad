"""Runs that lose units on the way: equal when repeated, when stopped around a removal, and when stored."""

import itertools
import json

import pytest
from safetensors.torch import load_file
from small_runs import MODEL, PENDULUM, assert_same_run, checkpoints, rows, steady_rows, train_small

from tdmpc_prune.checkpoint import load_agent
from tdmpc_prune.cli import main
from tdmpc_prune.device import choose_device
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.logger import Logger
from tdmpc_prune.pruning.pruner import LOGGED_CRITERIA, Pruner
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.training import Training

PRUNING = [
    *PENDULUM,
    *("--prune.importance.warmup", "20", "--prune.sparsity", "0.7", "--prune.events", "4"),
    *("--prune.eval-episodes", "1", "--prune.calibration-episodes", "1"),
    *("--agent.planner.iterations", "1", "--agent.planner.num-samples", "8", "--agent.horizon", "2"),
]
RUNS = {
    "bayesian, global": [*PRUNING, "--prune.criterion", "bayesian", "--prune.allocation", "global"],
    "taylor, calibrated": [*PRUNING, "--prune.allocation", "calibrated", "--prune.calibrations", "1"],
    "taylor, surgeon": [*PRUNING, "--prune.selection", "surgeon", "--prune.allocation", "global"],
    "taylor, recovering": [*PRUNING, "--prune.recovery", "3"],
    "random, calibrated": [*PRUNING, "--prune.criterion", "random", "--prune.allocation", "calibrated"],
}
TWELVE = [
    *("encoder.0", "dynamics.0", "dynamics.2", "reward.0", "reward.2", "policy.0", "policy.2"),
    *("q1.0", "q1.3", "q2.0", "q2.3", "latent"),
]


def label_checks(patch):
    """From now on, notes of every check for signals where in a run it is."""
    labels, place = [], ["elsewhere"]

    def within(owner, name, during, then=None):
        method = getattr(owner, name)

        def wrapper(*arguments):
            outside, place[0] = place[0], during
            result = method(*arguments)
            place[0] = then or outside
            return result

        patch.setattr(owner, name, wrapper)

    within(Training, "remove", "evaluation before", then="removed")
    within(Pruner, "calibrate", "calibration")
    within(Training, "removal_row", "evaluation after", then="elsewhere")
    patch.setattr(StopSignals, "check", lambda self: labels.append(place[0]))
    return labels


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Each of the runs without interruption, and where its checks are."""
    runs = {}
    for name, arguments in RUNS.items():
        path = tmp_path_factory.mktemp("pruned") / "run"
        with pytest.MonkeyPatch.context() as patch:
            labels = label_checks(patch)
            train_small(arguments, path)
        runs[name] = (path, labels)
    return runs


def event_rows(folder):
    return [row for row in rows(folder) if "prune/event" in row]


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_are_worth_comparing(name, whole):
    path, labels = whole[name]
    events = event_rows(path)
    assert events[-1]["prune/event"] == 4
    assert len(events) >= 3
    assert all(row["prune/sparsity"] <= row["prune/scheduled"] <= 0.7 for row in events)
    assert events[-1]["prune/sparsity"] > 0.68
    assert all({"prune/return_before", "prune/return_after"} <= row.keys() for row in events)
    # Before the effect is measured, recovery: updates at which a run can be stopped, too.
    assert labels.count("removed") == len(events) * (4 if "recovering" in name else 1)
    measured = [row["prune/calibration_measurements"] for row in events]
    stored = json.loads((checkpoints(path)[-1] / "state.json").read_text())
    assert stored["progress"]["calibration_episodes"] == sum(measured)
    if "calibrated" in name:
        assert set(measured) <= {1, 37}  # the whole; with three shares of twelve groups
        assert measured[0] == 37
        assert measured.count(37) >= (3 if "random" in name else 1)
    else:
        assert sum(measured) == 0 == labels.count("calibration")
    if "bayesian" in name:
        assert sum(row["prune/postponed_units"] for row in events) > 0


def test_recovery_comes_before_the_agent_acts_again(whole):
    """As many updates more than agent steps as were asked for."""
    path, _ = whole["taylor, recovering"]
    first, *_ = events = event_rows(path)
    assert [r["update"] - r["agent_step"] for r in events] == [3 * n for n in range(1, len(events) + 1)]
    plain = event_rows(whole["taylor, surgeon"][0])[0]
    assert (first["env_step"], first["prune/return_before"]) == (
        plain["env_step"],
        plain["prune/return_before"],
    )
    assert plain["update"] == plain["agent_step"] == first["update"] - 3
    assert rows(path)[-1]["update"] == rows(path)[-1]["agent_step"] + 3 * len(events)


def test_no_recovery_where_nothing_goes(folder, no_plot):
    """Twelve removals of a few units in all: some find none that may go."""
    arguments = [*RUNS["taylor, recovering"], "--prune.sparsity", "0.02", "--prune.events", "12"]
    train_small(arguments, folder)
    events = event_rows(folder)
    idle = [row["prune/removed_units"] == 0 for row in events]
    assert any(idle)
    assert not all(idle)
    assert events[-1]["update"] - events[-1]["agent_step"] == 3 * idle.count(False)


def test_removals_against_the_guard_are_said(monkeypatch):
    said = []
    log = object.__new__(Logger)
    monkeypatch.setattr(log, "say", said.append, raising=False)
    row = {"env_step": 9, "prune/removed_units": 5, "prune/params": 7, "prune/sparsity": 0.5}
    for against in (0, 2):
        log.removal(row | {"prune/against_guard": against})
    plain, forced = said
    assert forced == plain + "   2 of them against the guard"


def test_calibration_and_evaluation_share_no_episode(tmp_path, monkeypatch):
    run, seen = Evaluator.run, []

    def spied(self, *arguments, episodes=None, skip=0, check):
        seen.append(range(skip, skip + (episodes or self.episodes)))
        return run(self, *arguments, episodes=episodes, skip=skip, check=check)

    monkeypatch.setattr(Evaluator, "run", spied)
    # More episodes than an evaluation has, before and after a removal, too: as many are run, and counted.
    more = ("--prune.calibration-episodes", "4", "--prune.eval-episodes", "3")
    summary = train_small(RUNS["taylor, calibrated"], tmp_path / "run", *more)
    evaluation, removal, calibration = range(2), range(3), range(3, 7)
    assert set(seen) == {evaluation, removal, calibration}
    measured = sum(row["prune/calibration_measurements"] for row in event_rows(tmp_path / "run"))
    assert seen.count(calibration) == measured >= 37
    stored = json.loads((checkpoints(tmp_path / "run")[-1] / "state.json").read_text())
    assert stored["progress"]["calibration_episodes"] == summary["calibration_episodes"] == 4 * measured


@pytest.mark.parametrize("name", ["bayesian, global", "random, calibrated"])
def test_equal_commands_lose_equal_units(name, whole, folder, no_plot):
    train_small(RUNS[name], folder)
    assert_same_run(folder, whole[name][0])


# Where, and which of the checks there: from 0, the first, to 1, the last.
STOPS = [
    *(("bayesian, global", place, 0) for place in ("evaluation before", "removed", "evaluation after")),
    *(("bayesian, global", place, 1) for place in ("evaluation before", "removed", "evaluation after")),
    *(("taylor, calibrated", "calibration", share) for share in (0, 0.5)),
    ("random, calibrated", "calibration", 0.8),
    *(("taylor, recovering", "removed", share) for share in (0.1, 0.2, 1)),
]


@pytest.mark.parametrize(("name", "place", "share"), STOPS)
def test_stopped_around_a_removal(name, place, share, whole, folder, interrupt, no_plot):
    path, labels = whole[name]
    found = [number for number, label in enumerate(labels, 1) if label == place]
    interrupt(found[round(share * (len(found) - 1))])
    with pytest.raises(Interrupted):
        train_small(RUNS[name], folder)
    stored = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    assert bool(stored["event_row"]) == (place in ("removed", "evaluation after"))
    assert len(event_rows(folder)) < len(event_rows(path))
    interrupt(0)
    train_small(RUNS[name], folder)
    assert_same_run(folder, path)


@pytest.mark.parametrize("name", ["bayesian, global", "random, calibrated"])
def test_stopped_in_every_event(name, whole, folder, interrupt, no_plot):
    """In each of them before, in the calibration or after it, one sitting after the other."""
    path, _ = whole[name]
    places = itertools.cycle(["removed", "calibration", "evaluation after", "evaluation before"])
    sittings = 0
    for _ in event_rows(path):
        place = next(places)
        with pytest.MonkeyPatch.context() as patch:
            seen = label_checks(patch)

            def check(self, note=StopSignals.check, seen=seen, place=place):
                note(self)
                if seen[-1] == place and seen.count(place) == 3 - 2 * (place == "removed"):
                    raise Interrupted("SIGTERM")

            patch.setattr(StopSignals, "check", check)
            try:
                train_small(RUNS[name], folder)
                break
            except Interrupted:
                sittings += 1
    interrupt(0)
    train_small(RUNS[name], folder)
    assert sittings >= 1
    assert_same_run(folder, path)


class Killed(BaseException):
    """The process ends here."""


def test_killed_after_a_removal(whole, folder, monkeypatch, no_plot):
    """What was not saved is done again from the checkpoint before: the same units go."""
    name = "bayesian, global"
    with monkeypatch.context() as patch:
        real = Training.removal_row

        def dies(self, *arguments):
            if self.pruner.events >= 2:
                raise Killed
            return real(self, *arguments)

        patch.setattr(Training, "removal_row", dies)
        with pytest.raises(Killed):
            train_small([*RUNS[name], "--checkpoint-every", "10"], folder)
    assert checkpoints(folder)
    train_small(RUNS[name], folder)
    assert_same_run(folder, whole[name][0])


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_rebuilds_at_its_own_widths(name, whole, capsys):
    path, _ = whole[name]
    last = rows(path)[-1]
    agent = load_agent(path, choose_device("cpu")).agent
    width = {group: last[f"prune/width/{group}"] for group in TWELVE}
    latent = width["latent"]
    assert (
        agent.model.architecture()
        == agent.target.architecture()
        == {
            "encoder": [4, width["encoder.0"], latent],
            "dynamics": [latent + 1, width["dynamics.0"], width["dynamics.2"], latent],
            "reward": [latent + 1, width["reward.0"], width["reward.2"], 1],
            "policy": [latent, width["policy.0"], width["policy.2"], 1],
            "q1": [latent + 1, width["q1.0"], width["q1.3"], 1],
            "q2": [latent + 1, width["q2.0"], width["q2.3"], 1],
        }
    )
    tensors = load_file(checkpoints(path)[-1] / MODEL)
    online = sum(value.numel() for key, value in tensors.items() if key.startswith("online"))
    assert online == last["prune/params"] == sum(p.numel() for p in agent.model.parameters())
    assert main(["evaluate", str(path), "--episodes", "2", "--json", "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"] == online
    assert len(result["returns"]) == 2
    summary = json.loads((path / "summary.json").read_text())
    assert summary["parameters"] == online
    assert summary["sparsity"] == last["prune/sparsity"]


@pytest.mark.parametrize("name", RUNS)
def test_every_training_row_holds_the_importance_of_all_groups(name, whole):
    learned = [row for row in rows(whole[name][0]) if "train/return" in row and row["update"]]
    assert len(learned) > 3
    wanted = {
        f"{kind}/{criterion}/{group}"
        for kind in ("importance", "importance_normalised")
        for criterion in LOGGED_CRITERIA
        for group in TWELVE
    }
    for row in learned:
        assert {key for key in row if key.startswith("importance")} == wanted
    for key in wanted:  # the very last rows have seen gradients everywhere
        assert learned[-1][key] > 0


def test_another_criterion_is_another_run(whole):
    assert steady_rows(whole["taylor, calibrated"][0]) != steady_rows(whole["random, calibrated"][0])
