"""The sweeps under sweeps/: W&B's schema allows them, our settings take them, and W&B's agent could run them."""

import json
from pathlib import Path

import pytest
from fake_wandb import agent_command

from tdmpc_prune.cli import main
from tdmpc_prune.sweep.command import words
from tdmpc_prune.sweep.definition import read
from tdmpc_prune.sweep.driver import Sweep
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.search import Random, search
from tdmpc_prune.sweep.trial import Resources, plan

sweeps = pytest.importorskip("sweeps", reason="W&B's package sweeps: see the Makefile")

FILES = sorted(Path(__file__).parents[2].glob("sweeps/*.yaml"))
SHORT = [
    *(
        "--preset",
        "debug",
        "--steps",
        "2500",
        "--eval-every",
        "1000",
        "--eval-episodes",
        "1",
        "--threads",
        "1",
    ),
    *("--agent.hidden-dim", "64", "--prune.limits.min-units", "1", "--prune.eval-episodes", "0"),
    *("--prune.importance.warmup", "5", "--agent.planner.num-samples", "16", "--wandb.mode", "disabled"),
]
"""Debug size; sparsities to 98% are within reach."""
SHORT_AUTOENCODER = [
    *("--steps", "100", "--eval-every", "50", "--log-every", "50", "--threads", "1"),
    *("--prune.eval-episodes", "0", "--prune.importance.warmup", "5", "--wandb.mode", "disabled"),
]


def test_all_that_the_readme_promises():
    assert {file.stem for file in FILES} == {
        "autoencoder",
        "coupling",
        "criteria",
        "criteria-walker-walk",
        "importance",
        "pareto",
        "schedule",
        "selection",
        "smoke",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandbs_schema_allows_it(file):
    definition = read(file)
    assert sweeps.schema_violations_from_proposed_config(dict(definition.raw)) == []


def test_wandbs_schema_can_refuse():
    assert sweeps.schema_violations_from_proposed_config(
        {"method": "grid", "parameters": {"a": {"valeus": [1]}}}
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_trial_is_accepted(file, tmp_path):
    definition = read(file)
    sweep = Sweep(definition, SweepFolder(tmp_path / "s"), seed=1, count=None, resources=Resources())
    source = sweep.search if sweep.search.size else Random(definition, 1)
    for number in range(1, sweep.total + 1):
        values = source.propose(number).values
        config = plan(definition, values, Resources()).config
        for name, value in values.items():
            found = config
            for part in name.split("."):
                found = getattr(found, part)
            assert found == value
    if definition.hyperband:  # as W&B has it, too: it knows nothing of schedules
        assert definition.hyperband.first >= sweep.first_decision


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandbs_agent_issues_the_same_words(file, tmp_path):
    definition = read(file)
    for number in range(1, 4):
        values = Random(definition, 1).propose(number).values
        issued = agent_command(dict(definition.raw), definition.arguments(values), str(tmp_path))
        assert issued == ["tdmpc-prune", *words(definition, values)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_wandbs_agent_would_run_runs_in_debug_size(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
    definition = read(file)
    chosen = search(definition, 1) if definition.method == "grid" else Random(definition, 1)
    values = chosen.propose(2).values
    issued = agent_command(dict(definition.raw), definition.arguments(values), str(tmp_path))
    short = SHORT_AUTOENCODER if "autoencoder" in issued else SHORT
    assert main([*issued[1:], *short, "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_dry_run_says_how_many_there_are(capsys):
    assert main(["sweep", str(FILES[0].with_name("criteria.yaml")), "--dry-run"]) == 0
    assert "... and 300 more" in capsys.readouterr().out
    assert main(["sweep", str(FILES[0].with_name("coupling.yaml")), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["total"] == len(shown["trials"]) == 18
