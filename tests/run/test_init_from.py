"""`--init-from`: a run that begins with what a dense one has learned, prunes it and goes on learning."""

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import MODEL, PENDULUM, QUIET, TRAINING, assert_same_run, checkpoints, rows, tree
from small_runs import train_small as run_small

from tdmpc_prune.cli import main
from tdmpc_prune.errors import Interrupted

DENSE = [*PENDULUM, "--prune.criterion", "none"]
PRUNED = [
    *(*PENDULUM, "--steps", "60", "--prune.criterion", "taylor", "--prune.sparsity", "0.5"),
    *("--prune.importance.warmup", "5", "--prune.events", "2", "--prune.eval-episodes", "1"),
]
AUTOENCODER = [
    *("autoencoder", *QUIET, "--steps", "40", "--eval-every", "20", "--agent.hidden-dim", "48"),
    *("--prune.importance.warmup", "5", "--prune.events", "2"),
]


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "run"
    run_small(DENSE, path)
    return path


@pytest.fixture(scope="session")
def pruned(dense, tmp_path_factory):
    path = tmp_path_factory.mktemp("pruned from dense") / "run"
    run_small([*PRUNED, "--init-from", str(dense)], path)
    return path


@pytest.fixture(scope="session")
def dense_autoencoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense autoencoder") / "run"
    run_small([*AUTOENCODER, "--prune.criterion", "none"], path)
    return path


@pytest.fixture
def refused(capfd, tmp_path):
    """Runs a command that must be refused; returns its one line."""

    def run(*arguments):
        before = tree(tmp_path)
        capfd.readouterr()
        assert main(["train", *map(str, arguments)]) == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert tree(tmp_path) == before
        return err

    return run


def state(folder):
    return json.loads((checkpoints(folder)[-1] / "state.json").read_text())


def test_it_begins_where_the_dense_run_ended(dense, pruned):
    first = rows(pruned)[0]
    assert first["env_step"] == 0
    assert first["agent_step"] == state(dense)["progress"]["agent_step"]
    assert first["update"] == state(dense)["updates"]
    assert first["prune/sparsity"] == 0
    # The same networks and schedules on the same episodes: the same return.
    assert first["eval/return"] == rows(dense)[-1]["eval/return"]
    assert first["eval/return_std"] == rows(dense)[-1]["eval/return_std"]


def test_it_prunes_and_goes_on_learning(dense, pruned):
    last = rows(pruned)[-1]
    assert last["env_step"] >= 60
    assert 0.4 < last["prune/sparsity"] <= 0.5
    assert last["update"] > state(dense)["updates"]
    events = [r for r in rows(pruned) if "prune/event" in r]
    assert len(events) == 2
    old, new = (load_file(checkpoints(run)[-1] / TRAINING) for run in (dense, pruned))
    assert len(new["replay.priority"]) >= len(old["replay.priority"])
    steps = [max(float(v) for k, v in t.items() if k.endswith(".step")) for t in (old, new)]
    assert steps[1] > steps[0] > 0  # Adam goes on counting


def test_it_recovers_from_removals(dense, folder, no_plot):
    run_small([*PRUNED, "--init-from", str(dense), "--prune.recovery", "4"], folder)
    found = rows(folder)
    dense_ahead = state(dense)["progress"]["agent_step"] - state(dense)["updates"]
    ahead = [row["agent_step"] - row["update"] for row in found if "prune/event" in row]
    assert ahead == [dense_ahead - 4, dense_ahead - 8]
    assert found[-1]["agent_step"] - found[-1]["update"] == dense_ahead - 8


def test_replay_and_moments_are_taken_over(dense, folder, interrupt, no_plot):
    interrupt(1)
    with pytest.raises(Interrupted):
        run_small([*PRUNED, "--init-from", str(dense)], folder)
    one, two = (checkpoints(run)[-1] for run in (dense, folder))
    assert (one / MODEL).read_bytes() == (two / MODEL).read_bytes()
    old, new = load_file(one / TRAINING), load_file(two / TRAINING)
    taken = [key for key in old if key.startswith(("optimizer.", "replay.", "rng."))]
    assert len(taken) > 60
    assert all(torch.equal(old[key], new[key]) for key in taken)


def test_what_the_dense_run_still_owed(tmp_path, interrupt, no_plot):
    """Interrupted when its random phase was over: the new run owes it, also when it is interrupted itself."""
    first, second = tmp_path / "first", tmp_path / "second"
    interrupt(26)
    with pytest.raises(Interrupted):
        run_small(DENSE, first)
    for at in (3, 4):
        interrupt(at)
        with pytest.raises(Interrupted):
            run_small([*PRUNED, "--init-from", str(first)], second)
    interrupt(0)
    owed = state(second)["progress"]["agent_step"] - state(second)["updates"]
    assert owed > 5
    assert state(second)["progress"]["env_step"] == 0
    run_small([*PRUNED, "--init-from", str(first)], second)


def test_the_dense_run_is_not_touched(dense, folder, no_plot):
    before = tree(dense)
    run_small([*PRUNED, "--init-from", str(dense)], folder)
    assert tree(dense) == before


def test_the_same_place_spelled_otherwise_is_the_same(dense, pruned, folder, interrupt, monkeypatch, no_plot):
    monkeypatch.chdir(dense.parent)
    interrupt(4)
    with pytest.raises(Interrupted):
        run_small([*PRUNED, "--init-from", dense.name], folder)
    interrupt(0)
    run_small([*PRUNED, "--init-from", f"{dense}/../{dense.name}"], folder)
    assert_same_run(folder, pruned)


def test_twice_the_same(dense, pruned, folder, no_plot):
    run_small([*PRUNED, "--init-from", str(dense)], folder)
    assert_same_run(folder, pruned)


@pytest.mark.parametrize("every", [23, 40])
def test_stopped_again_and_again(every, dense, pruned, folder, interrupt, no_plot):
    for sitting in itertools.count():
        interrupt(every)
        try:
            run_small([*PRUNED, "--init-from", str(dense)], folder)
            break
        except Interrupted:
            assert sitting < 60, "no progress"
    assert sitting >= 2
    assert_same_run(folder, pruned)


def test_an_older_checkpoint_of_a_run_will_do(dense, folder, no_plot):
    older = checkpoints(dense)[0]
    assert len(checkpoints(dense)) == 2
    run_small([*PRUNED, "--init-from", str(older)], folder)
    assert (
        rows(folder)[0]["agent_step"]
        == json.loads((older / "state.json").read_text())["progress"]["agent_step"]
    )


def test_an_autoencoder(dense_autoencoder, folder, interrupt, no_plot, tmp_path):
    arguments = [*AUTOENCODER, "--init-from", str(dense_autoencoder)]
    run_small(arguments, folder)
    first, last = rows(folder)[0], rows(folder)[-1]
    assert (first["env_step"], first["update"]) == (0, 40)
    assert first["eval/error"] == rows(dense_autoencoder)[-1]["eval/error"]
    assert (last["env_step"], last["update"]) == (40, 80)
    assert last["prune/sparsity"] > 0.7
    interrupt(70)
    with pytest.raises(Interrupted):
        run_small(arguments, tmp_path / "again")
    interrupt(0)
    run_small(arguments, tmp_path / "again")
    assert_same_run(tmp_path / "again", folder)


# What it cannot begin with


def test_a_folder_that_is_no_run(refused, tmp_path, folder):
    for wrong in (tmp_path / "nowhere", tmp_path):
        line = refused(*PRUNED, "--run-dir", folder, "--init-from", wrong)
        assert "no run folder" in line


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("latent-dim", 16, "--agent.latent-dim 8"),
        ("encoder-dim", 24, "--agent.encoder-dim 16"),
        ("hidden-dim", 24, "--agent.hidden-dim 16"),
        ("num-q", 3, "--agent.num-q 2"),
        ("horizon", 2, "--agent.horizon 3"),
    ],
)
def test_other_sizes(setting, value, said, dense, refused, folder):
    line = refused(*PRUNED, f"--agent.{setting}", value, "--run-dir", folder, "--init-from", dense)
    assert said in line


def test_another_task_or_action_repeat(dense, dense_autoencoder, finished, refused, folder):
    place = ("--run-dir", folder, "--init-from")
    assert "it learned cartpole-swingup" in refused(*PRUNED, *place, finished)
    assert "it learned autoencoder" in refused(*PRUNED, *place, dense_autoencoder)
    assert "it learned InvertedPendulum-v5" in refused(*AUTOENCODER, *place, dense)
    assert "add --action-repeat 1" in refused(*PRUNED, "--action-repeat", "2", *place, dense)


def test_a_run_that_was_pruned(pruned, refused, folder):
    line = refused(*PRUNED, "--run-dir", folder, "--init-from", pruned)
    assert "lost units already" in line


def test_a_replay_that_is_too_small(dense, refused, folder):
    line = refused(*PRUNED, "--agent.replay.capacity", "30", "--run-dir", folder, "--init-from", dense)
    assert "replay" in line


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint(name, dense, refused, folder, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dense, damaged)
    path = checkpoints(damaged)[-1] / name
    path.write_bytes(path.read_bytes()[:200])
    line = refused(*PRUNED, "--run-dir", folder, "--init-from", damaged)
    assert "cannot be loaded" in line


def test_dry_run_refuses_alike(dense, pruned, refused, capfd):
    assert "lost units already" in refused(*PRUNED, "--dry-run", "--init-from", pruned)
    assert main(["train", *PRUNED, "--dry-run", "--init-from", str(dense)]) == 0
    assert "12 groups" in capfd.readouterr().out


def test_other_settings_of_learning_may_change(dense, folder, no_plot):
    summary = run_small([*PRUNED, "--init-from", str(dense), "--agent.lr", "1e-4"], folder)
    assert summary["sparsity"] > 0.4
