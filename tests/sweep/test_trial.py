"""A trial's command line and the process that trains it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tdmpc_prune.arguments import parse_training
from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.command import forms, words
from tdmpc_prune.sweep.driver import Sweep
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.trial import Resources, TrialProcess, command_line, plan, values_of


def test_macros(define, monkeypatch):
    monkeypatch.setenv("TASK", "walker-walk")
    command = ["${env}", "${interpreter}", "-m", "tdmpc_prune", "train", "${envvar:TASK}", "${args}", 3]
    definition = define(command=command, parameters={"seed": {"value": 1}, "json": {"value": True}})
    values = {"json": True, "seed": 1}
    assert words(definition, values) == ["train", "walker-walk", "--json=True", "--seed=1", "3"]


def test_all_forms_mean_the_same(define):
    """All that W&B's agents write of a trial is understood alike."""
    values = {"agent.lr": 1e-05, "prune.sparsity": 0.9, "seed": 4}
    configs = [
        parse_training(["train", "cartpole-swingup", *forms(values)[form]])
        for form in ("args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags")
    ]
    assert len(set(map(repr, configs))) == 1
    assert (configs[0].agent.lr, configs[0].prune.sparsity, configs[0].seed) == (1e-05, 0.9, 4)


def test_what_the_engine_adds(define, tmp_path):
    definition = define(name="mine", project="p", entity="e")
    line = command_line(
        definition, plan(definition, {"seed": 2}, Resources(2)), tmp_path / "run", Resources(2)
    )
    config = parse_training(line)
    assert config.run_dir == tmp_path / "run"
    assert (config.threads, config.seed) == (2, 2)
    assert (config.wandb.group, config.wandb.project, config.wandb.entity) == ("mine", "p", "e")


def test_what_the_file_says_goes_first(define, tmp_path):
    command = [
        "${program}",
        "train",
        "cartpole-swingup",
        "--threads",
        "1",
        "--wandb.group=g",
        "--wandb.project=q",
    ]
    definition = define(command=[*command, "${args}"], project="p")
    config = parse_training(
        command_line(definition, plan(definition, {"seed": 2}, Resources(4)), tmp_path, Resources(4))
    )
    assert (config.threads, config.wandb.group, config.wandb.project) == (1, "g", "q")


@pytest.mark.parametrize(
    ("more", "grace"),
    [
        # 40,000 steps, an evaluation every 4,000: the last removal comes with the 9th, and two follow it.
        ([], 11),
        (["--prune.end", "0.5"], 8),
        (["--eval-every", "2000"], 19),
        (["--prune.criterion", "none"], 1),
    ],
)
def test_a_trial_is_not_stopped_before_its_pruning_is_over(more, grace, define):
    definition = define(command=["${program}", "train", "cartpole-swingup", *more, "${args}"])
    assert plan(definition, {"seed": 1}, Resources()).grace == grace


def sweep_of(define, tmp_path, **changes):
    definition = define(**changes)
    return Sweep(definition, SweepFolder(tmp_path / "s"), seed=1, count=None, resources=Resources())


def test_hyperband_waits_for_the_longest_schedule(define, tmp_path):
    changes = {
        "command": ["${program}", "train", "cartpole-swingup", "--eval-every", "2000", "${args}"],
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"prune.end": {"values": [0.3, 0.5, 0.4]}},
    }
    assert sweep_of(define, tmp_path, **changes).first_decision == 13
    changes["early_terminate"] = {"type": "hyperband", "min_iter": 17}
    assert sweep_of(define, tmp_path, **changes).first_decision == 17


def test_hyperband_that_could_stop_nothing_is_refused(define, tmp_path):
    changes = {
        "command": ["${program}", "train", "cartpole-swingup", "${args}"],
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"prune.end": {"values": [0.3, 1.0]}},
    }
    with pytest.raises(UserError, match="could stop no trial"):
        sweep_of(define, tmp_path, **changes)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_without_end_is_refused(method, define, tmp_path):
    with pytest.raises(UserError, match="never ends by itself: choose --count N, or run_cap"):
        sweep_of(define, tmp_path, method=method)


def test_values_of_whole_lines_only(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert values_of(metrics, "eval/return") == []
    metrics.write_text(
        '{"env_step": 0, "eval/return": 1.5}\n{"env_step": 5, "a": 2}\n'
        '{"env_step": 9, "eval/return": 2.5}\n{"env_step": 12, "eval/ret'
    )
    assert values_of(metrics, "eval/return") == [(0, 1.5), (9, 2.5)]


LONG = [
    *("train", "cartpole-swingup", "--preset", "debug", "--wandb.mode", "disabled", "--steps", "300000"),
    *("--threads", "1", "--eval-episodes", "1"),
]


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_stopped_trial_saves_itself(tmp_path):
    run = tmp_path / "run"
    process = TrialProcess([*LONG, "--run-dir", str(run)], run=run, log=tmp_path / "log", threads=1)
    assert process.wait(0.01) is None
    wait_for(lambda: values_of(run / "metrics.jsonl", "eval/return"))
    process.stop()
    assert process.wait(1) == 1
    assert process.last_words().startswith("saved at environment step")
    assert list((run / "checkpoints").glob("0*"))


def test_a_trial_whose_parent_is_killed_saves_itself(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    code = (
        "import sys, time; from pathlib import Path; from tdmpc_prune.sweep.trial import TrialProcess;"
        f"TrialProcess({[*LONG, '--run-dir', str(run)]!r}, run=Path({str(run)!r}), log=Path({str(log)!r}), threads=1);"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(lambda: values_of(run / "metrics.jsonl", "eval/return"))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_for(lambda: "saved at environment step" in log.read_text())
    assert list((run / "checkpoints").glob("0*"))


def test_a_mistake_is_told_in_its_last_words(tmp_path):
    run = tmp_path / "run"
    line = ["train", "cartpole-swingupp", "--run-dir", str(run)]
    process = TrialProcess(line, run=run, log=tmp_path / "log", threads=1)
    assert process.wait(60) == 2
    assert "did you mean cartpole-swingup" in process.last_words()
