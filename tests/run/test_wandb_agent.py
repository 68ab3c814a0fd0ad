"""What a W&B sweep agent asks of a run: its command lines, folders and ids, stopping and resuming."""

import json
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from fake_wandb import agent_command

from tdmpc_prune.arguments import SWITCHES
from tdmpc_prune.cli import COMMANDS, parse
from tdmpc_prune.config import AutoencoderTrainConfig, TDMPCTrainConfig
from tdmpc_prune.errors import UserError
from tdmpc_prune.run_folder import to_json

FORMS = [
    "args",
    "args_no_hyphens",
    "args_no_equals",
    "args_no_boolean_flags",
    "args_append_hydra",
    "args_override_hydra",
    "args_json",
    "args_json_file",
]
BASE = ["train", "cartpole-swingup"]


def command(form, parameters, folder, *before):
    """The words after the program's name that an agent would run."""
    definition = {"program": "tdmpc-prune", "command": ["${program}", *before, f"${{{form}}}"]}
    program, *words = agent_command(definition, parameters, str(folder))
    assert program == "tdmpc-prune"
    return words


# Command lines


PARAMETERS = {
    "dotted": ({"prune.sparsity": 0.9, "seed": 3}, ["--prune.sparsity", "0.9", "--seed", "3"]),
    "nested": (
        {"prune": {"sparsity": 0.9, "limits": {"coupling": 0, "min_units": 2}}},
        ["--prune.sparsity", "0.9", "--prune.limits.coupling", "0", "--prune.limits.min-units", "2"],
    ),
    "nested and dotted": (
        {"agent": {"planner": {"momentum": 0.2}}, "agent.lr": 1e-05},
        ["--agent.planner.momentum", "0.2", "--agent.lr", "1e-05"],
    ),
    "coefficients, nested": (
        {"prune": {"limits": {"component": {"encoder": 0.5, "dynamics": 0}}}},
        ["--prune.limits.component", "encoder", "0.5", "dynamics", "0"],
    ),
    "coefficients, dotted": (
        {"prune.limits.component.encoder": 0.5, "prune.limits.component.dynamics": 0.1},
        ["--prune.limits.component", "encoder", "0.5", "dynamics", "0.1"],
    ),
    "true": ({"json": True}, ["--json"]),
    "false": ({"json": False, "dry_run": False}, []),
    "none": ({"action_repeat": None, "wandb.group": None, "init_from": None}, []),
    "a list": ({"wandb.tags": ["a", "b c"]}, ["--wandb.tags", "a", "b c"]),
    "a list inside": ({"wandb": {"tags": ["a"], "group": "g"}}, ["--wandb.tags", "a", "--wandb.group", "g"]),
    "an empty list": ({"wandb.tags": [], "seed": 2}, ["--seed", "2"]),
    "its own": ({"seed": 2, "_wandb": {"cli_version": "0.31.0", "t": {"1": [1, 5]}}}, ["--seed", "2"]),
    "its own, with what Python writes": ({"_wandb": {"x": float("nan")}, "seed": 2}, ["--seed", "2"]),
    "a value with a brace": ({"wandb.group": "{not a tree"}, ["--wandb.group", "{not a tree"]),
    "a value with a bracket": ({"wandb.group": "[ours]"}, ["--wandb.group", "[ours]"]),
    "a value with an equals sign": ({"wandb.group": "lr=0.1"}, ["--wandb.group", "lr=0.1"]),
    "a word that is a truth elsewhere": ({"wandb.group": "True"}, ["--wandb.group=True"]),
    "a preset": ({"preset": "debug", "steps": 700}, ["--preset", "debug", "--steps", "700"]),
    "a name with underscores": ({"agent.reward_coef": 0.25}, ["--agent.reward-coef", "0.25"]),
}


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_trials_parameters(form, case, tmp_path):
    parameters, typed = PARAMETERS[case]
    assert parse(command(form, parameters, tmp_path, *BASE)) == parse([*BASE, *typed])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [BASE, ["train"], ["train", "--preset", "debug", "cartpole-swingup"]])
def test_a_resumed_trial_is_given_all_its_settings(form, before, tmp_path):
    """A requeued run's parameters are its whole configuration at W&B, not the sweep's."""
    config = parse(
        [
            *(*BASE, "--preset", "debug", "--agent.lr", "1e-05", "--wandb.tags", "a", "b"),
            *("--prune.limits.component", "encoder", "0.5", "--prune.sparsity", "0.7"),
        ]
    )
    assert isinstance(config, TDMPCTrainConfig)
    parameters = to_json(config) | {"prune.sparsity": 0.7, "_wandb": {"t": {"1": [1]}, "x": "y" * 5_000}}
    assert parse(command(form, parameters, tmp_path, *before)) == config


@pytest.mark.parametrize("form", FORMS)
def test_the_autoencoder_too(form, tmp_path):
    config = parse(["train", "autoencoder", "--steps", "100", "--agent.code-dim", "7"])
    assert isinstance(config, AutoencoderTrainConfig)
    assert parse(command(form, to_json(config), tmp_path, "train", "autoencoder")) == config
    assert parse(command(form, to_json(config), tmp_path, "train")) == config


@pytest.mark.parametrize("form", FORMS)
def test_a_sweep_over_tasks(form, tmp_path):
    """A list does not take the task that follows for one of its own."""
    parameters = {"wandb.tags": ["a"], "task": "walker-walk"}
    config = parse(command(form, parameters, tmp_path, "train"))
    assert (config.task, config.wandb.tags) == ("walker-walk", ("a",))
    parameters = {"wandb.tags": ["a"], "seed": 4}
    definition = {"command": ["train", f"${{{form}}}", "walker-walk", "--wandb.group", "walker-walk"]}
    config = parse(agent_command(definition, parameters, str(tmp_path)))
    assert (config.task, config.wandb.tags, config.wandb.group) == ("walker-walk", ("a",), "walker-walk")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"prune": {"sparsty": 0.9}}, "--prune.sparsity"),
        ({"agent.planner.num_elite": 3}, "--agent.planner.num-elites"),
        ({"prune": {"sparsity": "much"}}, "much"),
        ({"prune": [1, 2]}, "prune"),
        ({"prune": 3}, "prune"),
        ({"seed": {"a": 1}}, "seed.a"),
        ({"seed": 1.5}, "1.5"),
        ({"json": 7}, "7"),
        ({"prune.limits.component.encoder": "x"}, "--prune.limits.component"),
        ({"task": "no-such-task"}, "no-such-task"),
    ],
)
def test_refused_parameters(form, parameters, said, tmp_path):
    with pytest.raises(UserError) as caught:
        parse(command(form, parameters, tmp_path, *BASE))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["{", '{"seed": 1', "{'seed': 1}", "{1}", "no-such-file.json", "list.json", "text.json", "."]
)
def test_refused_trees(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_bytes(b"\xff\x00")
    with pytest.raises(UserError) as caught:
        parse([*BASE, word])
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_coefficients_in_two_forms_are_refused():
    """The second would silently replace the first."""
    typed = ["--prune.limits.component", "encoder", "0.5"]
    with pytest.raises(UserError, match="one of the two forms"):
        parse([*BASE, *typed, "prune.limits.component.dynamics=0.5"])


def test_a_json_file_is_a_runs_name_to_other_verbs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"seed": 1}))
    assert str(parse(["sweep", "sweep.json"]).file) == "sweep.json"


def test_all_switches_are_known():
    """Words that take no value, over all settings of all verbs."""

    def switches(kind, above=""):
        hints = get_type_hints(kind, include_extras=False)
        for field in fields(kind):
            name = f"{above}{field.name}".replace("_", "-")
            if hints[field.name] is bool:
                yield name
            elif is_dataclass(hints[field.name]):
                yield from switches(hints[field.name], f"{name}.")

    kinds = [kind for kind, _ in COMMANDS.values()] + [TDMPCTrainConfig, AutoencoderTrainConfig]
    assert {name for kind in kinds for name in switches(kind)} == {*SWITCHES} - {"help"}
