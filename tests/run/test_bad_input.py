"""Mistakes: exit code 2, one line that says what to do, nothing on stdout, and nothing changed."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import CARTPOLE, PENDULUM, checkpoints, tree

from tdmpc_prune import __version__, cli
from tdmpc_prune.cli import parse
from tdmpc_prune.errors import UserError

TASK = ["train", "cartpole-swingup", "--preset", "debug", "--wandb.mode", "disabled"]


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch):
    """Runs a command that must be refused; returns its one line."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        before = tree(tmp_path)
        capfd.readouterr()
        code = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert err.startswith("tdmpc-prune: ")
        assert len(err) < 500
        assert not set(err) & set("│╭╰─┌└")
        assert "Traceback" not in err
        assert tree(tmp_path) == before
        return err

    return run


WRONG = {
    "unknown verb": (["trian", "cartpole-swingup"], "validate, sensitivity, stability, report, export"),
    "verb is an option's value": (["--seed", "1", "train"], ""),
    "unknown preset": (["train", "cartpole-swingup", "--preset", "huge"], "laptop, paper, debug"),
    "unknown preset, other spelling": (
        ["train", "cartpole-swingup", "--preset=huge"],
        "laptop, paper, debug",
    ),
    "preset without a value": (["train", "cartpole-swingup", "--preset"], "preset"),
    "no task": (["train"], "task"),
    "two tasks": (["train", "cartpole-swingup", "walker-walk"], "walker-walk"),
    "unknown task": (["train", "cartpole-swingupp"], "did you mean cartpole-swingup"),
    "unknown task, version 4": (["train", "InvertedPendulum-v4"], "InvertedPendulum-v5"),
    "unknown task, nothing near": (["train", "qqqqqq"], "python -m envs"),
    "unknown setting": ([*TASK, "--agent.hiden-dim", "3"], "--agent.hidden-dim"),
    "unknown setting of an autoencoder": (
        ["train", "autoencoder", "--epochs", "3"],
        "train autoencoder --help lists",
    ),
    "a preset of an autoencoder": (["train", "autoencoder", "--preset", "debug"], "leave --preset out"),
    "an option of another verb": (["report", "runs", "--out", "page", "--steps", "3"], "report --help lists"),
    "unknown setting, nothing near": ([*TASK, "--qqqqqqqq", "3"], "--qqqqqqqq"),
    "unknown setting as W&B writes it": ([*TASK, "agent.qqqqqqqq=3"], "agent.qqqqqqqq"),
    "setting without a value": ([*TASK, "--steps"], "steps"),
    "word for a number": ([*TASK, "--steps", "many"], "many"),
    "fraction for a whole number": ([*TASK, "--steps", "1000.5"], "1000.5"),
    "word for a fraction": ([*TASK, "--agent.lr", "small"], "small"),
    "no such choice": ([*TASK, "--wandb.mode", "sometimes"], "sometimes"),
    "value for a switch": ([*TASK, "--json", "7"], "7"),
    "no such device": ([*TASK, "--device", "tpu"], "tpu"),
    "no steps": ([*TASK, "--steps", "0"], "steps is 0"),
    "negative steps": ([*TASK, "--steps", "-5"], "steps is -5"),
    "negative seed": ([*TASK, "--seed", "-1"], "seed is -1"),
    "huge seed": ([*TASK, "--seed", "2147483648"], "2147483647"),
    "no action repeat": ([*TASK, "--action-repeat", "0"], "action_repeat is 0"),
    "never evaluate": ([*TASK, "--eval-every", "0"], "eval_every is 0"),
    "no environment": ([*TASK, "--envs", "0"], "envs is 0"),
    "negative environments": ([*TASK, "--envs=-4"], "envs is -4"),
    "half an environment": ([*TASK, "--envs", "1.5"], "1.5"),
    "more environments than one batch should hold": ([*TASK, "--envs", "65"], "at most 64"),
    "environments of an autoencoder": (["train", "autoencoder", "--envs", "2"], "--envs"),
    "replay smaller than what comes at once": (
        [*TASK, "--threads", "1", "--envs", "4", "--agent.replay.capacity", "500", "--eval-episodes", "1"],
        "capacity",
    ),
    "no evaluation episodes": ([*TASK, "--eval-episodes", "0"], "eval_episodes is 0"),
    "never save": ([*TASK, "--checkpoint-every", "-1"], "checkpoint_every is -1"),
    "negative threads": ([*TASK, "--threads", "-1"], "threads is -1"),
    "steps below the random steps": ([*TASK, "--steps", "400"], "--agent.random-steps"),
    "the same with an action repeat": (
        [*TASK, "--steps", "400", "--action-repeat", "10", "--agent.random-steps", "40"],
        "action repeat 10",
    ),
    "no width": ([*TASK, "--agent.latent-dim", "0"], "latent_dim is 0"),
    "negative width": ([*TASK, "--agent.hidden-dim", "-8"], "hidden_dim is -8"),
    "no batch": ([*TASK, "--agent.batch-size", "0"], "batch_size is 0"),
    "no horizon": ([*TASK, "--agent.horizon", "0"], "horizon is 0"),
    "one Q-function": ([*TASK, "--agent.num-q", "1"], "at least 2"),
    "discount 1": ([*TASK, "--agent.discount", "1"], "discount is 1"),
    "NaN": ([*TASK, "--agent.lr", "nan"], "lr is nan"),
    "infinity": ([*TASK, "--agent.grad-clip", "inf"], "grad_clip is inf"),
    "NaN as W&B writes it": ([*TASK, "agent.tau=NaN"], "tau is nan"),
    "NaN coefficient": ([*TASK, "--agent.value-coef", "nan"], "value_coef is nan"),
    "negative coefficient": ([*TASK, "--agent.reward-coef=-0.1"], "reward_coef is -0.1"),
    "NaN temperature": ([*TASK, "--agent.planner.temperature", "nan"], "temperature is nan"),
    "NaN momentum": ([*TASK, "--agent.planner.momentum", "nan"], "momentum is nan"),
    "too many elites": ([*TASK, "--agent.planner.num-elites", "64"], "33 sequences"),
    "no samples": ([*TASK, "--agent.planner.num-samples", "0"], "num_samples is 0"),
    "spread upside down": ([*TASK, "--agent.planner.start-std", "3"], "max_std"),
    "tiny replay": ([*TASK, "--agent.replay.capacity", "10"], "capacity is 10"),
    "NaN priority exponent": ([*TASK, "--agent.replay.alpha", "nan"], "alpha is nan"),
    "replay smaller than an episode": (
        [*TASK, "--threads", "1", "--agent.replay.capacity", "100", "--eval-episodes", "1"],
        "capacity",
    ),
    "horizon longer than an episode": (
        [
            *(*TASK, "--threads", "1", "--steps", "1001", "--eval-episodes", "1", "--eval-every", "9999"),
            *("--agent.horizon", "126", "--agent.schedule-steps", "99999"),
        ],
        "horizon",
    ),
    "keep checkpoints backwards": ([*TASK, "--keep-every", "-1"], "keep_every is -1"),
    "evaluate nothing": (["evaluate"], "RUN"),
    "evaluate under an unknown perturbation": (["evaluate", "x", "--perturb", "mas=2"], "did you mean mass"),
    "evaluate without masses": (["evaluate", "x", "--perturb", "mass=0"], "0.01 to 100"),
    "evaluate under no perturbation": (["evaluate", "x", "--perturb", ""], "--perturb is empty"),
    "evaluate under a perturbation without amount": (["evaluate", "x", "--perturb", "mass"], "NAME=AMOUNT"),
    "time a negative number of plans": (["evaluate", "x", "--plans", "-1"], "plans is -1"),
    "compare with what is not there": (["evaluate", "x", "--reference", "no-such-run"], "no-such-run"),
    "evaluate what is not there": (["evaluate", "no-such-run"], "no-such-run"),
    "evaluate no episodes": (["evaluate", "x", "--episodes", "0"], "episodes is 0"),
    "evaluate with another controller": (["evaluate", "x", "--controller", "human"], "human"),
    "evaluate with a negative seed": (["evaluate", "x", "--seed", "-1"], "seed is -1"),
    "a video that is none": (["evaluate", "x", "--video", "film.gif"], ".mp4"),
    "a setting of the other verb": (["evaluate", "x", "--steps", "5"], "--steps"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_command_lines(case, refused):
    arguments, said = WRONG[case]
    assert said.lower() in refused(*arguments).lower()


AE = ["train", "autoencoder", "--wandb.mode", "disabled"]
SLIPS = {
    # numbers that are none
    "sparsity nan": ([*TASK, "--prune.sparsity", "nan"], "sparsity is nan"),
    "sparsity inf": ([*TASK, "--prune.sparsity", "inf"], "sparsity is inf"),
    "sparsity 0": ([*TASK, "--prune.sparsity", "0"], "sparsity is 0"),
    "sparsity 1": ([*TASK, "--prune.sparsity", "1"], "sparsity is 1"),
    "sparsity in percent": ([*TASK, "--prune.sparsity", "80"], "more than 0 and less than 1"),
    "sparsity negative": ([*TASK, "--prune.sparsity=-0.5"], "sparsity is -0.5"),
    "sparsity with a sign": ([*TASK, "--prune.sparsity", "80%"], "80%"),
    "lr inf": ([*TASK, "--agent.lr", "inf"], "lr is inf"),
    "lr negative": ([*TASK, "--agent.lr=-1"], "lr is -1"),
    "lr 0": ([*TASK, "--agent.lr", "0"], "lr is 0"),
    "discount 2": ([*TASK, "--agent.discount", "2"], "discount is 2"),
    "discount nan": ([*TASK, "--agent.discount", "nan"], "discount is nan"),
    "rho 0": ([*TASK, "--agent.rho", "0"], "rho is 0"),
    "tau 2": ([*TASK, "--agent.tau", "2"], "tau is 2"),
    "policy_std -1": ([*TASK, "--agent.policy-std=-1"], "policy_std is -1"),
    "policy_std inf": ([*TASK, "--agent.policy-std", "inf"], "policy_std is inf"),
    "consistency inf": ([*TASK, "--agent.consistency-coef", "inf"], "consistency_coef is inf"),
    "max_std inf": ([*TASK, "--agent.planner.max-std", "inf"], "max_std"),
    "start_std 0": ([*TASK, "--agent.planner.start-std", "0"], "start_std is 0"),
    "momentum 1": ([*TASK, "--agent.planner.momentum", "1"], "momentum is 1"),
    "temperature inf": ([*TASK, "--agent.planner.temperature", "inf"], "temperature is inf"),
    "policy_fraction 2": ([*TASK, "--agent.planner.policy-fraction", "2"], "policy_fraction is 2"),
    "policy_fraction nan": ([*TASK, "--agent.planner.policy-fraction", "nan"], "policy_fraction is nan"),
    "beta 2": ([*TASK, "--agent.replay.beta", "2"], "beta is 2"),
    "alpha -1": ([*TASK, "--agent.replay.alpha=-1"], "alpha is -1"),
    "prune.start nan": ([*TASK, "--prune.start", "nan"], "start is nan"),
    "prune.end 2": ([*TASK, "--prune.end", "2"], "end 2"),
    "prune ends before it starts": ([*TASK, "--prune.start", "0.9"], "start is 0.9"),
    "coupling nan": ([*TASK, "--prune.limits.coupling", "nan"], "coupling is nan"),
    "coupling -1": ([*TASK, "--prune.limits.coupling=-1"], "coupling is -1"),
    "coupling_cap 2": ([*TASK, "--prune.limits.coupling-cap", "2"], "coupling_cap is 2"),
    "coupling_cap nan": ([*TASK, "--prune.limits.coupling-cap", "nan"], "coupling_cap is nan"),
    "beta_start 1": ([*TASK, "--prune.importance.beta-start", "1"], "beta_start is 1"),
    "beta_end nan": ([*TASK, "--prune.importance.beta-end", "nan"], "beta_end nan"),
    "credible 1": ([*TASK, "--prune.importance.credible", "1"], "credible is 1"),
    "guard 1": ([*TASK, "--prune.importance.guard", "1"], "guard is 1"),
    "guard nan": ([*TASK, "--prune.importance.guard", "nan"], "guard is nan"),
    # counts that are none
    "no events": ([*TASK, "--prune.events", "0"], "events is 0"),
    "more events than steps": ([*TASK, "--prune.events", "9999", "--steps", "5000"], "events is 9999"),
    "no calibrations": ([*TASK, "--prune.calibrations", "0"], "calibrations is 0"),
    "less than no recovery": ([*TASK, "--prune.recovery", "-1"], "recovery is -1"),
    "no calibration episodes": ([*TASK, "--prune.calibration-episodes", "0"], "calibration_episodes is 0"),
    "negative episodes at removals": ([*TASK, "--prune.eval-episodes=-1"], "eval_episodes is -1"),
    "no warm-up": ([*TASK, "--prune.importance.warmup", "0"], "warmup is 0"),
    "no units": ([*TASK, "--prune.limits.min-units", "0"], "min_units is 0"),
    "round to nothing": ([*TASK, "--prune.limits.round-to", "0"], "round_to is 0"),
    "no iterations": ([*TASK, "--agent.planner.iterations", "0"], "iterations is 0"),
    "no elites": ([*TASK, "--agent.planner.num-elites", "0"], "num_elites is 0"),
    "no replay": ([*TASK, "--agent.replay.capacity", "0"], "capacity is 0"),
    "no random steps": ([*TASK, "--agent.random-steps", "0"], "random_steps is 0"),
    "negative schedule": ([*TASK, "--agent.schedule-steps=-1"], "schedule_steps is -1"),
    "no target": ([*TASK, "--agent.target-every", "0"], "target_every is 0"),
    "keep often, backwards": ([*TASK, "--keep-every=-1000"], "keep_every is -1000"),
    # numbers that no machine has room or time for
    "batch of 10 billion": ([*TASK, "--agent.batch-size", "10000000000"], "batch_size is 10000000000"),
    "batch that no memory holds": (
        [*TASK, "--agent.batch-size", "65536", "--agent.hidden-dim", "8192"],
        "batch_size",
    ),
    "a billion units": ([*TASK, "--agent.hidden-dim", "1000000000"], "8,192"),
    "a billion latent units": ([*TASK, "--agent.latent-dim", "1000000000"], "8,192"),
    "a billion Q-functions": ([*TASK, "--agent.num-q", "1000000000"], "num_q is 1000000000"),
    "a trillion samples": ([*TASK, "--agent.planner.num-samples", "1000000000000"], "num_samples"),
    "a plan that no memory holds": ([*TASK, "--agent.planner.num-samples", "500000"], "num_samples"),
    "a million iterations": ([*TASK, "--agent.planner.iterations", "1000000"], "iterations is 1000000"),
    "a horizon of a billion": ([*TASK, "--agent.horizon", "1000000000"], "horizon is 1000000000"),
    "a replay of a trillion": ([*TASK, "--agent.replay.capacity", "1000000000000"], "capacity"),
    "a million threads": ([*TASK, "--threads", "1000000"], "threads is 1000000"),
    "steps without end": ([*TASK, "--steps", "9" * 30], "steps is 999"),
    "a billion episodes": ([*TASK, "--eval-episodes", "1000000000"], "eval_episodes is 1000000000"),
    "a million events": ([*TASK, "--prune.events", "1000000", "--steps", "100000000"], "events is 1000000"),
    "an action repeat of a million": ([*TASK, "--action-repeat", "1000000"], "action_repeat is 1000000"),
    "a number of 300 digits": ([*TASK, "--seed", "1" * 300], "seed is 111"),
    # words that no one means
    "empty run folder": ([*TASK, "--run-dir", ""], "--run-dir is empty"),
    "empty run folder, other spelling": ([*TASK, "--run-dir="], "--run-dir is empty"),
    "empty task": (["train", ""], "empty"),
    "run that is an empty variable": (["evaluate", ""], "empty"),
    "empty output": (["report", "x", "--out", ""], "--out is empty"),
    "null byte in a folder": ([*TASK, "--run-dir", "a\0b"], "null byte"),
    "null byte in a run": (["evaluate", "a\0b"], "null byte"),
    "a folder's name of 300 letters": ([*TASK, "--run-dir", "a" * 300], "too long"),
    "a run's name of 300 letters": (["evaluate", "a" * 300], "too long"),
    "a report's name of 300 letters": (["report", "x", "--out", "a" * 300], "too long"),
    "a film's name of 300 letters": (["evaluate", "x", "--video", "a" * 300 + ".mp4"], "too long"),
    "a plot's name of 300 letters": (["stability", "x", "--plot", "a" * 300 + ".png"], "too long"),
    "an argument of a million letters": (["evaluate", "a" * 1_000_000], "too long"),
    # contradictions
    "from itself": ([*TASK, "--run-dir", "x", "--init-from", "x"], "own folder"),
    "from itself, other spelling": ([*TASK, "--run-dir", "x", "--init-from", f"{os.curdir}/x"], "own folder"),
    "from what is not there": ([*TASK, "--init-from", "no-such-run", "--threads", "1"], "no-such-run"),
    "elites without samples": ([*TASK, "--agent.planner.num-samples", "3"], "only 3"),
    "a sparsity that the limits forbid": (
        [*TASK, "--threads", "1", "--prune.limits.min-units", "16"],
        "min_units 16",
    ),
    "a sparsity of a protected agent": (
        [*TASK, "--threads", "1", "--prune.limits.coupling", "0", "--prune.sparsity", "0.99"],
        "protected",
    ),
    "limits on no component": (
        [*TASK, "--threads", "1", "--prune.limits.component", "decoder", "0.5"],
        "choose from dynamics",
    ),
    "a limit on a misspelt component": (
        [*TASK, "--threads", "1", "--prune.limits.component", "encodr", "0.5"],
        "there is no component encodr",
    ),
    "limits on nothing": ([*TASK, "--prune.limits.component"], "give names, each once, and a number"),
    "a limit without a number": ([*TASK, "--prune.limits.component", "encoder"], "and a number after each"),
    "a limit that is a word": ([*TASK, "--prune.limits.component", "encoder", "low"], "a number after each"),
    "a component limited twice": (
        [*TASK, "--prune.limits.component", "encoder", "0.5", "encoder", "0.2"],
        "each once",
    ),
    "a limit as a list": ([*TASK, '--prune.limits.component=["encoder"]'], "and a number after each"),
    "a limit as a list of lists": (
        [*TASK, "--threads", "1", '--prune.limits.component=[["encoder"], 0.5]'],
        "no component",
    ),
    "a limit that is none": ([*TASK, "--prune.limits.component=None"], "and a number after each"),
    "a limit that is a number": ([*TASK, "--prune.limits.component=0.5"], "and a number after each"),
    "limits in two forms": (
        [*TASK, '{"prune":{"limits":{"component":{"encoder":0.5}}}}', "--prune.limits.component", "q1", "0"],
        "in two forms",
    ),
    "limits below 0": ([*TASK, "--prune.limits.component", "encoder", "-1"], "component encoder is -1"),
    "a recovery too long": ([*TASK, "--prune.recovery", "10001"], "0 to 10000"),
    "a recovery in powers": ([*TASK, "--prune.recovery", "1e3"], "1e3"),
    "a recovery below 0": ([*TASK, "--prune.recovery=-1"], "recovery is -1"),
    "an empty selection": ([*TASK, "--prune.selection", ""], "empty"),
    # misspelt names
    "criterion": ([*TASK, "--prune.criterion", "tailor"], "taylor"),
    "allocation": ([*TASK, "--prune.allocation", "equal"], "uniform"),
    "schedule": ([*TASK, "--prune.schedule", "cosin"], "cosine"),
    "compensation": ([*TASK, "--prune.compensation", "linaer"], "linear"),
    "selection": ([*TASK, "--prune.selection", "surgeons"], "surgeon"),
    "selection without compensation": (
        [*TASK, "--prune.selection", "surgeon", "--prune.compensation", "none"],
        "selection is 'surgeon', which counts on compensation, but that is 'none': choose 'scores'",
    ),
    "selection and calibrated": (
        [*TASK, "--prune.selection", "residual", "--prune.allocation", "calibrated"],
        "takes other units than allocation 'calibrated' measures ('uniform' measures none): choose 'scores'",
    ),
    "selection and guard": (
        [*TASK, "--prune.selection", "surgeon", "--prune.criterion", "bayesian"],
        "the guard of 'bayesian' (importance.guard 0 is without): choose 'scores'",
    ),
    "ridge": ([*TASK, "--prune.ridge", "0"], "ridge is 0.0; choose 0.0001 to 10000"),
    "normalisation": ([*TASK, "--prune.importance.normalisation", "layer"], "component"),
    "wandb mode": ([*TASK, "--wandb.mode", "of"], "offline"),
    "prune setting": ([*TASK, "--prune.sparcity", "0.5"], "--prune.sparsity"),
    "planner setting": ([*TASK, "--agent.planner.num-sample", "5"], "num-samples"),
    "limits setting": ([*TASK, "--prune.limits.min-unit", "5"], "min-units"),
    "option of another verb": (["report", "x", "--out", "y", "--episodes", "3"], "--episodes"),
    "verb in capitals": (["Train", "cartpole-swingup"], "no verb"),
    "option as a verb": (["--wandb.mode", "disabled"], "no verb"),
    "task with a path": (["train", "../../etc/passwd"], "unknown task"),
    "task with markup": (["train", "<script>alert(1)</script>"], "unknown task"),
    "task that a terminal would obey": (["train", "\x1b[31mred"], "\\x1b[31mred"),
    "folder that a terminal would obey": (["evaluate", "\x1b]0;x\x07"], "\\x1b]0;x\\x07"),
    # the autoencoder
    "images that are not there": ([*AE, "--data", "no-such-folder"], "no such folder"),
    "no code": ([*AE, "--agent.code-dim", "0"], "code_dim is 0"),
    "a billion codes": ([*AE, "--agent.code-dim", "1000000000"], "code_dim is 1000000000"),
    "no hidden units": ([*AE, "--agent.hidden-dim", "0"], "hidden_dim is 0"),
    "batch beyond memory": ([*AE, "--agent.batch-size", "1000000000"], "batch_size is 1000000000"),
    "autoencoder lr": ([*AE, "--agent.lr", "nan"], "lr is nan"),
    "autoencoder clip": ([*AE, "--agent.grad-clip=-1"], "grad_clip is -1"),
    "log never": ([*AE, "--log-every", "0"], "log_every is 0"),
    "a controller's setting": ([*AE, "--action-repeat", "2"], "--action-repeat"),
    # the verbs on finished runs
    "evaluate a billion episodes": (["evaluate", "x", "--episodes", "1000000000"], "episodes is 1000000000"),
    "evaluate a billion plans": (["evaluate", "x", "--plans", "1000000000"], "plans is 1000000000"),
    "evaluate with a million threads": (["evaluate", "x", "--threads", "1000000"], "threads is 1000000"),
    "evaluate with negative threads": (["evaluate", "x", "--threads=-1"], "threads is -1"),
    "evaluate on another device": (["evaluate", "x", "--device", "gpu"], "cuda"),
    "evaluate with a huge seed": (["evaluate", "x", "--seed", "4294967296"], "seed is 4294967296"),
    "noise nan": (["evaluate", "x", "--perturb", "noise=nan"], "NAME=AMOUNT"),
    "noise inf": (["evaluate", "x", "--perturb", "noise=inf"], "noise=inf"),
    "delay of half a step": (["evaluate", "x", "--perturb", "delay=0.5"], "whole number"),
    "delay of a billion steps": (["evaluate", "x", "--perturb", "delay=1000000000"], "0 to 1000"),
    "negative gravity": (["evaluate", "x", "--perturb", "gravity=-1"], "0 to 100"),
    "validate nothing": (["validate"], "RUN"),
    "validate two runs": (["validate", "x", "y"], "y"),
    "validate no moments": (["validate", "x", "--moments", "0"], "moments is 0"),
    "validate no batch": (["validate", "x", "--batch-size", "0"], "batch_size is 0"),
    "validate a billion sequences": (
        ["validate", "x", "--batch-size", "1000000000"],
        "batch_size is 1000000000",
    ),
    "validate two subsets": (["validate", "x", "--subsets", "2"], "subsets is 2"),
    "validate negative subsets": (["validate", "x", "--subsets=-3"], "subsets is -3"),
    "validate no episodes": (["validate", "x", "--episodes", "0"], "episodes is 0"),
    "validate no batches": (["validate", "x", "--batches", "0"], "batches is 0"),
    "validate other scores": (["validate", "x", "--scores", "mine"], "replay"),
    "sensitivity of nothing": (["sensitivity"], "RUN"),
    "sensitivity without shares": (["sensitivity", "x", "--shares"], "shares are 0"),
    "sensitivity of a whole part": (["sensitivity", "x", "--shares", "0.5", "1"], "shares hold 1"),
    "sensitivity, a share twice": (["sensitivity", "x", "--shares", "0.5", "0.5"], "twice"),
    "sensitivity, nan": (["sensitivity", "x", "--shares", "nan"], "shares hold nan"),
    "sensitivity without episodes": (["sensitivity", "x", "--episodes", "0"], "episodes is 0"),
    "sensitivity, another criterion": (["sensitivity", "x", "--criterion", "tailor"], "taylor"),
    "sensitivity, no ridge": (["sensitivity", "x", "--ridge", "0"], "ridge is 0"),
    "sensitivity into a text": (["sensitivity", "x", "--plot", "x.txt"], ".png"),
    "validate with a negative seed": (["validate", "x", "--seed=-1"], "seed is -1"),
    "judge nothing": (["stability"], "RUN"),
    "judge from nowhere": (["stability", "x", "--starts", "0"], "starts is 0"),
    "judge from a billion places": (["stability", "x", "--starts", "1000000000"], "starts is 1000000000"),
    "judge no steps": (["stability", "x", "--steps", "0"], "steps is 0"),
    "judge with alpha 1": (["stability", "x", "--alpha", "1"], "alpha is 1"),
    "judge with alpha nan": (["stability", "x", "--alpha", "nan"], "alpha is nan"),
    "judge without a ball": (["stability", "x", "--ball", "0"], "ball is 0"),
    "judge with delta -1": (["stability", "x", "--delta=-1"], "delta is -1"),
    "judge both controllers": (["stability", "x", "--controller", "both"], "policy"),
    "a plot that is none": (["stability", "x", "--plot", "plot.gif"], ".png or .svg"),
    "report nothing": (["report", "--out", "y"], "RUN"),
    "report to nowhere": (["report", "x"], "--out"),
    "report other milliseconds": (["report", "x", "--out", "y", "--latency", "guessed"], "measured"),
    "report with a million threads": (["report", "x", "--out", "y", "--threads", "1000000"], "threads"),
    "export nothing": (["export", "--out", "y"], "RUN"),
    "export to nowhere": (["export", "x"], "--out"),
    "export another controller": (["export", "x", "--out", "y", "--controller", "pid"], "planner"),
    "export with a negative seed": (["export", "x", "--out", "y", "--seed=-1"], "seed is -1"),
}
"""Slips of a finger, of a shell and of a mind, beside those above."""


@pytest.mark.parametrize("case", SLIPS)
def test_slips(case, refused):
    arguments, said = SLIPS[case]
    assert said.lower() in refused(*arguments).lower()


def test_there_are_many_of_them():
    """What the README says."""
    assert len(WRONG) + len(SLIPS) >= 200


PLACES = {
    "stability": (["stability", "RUN"], "--plot", ".png"),
    "validate": (["validate", "RUN"], "--out", ""),
    "sensitivity": (["sensitivity", "RUN"], "--plot", ".png"),
    "report": (["report", "RUN"], "--out", ""),
    "export": (["export", "RUN"], "--out", ""),
    "evaluate": (["evaluate", "RUN"], "--video", ".mp4"),
}


@pytest.mark.parametrize("verb", PLACES)
def test_places_that_cannot_be_written(verb, refused, finished, tmp_path):
    """Known before anything is measured: the option and its place are in the line."""
    arguments, option, ending = PLACES[verb]
    arguments = [str(finished) if word == "RUN" else word for word in arguments]
    (tmp_path / "file").write_text("precious")
    places = [tmp_path / "file" / f"below{ending}"]
    if ending:
        places.append(tmp_path / f"folder{ending}")
        places[-1].mkdir()
    for place in places:
        said = refused(*arguments, option, place)
        assert option in said
        assert place.name in said


@pytest.mark.parametrize("verb", ["evaluate", "validate", "sensitivity", "stability", "report", "export"])
@pytest.mark.parametrize("damage", ["missing", "empty", "file", "no state", "truncated", "unknown format"])
def test_runs_that_are_none(verb, damage, refused, finished, tmp_path):
    """One line, exit code 2, nothing written: for every verb that takes a run."""
    if verb == "report" and damage in ("no state", "truncated", "unknown format"):
        pytest.skip("a report reads metrics; a checkpoint that cannot be read is not timed")
    run = tmp_path / "damaged"
    if damage == "file":
        run.write_text("no folder")
    elif damage == "empty":
        run.mkdir()
    elif damage != "missing":
        shutil.copytree(finished, run)
        for checkpoint in checkpoints(run):
            if damage == "no state":
                (checkpoint / "state.json").write_text("{")
            elif damage == "truncated":
                model = checkpoint / "model.safetensors"
                model.write_bytes(model.read_bytes()[:1000])
            else:
                stored = json.loads((checkpoint / "state.json").read_text())
                (checkpoint / "state.json").write_text(json.dumps(stored | {"schema": 99}))
    out = ["--out", tmp_path / "out"] if verb in ("report", "export") else []
    said = refused(verb, run, *out)
    if damage == "unknown format":
        assert "99" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_without_cuda(refused, finished):
    assert "--device cpu" in refused(*TASK, "--device", "cuda")
    assert "--device cpu" in refused("evaluate", finished, "--device", "cuda")


def test_folder_that_holds_something_else(refused, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    assert "config.json" in refused(*TASK, "--run-dir", folder)


def test_folder_that_is_a_file(refused, folder):
    folder.write_text("precious")
    assert "is a file" in refused(*TASK, "--run-dir", folder)


def test_folder_below_a_file(refused, folder):
    folder.write_text("precious")
    assert "--run-dir" in refused(*TASK, "--run-dir", folder / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": []}', '{"other": 1}', "\x00\xff"])
def test_folder_with_another_programs_config(content, refused, folder):
    folder.mkdir()
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refused(*TASK, "--run-dir", folder)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["--seed", "2"], "seed (stored 1, now 2)"),
        (["--agent.planner.num-elites", "5"], "agent.planner.num_elites (stored 4, now 5)"),
        (["--eval-episodes", "3"], "eval_episodes (stored 2, now 3)"),
        (["--action-repeat", "20"], "action_repeat (stored 40, now 20)"),
        (["--envs", "4"], "envs (stored 1, now 4)"),
    ],
)
def test_folder_of_a_run_with_other_settings(setting, said, refused, finished, folder):
    shutil.copytree(finished, folder)
    assert said in refused("train", *CARTPOLE, "--run-dir", folder, *setting)


def test_folder_of_another_task(refused, finished, folder):
    shutil.copytree(finished, folder)
    line = refused("train", *PENDULUM, "--run-dir", folder)
    assert "task (stored 'cartpole-swingup', now 'InvertedPendulum-v5')" in line
    assert "choose another --run-dir" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(refused, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert "cannot write" in refused(*TASK, "--run-dir", locked / "run")


def test_folder_that_cannot_be_written_as_the_system_says(refused, folder, monkeypatch):
    monkeypatch.setattr("tdmpc_prune.run_folder.os.access", lambda path, how: False)
    assert "cannot write" in refused(*TASK, "--run-dir", folder)


def test_folder_that_cannot_be_written_as_it_turns_out(refused, folder, monkeypatch):
    def mkdir(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tdmpc_prune.run_folder.Path.mkdir", mkdir)
    assert "Permission denied" in refused(*TASK, "--run-dir", folder, "--threads", "1")


def test_settings_that_cannot_be_written(refused, folder, monkeypatch):
    def full(path, value):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("tdmpc_prune.run_folder.write_json", full)
    assert "Read-only file system" in refused(*TASK, "--run-dir", folder, "--threads", "1")


# Evaluation of what is no run


def test_evaluate_an_empty_folder(refused, folder):
    folder.mkdir()
    assert "no run folder with a checkpoint" in refused("evaluate", folder)


def test_evaluate_a_file(refused, folder):
    folder.write_text("x")
    assert "no run folder" in refused("evaluate", folder)


def test_evaluate_a_run_without_checkpoint(refused, finished, folder):
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints")
    assert "no run folder with a checkpoint" in refused("evaluate", folder)


def damage_text(content):
    def damage(checkpoint):
        (checkpoint / "state.json").write_bytes(content)

    return damage


def change_state(**values):
    def damage(checkpoint):
        state = json.loads((checkpoint / "state.json").read_text())
        for key, value in values.items():
            if value is None:
                del state[key]
            else:
                state[key] = value
        (checkpoint / "state.json").write_text(json.dumps(state))

    return damage


def cut(name, size):
    def damage(checkpoint):
        os.truncate(checkpoint / name, size)

    return damage


def drop_tensor(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, checkpoint / "model.safetensors")


def other_shape(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(n for n in sorted(tensors) if tensors[n].ndim == 2)
    tensors[name] = tensors[name][:, :1].clone()
    save_file(tensors, checkpoint / "model.safetensors")


DAMAGE = {
    "state is empty": damage_text(b""),
    "state is half": damage_text(b'{"schema": 1, "task": "cart'),
    "state is a list": damage_text(b"[]"),
    "state is binary": damage_text(bytes(range(128, 256))),
    "state of a later version": change_state(schema=99),
    "state without a schema": change_state(schema=None),
    "state without an agent": change_state(agent=None),
    "state with another agent": change_state(agent={"num_q": 1}),
    "state with other widths": change_state(architecture={"encoder": [5, 3]}),
    "state of an unknown task": change_state(task="teleport-anywhere"),
    "weights are gone": lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
    "weights are empty": cut("model.safetensors", 0),
    "weights are cut in the header": cut("model.safetensors", 100),
    "weights are cut in the data": cut("model.safetensors", 12_000),
    "weights lack a tensor": drop_tensor,
    "weights of another shape": other_shape,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_evaluate_a_damaged_checkpoint(damage, refused, finished, folder):
    shutil.copytree(finished, folder)
    DAMAGE[damage](checkpoints(folder)[-1])
    line = refused("evaluate", folder, "--episodes", "1", "--threads", "1")
    assert str(folder) in line


@pytest.mark.parametrize("damage", ["state of a later version", "weights are cut in the data"])
def test_resume_from_a_damaged_checkpoint(damage, refused, finished, folder):
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    DAMAGE[damage](checkpoints(folder)[-1])
    line = refused("train", *CARTPOLE, "--run-dir", folder)
    assert str(folder) in line


def test_resume_from_a_checkpoint_with_half_its_replay(refused, finished, folder):
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    cut("training.safetensors", 5_000)(checkpoints(folder)[-1])
    assert str(folder) in refused("train", *CARTPOLE, "--run-dir", folder)


def test_resume_without_the_metrics_that_belong_to_the_checkpoint(finished, folder):
    """Refused or begun anew, but no file of zero bytes where lines should be."""
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()
    cli.main(["train", *CARTPOLE, "--run-dir", str(folder)])
    metrics = folder / "metrics.jsonl"
    assert not metrics.exists() or b"\0" not in metrics.read_bytes()


def test_resume_on_a_simulator_that_differs(refused, finished, folder, monkeypatch):
    """The state cannot be restored: it says so, and nothing is overwritten."""
    from tdmpc_prune.collect import Collector
    from tdmpc_prune.errors import Interrupted
    from tdmpc_prune.signals import StopSignals

    def stop(self, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 40:
            raise Interrupted

    command = ["train", *CARTPOLE, "--run-dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "check", stop)
        assert cli.main(command) == 1
    real = Collector._begin

    def begin(self, episodes):
        [recording] = real(self, episodes)
        recording.observations[0] = np.nextafter(recording.observations[0], np.float32(9))
        return [recording]

    monkeypatch.setattr(Collector, "_begin", begin)
    assert "resume with the versions of mujoco" in refused(*command)


def test_video_without_its_extra(refused, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    line = refused("evaluate", finished, "--video", tmp_path / "film.mp4")
    assert "pip install 'tdmpc-prune[video]'" in line


# Accepted forms


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--agent.lr=0.01"], lambda c: c.agent.lr == 0.01),
        (["agent.lr=0.01"], lambda c: c.agent.lr == 0.01),
        (["--agent.lr", "1e-2"], lambda c: c.agent.lr == 0.01),
        (["--agent.hidden_dim=24"], lambda c: c.agent.hidden_dim == 24),
        (["agent.hidden-dim=24"], lambda c: c.agent.hidden_dim == 24),
        (["agent.planner.num_samples=64"], lambda c: c.agent.planner.num_samples == 64),
        (["seed=7"], lambda c: c.seed == 7),
        (["_wandb={}", "seed=7"], lambda c: c.seed == 7),
        (["--json=True"], lambda c: c.json is True),
        (["--json=true"], lambda c: c.json is True),
        (["json=True"], lambda c: c.json is True),
        (["--json=False"], lambda c: c.json is False),
        (["--json", "--json=False"], lambda c: c.json is False),
        (["--json"], lambda c: c.json is True),
        (["--no-json"], lambda c: c.json is False),
        (["--preset=debug"], lambda c: c.preset == "debug" and c.agent.latent_dim == 8),
        (["preset=debug", "steps=500"], lambda c: c.agent.latent_dim == 8 and c.steps == 500),
        (["--preset", "paper"], lambda c: c.agent.num_q == 2 and c.steps == 100_000),
        (["--run-dir", "runs/a=1"], lambda c: c.folder == Path("runs/a=1")),
        (["--run-dir=runs/a=1"], lambda c: c.folder == Path("runs/a=1")),
        (["--run-dir", "seed=1"], lambda c: c.folder == Path("seed=1")),
        (["--wandb.group", "lr=0.1"], lambda c: c.wandb.group == "lr=0.1"),
        (["--wandb.group=lr=0.1"], lambda c: c.wandb.group == "lr=0.1"),
        ([], lambda c: c.folder == Path("runs/cartpole-swingup-laptop-s1")),
    ],
)
def test_accepted_forms(words, read):
    config = parse(["train", "cartpole-swingup", *words])
    assert read(config), config


def test_settings_given_later_win_over_the_preset():
    config = parse(["train", "cartpole-swingup", "--agent.latent-dim", "12", "--preset", "debug"])
    assert (config.agent.latent_dim, config.agent.hidden_dim) == (12, 16)


def test_parse_raises_a_line():
    with pytest.raises(UserError) as caught:
        parse(["train"])
    assert "\n" not in str(caught.value)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"tdmpc-prune {__version__}\n"


def test_no_words_ask_for_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    assert "usage: tdmpc-prune" in out
    assert err == ""
