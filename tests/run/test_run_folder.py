"""What a run leaves behind, and the names in it."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from small_runs import CARTPOLE, PENDULUM, STATE, checkpoints, rows, steady_rows, train_small, tree

import tdmpc_prune
from tdmpc_prune.arguments import parse_training
from tdmpc_prune.checkpoint import moments
from tdmpc_prune.cli import main
from tdmpc_prune.config import preset_defaults
from tdmpc_prune.errors import UserError
from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.run_folder import RunFolder, to_json, write_json

COUNTERS = {"env_step", "agent_step", "update", "episode"}
LOSSES = {
    "train/consistency_loss",
    "train/reward_loss",
    "train/value_loss",
    "train/policy_loss",
    "train/total_loss",
    "train/grad_norm",
}
NAME = re.compile(
    r"env_step|agent_step|update|episode|(train|time)/\w+|eval/(return|return_std|plan_ms)"
    r"|prune/(\w+|sparsity/\w+|width/[\w.]+)"
    r"|importance(_normalised)?/[a-z-]+/[\w.]+"
)


def test_files(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "plots",
        "summary.json",
    }
    assert not list(finished.rglob("*.partial"))
    assert [path.name for path in (finished / "checkpoints").iterdir() if path.name == "partial"] == []
    assert len(checkpoints(finished)) == len(list((finished / "checkpoints").iterdir())) == 2


def test_picture(finished):
    from matplotlib.image import imread

    path = finished / "plots" / "learning_curve.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    assert picture[..., :3].std() > 0.01


def test_settings_and_provenance(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored.keys() == {"config", "version", "command", "commit", "python", "torch", "machine"}
    config = stored["config"]
    assert (config["task"], config["preset"], config["seed"], config["steps"]) == (
        "cartpole-swingup",
        "debug",
        1,
        3000,
    )
    assert config["agent"]["planner"]["num_samples"] == 16
    assert config["wandb"]["mode"] == "disabled"
    assert stored["version"] == tdmpc_prune.__version__
    assert stored["torch"] == torch.__version__
    assert stored["command"].split()[0] == "tdmpc-prune"


def test_commit_is_that_of_the_checkout(finished):
    root = Path(tdmpc_prune.__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")

    def rev_parse(name):
        command = ["git", "rev-parse", f"{name}^{{commit}}"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    if not (head := rev_parse("HEAD")):
        pytest.skip("git does not work here")
    commit = json.loads((finished / "config.json").read_text())["commit"]
    assert rev_parse(commit.removesuffix("-dirty")) == head


def test_names_and_order_of_metrics(undisturbed):
    for observed in undisturbed.values():
        lines = rows(observed.path)
        evaluations = [row for row in lines if "eval/return" in row]
        episodes = [row for row in lines if "train/return" in row]
        removals = observed.events.count("remove")
        assert len(evaluations) + len(episodes) + removals == len(lines)
        for row in lines:
            assert all(NAME.fullmatch(name) for name in row), row
            assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
            assert row.keys() >= {*COUNTERS, "time/elapsed_s"}
        for row in evaluations:
            assert {n for n in row if n.startswith("eval/")} == {
                "eval/return",
                "eval/return_std",
                "eval/plan_ms",
            }
            assert row["eval/plan_ms"] > 0
        for row in episodes:
            losses = LOSSES if row["update"] else set()
            assert {n for n in row if n.startswith("train/")} == {"train/return", *losses}
        for name in (*COUNTERS, "time/elapsed_s"):
            values = [row[name] for row in lines]
            assert values == sorted(values)
        assert [row["episode"] for row in episodes] == list(range(1, len(episodes) + 1))


def test_when_a_run_evaluates(undisturbed):
    """At the start, at the end of the episode that passes a multiple of eval_every, and at the end."""
    cartpole = [row["env_step"] for row in rows(undisturbed["cartpole"].path) if "eval/return" in row]
    assert cartpole == [0, 2000, 3000]
    lines = rows(undisturbed["pendulum"].path)
    at = [row["env_step"] for row in lines if "eval/return" in row]
    ends = [row["env_step"] for row in lines if "train/return" in row]
    assert at == [0, *[next(end for end in ends if end >= step) for step in (40, 80)]]


def test_evaluations_do_not_depend_on_when_they_are(undisturbed, folder, no_plot):
    """Other evaluations in between leave training as it is, and the last one, too."""
    train_small(PENDULUM, folder, "--eval-every", "7", "--checkpoint-every", "3")
    often, seldom = steady_rows(folder), steady_rows(undisturbed["pendulum"].path)
    assert len(often) > len(seldom)
    assert [row for row in often if "train/return" in row] == [r for r in seldom if "train/return" in r]
    assert often[-1] == seldom[-1]


def test_summary(undisturbed):
    for observed in undisturbed.values():
        summary = json.loads((observed.path / "summary.json").read_text())
        last = [row for row in rows(observed.path) if "eval/return" in row][-1]
        assert {name: summary[name] for name in COUNTERS} == {name: last[name] for name in COUNTERS}
        assert summary["return"] == last["eval/return"]
        assert summary["return_std"] == last["eval/return_std"]
        tensors = load_file(checkpoints(observed.path)[-1] / "model.safetensors")
        online = sum(t.numel() for name, t in tensors.items() if name.startswith("online."))
        assert summary["parameters"] == online == sum(t.numel() for t in tensors.values()) // 2
        stored = json.loads((checkpoints(observed.path)[-1] / STATE).read_text())
        assert stored["progress"]["env_step"] == summary["env_step"]


def test_a_finished_run_changes_nothing(finished, folder, monkeypatch, capsys):
    shutil.copytree(finished, folder)
    before = tree(folder)
    monkeypatch.setattr("tdmpc_prune.train.Training", None)  # cannot even be built
    arguments = ["train", *CARTPOLE, "--run-dir", str(folder), "--json"]
    assert main(arguments) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) == json.loads((finished / "summary.json").read_text())
    assert main([*arguments, "--checkpoint-every", "999", "--threads", "2", "--no-json"]) == 0
    assert tree(folder) == before


def test_json_is_all_there_is_on_stdout(folder, capsys):
    assert main(["train", *PENDULUM, "--steps", "30", "--run-dir", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    summary = json.loads(out)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["run"] == str(folder)
    assert "over episodes" in err


def test_without_json_a_table(folder, capsys, no_plot):
    assert main(["train", *PENDULUM, "--steps", "30", "--run-dir", str(folder)]) == 0
    out, _ = capsys.readouterr()
    table = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("return std"))
    summary = json.loads((folder / "summary.json").read_text())
    assert table["task"] == "InvertedPendulum-v5"
    assert table["return"] == f"{summary['return']:,.2f}"
    assert table["parameters"] == f"{summary['parameters']:,}"


def test_default_folder(no_plot):
    assert main(["train", *PENDULUM, "--steps", "20"]) == 0
    assert (Path("runs") / "InvertedPendulum-v5-debug-s1" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("words", "agent_steps"),
    [
        (["cartpole-swingup"], 3_000),
        (["walker-walk"], 12_000),
        (["cheetah-run"], 6_000),
        (["cartpole-swingup", "--action-repeat", "5"], 4_800),
        (["InvertedPendulum-v5"], 3_000),  # no episodes of 1,000 steps
        (["walker-walk", "--agent.schedule-steps", "3000"], 3_000),
        (["walker-walk", "--preset", "paper"], 25_000),
    ],
)
def test_how_long_an_agent_explores(words, agent_steps):
    """On DMControl for as many environment steps, unless told otherwise."""
    assert parse_training(["train", *words]).agent.schedule_steps == agent_steps


def test_another_spelling_of_the_task_is_the_same_command(no_plot):
    """Both name the same task and the same default folder."""
    arguments = [*PENDULUM[1:], "--steps", "20", "--json"]
    assert main(["train", "InvertedPendulum-v5", *arguments]) == 0
    assert main(["train", "invertedpendulum-v5", *arguments]) == 0


def test_a_moved_folder_is_the_same_run(finished, folder):
    shutil.copytree(finished, folder)
    assert main(["train", *CARTPOLE, "--run-dir", str(folder)]) == 0


def test_json_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"value": 1})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 1}


def test_settings_survive_their_way_through_json(finished):
    from tdmpc_prune.cli import parse

    config = parse(["train", *CARTPOLE, "--run-dir", str(finished), "--wandb.tags", "a", "b"])
    stored = to_json(config)
    assert json.loads(json.dumps(stored)) == stored
    assert stored["run_dir"] == str(finished)
    RunFolder(finished).check(config)


def test_checkpoints_to_keep(folder, no_plot):
    """One at every multiple of 20 steps that a fall passed stays; of the others the last two."""
    train_small(PENDULUM, folder, "--keep-every", "20", "--checkpoint-every", "5")
    stored = [(path, json.loads((path / "state.json").read_text())) for path in checkpoints(folder)]
    kept = [state["progress"]["env_step"] for path, state in stored if (path / "keep").is_file()]
    assert [step // 20 for step in kept] == [1, 2, 3, 4]
    assert [state["progress"]["kept_at"] for path, state in stored if (path / "keep").is_file()] == kept
    assert len(stored) <= len(kept) + 2
    assert moments(folder) == [path for path, _ in stored]
    assert moments(stored[0][0]) == [stored[0][0]]


def test_keeping_checkpoints_changes_nothing(folder, undisturbed, no_plot):
    train_small(PENDULUM, folder, "--keep-every", "20")
    assert steady_rows(folder) == steady_rows(undisturbed["pendulum"].path)


def test_pruned_runs_of_before_there_was_compensation_go_on_without_it(folder):
    stored = RunFolder(folder)
    for criterion, refused in (("taylor", True), ("none", False)):
        now = replace(preset_defaults("laptop", "cartpole-swingup"), prune=PruneConfig(criterion=criterion))
        about = {"config": to_json(now)}
        del about["config"]["prune"]["compensation"]
        folder.mkdir(exist_ok=True)
        write_json(stored.config, about)
        if refused:
            with pytest.raises(UserError, match=r"prune.compensation \(stored 'none', now 'linear'\)"):
                stored.check(now)
            stored.check(replace(now, prune=replace(now.prune, compensation="none")))
        else:
            stored.check(now)


def test_compensated_runs_of_before_the_ridge_could_be_set_go_on_with_theirs(folder):
    stored = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    for compensation in ("linear", "none"):
        prune = PruneConfig(compensation=compensation)
        now = replace(preset_defaults("laptop", "cartpole-swingup"), prune=prune)
        about = {"config": to_json(now)}
        del about["config"]["prune"]["ridge"]
        write_json(stored.config, about)
        if compensation == "linear":
            with pytest.raises(UserError, match=r"prune.ridge \(stored 0.001, now 0.1\)"):
                stored.check(now)
            stored.check(replace(now, prune=replace(prune, ridge=1e-3)))
        else:
            stored.check(now)


def test_bayesian_runs_of_before_the_guard_could_relax_go_on_with_theirs(folder):
    stored = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    for criterion in ("bayesian-saliency", "fisher"):
        prune = PruneConfig(criterion=criterion, importance=ImportanceConfig(guard=0.9))
        now = replace(preset_defaults("laptop", "cartpole-swingup"), prune=prune)
        about = {"config": to_json(now)}
        del about["config"]["prune"]["importance"]["guard_end"]
        write_json(stored.config, about)
        if criterion == "bayesian-saliency":
            with pytest.raises(UserError, match=r"prune.importance.guard_end \(stored 0.9, now 0.5\)"):
                stored.check(now)
            steady = replace(prune.importance, guard_end=0.9)
            stored.check(replace(now, prune=replace(prune, importance=steady)))
        else:
            stored.check(now)


@pytest.mark.parametrize(
    ("criterion", "allocation", "refused"),
    [("taylor", "calibrated", True), ("taylor", "uniform", False), ("none", "calibrated", False)],
)
def test_another_number_of_calibrations_counts_where_there_are_any(folder, criterion, allocation, refused):
    """The default was another once: what it decides nothing of goes on."""
    stored = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    prune = PruneConfig(criterion=criterion, allocation=allocation)
    now = replace(preset_defaults("laptop", "cartpole-swingup"), prune=prune)
    other = replace(now, prune=replace(prune, calibrations=2))
    write_json(stored.config, {"config": to_json(other)})
    stored.check(other)
    if refused:
        with pytest.raises(UserError, match=r"prune.calibrations \(stored 2, now 3\)"):
            stored.check(now)
    else:
        stored.check(now)


@pytest.mark.parametrize("criterion", [True, ["bayesian"], 7, None])
def test_a_damaged_criterion_is_another_setting(folder, criterion):
    """The fuzzer found it: a criterion that is no text was asked how it starts."""
    stored = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    now = replace(preset_defaults("laptop", "cartpole-swingup"), prune=PruneConfig())
    about = {"config": to_json(now)}
    about["config"]["prune"]["criterion"] = criterion
    write_json(stored.config, about)
    with pytest.raises(UserError, match=r"holds a run with other settings: prune.criterion \(stored"):
        stored.check(now)


class Short(gymnasium.Env):
    """Cuts its episodes off after four steps, whatever it is registered with."""

    dt = 0.1
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.step_number += 1
        return np.zeros(2, np.float32), 1.0, False, self.step_number == 4, {}


@pytest.mark.parametrize("horizon", [3, 5])
def test_a_run_that_cannot_learn_says_so(horizon, folder, capsys, no_plot):
    """Sequences that no episode holds: more steps would not help."""
    gymnasium.register("Short-v0", entry_point=Short, max_episode_steps=20)
    try:
        words = ["Short-v0", *PENDULUM[1:], "--agent.horizon", str(horizon), "--run-dir", str(folder)]
        assert main(["train", *words]) == 0
    finally:
        gymnasium.registry.pop("Short-v0")
    said = capsys.readouterr().err
    assert ("nothing was learned: no episode was longer than agent.horizon" in said) == (horizon == 5)
    assert ("were not made" in said) == (horizon == 3)  # the warm-up is 200 updates


def test_removals_that_fall_together_are_warned_of(folder, capsys, no_plot):
    """Twelve of them in the last two of three episodes; and a run that is finished says so."""
    few = ("--prune.importance.warmup", "5", "--prune.eval-episodes", "1", "--run-dir", str(folder))
    for _ in range(2):
        assert main(["train", *CARTPOLE, *few]) == 0
        said = capsys.readouterr().err
        if "finished already" not in said:
            assert "removals fell together" in said
    assert said == f"{folder}: finished already\n"
