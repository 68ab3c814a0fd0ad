"""What a W&B sweep agent asks of a run: its command lines, folders and ids, stopping and resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from fake_wandb import KEY, SWEEP, Server, agent_command, end_wandb
from small_runs import CARTPOLE, PENDULUM, assert_same_run, rows

import tdmpc_prune
from tdmpc_prune.arguments import SWITCHES
from tdmpc_prune.cli import COMMANDS, main, parse
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


@pytest.mark.parametrize("after", [[], ["--seed", "2"]])
@pytest.mark.parametrize("task", ["cartpole-swingup", "autoencoder"])
def test_a_task_behind_coefficients(task, after):
    words = ["--prune.limits.component", "encoder", "0.5", "q1", "0"]
    assert parse(["train", "--steps=40000", *words, task, *after]) == parse(
        ["train", task, "--steps=40000", *words, *after]
    )


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
    with pytest.raises(UserError, match="in two forms"):
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


# Folders


def test_a_trial_has_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "ab12cd34")
    assert parse(BASE).folder == Path("runs/cartpole-swingup-laptop-s1")  # no trial without a run
    monkeypatch.setenv("WANDB_RUN_ID", "x9_-Y")
    assert parse(BASE).folder == Path("runs/sweep-ab12cd34/x9_-Y")
    assert parse([*BASE, "--run-dir", "here"]).folder == Path("here")
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert parse(BASE).folder == Path("runs/cartpole-swingup-laptop-s1")


@pytest.mark.parametrize("name", ["..", "../../home", "/x", "a/b", "a b", ".", "a\nb", "x" * 65, "é"])
@pytest.mark.parametrize("variable", ["WANDB_SWEEP_ID", "WANDB_RUN_ID"])
@pytest.mark.parametrize("typed", [[], ["--run-dir", "here"]])
def test_ids_that_are_no_names_are_refused(variable, name, typed, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "ab12cd34")
    monkeypatch.setenv("WANDB_RUN_ID", "ef56gh78")
    monkeypatch.setenv(variable, name)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *PENDULUM, *typed]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "unset WANDB_SWEEP_ID" in err
    assert sorted(tmp_path.rglob("*")) == before


# The real agent, in a process of its own, and the real client in its trials; only the server is ours

ROOT = str(Path(tdmpc_prune.__file__).parents[1])
QUICK = """
import sys
from wandb import wandb_agent
wandb_agent.Agent.POLL_INTERVAL = 0.2
from tdmpc_prune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def words(arguments, mode):
    """The settings of a small run, with W&B."""
    rest = list(arguments)
    rest[rest.index("--wandb.mode") + 1] = mode
    return rest


def sweep_file(arguments, mode, form="args"):
    definition = {
        "program": "tdmpc-prune",
        "method": "grid",
        "metric": {"name": "eval/return", "goal": "maximize"},
        "command": ["${program}", "train", *words(arguments, mode), f"${{{form}}}"],
        "parameters": {"seed": {"values": [1, 2]}},
    }
    Path("sweep.yaml").write_text(yaml.dump(definition))


def start(server, *more):
    """`tdmpc-prune sweep` as an agent; it asks the server for work more often than W&B's would."""
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, "sweep", "sweep.yaml", "--engine", "wandb", *more],
        env={**os.environ, **server.environment(), "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    limit = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit, "nothing happened for two minutes"
        time.sleep(0.02)


def trials(folder=Path("runs")):
    return sorted(path.name for path in (folder / f"sweep-{SWEEP}").iterdir())


def own(line):
    return {key: value for key, value in line.items() if not key.startswith(("_", "pareto/"))}


def test_trials_of_an_agent():
    """Each in its folder and under its id; one that is refused stops no other; W&B gets every line."""
    with Server() as server:
        sweep_file(PENDULUM, "online", "args_json")
        server.commands = [
            server.trial("good1", seed=1),
            server.trial("wrong", seed=-1),
            server.trial("good2", seed=2, prune={"sparsity": 0.5}, agent__lr=0.002),
            server.trial("quiet", seed=3, wandb={"mode": "offline"}),
        ]
        process = start(server)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.count("env step") == 3
        assert f"{server.url}/team/tdmpc-prune/sweeps/{SWEEP}" in err
        assert "tdmpc-prune: seed is -1; choose 0 to 2147483647\n" in err
        assert "Traceback" not in err
        assert KEY not in err
        assert trials() == ["good1", "good2", "quiet"]
        assert sorted(server.runs) == ["good1", "good2"]
        for name in server.runs:
            folder, run = Path(f"runs/sweep-{SWEEP}/{name}"), server.runs[name]
            assert (folder / "wandb_id.txt").read_text() == name
            assert [own(line) for line in run.lines] == rows(folder)
            assert run.exit_code == 0
            assert not run.preempting
            summary = json.loads((folder / "summary.json").read_text())
            assert run.summary["eval/return"] == summary["return"]
            assert run.config["seed"] == summary["seed"] == int(name[-1])
        assert server.runs["good2"].config["prune"]["sparsity"] == 0.5
        assert server.runs["good2"].config["prune"]["events"] == 12
        assert server.runs["good2"].config["agent"]["lr"] == 0.002
    (file,) = Path(f"runs/sweep-{SWEEP}/quiet/wandb").glob("offline-run-*/*.wandb")
    assert file.name == "run-quiet.wandb"


def test_a_stopped_agent_gives_its_trial_back(undisturbed):
    """The trial is saved and marked, and the next agent has it resumed, with all of its settings as W&B has them."""
    metrics = Path(f"runs/sweep-{SWEEP}/trial1/metrics.jsonl")
    with Server() as server:
        sweep_file(CARTPOLE, "online")
        server.commands = [server.trial("trial1", seed=1)]
        process = start(server)
        wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 1, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, err
        assert out == ""
        assert "Traceback" not in err
        assert "saved at environment step" in err
        run = server.runs["trial1"]
        assert run.exit_code == 1
        assert run.preempting
        assert not (metrics.parent / "summary.json").exists()
        before = len(run.lines)
        assert [own(line) for line in run.lines] == rows(metrics.parent)

        server.commands = [server.trial("trial1", "resume", **run.config)]
        _, err = (process := start(server, "--join", SWEEP)).communicate(timeout=120)
        assert process.returncode == 0, err
        assert "resumed at environment step" in err
        assert server.operations.count("UpsertSweep") == 1
        assert trials() == ["trial1"]
        assert len(run.lines) > before
        assert [own(line) for line in run.lines] == rows(metrics.parent)
        assert run.exit_code == 0
    assert_same_run(metrics.parent, undisturbed["cartpole"].path)


def test_a_trial_that_wandb_stops_is_not_given_back():
    """By its user or early_terminate: it is saved, does not come back, and the agent goes on."""
    metrics = Path(f"runs/sweep-{SWEEP}/lagging/metrics.jsonl")
    with Server() as server:
        sweep_file(CARTPOLE, "online")
        server.commands = [server.trial("lagging", seed=1), server.trial("next", seed=-1)]
        process = start(server)
        wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 1, process)
        server.run("lagging").stopped = True
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "saved at environment step" in err
        assert "seed is -1" in err
        assert server.runs["lagging"].exit_code == 1
        assert not server.runs["lagging"].preempting
        assert [own(line) for line in server.runs["lagging"].lines] == rows(metrics.parent)


def refused(capsys, *more):
    """The one line of an engine that cannot begin."""
    sweep_file(PENDULUM, "online")
    assert main(["sweep", "sweep.yaml", "--engine", "wandb", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith("wandb: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert KEY not in err
    return said[0]


@pytest.fixture
def fresh():
    """A W&B that has read nothing of the environment yet."""
    end_wandb()
    yield
    end_wandb()


def test_an_agent_without_a_login(fresh, capsys):
    assert "wandb login" in refused(capsys)


@pytest.mark.parametrize("join", ["", "a/b/c/d", "../x", "a//b", "https://wandb.ai/a/b/sweeps/c", "a b"])
def test_an_agent_of_no_sweeps_name(join, capsys):
    refused(capsys, "--join", join)


def test_an_agent_of_no_sweep(fresh, capsys, monkeypatch):
    with Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        said = refused(capsys, "--join", "team/project/nosuch")
    assert "team/project/nosuch" in said
    assert "not found" in said


def test_an_agent_without_a_server(fresh, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("wandb.apis.public.api.Api._HTTP_TIMEOUT", 1)
    said = refused(capsys)
    assert "--engine ray" in said
